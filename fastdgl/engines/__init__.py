"""What carries an optimizer step over the ranks: DeepSpeed (zero.py, the only file that imports it), or plain PyTorch.

The forward pass goes through `engine.module`, never through a DeepSpeed engine itself, whose hooks on the output do not
survive the gradient of a gradient that R1 and path length take. The engine serves `backward` and `step` alone.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .. import config as configs
from .peers import Peers, in_short, patience

T = TypeVar("T")

# for the launchers of all machines to be started
MEETING = timedelta(minutes=30)


@dataclass(frozen=True)
class Run:
    """This process among the ranks. peers: What is heard of the others; None where it is alone."""

    rank: int
    world_size: int
    device: torch.device
    peers: Peers | None = None


class Engine(Protocol):
    """A network with its optimizer. A `step` follows one `backward`, or several of which the last says so."""

    module: nn.Module

    def backward(self, loss: Tensor, last: bool = True) -> None:
        """Add the gradients of `loss`, a mean over this rank's samples, to those since the last step.

        Args:
            last: `step` comes next, and not another `backward`.
        """

    def step(self) -> None:
        """Average the gradients over the ranks, step, and clear them."""

    def whole(self) -> AbstractContextManager[None]:
        """All parameters of `module` at once inside, where ZeRO 3 else has those alone that a layer computes with; called by all ranks.

        To read them, and for a backward through a backward, which begins when the layers have let go of theirs.
        """

    def save(self, folder: Path) -> None:
        """Parameters and optimizer into `folder`; called by all ranks."""

    def load(self, folder: Path) -> None:
        """Back from `folder`; called by all ranks."""


def start_run(timeout: float | None = None) -> Run:
    """Join the process group that a launcher (deepspeed, torchrun) describes in the environment, or one of a single rank.

    Args:
        timeout: Seconds for which a rank may be silent, or a collective may wait; None for torch's own, and nobody is watched.

    Raises:
        ConfigError: This machine has no GPU for this rank, or not all ranks came.
    """
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    # DeepSpeed looks for this one even where no launcher has set it
    local_rank = int(os.environ.setdefault("LOCAL_RANK", "0"))
    on_gpu = torch.cuda.is_available()
    if on_gpu and local_rank >= torch.cuda.device_count():
        raise configs.ConfigError(f"this machine has {torch.cuda.device_count()} GPU(s), and rank {local_rank} on it has none; start at most one rank per GPU")
    device = torch.device("cuda", local_rank) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
        torch.backends.cudnn.benchmark = True
    backend = "nccl" if on_gpu else "gloo"
    if dist.is_initialized():
        return Run(rank, world_size, device)
    if world_size == 1:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
        return Run(rank, world_size, device)
    return Run(rank, world_size, device, join(backend, rank, world_size, timeout))


def join(backend: str, rank: int, world_size: int, timeout: float | None) -> Peers | None:
    """Meet the other ranks, and join the process group with them.

    Returns:
        What is heard of the others; None if nobody is to be watched.

    Raises:
        ConfigError: Not all came, or they cannot reach each other.
    """
    place = ":".join(os.environ.get(name, "?") for name in ("MASTER_ADDR", "MASTER_PORT"))
    try:
        store, _, _ = next(dist.rendezvous("env://", rank, world_size, timeout=MEETING))
        peers = None if timeout is None else Peers(store, rank, world_size, timeout)
    except dist.DistError as error:
        raise configs.ConfigError(f"rank {rank} has not met all {world_size} ranks at {place} within {MEETING} ({in_short(error)}); "
                                  f"start every rank, each with this address and port") from None
    try:
        dist.init_process_group(backend, store=store, rank=rank, world_size=world_size,
                                timeout=None if timeout is None else patience(timeout))
    except RuntimeError as error:
        raise configs.ConfigError(f"rank {rank} has met the others at {place}, and cannot connect to each of them ({in_short(error)}); "
                                  f"name the network interface that joins the machines, GLOO_SOCKET_IFNAME=eth0, "
                                  f"and with GPUs NCCL_SOCKET_IFNAME=eth0") from None
    return peers


def allow_tf32(allowed: bool) -> None:
    """Whether fp32 convolutions and matrix products on a GPU may round their inputs to 10 bits."""
    torch.backends.cudnn.allow_tf32 = allowed
    torch.backends.cuda.matmul.allow_tf32 = allowed


def first_rank_decides(action: Callable[[], T]) -> T:
    """The result of `action`, which rank 0 alone performs; what it raises is raised on every rank."""
    outcome: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            outcome[0] = action()
        # whatever it is, the others wait to hear of it
        except Exception as error:
            outcome[1] = error
    dist.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def gathered(mine: T) -> list[T]:
    """What each rank has, in their order; the same on all. Called by all ranks."""
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    return everyone


def end_run() -> None:
    """Leave the process group."""
    if dist.is_initialized():
        dist.destroy_process_group()


def average_over_ranks(tensors: Iterable[Tensor]) -> None:
    """Replace each tensor by its mean over the ranks; all are of one dtype."""
    tensors = list(tensors)
    if not tensors or not dist.is_initialized() or dist.get_world_size() == 1:
        return
    # one message for all: many small ones would wait for each other
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for tensor, mean in zip(tensors, flat.split([tensor.numel() for tensor in tensors])):
        tensor.copy_(mean.view_as(tensor))


def make_engine(module: nn.Module, adam: configs.Adam, regularization_interval: int, config: configs.Config, run: Run) -> Engine:
    """An engine for `module`, whose parameters must all take gradients.

    Adam is corrected for lazy regularization: with a regularization step after every k ordinary ones, which shares
    their moments, lr becomes lr c and beta becomes beta^c, c = k / (k + 1).

    Args:
        regularization_interval: k; 0 for no regularization.

    Source: Karras et al. 2020, "Analyzing and Improving the Image Quality of StyleGAN", appendix B.
    """
    k = regularization_interval
    c = k / (k + 1) if k else 1.0
    optimizer = torch.optim.Adam(module.parameters(), lr=adam.lr * c, betas=(adam.beta1**c, adam.beta2**c), eps=adam.eps)
    # fp16's loss scale needs to see what overflows; without one, overflow is bounded
    if config.model.num_fp16_res and config.engine.precision != "fp16":
        bound_gradients(module)
    if config.engine.kind == "torch":
        return TorchEngine(module, optimizer)
    # deepspeed takes seconds to import, and plain training does not need it
    from .zero import ZeroEngine
    return ZeroEngine(module, optimizer, config, run.world_size)


def scatter_frozen(module: nn.Module, config: configs.Config, run: Run) -> nn.Module:
    """`module`, which takes no gradients of its own, with its parameters scattered over the ranks under ZeRO 3, and as it is under any other.

    A layer has its parameters whole while it computes, forwards or backwards; the gradient to the input flows. Called by all ranks, and so
    is then every forward and backward.
    """
    if config.engine.shards_parameters:
        from .zero import scatter
        scatter(module, config, run.world_size)
    return module


@contextmanager
def own_settings(optimizer: torch.optim.Adam) -> Iterator[None]:
    """Load moments inside, and keep the optimizer's own learning rate and betas: a resumed run may have changed them."""
    kept = [{key: group[key] for key in ("lr", "betas", "eps")} for group in optimizer.param_groups]
    yield
    for group, settings in zip(optimizer.param_groups, kept):
        group.update(settings)


def bound_gradients(module: nn.Module) -> None:
    """From now on replace what overflowed in a gradient: NaN by 0, infinity by 1e5.

    Blocks that compute in fp16 without a loss scale overflow now and then; StyleGAN2-ADA trains through it this way.
    """

    def bound(parameter: nn.Parameter) -> None:
        torch.nan_to_num_(parameter.grad, nan=0.0, posinf=1e5, neginf=-1e5)

    for parameter in module.parameters():
        parameter.register_post_accumulate_grad_hook(bound)


class TorchEngine:
    """Plain PyTorch, fp32, gradients averaged by all-reduce: what the others are measured against."""

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer):
        self.module, self.optimizer = module, optimizer

    def backward(self, loss: Tensor, last: bool = True) -> None:
        loss.backward()

    def step(self) -> None:
        average_over_ranks(p.grad for p in self.module.parameters() if p.grad is not None)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def whole(self) -> AbstractContextManager[None]:
        return nullcontext()

    def save(self, folder: Path) -> None:
        if not dist.is_initialized() or dist.get_rank() == 0:
            folder.mkdir(parents=True, exist_ok=True)
            torch.save({"module": self.module.state_dict(), "optimizer": self.optimizer.state_dict()}, folder / "engine.pt")

    def load(self, folder: Path) -> None:
        state = torch.load(folder / "engine.pt", map_location="cpu", weights_only=True)
        self.module.load_state_dict(state["module"])
        with own_settings(self.optimizer):
            self.optimizer.load_state_dict(state["optimizer"])
