"""DeepSpeed's engine under ours: ZeRO 0, 1, 2 or 3 in fp32, bf16 or fp16."""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .. import config as configs
from . import MOMENTS, LearningRate, State, bound_gradients, bound_overflow, buffers, load_whole_state, on_cpu, stored_moments, whole_state
from .optimizers import forget_steps, step_count, step_kept_by
from .peers import patience

# deepspeed looks for its accelerator when imported, and warns if it is left to find a CPU by itself
os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")

import deepspeed  # noqa: E402
from deepspeed.accelerator import get_accelerator  # noqa: E402
from deepspeed.runtime.config import DeepSpeedConfig  # noqa: E402
from deepspeed.runtime.fp16.fused_optimizer import FP16_Optimizer  # noqa: E402
from deepspeed.runtime.precision_config import DeepSpeedBF16Config  # noqa: E402
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig  # noqa: E402
from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus  # noqa: E402
from deepspeed.utils import (  # noqa: E402
    safe_get_full_fp32_param, safe_get_full_optimizer_state, safe_set_full_fp32_param, safe_set_full_optimizer_state, safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)

# of torch.distributed's names, which are deepspeed's to follow
warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
deepspeed.utils.logger.setLevel(logging.ERROR)
# on a CPU it would compile an operation of its own with g++; gloo serves as well, and needs no compiler
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


# stands for a layer that is busy with a parameter; DeepSpeed counts its own from 0
HELD = -1
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# of Adam's moments, those that ZeRO shards
SHARDED = MOMENTS[1:]
# what fp16's loss scale goes by, where DeepSpeed's optimizer has it
LOSS_SCALE = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")
# of DeepSpeed's `zero_optimization`: with any of these it needs the norm of the gradients
NEED_NORM = ("offload_optimizer", "cpu_offload", "zenflow")


class ZeroEngine:
    """A network and its optimizer in a DeepSpeed engine, which sees `backward` and `step` alone."""

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer, config: configs.Config, world_size: int, bounded: bool = False):
        self.module = module
        self.optimizer = optimizer
        self.scales_loss = config.engine.precision == "fp16" and config.engine.zero_stage == 0
        if config.engine.precision == "fp16" and not get_accelerator().is_fp16_supported():
            raise configs.ConfigError("engine.precision: fp16 is not supported by DeepSpeed on this device; use bf16 or fp32")
        self.shards_parameters = config.engine.shards_parameters
        settings = deepspeed_settings(config, world_size)
        _join(config)
        checked = _checked(settings, config)
        in_hooks = bounded and _reduces_during_backward(checked)
        if in_hooks:
            for parameter in module.parameters():
                parameter.register_post_accumulate_grad_hook(lambda parameter: bound_overflow(parameter.grad))
        if self.shards_parameters:
            _Init(module, settings, PRECISIONS[config.engine.precision])
        self.engine = _Engine(args=None, model=module, optimizer=optimizer, config=settings, config_class=checked, dist_init_required=False)
        if bounded and not in_hooks:
            self.engine.bound_gradients()
        # DeepSpeed would end the process; whether a run has diverged is found once a tick, and said
        if config.engine.precision == "fp16" and not self.scales_loss:
            self.engine.optimizer.loss_scaler.raise_error_at_min_scale = False
        self.schedule = LearningRate(self._adam)
        # fp16's optimizer at stage 0 has made the moments by a step without gradients, which Adam's bias correction would count
        forget_steps(optimizer)
        if self._is_flat:
            # DeepSpeed lays the 16-bit parameters one after the other, and reads them there no more; cuDNN wants each on 16 bytes
            for parameter in module.parameters():
                parameter.data = parameter.data.clone()

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

    def scale_lr(self, factor: float) -> None:
        self.schedule.scale(factor)

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

    @property
    def skipped_steps(self) -> int:
        return self.engine.skipped_steps

    def state_dict(self) -> State:
        if self._is_flat:
            state = self._flat_state()
        elif self.engine.zero_optimization_stage() == 0:
            state = whole_state(self.module, self._adam, self._masters)
        else:
            adam = self._adam.state[self._shards[0]]
            state = {"parameters": {}, "buffers": buffers(self.module), "moments": {}, "loss_scale": {}}
            with self._asking():
                for name, parameter in self.module.named_parameters():
                    state["parameters"][name] = on_cpu(safe_get_full_fp32_param(parameter))
                    if adam:
                        moments = {key: on_cpu(safe_get_full_optimizer_state(parameter, key)) for key in SHARDED}
                        state["moments"][name] = {"step": step_count(adam["step"])} | moments
        state["loss_scale"] = {name: self._loss_scale[name] for name in LOSS_SCALE if name in self._loss_scale}
        return state

    def load_state_dict(self, state: State) -> None:
        if self._is_flat:
            self._load_flat(state)
        elif self.engine.zero_optimization_stage() == 0:
            load_whole_state(self.module, self._adam, self._masters, state)
        else:
            if self.shards_parameters:
                self._load_parts(state)
            else:
                self.module.load_state_dict(state["parameters"] | state["buffers"])
            self._load_shards(state)
        self.engine.skipped_steps = 0
        self._loss_scale.update((name, value) for name, value in state["loss_scale"].items() if name in self._loss_scale)

    def _flat_state(self) -> State:
        masters, moments = self._parts(self._flat), {}
        adam = stored_moments(self._adam.state[self._flat])
        parts = {key: self._parts(adam[key]) for key in SHARDED}
        for name in masters:
            moments[name] = {"step": adam["step"].clone()} | {key: parts[key][name].clone() for key in SHARDED}
        parameters = {name: on_cpu(master) for name, master in masters.items()}
        return {"parameters": parameters, "buffers": buffers(self.module), "moments": moments, "loss_scale": {}}

    def _load_flat(self, state: State) -> None:
        adam, step = self._adam.state[self._flat], _common_step(state)
        self.module.load_state_dict(state["parameters"] | state["buffers"])
        for name, master in self._parts(self._flat.data).items():
            master.copy_(state["parameters"][name])
        for key in SHARDED:
            for name, moment in self._parts(adam[key]).items():
                moment.copy_(state["moments"][name][key]) if state["moments"] else moment.zero_()
        adam["step"] = step_kept_by(self._adam, step, self._flat.device)

    def _parts(self, flat: Tensor) -> dict[str, Tensor]:
        """Return each parameter's part of what lies one after the other in `flat`."""
        parameters, = self.engine.optimizer.fp16_groups
        names = {id(parameter): name for name, parameter in self.module.named_parameters()}
        parts = flat.split([parameter.numel() for parameter in parameters])
        return {names[id(parameter)]: part.view_as(parameter) for parameter, part in zip(parameters, parts)}

    def _load_parts(self, state: State) -> None:
        parameters = dict(self.module.named_parameters())
        shapes = {name: list(value.shape) for name, value in state["parameters"].items()}
        if shapes != {name: list(parameter.ds_shape) for name, parameter in parameters.items()}:
            raise ValueError("its parameters are of another network")
        self.module.load_state_dict(state["buffers"], strict=False)
        for name, parameter in parameters.items():
            value = state["parameters"][name]
            parameter.ds_tensor.data.copy_(own_part(parameter, value))
            # small ones stay whole as well
            if parameter.ds_status == ZeroParamStatus.AVAILABLE:
                parameter.data.copy_(value)

    def _load_shards(self, state: State) -> None:
        step = _common_step(state)
        if state["moments"]:
            for shard in self._shards:
                adam = self._adam.state[shard]
                for key in SHARDED:
                    adam.setdefault(key, torch.zeros_like(shard))
                adam["step"] = step_kept_by(self._adam, step, shard.device)
            if not self.shards_parameters:
                # DeepSpeed does so at its first step
                self.engine.optimizer._lazy_init_hp_params_optimizer_state()
        with self._asking():
            for name, parameter in self.module.named_parameters():
                set_master(parameter, state["parameters"][name])
                for key in SHARDED if state["moments"] else ():
                    set_moment(parameter, state["moments"][name][key], key)
        if not state["moments"]:
            # not cleared: DeepSpeed holds on to these tensors
            for shard in self._shards:
                for key in SHARDED:
                    if key in self._adam.state[shard]:
                        self._adam.state[shard][key].zero_()
            forget_steps(self._adam)

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Gradients on inside: of a parameter without, DeepSpeed tells and takes nothing at stage 3."""
        learning = [parameter.requires_grad for parameter in self.module.parameters()]
        self.module.requires_grad_(True)
        try:
            yield
        finally:
            for parameter, before in zip(self.module.parameters(), learning):
                parameter.requires_grad_(before)

    @property
    def _adam(self) -> torch.optim.Optimizer:
        return self.engine.basic_optimizer

    @property
    def _shards(self) -> list[Tensor]:
        """ZeRO 1 to 3: what this rank's Adam steps, a part of all parameters, or at stage 3 of each."""
        optimizer = self.engine.optimizer
        return optimizer.fp32_partitioned_groups_flat if self.shards_parameters else optimizer.single_partition_of_fp32_groups

    @property
    def _is_flat(self) -> bool:
        """Return whether Adam steps one flat fp32 copy of all parameters: so DeepSpeed does for apex's, at stage 0 in 16 bits."""
        return isinstance(self.engine.optimizer, FP16_Optimizer)

    @property
    def _flat(self) -> Tensor:
        flat, = self.engine.optimizer.fp32_groups_flat
        return flat

    @property
    def _masters(self) -> dict[str, Tensor]:
        """ZeRO 0: what Adam steps for each parameter: itself, or its fp32 copy."""
        parameters = dict(self.module.named_parameters())
        if self.engine.optimizer is self._adam:
            return parameters
        copies = {id(p): copy for p, copy in zip(self.engine.optimizer.fp16_groups[0], self.engine.optimizer.fp32_groups[0], strict=True)}
        return {name: copies[id(p)] for name, p in parameters.items()}

    @property
    def _loss_scale(self) -> dict[str, Any]:
        """The state of fp16's loss scale, which can be written to; without fp16 there is none."""
        if not self.engine.fp16_enabled():
            return {}
        optimizer = self.engine.optimizer
        return vars(optimizer.loss_scaler if self.engine.zero_optimization() else optimizer.loss_scale_config)


def _common_step(state: State) -> Tensor:
    """Return how often the parameters in `state` were stepped, 0 for a state without moments.

    Raises:
        ValueError: Some were stepped more often than others.
    """
    steps = {float(moments["step"]) for moments in state["moments"].values()} or {0.0}
    if len(steps) > 1:
        raise ValueError(f"its parameters were stepped {' and '.join(f'{step:g}' for step in sorted(steps))} times; ZeRO steps all of them together")
    return torch.tensor(*steps)


def set_master(parameter: nn.Parameter, value: Tensor) -> None:
    """This rank's part of a parameter's fp32 copy, from the whole of it."""
    if hasattr(parameter, "ds_id"):
        safe_set_local_fp32_param(parameter, own_part(parameter, value))
    else:
        safe_set_full_fp32_param(parameter, value.to(parameter.device))


def set_moment(parameter: nn.Parameter, value: Tensor, key: str) -> None:
    """Likewise one of Adam's moments."""
    if hasattr(parameter, "ds_id"):
        safe_set_local_optimizer_state(parameter, own_part(parameter, value), key)
    else:
        safe_set_full_optimizer_state(parameter, value.to(parameter.device), key)


def own_part(parameter: nn.Parameter, value: Tensor) -> Tensor:
    """Of what ZeRO 3 scatters in equal parts, the last of which it pads; its own way to do so fails where one is padded."""
    size = parameter.ds_tensor.numel()
    padded = torch.zeros(size * dist.get_world_size())
    padded[:value.numel()] = value.flatten()
    return padded.narrow(0, size * dist.get_rank(), size).to(parameter.ds_tensor.device)


def _join(config: configs.Config) -> None:
    """DeepSpeed's part in the process group."""
    deepspeed.init_distributed(dist_init_required=False)
    # DeepSpeed's groups would wait as long as torch does by default
    deepspeed.comm.comm.cdb.new_group = partial(dist.new_group, timeout=patience(config.engine.timeout))


def _checked(settings: dict[str, Any], config: configs.Config) -> DeepSpeedConfig:
    """DeepSpeed's own config of `settings`.

    Raises:
        ConfigError: `zero_options` are not DeepSpeed's.
    """
    try:
        return DeepSpeedConfig(settings)
    except (ValueError, AssertionError) as error:
        raise configs.ConfigError(f"engine.zero_options: DeepSpeed does not take {config.engine.zero_options}: "
                                  f"{' '.join(str(error).split())}") from None


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
    """DeepSpeed's engine, with what our networks need besides.

    A parameter of no dimension, such as the strength of noise, cannot be viewed as bytes, and 0.19.8 broadcasts the bytes of each.
    """

    _bounds = False

    def bound_gradients(self) -> None:
        """From now on bound what overflows in a gradient, on each rank and before the ranks are averaged.

        ZeRO 1 and 2 copy the gradients into one buffer before they reduce it: there it takes one launch.
        """
        if self.zero_optimization_stage() in (1, 2):
            average = self.optimizer.average_tensor

            def bounded(tensor: Tensor, communication_data_type: torch.dtype) -> None:
                bound_overflow(tensor)
                average(tensor, communication_data_type)

            self.optimizer.average_tensor = bounded
        self._bounds = self.zero_optimization_stage() < 2

    def allreduce_gradients(self, *arguments: Any, **options: Any) -> None:
        # at stage 1 what is in the buffer is bounded there
        if self._bounds and not (self.zero_optimization_stage() == 1 and self.is_gradient_accumulation_boundary()):
            bound_gradients(self.module)
        super().allreduce_gradients(*arguments, **options)

    def _broadcast_model(self) -> None:
        for parameter in self.module.parameters():
            dist.broadcast(parameter.data, src=0)


def scatter(module: nn.Module, config: configs.Config, world_size: int) -> None:
    """Scatter the parameters of `module`, in fp32, over the ranks; its layers gather their own when they compute."""
    settings = deepspeed_settings(config, world_size) | {"bf16": {"enabled": False}, "fp16": {"enabled": False}}
    _join(config)
    checked = _checked(settings, config)
    _Init(module, settings, torch.float32)
    engine = _Engine(args=None, model=module, config=settings, config_class=checked, dist_init_required=False)
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
        "zero_optimization": {"stage": engine.zero_stage} | _faster(engine) | engine.zero_options,
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": engine.precision == "bf16"} | _unchecked(engine),
        "fp16": {"enabled": engine.precision == "fp16", "initial_scale_power": engine.initial_scale_power},
        "steps_per_print": 2**31,
    }


def _faster(engine: configs.Engine) -> dict[str, Any]:
    """Return the options of ZeRO 1 and 2 that cost nothing and that DeepSpeed leaves off; `zero_options` can take each back.

    Without `compute_grad_norm` a step reads every gradient once less, and the host does not wait for the GPU: only clipping needs the norm.
    `parameter_alignment` puts each parameter on 16 bytes, which cuDNN's fast convolutions read it by.
    """
    if engine.zero_stage not in (1, 2):
        return {}
    options = {"parameter_alignment": True}
    if not any(engine.zero_options.get(name) for name in NEED_NORM):
        options["compute_grad_norm"] = False
    # a DeepSpeed of before 0.19 knows neither
    return {name: value for name, value in options.items() if name in DeepSpeedZeroConfig.model_fields}


def _unchecked(engine: configs.Engine) -> dict[str, Any]:
    """Return the option of bf16 under ZeRO 1 and 2 not to look for overflow in each gradient: there is no loss scale that needs to know."""
    known = engine.zero_stage in (1, 2) and "check_grad_overflow" in DeepSpeedBF16Config.model_fields
    return {"check_grad_overflow": False} if known else {}


def _reduces_during_backward(checked: DeepSpeedConfig) -> bool:
    """Return whether gradients meet those of other ranks before a backward has ended, and not by way of one buffer."""
    zero = checked.zero_config
    return zero.stage == 3 or zero.stage in (1, 2) and bool(zero.overlap_comm or not zero.contiguous_gradients or zero.offload_optimizer)
