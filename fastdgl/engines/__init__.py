"""What carries an optimizer step over the ranks: DeepSpeed (zero.py, the only file that imports it), or plain PyTorch.

The forward pass goes through `engine.module`, never through a DeepSpeed engine itself, whose hooks on the output do not
survive the gradient of a gradient that R1 and path length take. The engine serves `backward` and `step` alone.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .. import config as configs
from .launchers import deepspeed_command
from .optimizers import check_step, make_adam, step_count, step_kept_by
from .peers import Peers, in_short, patience

T = TypeVar("T")
# of an engine: {"parameters": {name: tensor}, "buffers": ..., "moments": {name: {key: tensor}}, "loss_scale": {name: number}}
State = dict[str, dict[str, Any]]
MOMENTS = ("step", "exp_avg", "exp_avg_sq")

# for the launchers of all machines to be started
MEETING = timedelta(minutes=30)


@dataclass(frozen=True)
class Run:
    """This process among the ranks.

    peers: What is heard of the others; None where it is alone.
    command: The process of the `deepspeed` command that has started it; None if nothing such did.
    """

    rank: int
    world_size: int
    device: torch.device
    peers: Peers | None = None
    command: int | None = None


class Engine(Protocol):
    """A network with its optimizer. A `step` follows one `backward`, or several of which the last says so."""

    module: nn.Module
    # since the engine was made or loaded: steps left out because a gradient was not finite. DeepSpeed leaves them out in fp16, at stage 3,
    # and at stage 0 in bf16; elsewhere such a gradient reaches the parameters, where the check at the end of a tick finds it
    skipped_steps: int

    def backward(self, loss: Tensor, last: bool = True) -> None:
        """Add the gradients of `loss`, a mean over this rank's samples, to those since the last step.

        Args:
            last: `step` comes next, and not another `backward`.
        """

    def step(self) -> None:
        """Average the gradients over the ranks, step, and clear them."""

    def scale_lr(self, factor: float) -> None:
        """Step with `factor` times the learning rate that the engine was made with, from now on."""

    def whole(self) -> AbstractContextManager[None]:
        """All parameters of `module` at once inside, where ZeRO 3 else has those alone that a layer computes with; called by all ranks.

        To read them, and for a backward through a backward, which begins when the layers have let go of theirs.
        """

    def state_dict(self) -> State:
        """The network and Adam's moments, whole, on the CPU, in a form that every kind of engine loads on any number of ranks.

        Called by all ranks. `parameters` and `moments` are fp32 and by the parameters' names, `moments` a dict of `step`,
        `exp_avg` and `exp_avg_sq` for each parameter that has been stepped; `buffers` are the network's others;
        `loss_scale` has numbers where there is one.
        """

    def load_state_dict(self, state: State) -> None:
        """Back to `state`, with the learning rate and betas of now; called by all ranks.

        Raises:
            RuntimeError: It is of another network.
        """


def start_run(timeout: float | None = None) -> Run:
    """Join the process group that a launcher (deepspeed, torchrun) describes in the environment, or one of a single rank.

    Args:
        timeout: Seconds for which a rank may be silent, or a collective may wait; None for torch's own, and nobody is watched.

    Raises:
        ConfigError: This machine has no GPU for this rank, or not all ranks came.
    """
    rank, world_size, command = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)), deepspeed_command()
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
        return Run(rank, world_size, device, command=command)
    if world_size == 1:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
        return Run(rank, world_size, device, command=command)
    return Run(rank, world_size, device, join(backend, rank, world_size, timeout), command)


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
    spread(flat, tensors)


def spread(flat: Tensor, tensors: Sequence[Tensor]) -> None:
    """Copy what lies one after the other in `flat` back into `tensors`, in few launches."""
    torch._foreach_copy_(tensors, [part.view_as(tensor) for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]))])


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
    optimizer = make_adam(module.parameters(), config.optimizer.implementation, next(module.parameters()).device,
                          lr=adam.lr * c, betas=(adam.beta1**c, adam.beta2**c), eps=adam.eps)
    # fp16's loss scale needs to see what overflows; without one, overflow is bounded
    bounded = config.model.num_fp16_res > 0 and config.engine.precision != "fp16"
    if config.engine.kind == "torch":
        return TorchEngine(module, optimizer, bounded)
    # deepspeed takes seconds to import, and plain training does not need it
    from .zero import ZeroEngine
    return ZeroEngine(module, optimizer, config, run.world_size, bounded)


def scatter_frozen(module: nn.Module, config: configs.Config, run: Run) -> nn.Module:
    """`module`, which takes no gradients of its own, with its parameters scattered over the ranks under ZeRO 3, and as it is under any other.

    A layer has its parameters whole while it computes, forwards or backwards; the gradient to the input flows. Called by all ranks, and so
    is then every forward and backward.
    """
    if config.engine.shards_parameters:
        from .zero import scatter
        scatter(module, config, run.world_size)
    return module


class LearningRate:
    """The learning rates of an optimizer, to be scaled without loss: each is that of the beginning times a factor.

    Args:
        optimizer: The one that steps; what wraps it shares its groups.
    """

    def __init__(self, optimizer: torch.optim.Optimizer):
        self.optimizer, self.first = optimizer, [float(group["lr"]) for group in optimizer.param_groups]

    def scale(self, factor: float) -> None:
        for group, lr in zip(self.optimizer.param_groups, self.first, strict=True):
            # a tensor stays the same one, which a CUDA graph reads
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(lr * factor)
            else:
                group["lr"] = lr * factor


def bound_overflow(gradients: Tensor) -> None:
    """Replace in place what overflowed in gradients: NaN by 0, infinity by 1e5.

    Blocks that compute in fp16 without a loss scale overflow now and then; StyleGAN2-ADA trains through it this way.
    """
    torch.nan_to_num_(gradients, nan=0.0, posinf=1e5, neginf=-1e5)


def bound_gradients(module: nn.Module) -> None:
    """Apply `bound_overflow` to all gradients of `module` together: a launch for each of 148 parameters takes longer than two copies."""
    gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    if gradients:
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        bound_overflow(flat)
        spread(flat, gradients)


class TorchEngine:
    """Plain PyTorch, fp32, gradients averaged by all-reduce: what the others are measured against.

    Args:
        bounded: Bound what overflows in a gradient.
    """

    skipped_steps = 0

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer, bounded: bool = False):
        self.module, self.optimizer, self.bounded = module, optimizer, bounded
        self.schedule = LearningRate(optimizer)

    def backward(self, loss: Tensor, last: bool = True) -> None:
        loss.backward()
        if self.bounded:
            bound_gradients(self.module)

    def step(self) -> None:
        average_over_ranks(p.grad for p in self.module.parameters() if p.grad is not None)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def scale_lr(self, factor: float) -> None:
        self.schedule.scale(factor)

    def whole(self) -> AbstractContextManager[None]:
        return nullcontext()

    def state_dict(self) -> State:
        return whole_state(self.module, self.optimizer, dict(self.module.named_parameters()))

    def load_state_dict(self, state: State) -> None:
        load_whole_state(self.module, self.optimizer, dict(self.module.named_parameters()), state)


def whole_state(module: nn.Module, optimizer: torch.optim.Optimizer, masters: Mapping[str, Tensor]) -> State:
    """Return what `Engine.state_dict` does, on a rank that holds all of it.

    Args:
        masters: What the optimizer steps for each parameter: itself, or its fp32 copy.
    """
    moments = {name: stored_moments(optimizer.state[master]) for name, master in masters.items() if optimizer.state[master]}
    return {"parameters": {name: on_cpu(master) for name, master in masters.items()}, "buffers": buffers(module), "moments": moments, "loss_scale": {}}


def stored_moments(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return Adam's state of a parameter as a checkpoint stores it, whichever implementation keeps it."""
    return {key: step_count(state[key]) if key == "step" else on_cpu(state[key]) for key in MOMENTS}


def load_whole_state(module: nn.Module, optimizer: torch.optim.Optimizer, masters: Mapping[str, Tensor], state: State) -> None:
    """Load what `whole_state` returned, of any implementation of Adam."""
    module.load_state_dict(state["parameters"] | state["buffers"])
    for name, master in masters.items():
        master.data.copy_(state["parameters"][name])
        optimizer.state[master] = {key: step_kept_by(optimizer, value, master.device) if key == "step" else value.to(master.device, copy=True)
                                   for key, value in state["moments"].get(name, {}).items()}


def check_state(state: Any) -> None:
    """Refuse what is not a `State`, before some of it is loaded.

    Raises:
        ValueError: It is something else.
    """
    if not (isinstance(state, dict) and set(state) == {"parameters", "buffers", "moments", "loss_scale"} and all(isinstance(part, dict) for part in state.values())):
        raise ValueError("it is no state of a network and its optimizer")
    parameters, moments = state["parameters"], state["moments"]
    for name, value in (parameters | state["buffers"]).items():
        if not (isinstance(name, str) and is_array(value)):
            raise ValueError(f"{name!r:.50} is no array of numbers")
    for name, value in moments.items():
        if name not in parameters or not isinstance(value, dict) or set(value) != set(MOMENTS) or not all(map(is_array, value.values())):
            raise ValueError(f"{name!r:.50} has moments that are none of Adam's")
        for key in MOMENTS:
            shape = torch.Size() if key == "step" else parameters[name].shape
            if value[key].shape != shape or not value[key].is_floating_point():
                raise ValueError(f"{key} of {name} is {value[key].dtype} {list(value[key].shape)}, expected floating point {list(shape)}")
        check_step(name, value["step"])
    for name, value in state["loss_scale"].items():
        if not isinstance(value, (int, float)):
            raise ValueError(f"the loss scale's {name!r:.50} is no number")


def is_array(value: Any) -> bool:
    """Whether this is a tensor of real numbers, each in its place."""
    return isinstance(value, Tensor) and value.layout == torch.strided and not value.is_complex()


def buffers(module: nn.Module) -> dict[str, Tensor]:
    """What a network keeps besides its parameters."""
    parameters = dict(module.named_parameters())
    return {name: on_cpu(value) for name, value in module.state_dict().items() if name not in parameters}


def on_cpu(tensor: Tensor) -> Tensor:
    """A copy of the numbers there."""
    return tensor.detach().to("cpu", copy=True)
