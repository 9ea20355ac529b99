"""Drawing images with a trained generator: `fastdgl generate`."""

import re
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import click
import numpy as np
import torch
from torch import Tensor, nn

from .checkpoints import CheckpointError, Snapshot, open_snapshot
from .grids import save_image, save_image_grid
from .models.batch_norm import batch_norms, standing_statistics
from .models.stylegan2 import NOISE_MODES
from .paths import UserPath, expanded
from .requested_labels import requested_labels
from .samples import INTERPOLATIONS, STEPS, between, class_grid, draw, draw_w, interpolation

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
@click.option("--seeds", type=Seeds(), help="One image each, such as 0-63 or 1,2,5-10.")
@click.option("--class", "--label", "given", multiple=True,
              help="Label of the images, for a conditional network: a class by name or number, or a vector such as 0.2,0.5 or a file with one.")
@click.option("--w", "--projected-w", "w_files", multiple=True, type=click.Path(path_type=Path),
              help="StyleGAN2: draw the w in a file instead of seeds, as projectors leave it: .npz with `w`, or .npy; [N, L, W], [L, W] or [W].")
@click.option("--trunc", "truncation", type=float,
              help="StyleGAN2: psi, 0 is the mean image. BigGAN: values of z beyond this are resampled. Default: no truncation.")
@click.option("--noise-mode", type=click.Choice(NOISE_MODES), help="StyleGAN2: fixed noise (the default), fresh noise, or none.")
@click.option("--standing", type=click.IntRange(min=1), help="BigGAN: batch norm by the statistics of so many batches of 64 random samples.")
@click.option("--grid", type=click.Choice(["classes"]), help="One sheet, classes.png: a row for each class, a column for each seed.")
@click.option("--interpolate", type=click.Choice(INTERPOLATIONS),
              help="One sheet, interpolation.png, whose rows go from each seed to the next in z or w, for each seed from one --class to a second "
                   "(class), or both z and class at once.")
@click.option("--steps", type=click.IntRange(2, 10_000), default=STEPS, show_default=True, help="Images of an interpolation from one end to the other.")
@click.option("--frames", is_flag=True, help="Write each image of an interpolation as frame0000.png ... instead of one sheet.")
@click.option("--outdir", type=UserPath(), required=True, help="Where the images go, as seed0000.png, seed0000-class3.png ...")
def generate_command(network: str, seeds: list[int] | None, given: tuple[str, ...], w_files: tuple[Path, ...], truncation: float | None,
                     noise_mode: str | None, standing: int | None, grid: str | None, interpolate: str | None, steps: int, frames: bool,
                     outdir: Path) -> None:
    """Images of the averaged generator, one per seed; the z of a seed is that of NVIDIA's tools."""
    check_combination(seeds, given, w_files, truncation, grid, interpolate, frames)
    try:
        snapshot = open_snapshot(network)
        G = averaged_generator(snapshot)
    except CheckpointError as error:
        raise click.ClickException(str(error)) from None
    # labels and options are checked before anything is drawn
    if w_files:
        check_options(G, snapshot.family, None, None, noise_mode, standing)
        ws = torch.cat([given_w(path, G) for path in w_files]).to(device_of(G))
        labels = []
    else:
        wanted = 0 if grid is not None else 2 if interpolate in ("class", "both") else 1
        labels = requested_labels(given, wanted, G.c_dim, snapshot.label_kind, snapshot.class_names)
        check_options(G, snapshot.family, seeds[0], truncation, noise_mode, standing)
        if interpolate == "w" and not hasattr(G, "mapping"):
            raise click.UsageError(f"--interpolate w: networks of family {snapshot.family} have no w; use --interpolate z")
        c = torch.stack([label.vector for label in labels]).to(device_of(G)) if labels else None
    if G.c_dim and given and snapshot.label_kind is None:
        click.echo(f"note: {snapshot.path} does not say whether its labels are classes or vectors: a whole number was taken as a class", err=True)
    options = {} if noise_mode is None else {"noise_mode": noise_mode}
    if standing is not None:
        stand(G, standing, truncation)

    written = Written(outdir)
    try:
        outdir.mkdir(parents=True, exist_ok=True)
        if grid is not None:
            z, c, columns = class_grid(latents(G, seeds, truncation), G.c_dim, G.img_resolution)
            written.sheet("classes.png", draw(G, z, c, truncation, **options), columns)
        elif interpolate is not None:
            if interpolate == "w":
                ends = ws if w_files else w_of(G, latents(G, seeds, truncation), c, truncation)
                images = draw_w(G, between(ends[:-1], ends[1:], steps), **options)
            else:
                z, c = interpolation(latents(G, seeds, truncation), c, interpolate, steps)
                images = draw(G, z, c, truncation, **options)
            if frames:
                for i, image in enumerate(images):
                    written.image(f"frame{i:04d}.png", image)
            else:
                written.sheet("interpolation.png", images, steps)
        elif w_files:
            stem = w_files[0].stem
            for i, image in enumerate(draw_w(G, ws, **options)):
                written.image(f"{stem}-{i:04d}.png", image)
        else:
            tag = f"-{labels[0].tag}" if labels[0].tag else ""
            for seed in seeds:
                written.image(f"seed{seed:04d}{tag}.png", draw(G, latents(G, [seed], truncation), c, truncation, **options)[0])
    except OSError as error:
        raise click.ClickException(f"{outdir}: images cannot be written: {error.strerror or error}") from None
    click.echo(str(written))


def check_combination(seeds: Sequence[int] | None, given: Sequence[str], w_files: Sequence[Path], truncation: float | None, grid: str | None,
                      interpolate: str | None, frames: bool) -> None:
    """Reject options that do not go together.

    Raises:
        click.UsageError: Two do not.
    """
    if grid is not None and interpolate is not None:
        raise click.UsageError(f"--grid {grid} and --interpolate {interpolate} are two sheets; choose one")
    if frames and interpolate is None:
        raise click.UsageError("--frames are those of an interpolation; add --interpolate z")
    if w_files:
        beside = {"--seeds": seeds is not None, "--class": bool(given), "--trunc": truncation is not None, "--grid": grid is not None,
                  f"--interpolate {interpolate}": interpolate not in (None, "w")}
        for option in (option for option, there in beside.items() if there):
            raise click.UsageError(f"{option} says what w is made of, and --w gives it; leave one of the two out")
    elif seeds is None:
        raise click.UsageError("nothing says what to draw; give --seeds 0-63, or --w FILE for given w")
    elif interpolate in ("z", "both", "w") and len(seeds) < 2:
        raise click.UsageError(f"--interpolate {interpolate} goes from each seed to the next; expected at least two, such as --seeds 0,1")


class Written:
    """The images that a call writes into a folder, and which of them replaced others."""

    def __init__(self, folder: Path):
        self.folder, self.count, self.sheet_name = folder, 0, ""
        self.replaced: list[str] = []

    def image(self, name: str, image: np.ndarray) -> None:
        self._save(name, lambda path: save_image(path, image))
        self.count += 1

    def sheet(self, name: str, images: np.ndarray, columns: int) -> None:
        self._save(name, lambda path: save_image_grid(path, images, columns))
        self.count, self.sheet_name = len(images), name

    def _save(self, name: str, save: Callable[[Path], None]) -> None:
        path = self.folder / name
        before = path.read_bytes() if path.is_file() else None
        save(path)
        if before is not None and path.read_bytes() != before:
            self.replaced.append(name)

    def __str__(self) -> str:
        said = f"{self.count} images in {self.folder / self.sheet_name}"
        if self.replaced:
            said += f"\nnote: {len(self.replaced)} file{'s' if len(self.replaced) > 1 else ''} of an earlier call, such as {self.replaced[0]}, were replaced by other images"
        return said


def given_w(path: Path, G: nn.Module) -> Tensor:
    """Return the w in a file, `[N, num_ws, w_dim]`; one w stands for all layers.

    Raises:
        click.UsageError: G has no w, or the file holds none that fits.
    """
    if not hasattr(G, "mapping"):
        raise click.UsageError(f"--w {path}: a {G.family} has no w; draw it by --seeds")
    path, expected = Path(expanded(path)), f"expected `w` [N, {G.num_ws}, {G.w_dim}], [{G.num_ws}, {G.w_dim}] or [{G.w_dim}]"
    try:
        found = np.load(path, allow_pickle=False)
        if isinstance(found, np.lib.npyio.NpzFile):
            name = "w" if "w" in found.files else found.files[0] if len(found.files) == 1 else None
            if name is None:
                raise click.UsageError(f"--w {path}: holds {', '.join(found.files[:5]) or 'nothing'} and no `w`; {expected}")
            found = found[name]
        w = torch.from_numpy(np.asarray(found, np.float32))
    # what NumPy makes of damaged files; an array of objects is a pickle, which is not opened
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise click.UsageError(f"--w {path}: cannot be read: {' '.join(str(error).split())[:150]}; {expected}") from None
    if w.ndim == 1:
        w = w.expand(G.num_ws, -1)
    if w.ndim == 2:
        w = w[None]
    if w.ndim == 3 and w.shape[1] == 1:
        w = w.expand(-1, G.num_ws, -1)
    if w.ndim != 3 or not len(w) or tuple(w.shape[1:]) != (G.num_ws, G.w_dim):
        raise click.UsageError(f"--w {path}: holds w of shape {list(found.shape)}; {expected}, as this network has")
    if not w.isfinite().all():
        raise click.UsageError(f"--w {path}: holds NaN or infinity; {expected}")
    return w


@torch.no_grad()
def w_of(G: nn.Module, z: Tensor, c: Tensor, truncation: float | None) -> Tensor:
    """Return the w of z and one label, `[N, num_ws, w_dim]`."""
    return G.mapping(z, c.expand(len(z), -1), 1.0 if truncation is None else truncation)


def averaged_generator(snapshot: Snapshot) -> nn.Module:
    """G_ema, where images are drawn fastest."""
    return snapshot.averaged_generator("cuda" if torch.cuda.is_available() else "cpu")


def device_of(network: nn.Module) -> torch.device:
    return next(network.parameters()).device


def latents(G: nn.Module, seeds: Sequence[int], truncation: float | None) -> Tensor:
    """The z of each seed, `[N, z_dim]`."""
    return torch.cat([G.sample_z(seed, truncation) for seed in seeds]).to(device_of(G))


def stand(G: nn.Module, batches: int, truncation: float | None) -> None:
    """Give the batch norms of G the statistics of samples as they will be drawn, of random classes; always the same ones."""
    classes = np.random.RandomState(0).randint(G.c_dim, size=[batches, STANDING_BATCH])
    seeds = np.arange(classes.size).reshape(classes.shape).tolist()
    eye = torch.eye(G.c_dim, device=device_of(G))
    standing_statistics(G, [(latents(G, some, truncation), eye[theirs]) for some, theirs in zip(seeds, classes)])


def check_options(G: nn.Module, family: str, seed: int | None, truncation: float | None, noise_mode: str | None, standing: int | None) -> None:
    """Refuse what a network of this family does not know."""
    if noise_mode is not None and family != "stylegan2":
        raise click.UsageError(f"--noise-mode {noise_mode}: networks of family {family} take no noise; leave it out")
    if standing is not None and not batch_norms(G):
        raise click.UsageError(f"--standing {standing}: networks of family {family} have no batch norm; leave it out")
    if seed is None:
        return
    try:
        G.sample_z(seed, truncation)
    except ValueError as error:
        raise click.UsageError(f"--trunc {truncation:g}: {error}") from None
