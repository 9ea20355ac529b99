"""What a run leaves behind: network snapshots to use, and training checkpoints to go on from.

A snapshot is one safetensors file with G, D and the averages of both, and in its header all that is needed to build them;
opening it runs no code. Files of other codebases are opened as snapshots too, which runs none of theirs. A checkpoint is a
folder with everything a run needs to continue; it appears whole or not at all.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
import torch.distributed as dist
from torch import Tensor, nn

from . import config as configs
from . import interop, models
from .atomic_files import UNFINISHED, DiskFullError, atomically, free_space, put_in_place, writing
from .download import DownloadError, fetched, is_address
from .engines import Engine, check_state, first_rank_decides
from .images import CLASSES, VECTORS, ImageDataset, composed
from .models.pretrained import CONFIG, PretrainedError, is_pretrained, read_config, read_state
from .models.skeletons import Skeletons
from .models.stylegan2 import MappingNetwork
from .paths import expanded
from .sentences import printable

FORMAT = 1
LABEL_KINDS = (CLASSES, VECTORS)
SNAPSHOT_NAME = "network-snapshot-{:06d}.safetensors"
SNAPSHOT_PATTERN = "network-snapshot-[0-9]*.safetensors"
BEST_NAME = "network-snapshot-best.safetensors"
CHECKPOINTS = "checkpoints"
CHECKPOINT_NAME = "{:010d}"
# the file with what a run needs to go on besides its engines
STATE = "state"
# of z whose mean w stands in for one that a file does not hold; rosinality's tools take as many
MEAN_OF_W_SAMPLES = 4096
# for so many z of it to fit into memory
MAX_LATENT = 8192
# what a number of a network may be written in
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, *FLOATS)
WITHOUT_D = "it holds no discriminator: it draws images, and can neither teach nor be the start of a run"


class CheckpointError(ValueError):
    """A snapshot or checkpoint that is missing, damaged, or of something else, in one sentence."""

    def __init__(self, message: str):
        super().__init__(printable(message))


@dataclass(frozen=True)
class Snapshot:
    """The header of a snapshot; `network` builds what is in it.

    arguments: `{"G": ..., "D": ...}`, what `models.generator` and `models.discriminator` take; without "D" where a file
        of another codebase has none.
    seen: Real images shown to D until then, as far as the file says.
    class_names: Of class 0, 1, ..., where the training set gave them.
    label_kind: CLASSES or VECTORS, what its labels are; None without labels, and where the file does not say.
    states: The tensors of a file of another codebase; None for those in `path`.
    notes: What was lost or made up on the way from another codebase, a sentence each.
    without_D: Where there is no D, why, and what follows.
    averaged_D: Whether it also holds the averaged D, as D_ema.
    best: Of a run's best snapshot: by which number it was chosen, its value, and of which detector; else None.
    """

    path: Path
    family: str
    arguments: Mapping[str, Mapping[str, Any]]
    seen: int
    class_names: Sequence[str] | None
    states: Mapping[str, Mapping[str, Tensor]] | None = None
    notes: Sequence[str] = ()
    without_D: str = WITHOUT_D
    best: Mapping[str, Any] | None = None
    label_kind: str | None = None
    averaged_D: bool = False

    @property
    def folder(self) -> Path:
        """Where what belongs to it lies: its metrics, and its run's statistics."""
        return self.path if self.path.is_dir() else self.path.parent

    @property
    def names(self) -> list[str]:
        """The networks in it."""
        return (["G", "D", "G_ema"] if "D" in self.arguments else ["G", "G_ema"]) + (["D_ema"] if self.averaged_D else [])

    @property
    def minibatch_group(self) -> int:
        """How many samples of a batch D compares with each other; 1 where each is scored by itself."""
        _, discriminator = models.FAMILIES[self.family]
        return 1 if discriminator.independent_samples else self.arguments["D"]["mbstd_group_size"]

    def network(self, name: str, **changes: Any) -> nn.Module:
        """The network `name`, one of G, D, G_ema, D_ema, in eval mode on the CPU.

        Args:
            changes: Arguments to build it with instead of those it was saved with.

        Raises:
            CheckpointError: The tensors in the file are not those of that network, or it has no D.
        """
        kind = name.removesuffix("_ema")
        if kind == "D":
            check_has_discriminator(self)
        if name == "D_ema" and not self.averaged_D:
            raise CheckpointError(f"{self.path}: it holds no averaged discriminator; expected a snapshot of a run with train.ema_discriminator")
        make = models.discriminator if kind == "D" else models.generator
        arguments = {**self.arguments[kind], **changes}
        try:
            # a skeleton: what a file asks for may be more than there is, and what it holds is compared first
            with Skeletons():
                network = make(self.family, arguments).eval()
        except (TypeError, ValueError, RuntimeError, ArithmeticError) as error:
            raise CheckpointError(f"{self.path}: asks for a network this fastdgl does not know: {' '.join(str(error).split())}") from None
        network = filled(network, self.state_dict(name), f"{name} in {self.path}")
        # which labels it may be called with: a vector's network takes no class numbers
        network.label_kind = self.label_kind
        return network

    def teacher_name(self, average: bool) -> str:
        """Return which discriminator teaches: `D_ema` where it is wanted and the file holds it, else `D`."""
        return "D_ema" if average and self.averaged_D else "D"

    def averaged_generator(self, device: str | torch.device) -> nn.Module:
        """G_ema on `device`, to draw images with; on a CPU, which is no faster in 16 bits, it computes in fp32.

        Raises:
            CheckpointError: As of `network`.
        """
        in_16_bits = torch.device(device).type != "cpu" or "num_fp16_res" not in self.arguments["G"]
        return self.network("G_ema", **({} if in_16_bits else {"num_fp16_res": 0})).to(device)

    def state_dict(self, name: str) -> dict[str, Tensor]:
        """The tensors of the network `name`."""
        if self.states is not None:
            return dict(self.states[name])
        prefix = name + "."
        try:
            with safetensors.safe_open(self.path, framework="pt") as file:
                return {key.removeprefix(prefix): file.get_tensor(key) for key in file.keys() if key.startswith(prefix)}
        # LookupError, ValueError: a dtype that this PyTorch or safetensors does not know
        except (OSError, safetensors.SafetensorError, LookupError, ValueError) as error:
            raise CheckpointError(f"{self.path}: cannot be read: {error}") from None


def save_snapshot(path: Path, networks: Mapping[str, nn.Module], config: configs.Config, dataset: ImageDataset, seen: int) -> None:
    """Write the networks G, D, G_ema and, where there is one, D_ema, in fp32, with what it takes to build them.

    Args:
        dataset: The training set, whose classes are kept.
        seen: Real images shown to D so far.

    Raises:
        CheckpointError: It cannot be written there; nothing is left behind.
    """
    c_dim = dataset.label_dim
    header = {"family": config.model.family, "seen": seen, "classes": dataset.class_names, "label_kind": dataset.label_kind,
              "G": config.model.generator_arguments(c_dim), "D": config.model.discriminator_arguments(c_dim),
              "averaged_D": "D_ema" in networks, "config": configs.to_dict(config)}
    write_snapshot(path, {name: network.state_dict() for name, network in networks.items()}, header)


def write_snapshot(path: Path, states: Mapping[str, Mapping[str, Tensor]], header: Mapping[str, Any]) -> None:
    """Write a snapshot's file from the state dicts of its networks and what its header says, the format left out.

    Raises:
        CheckpointError: It cannot be written there; nothing is left behind.
    """
    _write(path, {f"{name}.{key}": value.detach().float().cpu().contiguous() for name, state in states.items() for key, value in state.items()}, header)


def _write(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    try:
        with atomically(path) as unfinished:
            safetensors.torch.save_file(dict(tensors), unfinished, metadata={"fastdgl": json.dumps({"format": FORMAT, **header})})
    except DiskFullError as error:
        raise CheckpointError(str(error)) from None
    except (OSError, safetensors.SafetensorError) as error:
        # which names no file, and does not say what kind of error it was
        free = f"; {free_space(path)} free" if isinstance(error, safetensors.SafetensorError) else ""
        raise CheckpointError(f"{path}: cannot be written: {error}{free}") from None


def keep_as_best(path: Path, choice: Mapping[str, Any]) -> None:
    """Copy a snapshot to BEST_NAME beside it.

    Args:
        choice: What `Snapshot.best` of the copy says.

    Raises:
        CheckpointError: It cannot be written; the best before it stays.
    """
    with safetensors.safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["fastdgl"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}
    _write(path.with_name(BEST_NAME), tensors, header | {"best": dict(choice)})


def saved_snapshots(folder: Path) -> list[Path]:
    """The snapshots of a run, oldest first; its best, which is a copy of one, is not among them."""
    return sorted(folder.glob(SNAPSHOT_PATTERN))


def remove_old_snapshots(newest: Path, keep: int) -> None:
    """Remove the snapshots before `newest`, but for as many of the newest as make `keep` together with it.

    Those after it, which a run that was resumed from an earlier checkpoint has left, are about to be replaced, and stay.
    """
    for old in [path for path in saved_snapshots(newest.parent) if path.name <= newest.name][:-keep]:
        old.unlink()


def open_snapshot(path: str | Path) -> Snapshot:
    """The snapshot at `path`, or the newest one in the run folder at `path`.

    A file of another codebase is converted in memory; a folder that `save_pretrained` wrote is a snapshot without D. A file of an
    http address is fetched once and kept; `~` is the home folder.

    Raises:
        CheckpointError: There is none, or it is neither one of ours nor of a codebase that `interop` knows.
    """
    path = local(path)
    if is_pretrained(path):
        return _pretrained(path)
    # os.path, which answers where a folder on the way may not be entered
    if os.path.isdir(path) and not interop.is_foreign(path):
        snapshots = saved_snapshots(path)
        if not snapshots:
            raise CheckpointError(f"{path}: no network snapshot in this folder; expected a {SNAPSHOT_PATTERN}")
        path = snapshots[-1]
    if not os.path.isfile(path) and not os.path.isdir(path):
        raise CheckpointError(f"{path}: no such file; expected a snapshot that fastdgl saved ({SNAPSHOT_PATTERN})")
    try:
        foreign = interop.is_foreign(path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from None
    if foreign:
        return _converted(path)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})["fastdgl"])
        if header["format"] != FORMAT:
            raise CheckpointError(f"{path}: is in format {header['format']}, this fastdgl reads format {FORMAT}")
        return _recognised(Snapshot(path, header["family"], {name: header[name] for name in ("G", "D") if name in header},
                                    header["seen"], header["classes"], best=header.get("best"), label_kind=header.get("label_kind"),
                                    averaged_D=header.get("averaged_D", False)))
    except CheckpointError:
        raise
    except (safetensors.SafetensorError, KeyError, TypeError, AttributeError, ValueError, RecursionError, OSError):
        raise CheckpointError(f"{path}: is not a snapshot of fastdgl, or is damaged; expected a safetensors file "
                              f"written by fastdgl/train.py") from None


def local(source: str | Path) -> Path:
    """Where a snapshot lies on this machine; one of an address is fetched where that has not been done yet.

    Raises:
        CheckpointError: It cannot be fetched.
    """
    if is_address(source):
        try:
            return fetched(str(source))
        except (DownloadError, OSError) as error:
            raise CheckpointError(str(error)) from None
    # a folder that is called ~ is ./~
    return Path(expanded(source))


def _recognised(snapshot: Snapshot) -> Snapshot:
    """The snapshot, if its header says what all that use one ask for.

    Raises:
        CheckpointError: It is of another family.
        KeyError, TypeError: Something is missing, or of another type.
    """
    texts = snapshot.class_names or []
    if type(snapshot.family) is not str or type(snapshot.seen) is not int or snapshot.seen < 0 or not isinstance(texts, (list, tuple)):
        raise TypeError
    if not isinstance(snapshot.best, (Mapping, type(None))) or snapshot.label_kind not in (None, *LABEL_KINDS):
        raise TypeError
    if type(snapshot.averaged_D) is not bool or (snapshot.averaged_D and "D" not in snapshot.arguments):
        raise TypeError
    if not all(type(text) is str for text in texts) or not all(isinstance(arguments, Mapping) for arguments in snapshot.arguments.values()):
        raise TypeError
    if snapshot.family not in models.FAMILIES:
        raise CheckpointError(f"{snapshot.path}: holds networks of family {snapshot.family!r}; expected one of {', '.join(models.FAMILIES)}")
    for key in ("img_resolution", "img_channels", "c_dim"):
        if type(snapshot.arguments["G"][key]) is not int:
            raise TypeError
    if "D" in snapshot.arguments:
        snapshot.minibatch_group
    return _with_label_kind(snapshot)


def _with_label_kind(snapshot: Snapshot) -> Snapshot:
    """Return the snapshot with the kind of its labels where the file leaves it out, but only classes are possible."""
    # names are those of classes, and a family may take no vectors
    sure = snapshot.class_names or not models.FAMILIES[snapshot.family][0].vector_labels
    return replace(snapshot, label_kind=CLASSES) if snapshot.label_kind is None and snapshot.arguments["G"]["c_dim"] and sure else snapshot


def _pretrained(folder: Path) -> Snapshot:
    """A folder that `save_pretrained` wrote, whose one generator is G and G_ema."""
    try:
        family, arguments, class_names, label_kind = read_config(folder)
        state = read_state(folder)
        return _recognised(Snapshot(folder, family, {"G": arguments}, 0, class_names, {"G": state, "G_ema": state}, [WITHOUT_D],
                                    label_kind=label_kind))
    except PretrainedError as error:
        raise CheckpointError(str(error)) from None
    except (KeyError, TypeError):
        raise CheckpointError(f"{folder}: its {CONFIG} describes no generator; expected a folder that save_pretrained wrote") from None


def _converted(path: Path) -> Snapshot:
    """A file of another codebase."""
    try:
        found = interop.read(path)
    except interop.ForeignFileError as error:
        raise CheckpointError(f"{path}: {error}") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from None
    states, notes = {name: dict(state) for name, state in found.states.items()}, list(found.notes)
    if found.family == "stylegan2" and "mapping.w_avg" not in states["G_ema"] and found.arguments["G"]["c_dim"] == 0:
        for name in ("G", "G_ema"):
            states[name]["mapping.w_avg"] = mean_of_w(found.arguments["G"], states[name], f"{name} in {path}")
        notes.append(f"the mean of w, to which truncation pulls, is not in the file: it is that of {MEAN_OF_W_SAMPLES} random z")
    snapshot = _with_label_kind(Snapshot(path, found.family, found.arguments, 0, None, states, notes))
    unusable = found.unusable
    if "D" in found.arguments:
        try:
            with Skeletons():
                check_fits(models.discriminator(found.family, found.arguments["D"]), states["D"], "D")
            return snapshot
        except (TypeError, ValueError, RuntimeError, ArithmeticError) as error:
            unusable = " ".join(str(error).split())
    without_D = WITHOUT_D if not unusable else f"its discriminator is left out, since fastdgl cannot build it ({unusable}): {WITHOUT_D.partition(': ')[2]}"
    return replace(snapshot, arguments={"G": found.arguments["G"]}, states={name: state for name, state in states.items() if name != "D"},
                   notes=[*notes, without_D], without_D=without_D)


@torch.no_grad()
def mean_of_w(arguments: Mapping[str, Any], state: Mapping[str, Tensor], what: str) -> Tensor:
    """The mean of w over random z, `[w_dim]`, the same every time.

    Args:
        arguments, state: Of an unconditional StyleGAN2 generator.

    Raises:
        CheckpointError: As of `filled`; or z or w is longer than MAX_LATENT.
    """
    for key in ("z_dim", "w_dim"):
        if arguments[key] > MAX_LATENT:
            raise CheckpointError(f"{what}: holds no mean of w, and it cannot be computed with {key} {arguments[key]}; expected at most {MAX_LATENT}")
    with Skeletons():
        mapping = MappingNetwork(arguments["z_dim"], 0, arguments["w_dim"], num_ws=None, num_layers=arguments["mapping_layers"], w_avg_beta=None)
    prefix = "mapping."
    mapping = filled(mapping, {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}, what)
    z = torch.randn(MEAN_OF_W_SAMPLES, arguments["z_dim"], generator=torch.Generator().manual_seed(0))
    return mapping(z).mean(dim=0)


def load_generator(source: str | Path, device: str | torch.device = "cpu") -> nn.Module:
    """The averaged generator of a snapshot, a run folder, or a file of another codebase, ready to be called.

        G = load_generator("ffhq.pkl")
        images = G(torch.randn(4, G.z_dim), truncation_psi=0.7)           # [4, img_channels, R, R], about [-1, 1]

    A StyleGAN2 has what NVIDIA's has: z_dim, c_dim, w_dim, num_ws, img_resolution, img_channels, mapping and synthesis.
    A BigGAN is called with z and one-hot classes alone, `G(z, c)`.

    Args:
        device: Where it computes; on a CPU in fp32.

    Raises:
        CheckpointError: There is none, or it is damaged, or of networks that fastdgl does not have.
    """
    return open_snapshot(source).averaged_generator(device)


def load_strictly(network: nn.Module, state: Mapping[str, Tensor], what: str) -> None:
    """Load `state` into `network`, all of it and nothing else.

    Raises:
        CheckpointError: As of `check_fits`; or naming the keys that are not finite.
    """
    check_fits(network, state, what)
    check_finite(state, what)
    network.load_state_dict(state)


def load_fitting(network: nn.Module, state: Mapping[str, Tensor], what: str) -> tuple[list[str], list[str]]:
    """Load what `state` has of the names and shapes of `network`; the rest of the network stays as it is.

    Returns:
        The keys of the network that stay as they are, and those of `state` that are not taken.

    Raises:
        CheckpointError: Nothing fits, or something holds NaN or infinity.
    """
    expected = network.state_dict()
    fitting = {key: value for key, value in state.items() if key in expected and value.shape == expected[key].shape}
    # filters are in any network
    if not any(key in fitting for key, _ in network.named_parameters()):
        raise CheckpointError(f"{what}: has nothing in common with this run's network; expected one of the same family with some widths alike")
    check_finite(fitting, what)
    network.load_state_dict(fitting, strict=False)
    return [key for key in expected if key not in fitting], [key for key in state if key not in fitting]


def filled(network: nn.Module, state: Mapping[str, Tensor], what: str) -> nn.Module:
    """Put copies of `state`, all of it and nothing else, into a network that was built within `Skeletons`; fp32.

    Raises:
        CheckpointError: As of `load_strictly`.
    """
    check_fits(network, state, what)
    check_finite(state, what)
    expected = network.state_dict()
    network.load_state_dict({key: value.to(expected[key].dtype, copy=True, memory_format=torch.contiguous_format) for key, value in state.items()}, assign=True)
    return network


def check_finite(state: Mapping[str, Tensor], what: str) -> None:
    """Refuse the tensors of a run that has diverged.

    Raises:
        CheckpointError: Naming the first key that holds NaN or infinity.
    """
    broken = [key for key, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise CheckpointError(f"{what}: {broken[0]} holds NaN or infinity, and so do {len(broken) - 1} other tensors; expected the networks of a run "
                              "that has not diverged")


def check_fits(network: nn.Module, state: Mapping[str, Tensor], what: str) -> None:
    """Compare tensors with those of a network, which may be one without memory.

    Raises:
        CheckpointError: Naming the keys that are missing, extra, or of another shape or kind.
    """
    expected = network.state_dict()
    differences = [f"{key} is missing" for key in expected if key not in state]
    differences += [f"{key} is not expected" for key in state if key not in expected]
    differences += [f"{key} is {list(state[key].shape)} instead of {list(expected[key].shape)}"
                    for key in expected if key in state and state[key].shape != expected[key].shape]
    differences += [f"{key} is {state[key].dtype} instead of {expected[key].dtype}" for key in expected
                    if key in state and state[key].dtype not in (FLOATS if expected[key].is_floating_point() else INTEGERS)]
    if differences:
        shown = "; ".join(differences[:3])
        more = f"; and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise CheckpointError(f"{what}: does not fit the network: {shown}{more}")


def check_has_discriminator(snapshot: Snapshot) -> None:
    """A teacher, or the start of a run, needs one.

    Raises:
        CheckpointError: It has none.
    """
    if "D" not in snapshot.arguments:
        raise CheckpointError(f"{snapshot.path}: {snapshot.without_D}; expected a file with D")


def labels_of(dataset: ImageDataset) -> dict[str, Any]:
    """Return what the labels of a training set mean, in the form that a checkpoint keeps."""
    names = dataset.class_names
    return {"kind": dataset.label_kind, "dim": dataset.label_dim, "names": None if names is None else list(names)}


def check_same_labels(what: str, theirs: Mapping[str, Any], dataset: ImageDataset) -> None:
    """Reject networks that were trained on labels of another meaning. What a file does not say is not compared.

    Args:
        what: The file or folder of the networks.
        theirs: As of `labels_of`.

    Raises:
        CheckpointError: Labels of another kind or number, or classes of other names or in another order.
    """
    ours = labels_of(dataset)
    kinds = {labels["kind"] for labels in (theirs, ours) if labels["dim"] and labels["kind"]}
    if len(kinds) > 1:
        raise CheckpointError(f"{what}: was trained with {described(theirs)}, this run has {described(ours)}; they must agree")
    if theirs["dim"] != ours["dim"]:
        name = "labels of length" if kinds == {VECTORS} else "classes"
        raise CheckpointError(f"{what}: was trained with {name} {theirs['dim']}, this run has {ours['dim']}; they must agree")
    for i, (their_name, our_name) in enumerate(zip(theirs["names"] or (), ours["names"] or ())):
        if composed(their_name) != composed(our_name):
            raise CheckpointError(f"{what}: its class {i} is {their_name!r}, this run's is {our_name!r}; "
                                  f"pack the images again with the classes in the same order")


def described(labels: Mapping[str, Any]) -> str:
    """Return labels in words."""
    return f"vectors of {labels['dim']} numbers as labels" if labels["kind"] == VECTORS else f"{labels['dim']} classes"


def check_same_images(snapshot: Snapshot, dataset: ImageDataset) -> None:
    """A snapshot and a run can only meet on images of one kind.

    Raises:
        CheckpointError: Another resolution, number of channels or of classes, or the classes in another order.
    """
    theirs = snapshot.arguments["G"]
    for name, key, ours in (("resolution", "img_resolution", dataset.resolution), ("image channels", "img_channels", dataset.channels)):
        if theirs[key] != ours:
            raise CheckpointError(f"{snapshot.path}: was trained with {name} {theirs[key]}, this run has {ours}; they must agree")
    check_same_labels(str(snapshot.path), {"kind": snapshot.label_kind, "dim": theirs["c_dim"], "names": snapshot.class_names}, dataset)


def save_checkpoint(root: Path, engines: Mapping[str, Engine], state: Mapping[str, Any], seen: int, keep: int) -> None:
    """Write `root/<seen>/`, a file for each engine and one for `state`, then remove all but the newest `keep`. Called by all ranks.

    Rank 0 writes, all of it: any number of ranks can load it.

    Args:
        engines: By name.
        state: What else a run needs to go on; identical on all ranks; of types that `torch.load` opens safely.

    Raises:
        CheckpointError: It cannot be written; nothing is left behind, and those before it are as they were.
    """
    final = root / CHECKPOINT_NAME.format(seen)
    unfinished = final.with_name(final.name + UNFINISHED)

    def begin() -> None:
        remove_unfinished(root)
        unfinished.mkdir(parents=True)

    def finish() -> None:
        write(unfinished / f"{STATE}.pt", dict(state))
        if final.exists():
            remove(final)
        put_in_place(unfinished, final)
        for old in saved_checkpoints(root)[:-keep]:
            remove(old)

    try:
        first_rank_decides(begin)
        for name, engine in engines.items():
            # whole, and so one at a time
            engine_state = engine.state_dict()
            first_rank_decides(lambda: write(unfinished / f"{name}.pt", engine_state))
        first_rank_decides(finish)
    except OSError as error:
        if dist.get_rank() == 0:
            shutil.rmtree(unfinished, ignore_errors=True)
        before = saved_checkpoints(root)
        kept = f"the checkpoint before it, {before[-1]}, is whole" if before else "there is no checkpoint before it"
        raise CheckpointError(f"{error}; {kept}") from None


def write(path: Path, state: Mapping[str, Any]) -> None:
    """torch.save, which does not always say what was wrong with the disk.

    Raises:
        OSError: It cannot be written.
    """
    with writing(path):
        try:
            with open(path, "wb") as file:
                torch.save(state, file)
        except RuntimeError as error:
            # of its archive, while an error of the file is on its way
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def remove(folder: Path) -> None:
    """Take a checkpoint away at once: killed in the middle, this leaves no half of one."""
    unfinished = folder.with_name(folder.name + UNFINISHED)
    os.replace(folder, unfinished)
    shutil.rmtree(unfinished)


def remove_unfinished(folder: Path) -> None:
    """Remove what a killed process has left in a run's folder, or in that of its checkpoints, of what it was writing or removing."""
    for item in [*folder.glob(f"*{UNFINISHED}"), *folder.glob(f"{CHECKPOINTS}/*{UNFINISHED}")]:
        if item.is_dir():
            shutil.rmtree(item)
        else:
            item.unlink()


def saved_checkpoints(root: Path) -> Sequence[Path]:
    """Complete checkpoints below `root`, oldest first."""
    return sorted(folder for folder in root.glob("*") if folder.name.isdigit())


def load_state(folder: Path) -> dict[str, Any]:
    """What a checkpoint holds besides its engines.

    Raises:
        CheckpointError: It is damaged.
    """
    return load(folder, STATE)


def load(folder: Path, name: str) -> dict[str, Any]:
    """One file of a checkpoint.

    Raises:
        CheckpointError: It is damaged.
    """
    path = folder / f"{name}.pt"
    try:
        # a pipe would be waited for
        if path.exists() and not path.is_file():
            raise OSError("is no regular file")
        return interop.load_checkpoint(path)
    except (interop.ForeignFileError, OSError) as error:
        earlier = [other for other in saved_checkpoints(folder.parent) if other < folder]
        way_on = f"remove {folder} to go on from {earlier[-1]}" if earlier else "there is no earlier checkpoint to go on from"
        raise CheckpointError(f"{path}: cannot be read ({' '.join(str(error).split())[:200]}); {way_on}") from error


def load_engines(folder: Path, engines: Mapping[str, Engine], *, others_allowed: bool = False) -> None:
    """Load the engines from a checkpoint. Called by all ranks.

    Args:
        others_allowed: The checkpoint may hold engines that this run does not have.

    Raises:
        CheckpointError: It holds other engines than the run has, or of other networks, or is damaged.
    """
    if any(item.is_dir() for item in folder.iterdir()):
        raise CheckpointError(f"{folder}: was written by an earlier fastdgl, in a form that is not read any more; begin a new run from the run's snapshot, by start")
    saved = {item.stem for item in folder.glob("*.pt")} - {STATE}
    if not set(engines) <= saved or (saved != set(engines) and not others_allowed):
        raise CheckpointError(f"{folder}: holds {', '.join(sorted(saved))}, this run has {', '.join(sorted(engines))}; "
                              f"continue with the config of that run")
    for name, engine in engines.items():
        state = load(folder, name)
        with loading(folder, name):
            check_state(state)
            engine.load_state_dict(state)


@contextmanager
def loading(folder: Path, name: str) -> Iterator[None]:
    """Inside, what one file of a checkpoint holds is put to use.

    Raises:
        CheckpointError: It does not fit.
    """
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / name}.pt: cannot be loaded into this run ({' '.join(str(error).split())[:200]}); "
                              f"continue with the config of that run") from error


def newest_checkpoint(run_folder: Path) -> Path:
    """The newest training checkpoint of a run.

    Raises:
        CheckpointError: There is none.
    """
    checkpoints = saved_checkpoints(run_folder / CHECKPOINTS)
    if not checkpoints:
        raise CheckpointError(f"{run_folder}: no training checkpoint to continue from; expected {run_folder / CHECKPOINTS}/<images>/")
    return checkpoints[-1]


def checkpoint_at(run_folder: Path, seen: int) -> Path:
    """Where a run keeps the checkpoint it made after `seen` images."""
    return run_folder / CHECKPOINTS / CHECKPOINT_NAME.format(seen)
