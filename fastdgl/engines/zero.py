"""DeepSpeed's engine under ours: ZeRO 0, 1, 2 or 3 in fp32, bf16 or fp16."""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .. import config as configs
from . import own_settings
from .peers import patience

# deepspeed looks for its accelerator when imported, and warns if it is left to find a CPU by itself
os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")

import deepspeed  # noqa: E402
from deepspeed.accelerator import get_accelerator  # noqa: E402
from deepspeed.runtime.config import DeepSpeedConfig  # noqa: E402

# of torch.distributed's names, which are deepspeed's to follow
warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
deepspeed.utils.logger.setLevel(logging.ERROR)
# on a CPU it would compile an operation of its own with g++; gloo serves as well, and needs no compiler
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


# of the folder in which DeepSpeed keeps what it saves
TAG = "engine"
# stands for a layer that is busy with a parameter; DeepSpeed counts its own from 0
HELD = -1
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class ZeroEngine:
    """A network and its optimizer in a DeepSpeed engine, which sees `backward` and `step` alone."""

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer, config: configs.Config, world_size: int):
        self.module = module
        self.optimizer = optimizer
        self.scales_loss = config.engine.precision == "fp16" and config.engine.zero_stage == 0
        if config.engine.precision == "fp16" and not get_accelerator().is_fp16_supported():
            raise configs.ConfigError("engine.precision: fp16 is not supported by DeepSpeed on this device; use bf16 or fp32")
        self.shards_parameters = config.engine.shards_parameters
        settings = deepspeed_settings(config, world_size)
        _join(config)
        try:
            checked = DeepSpeedConfig(settings)
        except (ValueError, AssertionError) as error:
            raise configs.ConfigError(f"engine.zero_options: DeepSpeed does not take {config.engine.zero_options}: "
                                      f"{' '.join(str(error).split())}") from None
        if self.shards_parameters:
            _Init(module, settings, PRECISIONS[config.engine.precision])
        self.engine = _Engine(args=None, model=module, optimizer=optimizer, config=settings, config_class=checked, dist_init_required=False)

    def backward(self, loss: Tensor, last: bool = True) -> None:
        # DeepSpeed's own count would take every backward for a whole step
        self.engine.set_gradient_accumulation_boundary(last)
        # 0.19.8 scales the loss for the optimizers of ZeRO alone, and divides the gradients of fp16's at stage 0 all the same
        if self.scales_loss:
            loss = loss * self.engine.optimizer.loss_scale
        # what the forward of DeepSpeed's engine, which is not called here, does: ZeRO 3 counts the backwards of a step by it, and would
        # put the gradients of each in the place of those before
        if self.shards_parameters:
            self.engine.optimizer.clear_backward_seen_flag()
        self.engine.backward(loss)

    def step(self) -> None:
        self.engine.step()

    @contextmanager
    def whole(self) -> Iterator[None]:
        if not self.shards_parameters:
            yield
            return
        parameters = list(self.module.parameters())
        with deepspeed.zero.GatheredParameters(parameters):
            # a layer that ends its forward or backward scatters the parameters that no layer is busy with
            for parameter in parameters:
                parameter.ds_active_sub_modules.add(HELD)
            try:
                yield
            finally:
                for parameter in parameters:
                    parameter.ds_active_sub_modules.discard(HELD)

    def save(self, folder: Path) -> None:
        self.engine.save_checkpoint(str(folder), tag=TAG)

    def load(self, folder: Path) -> None:
        if not (folder / TAG).is_dir():
            raise FileNotFoundError("no DeepSpeed checkpoint")
        with own_settings(self.optimizer):
            self.engine.load_checkpoint(str(folder), tag=TAG)


def _join(config: configs.Config) -> None:
    """DeepSpeed's part in the process group."""
    deepspeed.init_distributed(dist_init_required=False)
    # DeepSpeed's groups would wait as long as torch does by default
    deepspeed.comm.comm.cdb.new_group = partial(dist.new_group, timeout=patience(config.engine.timeout))


class _Init(deepspeed.zero.Init):
    """Scatters a network's parameters over the ranks, those of no dimension too; what `_Engine` says of bytes holds here as well."""

    def __init__(self, module: nn.Module, settings: dict[str, Any], dtype: torch.dtype):
        for parameter in module.parameters():
            parameter.data = parameter.data.to(dtype)
        super().__init__(module=module, config_dict_or_path=settings, dtype=dtype)

    def _zero_init_param(self, parameter: nn.Parameter) -> None:
        self._convert_to_deepspeed_param(parameter)
        dist.broadcast(parameter.data, src=0)
        parameter.partition()


class _Engine(deepspeed.DeepSpeedEngine):
    """DeepSpeed's engine for networks with parameters of no dimension, such as the strength of noise.

    0.19.8 broadcasts the bytes of each parameter, and such a one cannot be viewed as bytes.
    """

    def _broadcast_model(self) -> None:
        for parameter in self.module.parameters():
            dist.broadcast(parameter.data, src=0)


def scatter(module: nn.Module, config: configs.Config, world_size: int) -> None:
    """Scatter the parameters of `module`, in fp32, over the ranks; its layers gather their own when they compute."""
    settings = deepspeed_settings(config, world_size) | {"bf16": {"enabled": False}, "fp16": {"enabled": False}}
    _join(config)
    _Init(module, settings, torch.float32)
    engine = _Engine(args=None, model=module, config=settings, config_class=DeepSpeedConfig(settings), dist_init_required=False)
    # its end would take the hooks out of the layers; past nn.Module, which would take it for a part of its own part
    object.__setattr__(module, "scattered_by", engine)


def deepspeed_settings(config: configs.Config, world_size: int) -> dict[str, Any]:
    """DeepSpeed's own dictionary, derived from ours so that nothing is said twice."""
    engine = config.engine
    return {
        "train_batch_size": config.train.batch,
        "train_micro_batch_size_per_gpu": config.train.batch // world_size,
        "gradient_accumulation_steps": 1,
        # DeepSpeed clips at 1.0 unless told otherwise; GANs train without
        "gradient_clipping": 0.0,
        "zero_optimization": {"stage": engine.zero_stage} | engine.zero_options,
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": engine.precision == "bf16"},
        "fp16": {"enabled": engine.precision == "fp16", "initial_scale_power": engine.initial_scale_power},
        "steps_per_print": 2**31,
    }
