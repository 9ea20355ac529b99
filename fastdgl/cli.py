"""The commands around training: `fastdgl dataset`, `fastdgl generate`. Training itself is train.py."""

import re
from pathlib import Path

import click
import numpy as np
import torch

from . import __version__
from .checkpoints import CheckpointError, open_snapshot
from .grids import save_image, to_uint8
from .models.stylegan2 import NOISE_MODES
from .packing import dataset_command


# numpy's RandomState takes no larger one
MAX_SEED = 2**32 - 1
MAX_SEEDS = 1_000_000


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


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Prepare images for a GAN, and use one that was trained."""


main.add_command(dataset_command)


@main.command()
@click.option("--network", required=True, help="A snapshot (.safetensors), or a run folder for its newest.")
@click.option("--seeds", type=Seeds(), required=True, help="One image each, such as 0-63 or 1,2,5-10.")
@click.option("--trunc", "truncation_psi", type=float, default=1.0, show_default=True, help="Truncation psi: 0 is the mean image.")
@click.option("--class", "class_index", type=int, help="Class of the images, for a conditional network.")
@click.option("--noise-mode", type=click.Choice(NOISE_MODES), default="const", show_default=True, help="Fixed noise, fresh noise, or none.")
@click.option("--outdir", type=click.Path(path_type=Path), required=True, help="Where the images go, as seed0000.png ...")
def generate(network: str, seeds: list[int], truncation_psi: float, class_index: int | None, noise_mode: str, outdir: Path) -> None:
    """Images of the averaged generator, one per seed; the z of a seed is that of NVIDIA's tools."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        # a CPU is no faster in 16 bits
        changes = {"num_fp16_res": 0} if device.type == "cpu" else {}
        G = open_snapshot(network).network("G_ema", **changes).to(device)
    except CheckpointError as error:
        raise click.ClickException(str(error)) from None
    c = one_class(class_index, G.c_dim).to(device)
    try:
        outdir.mkdir(parents=True, exist_ok=True)
        for seed in seeds:
            z = torch.from_numpy(np.random.RandomState(seed).randn(1, G.z_dim)).float().to(device)
            with torch.no_grad():
                image = G(z, c, truncation_psi=truncation_psi, noise_mode=noise_mode)
            save_image(outdir / f"seed{seed:04d}.png", to_uint8(image)[0])
    except OSError as error:
        raise click.ClickException(f"{outdir}: images cannot be written: {error.strerror or error}") from None
    click.echo(f"{len(seeds)} images in {outdir}")


def one_class(index: int | None, c_dim: int) -> torch.Tensor:
    """The label `[1, c_dim]` of a class."""
    if c_dim == 0 and index is not None:
        raise click.UsageError(f"--class {index}: this network has no classes; leave it out")
    if c_dim > 0 and index is None:
        raise click.UsageError(f"this network makes images of {c_dim} classes; choose one with --class 0 to {c_dim - 1}")
    if index is not None and not 0 <= index < c_dim:
        raise click.UsageError(f"--class {index}: this network has classes 0 to {c_dim - 1}")
    label = torch.zeros(1, c_dim)
    if index is not None:
        label[0, index] = 1
    return label
