"""Networks from one codebase's files to another's: `fastdgl convert`."""

from pathlib import Path

import click

from . import interop
from .checkpoints import CheckpointError, open_snapshot, write_snapshot
from .paths import UserPath, why_not_writable


@click.command("convert")
@click.argument("source")
@click.argument("destination", type=UserPath())
def convert_command(source: str, destination: Path) -> None:
    """Networks of another codebase to a snapshot, or a snapshot to those.

    SOURCE: a pickle of NVIDIA's StyleGAN2 (.pkl), a checkpoint of rosinality's (.pt), a generator of BasicSR's (.pth), a folder of
    BigGAN-PyTorch's, a snapshot (.safetensors), or a run folder for its newest. Nothing in it is run.

    DESTINATION: the suffix chooses the format: .safetensors, .pt, .pth, or none for a folder.
    """
    try:
        notes = convert(source, destination)
    except CheckpointError as error:
        raise click.ClickException(str(error)) from None
    for note in notes:
        click.echo(f"note: {note}")
    click.echo(f"networks in {destination}")


def convert(source: str | Path, destination: Path) -> list[str]:
    """Write the networks of a snapshot, or of a file of another codebase, in the format that goes with a suffix.

    Args:
        destination: `.safetensors` for a snapshot, `.pt` for rosinality's networks, `.pth` for BasicSR's, none for a folder of
            BigGAN-PyTorch's.

    Returns:
        What was lost or made up on the way, a sentence each.

    Raises:
        CheckpointError: One is not readable, or not writable, or cannot hold the networks; nothing is left behind.
    """
    reason = why_not_writable(destination)
    if reason:
        raise CheckpointError(f"{destination}: cannot be written: {reason}")
    snapshot = open_snapshot(source)
    # into the networks and out again: what is written fits
    states = {name: snapshot.network(name).state_dict() for name in snapshot.names if name != "D_ema"}
    if destination.suffix == ".safetensors":
        if snapshot.states is None:
            raise CheckpointError(f"{snapshot.path}: is a snapshot of fastdgl already")
        header = {"family": snapshot.family, "seen": snapshot.seen, "classes": snapshot.class_names, "label_kind": snapshot.label_kind, "converted_from": snapshot.path.name}
        write_snapshot(destination, states, {**header, **snapshot.arguments})
        return list(snapshot.notes)
    left_out = ["the averaged discriminator is left out: the format has no place for it"] if snapshot.averaged_D else []
    try:
        return [*snapshot.notes, *left_out, *interop.write(destination, interop.Networks(snapshot.family, snapshot.arguments, states))]
    except interop.ForeignFileError as error:
        raise CheckpointError(f"{snapshot.path} cannot become {destination}: {error}") from None
    except OSError as error:
        raise CheckpointError(f"{destination}: cannot be written: {error}") from None
