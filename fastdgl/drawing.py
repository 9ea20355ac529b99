"""Drawing images with a trained generator: `fastdgl generate`."""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np
import torch
from torch import Tensor, nn

from .checkpoints import CheckpointError, Snapshot, open_snapshot
from .grids import save_image, save_image_grid
from .models.batch_norm import batch_norms, standing_statistics
from .models.stylegan2 import NOISE_MODES
from .samples import INTERPOLATIONS, STEPS, class_grid, draw, interpolation

# numpy's RandomState takes no larger one
MAX_SEED = 2**32 - 1
MAX_SEEDS = 1_000_000
STANDING_BATCH = 64


class Seeds(click.ParamType):
    """Numbers and ranges, `1,2,5-10`."""

    name = "seeds"

    def convert(self, value, param, ctx) -> list[int]:
        seeds: list[int] = []
        for part in value.split(","):
            match = re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())
            if match is None or (match[2] and int(match[2]) < int(match[1])):
                self.fail(f"{value!r} is no list of seeds; expected numbers and ranges such as 1,2,5-10", param, ctx)
            first, last = int(match[1]), int(match[2] or match[1])
            if last > MAX_SEED or last - first >= MAX_SEEDS:
                self.fail(f"{value!r}: expected seeds up to {MAX_SEED}, and at most {MAX_SEEDS} in a range", param, ctx)
            seeds += range(first, last + 1)
        return seeds


@click.command("generate")
@click.option("--network", required=True, help="A snapshot, a run folder for its newest, or what `convert` reads.")
@click.option("--seeds", type=Seeds(), required=True, help="One image each, such as 0-63 or 1,2,5-10.")
@click.option("--class", "chosen", multiple=True, help="Class of the images, by number or name, for a conditional network.")
@click.option("--trunc", "truncation", type=float,
              help="StyleGAN2: psi, 0 is the mean image. BigGAN: numbers of z beyond this are drawn anew. Default: no truncation.")
@click.option("--noise-mode", type=click.Choice(NOISE_MODES), help="StyleGAN2: fixed noise (the default), fresh noise, or none.")
@click.option("--standing", type=click.IntRange(min=1), help="BigGAN: batch norm by the statistics of so many batches of 64 random samples.")
@click.option("--grid", type=click.Choice(["classes"]), help="One sheet, classes.png: a row for each class, a column for each seed.")
@click.option("--interpolate", type=click.Choice(INTERPOLATIONS),
              help="One sheet, interpolation.png, whose rows go from each seed to the next (z), for each seed from one --class to a second "
                   "(class), or both at once.")
@click.option("--outdir", type=click.Path(path_type=Path), required=True, help="Where the images go, as seed0000.png ...")
def generate_command(network: str, seeds: list[int], chosen: tuple[str, ...], truncation: float | None, noise_mode: str | None,
                     standing: int | None, grid: str | None, interpolate: str | None, outdir: Path) -> None:
    """Images of the averaged generator, one per seed; the z of a seed is that of NVIDIA's tools."""
    if grid is not None and interpolate is not None:
        raise click.UsageError(f"--grid {grid} and --interpolate {interpolate} are two sheets; choose one")
    if interpolate in ("z", "both") and len(seeds) < 2:
        raise click.UsageError(f"--interpolate {interpolate} goes from each seed to the next; expected at least two, such as --seeds 0,1")
    try:
        snapshot = open_snapshot(network)
        G = averaged_generator(snapshot)
    except CheckpointError as error:
        raise click.ClickException(str(error)) from None
    wanted = 0 if grid is not None else 2 if interpolate in ("class", "both") else 1
    c = chosen_classes(chosen, wanted, G.c_dim, snapshot.class_names).to(device_of(G))
    check_options(G, snapshot.family, seeds[0], truncation, noise_mode, standing)
    options = {} if noise_mode is None else {"noise_mode": noise_mode}
    if standing is not None:
        stand(G, standing, truncation)
    try:
        outdir.mkdir(parents=True, exist_ok=True)
        if grid is not None:
            z, c, columns = class_grid(latents(G, seeds, truncation), G.c_dim, G.img_resolution)
            written = save_sheet(outdir / "classes.png", draw(G, z, c, truncation, **options), columns)
        elif interpolate is not None:
            z, c = interpolation(latents(G, seeds, truncation), c, interpolate)
            written = save_sheet(outdir / "interpolation.png", draw(G, z, c, truncation, **options), STEPS)
        else:
            for seed in seeds:
                image = draw(G, latents(G, [seed], truncation), c, truncation, **options)[0]
                save_image(outdir / f"seed{seed:04d}.png", image)
            written = f"{len(seeds)} images in {outdir}"
    except OSError as error:
        raise click.ClickException(f"{outdir}: images cannot be written: {error.strerror or error}") from None
    click.echo(written)


def averaged_generator(snapshot: Snapshot) -> nn.Module:
    """G_ema, where images are drawn fastest."""
    return snapshot.averaged_generator("cuda" if torch.cuda.is_available() else "cpu")


def device_of(network: nn.Module) -> torch.device:
    return next(network.parameters()).device


def latents(G: nn.Module, seeds: Sequence[int], truncation: float | None) -> Tensor:
    """The z of each seed, `[N, z_dim]`."""
    return torch.cat([G.sample_z(seed, truncation) for seed in seeds]).to(device_of(G))


def save_sheet(path: Path, images: np.ndarray, columns: int) -> str:
    """Write a sheet, and say so."""
    save_image_grid(path, images, columns)
    return f"{len(images)} images in {path}"


def stand(G: nn.Module, batches: int, truncation: float | None) -> None:
    """Give the batch norms of G the statistics of samples as they will be drawn, of random classes; always the same ones."""
    classes = np.random.RandomState(0).randint(G.c_dim, size=[batches, STANDING_BATCH])
    seeds = np.arange(classes.size).reshape(classes.shape).tolist()
    eye = torch.eye(G.c_dim, device=device_of(G))
    standing_statistics(G, [(latents(G, some, truncation), eye[theirs]) for some, theirs in zip(seeds, classes)])


def check_options(G: nn.Module, family: str, seed: int, truncation: float | None, noise_mode: str | None, standing: int | None) -> None:
    """Refuse what a network of this family does not know."""
    if noise_mode is not None and family != "stylegan2":
        raise click.UsageError(f"--noise-mode {noise_mode}: networks of family {family} take no noise; leave it out")
    if standing is not None and not batch_norms(G):
        raise click.UsageError(f"--standing {standing}: networks of family {family} have no batch norm; leave it out")
    try:
        G.sample_z(seed, truncation)
    except ValueError as error:
        raise click.UsageError(f"--trunc {truncation:g}: {error}") from None


def chosen_classes(chosen: Sequence[str], wanted: int, c_dim: int, names: Sequence[str] | None) -> Tensor:
    """The labels `[wanted, c_dim]` of the classes given by --class; `[1, 0]` for one image of a network without classes."""
    if c_dim == 0 and chosen:
        raise click.UsageError(f"--class {chosen[0]}: this network has no classes; leave it out")
    if c_dim == 0:
        if wanted != 1:
            raise click.UsageError("this network has no classes, of which the sheet would be")
        return torch.zeros(1, 0)
    if len(chosen) != wanted:
        expected = ("leave --class out for a sheet of all", f"choose one with --class 0 to {c_dim - 1}", "choose two, as --class 0 --class 1")
        raise click.UsageError(f"this network makes images of {c_dim} classes, and {len(chosen)} are chosen; {expected[wanted]}")
    return torch.eye(c_dim)[[class_index(one, c_dim, names) for one in chosen]]


def class_index(given: str, c_dim: int, names: Sequence[str] | None) -> int:
    """The class that a number or name stands for; a number is always the class of that number."""
    if re.fullmatch(r"-?\d+", given):
        if not 0 <= int(given) < c_dim:
            raise click.UsageError(f"--class {given}: this network has classes 0 to {c_dim - 1}")
        return int(given)
    if not names:
        raise click.UsageError(f"--class {given}: the classes of this network have no names; choose one with --class 0 to {c_dim - 1}")
    if given not in names:
        near = difflib.get_close_matches(given, names) or names[:10]
        raise click.UsageError(f"--class {given}: this network has no class of that name; it has {', '.join(near)}"
                               f"{' and others' if len(near) < len(names) else ''}")
    return names.index(given)
