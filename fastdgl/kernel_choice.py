"""Which kernels a run goes by: the verdict of its GPUs, made before the networks fill them, or the one the run began with."""

import json
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from fastdgl_kernels import _dispatch, implementation
from fastdgl_kernels.certify import Call, CertificationError, Verdict, VerdictError, certify, recording
from fastdgl_kernels.certify import verdict as verdicts
from torch._subclasses.fake_tensor import FakeTensorMode

from . import config as configs
from . import checkpoints, models
from .atomic_files import atomically
from .config import ConfigError
from .engines import Run, gathered
from .guidance import Guide
from .sentences import printable
from .steps import Adversaries
from .warmup import rehearse

RECORD = "kernels.json"
BUDGET = 60.0  # seconds of checks
# a rank that waits for the certification must not be given up over it: seconds of engine.timeout
LEAST_TIMEOUT = 240.0
# of a verdict that differs, how many differences are told
TOLD = 3


@dataclass(frozen=True)
class Kernels:
    """What the operators of a run go by.

    verdict: None where they run as PyTorch's own.
    reason: Why there is none, a clause.
    sentence: What the log says.
    warnings: Where this machine differs from the one the run began on.
    """

    verdict: Verdict | None
    reason: str
    sentence: str
    warnings: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return plain data that `recorded` takes."""
        return {"verdict": None if self.verdict is None else self.verdict.to_json(), "reason": self.reason}


def choose_kernels(config: configs.Config, run: Run, c_dim: int, own: Mapping[str, Any] | None = None) -> Kernels:
    """Decide what "auto" takes in this process, alike on all ranks. Called by all ranks together, before the networks are made.

    Where a GPU has no verdict, the first rank of its machine certifies it. A kernel runs where it is right on every rank's
    GPU. `FASTDGL_IMPL` and `implementation(...)` stand above all of this.

    Args:
        c_dim: Classes, for the networks whose calls are certified.
        own: What the run that is resumed went by, see `Kernels.to_json`; None for a new run, or one that kept nothing.

    Raises:
        ConfigError: `engine.kernels: required`, and no kernel may run.
    """
    wish, device = config.engine.kernels, run.device
    named = os.environ.get("FASTDGL_IMPL") or "auto"
    if _dispatch.SPELLINGS.get(named, named) != "auto":
        return checked(config, device, Kernels(None, f"FASTDGL_IMPL={named}", f"{named}, as FASTDGL_IMPL says"))
    obstacle = None if _dispatch.is_gpu(device) else "this run computes on the CPU"
    obstacle = obstacle or _dispatch.why_not_triton(device)
    if wish == "off":
        obstacle = "engine.kernels is off"
    if obstacle is not None:
        _dispatch.use(device, None, obstacle)
        return checked(config, device, Kernels(None, obstacle, f"PyTorch's own operators: {obstacle}"))

    verdict, reason = agreed(config, run, c_dim)
    warnings = []
    if own is not None and wish != "required":
        verdict, reason, warnings = continued(own, verdict, reason)
    _dispatch.use(device, verdict, reason)
    if verdict is not None and not verdict.right():
        reason = reason or verdict.halted or f"the verdict of {verdict.day} found none of the kernels right"
    sentence = described(verdict) if verdict is not None and verdict.right() else f"PyTorch's own operators: {reason}"
    return checked(config, device, Kernels(verdict, reason, sentence, warnings))


def agreed(config: configs.Config, run: Run, c_dim: int) -> tuple[Verdict | None, str]:
    """Return the verdict that holds on the GPUs of all ranks, or None and why there is none; the same on every rank."""
    machine = verdicts.machine(run.device)
    found, reason = verdicts.read(machine)
    # an earlier stage may have made one that could not be kept
    found = found or _dispatch.verdict_of(run.device)[0]
    if int(os.environ.get("LOCAL_RANK", 0)) == 0 and (found is None or not found.complete):
        found, reason = certified(config, run, c_dim, found)
    everyone = gathered({"host": socket.gethostname(), "machine": machine, "reason": reason, "rank": run.rank,
                         "verdict": None if found is None else found.to_json()})
    # a rank goes by the verdict of its machine, which the first rank on it may just have made
    by_machine = {(one["host"], verdicts.key(one["machine"])): one["verdict"] for one in everyone if one["verdict"] is not None}
    of_ranks = [by_machine.get((one["host"], verdicts.key(one["machine"]))) for one in everyone]
    for one, of_rank in zip(everyone, of_ranks):
        if of_rank is None:
            where = f"rank {one['rank']} on {one['host']}: " if run.world_size > 1 else ""
            return None, f"{where}{one['reason']}"
    distinct = {json.dumps(of_rank, sort_keys=True): of_rank for of_rank in of_ranks}
    return verdicts.combine([Verdict.from_json(data) for data in distinct.values()]), ""


def certified(config: configs.Config, run: Run, c_dim: int, known: Verdict | None) -> tuple[Verdict | None, str]:
    """Certify this rank's GPU. Return its verdict, or the one there was, and why there is none."""
    if run.world_size > 1 and config.engine.timeout < LEAST_TIMEOUT:
        return known, (f"engine.timeout of {config.engine.timeout:g} s is too short for the other ranks to wait for a certification, "
                       f"expected at least {LEAST_TIMEOUT:g}; run `{_dispatch.COMMAND}` first")
    said: list[str] = []

    def report(line: str) -> None:
        said.append(line)
        print(f"kernels: {line}", flush=True)

    try:
        return certify(run.device, calls_of(config, run, c_dim), BUDGET, patience=2 * BUDGET, report=report), ""
    except CertificationError as error:
        return known, f"{error}; to try again run `{_dispatch.COMMAND}`"


def calls_of(config: configs.Config, run: Run, c_dim: int) -> list[Call] | None:
    """Return what the steps of a run will call, found by rehearsing them with tensors without numbers.

    The networks are made a second time, on the CPU and unsharded; nothing of the run changes.

    Returns:
        None for a family that cannot be rehearsed, whose batch norms talk to the other ranks.
    """
    if config.model.family != "stylegan2":
        return None
    state = torch.get_rng_state()
    try:
        G = models.generator("stylegan2", config.model.generator_arguments(c_dim)).requires_grad_(False)
        D = models.discriminator("stylegan2", config.model.discriminator_arguments(c_dim)).requires_grad_(False)
    # networks that cannot be made stop the run where it makes them
    except (ValueError, RuntimeError):
        return None
    finally:
        torch.set_rng_state(state)
    engine = {network: SimpleNamespace(module=network) for network in (G, D)}
    gan = Adversaries(engine[G], engine[D], Guide([], 0.0, 0.0, False), [], torch.zeros([]))
    N = config.train.generator_images // config.train.accumulate_generator // run.world_size
    N_real = config.train.batch // config.train.accumulate_discriminator // run.world_size
    with FakeTensorMode(allow_non_fake_inputs=True), implementation("reference"), recording() as calls:
        rehearse(gan, config.loss, N, N_real, c_dim, torch.device("cpu"))
    return list(calls)


def continued(own: Mapping[str, Any], verdict: Verdict | None, reason: str) -> tuple[Verdict | None, str, list[str]]:
    """Return what a resumed run goes by: its own choice, as far as this machine finds it right; and what differs, in words."""
    theirs, their_reason = recorded(own)
    if theirs is None:
        if verdict is None or not verdict.right():
            return None, their_reason, []
        return None, f"the run began without kernels ({their_reason})", [
            "this run began with PyTorch's own operators and goes on with them; engine.kernels=required takes the kernels of this machine"]
    if verdict is None:
        return None, reason, [f"this run began with kernels, and this machine has no verdict: {reason}"]
    told = verdicts.differences(theirs, verdict)
    if not told:
        return theirs, "", []
    more = f", and {len(told) - TOLD} more" if len(told) > TOLD else ""
    return verdicts.combine([theirs, verdict]), "", [
        f"the verdict of this machine differs from the one this run began with, which it keeps to as far as it is right here: "
        f"{'; '.join(told[:TOLD])}{more}"]


def recorded(own: Mapping[str, Any]) -> tuple[Verdict | None, str]:
    """Return the verdict that a run kept, or None and why it had none.

    Raises:
        VerdictError: It is something else.
    """
    if not isinstance(own, Mapping) or set(own) != {"verdict", "reason"} or not isinstance(own["reason"], str):
        raise VerdictError("expected a verdict and a reason")
    return None if own["verdict"] is None else Verdict.from_json(own["verdict"]), printable(own["reason"])


def described(verdict: Verdict) -> str:
    """Return in a line what a run goes by."""
    from fastdgl_kernels.certify.command import speed

    ratio = f", {speed(verdict.timings):.2f} times as fast as PyTorch over {len(verdict.timings)} timed layers" if verdict.timings else ""
    left = "" if verdict.complete else "; some wait for the next start to be certified"
    return f"by the verdict of {verdict.date}, {len(verdict.right())} kinds of calls{ratio}{left}"


def checked(config: configs.Config, device: torch.device, kernels: Kernels) -> Kernels:
    """Return `kernels`, if they are what `engine.kernels` asks for.

    Raises:
        ConfigError: It requires kernels, and none may run.
    """
    if config.engine.kernels == "required" and not _dispatch.kernels_in_force(device):
        raise ConfigError(f"engine.kernels: required, but no kernel may run: {kernels.reason}; set engine.kernels=auto to train without")
    return kernels


def keep(folder: Path, kernels: Kernels) -> None:
    """Write what a run goes by into its folder, from which `--resume` reads it."""
    with atomically(folder / RECORD) as unfinished:
        unfinished.write_text(json.dumps(kernels.to_json()), encoding="utf-8")


def kept(folder: Path) -> dict[str, Any] | None:
    """Return what the run in a folder goes by, as its file or else its newest checkpoint says; None where both keep nothing.

    Raises:
        ConfigError: The file is damaged, or of something else.
        CheckpointError: The checkpoint is.
    """
    path = folder / RECORD
    try:
        own = json.loads(path.read_text(encoding="utf-8"))
        recorded(own)
    except FileNotFoundError:
        own = checkpoints.load_state(checkpoints.newest_checkpoint(folder)).get("kernels")
        if own is not None:
            with checkpoints.loading(checkpoints.newest_checkpoint(folder), checkpoints.STATE):
                recorded(own)
        return own
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        words = str(error) if isinstance(error, VerdictError) else "it is damaged"
        raise ConfigError(f"{path}: does not say which kernels the run went by: {words}; remove it to choose again") from None
    return own
