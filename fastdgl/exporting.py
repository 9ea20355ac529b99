"""Generators for those who do not have fastdgl: `fastdgl export`, to ONNX, to a program of PyTorch's, to a folder of the Hub."""

import importlib.util
import io
import json
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np
import torch
from fastdgl_kernels import implementation
from torch import Tensor, nn

from . import __version__
from .atomic_files import atomically
from .checkpoints import CheckpointError, Snapshot, open_snapshot
from .images import VECTORS
from .onnx_opsets import OpsetError, in_opset
from .paths import UserPath, why_not_writable

if TYPE_CHECKING:
    import onnx

FORMATS = ("onnx", "pt2", "hub")
# random noise would be drawn by whoever runs the file, and differently by each
NOISE_MODES = ("const", "none")
# an exported generator may differ from PyTorch's by so much of the largest value, or of 1 where that is larger
TOLERANCE = 1e-3
TRACED_BATCH = 2
# versions of ONNX's operators: that which is written, the oldest that PyTorch's exporter writes by itself, and those that can be asked for
OPSET, OLDEST_TRACED, MIN_OPSET, MAX_OPSET = 20, 18, 13, 23
LATENTS = ("z", "w")
# other than the one that was traced, and the one that is special to broadcasting
CHECKED_BATCHES = (1, 3)

Draw = Callable[..., Tensor]


class ExportError(ValueError):
    """What cannot be exported, or not here, in one sentence."""


@click.command("export")
@click.option("--network", required=True, help="A snapshot, a run folder for its newest, or what `convert` reads.")
@click.option("--format", "kind", type=click.Choice(FORMATS), required=True,
              help="An ONNX file, a program that torch.export.load opens, or a folder for the Hugging Face Hub.")
@click.option("--trunc", "truncation", type=float, help="StyleGAN2, in onnx and pt2: psi, 0 is the mean image. Default: no truncation.")
@click.option("--noise-mode", type=click.Choice(NOISE_MODES), help="StyleGAN2, in onnx and pt2: fixed noise (the default), or none.")
@click.option("--opset", type=click.IntRange(MIN_OPSET, MAX_OPSET), help=f"Of an ONNX file, for runtimes that know none later.  [default: {OPSET}]")
@click.option("--from", "latent", type=click.Choice(LATENTS), default="z", show_default=True,
              help="StyleGAN2, in onnx and pt2: whether the file takes z and classes, or ws [N, num_ws, w_dim], as mapping networks give them.")
@click.argument("destination", type=UserPath())
def export_command(network: str, kind: str, truncation: float | None, noise_mode: str | None, opset: int | None, latent: str, destination: Path) -> None:
    """The averaged generator at DESTINATION, for use without fastdgl, or from the Hugging Face Hub.

    An ONNX file and a PyTorch program take z [N, z_dim], and one-hot classes c [N, c_dim] if there are any, and give
    images [N, channels, R, R] about [-1, 1], for any N, in fp32.
    """
    try:
        notes = export(network, destination, kind, truncation, noise_mode, opset=opset, latent=latent)
    except (CheckpointError, ExportError) as error:
        raise click.ClickException(str(error)) from None
    for note in notes:
        click.echo(f"note: {note}")
    click.echo(f"generator in {destination}")


def export(source: str | Path, destination: Path, kind: str, truncation: float | None = None, noise_mode: str | None = None, *,
           opset: int | None = None, latent: str = "z") -> list[str]:
    """Write the averaged generator of a snapshot, or of a file of another codebase, in one of FORMATS.

    Files are compared with PyTorch's images first, and are written whole or not at all.

    Args:
        truncation, noise_mode: Of `sample_images` of a StyleGAN2; they are part of the file.
        opset: Of an ONNX file, MIN_OPSET to MAX_OPSET; None for OPSET.
        latent: What the file takes: "z", and classes, or a StyleGAN2's "w".

    Returns:
        What is to be known about it, a sentence each.

    Raises:
        CheckpointError: `source` is not readable.
        ExportError: The options do not go with the network or the format, a package is missing, the file would draw
            other images, or it cannot be written.
    """
    # before minutes go into the file
    reason = why_not_writable(destination)
    if reason:
        raise ExportError(f"{destination}: cannot be written: {reason}")
    snapshot = open_snapshot(source)
    options = {"--trunc": truncation, "--noise-mode": noise_mode}
    for option, value in options.items():
        if value is not None and snapshot.family != "stylegan2":
            raise ExportError(f"{option} {value}: a generator of family {snapshot.family} takes no such option: its noise is z, which whoever "
                              f"runs the file draws, truncated or not; leave it out")
        if value is not None and kind == "hub":
            raise ExportError(f"{option} {value}: a folder for the Hub holds the network, and who draws with it chooses; leave it out")
    if opset is not None and kind != "onnx":
        raise ExportError(f"--opset {opset}: is the version of ONNX's operators, and {kind} has none; leave it out")
    if latent == "w" and (kind == "hub" or snapshot.family != "stylegan2"):
        raise ExportError(f"--from w: {'a folder for the Hub holds the whole network' if kind == 'hub' else f'a generator of family {snapshot.family} has no w'}; leave it out")
    if latent == "w" and truncation is not None:
        raise ExportError(f"--trunc {truncation}: pulls on w, which whoever runs the file gives, truncated or not; leave it out")
    try:
        if kind == "hub":
            snapshot.network("G_ema").save_pretrained(destination, snapshot.class_names)
            return list(snapshot.notes)
        if kind == "onnx":
            check_installed("onnx", "onnxscript")
        G = snapshot.averaged_generator("cpu")
        drawing = (DrawingFromW if latent == "w" else Drawing)(G, truncation, noise_mode)
        data, notes = pt2_file(drawing) if kind == "pt2" else onnx_file(drawing, opset or OPSET, description(snapshot, drawing))
        with atomically(destination) as unfinished:
            unfinished.write_bytes(data)
        return [*snapshot.notes, *notes]
    except OSError as error:
        raise ExportError(f"{destination}: cannot be written: {error.strerror or error}") from None


class Drawing(nn.Module):
    """A generator as it leaves: z, and a class where there are some, to images; truncation and noise are decided."""

    # names of what `example` returns
    inputs: tuple[str, ...] = ("z", "c")

    def __init__(self, G: nn.Module, truncation: float | None, noise_mode: str | None):
        super().__init__()
        self.G, self.truncation = G, truncation
        self.options = {} if noise_mode is None else {"noise_mode": noise_mode}

    def forward(self, z: Tensor, c: Tensor | None = None) -> Tensor:
        """`[N, z_dim]`, `[N, c_dim]` -> `[N, img_channels, R, R]`."""
        return self.G.sample_images(z, c, self.truncation, **self.options)

    def example(self, N: int) -> tuple[Tensor, ...]:
        """What it takes for N images: latents, and classes where there are some."""
        z = torch.cat([self.G.sample_z(seed) for seed in range(N)])
        return (z, torch.eye(self.G.c_dim)[torch.arange(N) % self.G.c_dim]) if self.G.c_dim else (z,)


class DrawingFromW(Drawing):
    """The synthesis network of a StyleGAN2 as it leaves: w of each layer to images; noise is decided."""

    inputs = ("ws",)

    def forward(self, ws: Tensor) -> Tensor:
        """`[N, num_ws, w_dim]` -> `[N, img_channels, R, R]`."""
        return self.G.synthesis(ws, **{"noise_mode": "const"} | self.options)

    @torch.no_grad()
    def example(self, N: int) -> tuple[Tensor, ...]:
        """ws of N images."""
        return (self.G.mapping(*super().example(N)),)


def description(snapshot: Snapshot, drawing: Drawing) -> dict[str, str]:
    """What a file says of its generator, to whoever has no more than the file."""
    said = {"family": snapshot.family, "images": "[N, channels, R, R], about [-1, 1]", "made_by": f"fastdgl {__version__}"}
    if snapshot.label_kind == VECTORS:
        said["labels"] = f"vectors of {snapshot.arguments['G']['c_dim']} numbers"
    elif snapshot.arguments["G"]["c_dim"]:
        said["classes"] = json.dumps(list(snapshot.class_names or range(snapshot.arguments["G"]["c_dim"])), ensure_ascii=False)
    if snapshot.family == "stylegan2":
        said |= {"truncation_psi": str(1.0 if drawing.truncation is None else drawing.truncation), "noise_mode": drawing.options.get("noise_mode", "const")}
    return said


def traced(drawing: Drawing) -> torch.export.ExportedProgram:
    """The operators of PyTorch that `drawing` runs, for a batch of any size.

    Activations are scaled by the styles, and not the weights of a convolution, which are constants of the program.
    """
    inputs, N = drawing.example(TRACED_BATCH), torch.export.Dim("N")
    with torch.no_grad(), implementation("reference"):
        return torch.export.export(drawing, inputs, dynamic_shapes=tuple({0: N} for _ in inputs))


def pt2_file(drawing: Drawing) -> tuple[bytes, list[str]]:
    """What `torch.export.load` of this PyTorch opens, and what is to be known about it."""
    file = io.BytesIO()
    torch.export.save(traced(drawing), file)
    check_images(drawing, torch.export.load(io.BytesIO(file.getvalue())).module(), "PyTorch's program")
    return file.getvalue(), []


def onnx_file(drawing: Drawing, opset: int, said: Mapping[str, str]) -> tuple[bytes, list[str]]:
    """An ONNX model with inputs z, and c, and output images, weights included; and what is to be known about it.

    Args:
        said: Written into the model's metadata.

    Raises:
        ExportError: It cannot be written with operators of that version, or draws other images.
    """
    names = list(drawing.inputs[:len(drawing.example(1))])
    with quiet():
        model = torch.onnx.export(traced(drawing), (), dynamo=True, input_names=names, output_names=["images"], verbose=False, opset_version=max(opset, OLDEST_TRACED)).model_proto
        if opset < OLDEST_TRACED:
            try:
                model = in_opset(model, opset)
            except OpsetError as error:
                raise ExportError(f"--opset {opset}: {error}; use --opset {OLDEST_TRACED}") from None
    name_batch(model)
    for key, value in said.items():
        model.metadata_props.add(key=key, value=value)
    data = model.SerializeToString()
    if importlib.util.find_spec("onnxruntime") is None:
        return data, ["its images were not compared with PyTorch's: onnxruntime is not installed"]
    import onnxruntime

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])

    def draw(*inputs: Tensor) -> Tensor:
        return torch.from_numpy(np.asarray(session.run(None, {name: x.numpy() for name, x in zip(names, inputs)})[0]))

    check_images(drawing, draw, "the ONNX model")
    return data, []


def name_batch(model: "onnx.ModelProto") -> None:
    """Call the axis of the batch N, wherever it is named; PyTorch's exporter makes up a name."""
    old = next((dim.dim_param for value in model.graph.input for dim in value.type.tensor_type.shape.dim[:1]), "")
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = re.sub(rf"\b{re.escape(old)}\b", "N", dim.dim_param)


@torch.no_grad()
def check_images(drawing: Drawing, draw: Draw, what: str) -> None:
    """Refuse an exported generator whose images are not those of `drawing`.

    Raises:
        ExportError: A value differs by more than TOLERANCE.
    """
    for N in CHECKED_BATCHES:
        inputs = drawing.example(N)
        expected, got = drawing(*inputs), draw(*inputs)
        allowed = TOLERANCE * max(expected.abs().max().item(), 1)
        if got.shape != expected.shape or not (got - expected).abs().max().item() <= allowed:
            raise ExportError(f"{what} draws other images than PyTorch, for a batch of {N}, and was not written; "
                              f"try another version of torch, onnx or onnxruntime")


@contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings of PyTorch's exporter to itself: of functions that PyTorch deprecates, of a torchvision that is not there."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


def check_installed(*packages: str) -> None:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ExportError(f"to write ONNX {' and '.join(missing)} must be installed: pip install -c constraints.txt -e \".[export]\"")
