"""What a step of an engine launches, whether the host waits for it, and where the parameters lie: counted, since a GPU's time goes by these."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from fastdgl import config as configs, models
from fastdgl.engines import TorchEngine, end_run, make_engine

from launches import Launches
from ranks import on_ranks
from stand_ins import apex_in
from test_engine_states import allow_fp16
from tiny_runs import TINY

WAYS = {f"zero{stage}-{precision}": {"zero_stage": stage, "precision": precision} for stage in (0, 1, 2) for precision in ("fp32", "bf16", "fp16")}
WAYS |= {"torch": {"kind": "torch"}, "zero3-fp32": {"zero_stage": 3, "zero_options": {"stage3_param_persistence_threshold": 0}},
         "zero1-overlap": {"zero_stage": 1, "zero_options": {"overlap_comm": True}},
         "zero2-parts": {"zero_stage": 2, "zero_options": {"reduce_bucket_size": 64}}}
BOUNDED = ("torch", "zero0-fp32", "zero1-fp32", "zero2-fp32", "zero3-fp32", "zero1-bf16", "zero1-overlap", "zero2-parts")
# the host reads a number, for which it waits
SYNC = "aten._local_scalar_dense.default"


def config_of(way: str, implementation: str = "fused", num_fp16_res: int = 0) -> configs.Config:
    model = TINY["model"] | {"num_fp16_res": num_fp16_res}
    return configs.from_dict(TINY | {"model": model, "engine": WAYS[way], "optimizer": {"implementation": implementation}}, "test")


def generator() -> nn.Module:
    torch.manual_seed(0)
    config = config_of("torch")
    return models.generator(config.model.family, config.model.generator_arguments(10))


def objective(module: nn.Module) -> torch.Tensor:
    return sum(p.float().square().sum() for p in module.parameters())


def misaligned(module: nn.Module) -> list[str]:
    return [name for name, p in module.named_parameters() if p.data_ptr() % 16]


def count_all(run, folder: Path) -> None:
    """For each way: launches of a step of Adam, and of a backward that bounds overflow, and the parameters that are not on 16 bytes."""
    allow_fp16()
    results = {}
    with apex_in():
        for way in WAYS:
            config = config_of(way, "apex" if way in ("zero0-fp16", "zero0-bf16") else "fused")
            engine = make_engine(generator(), config.optimizer.generator, 0, config, run)
            for _ in range(2):
                with engine.whole():
                    engine.backward(objective(engine.module))
                with Launches() as launches:
                    engine.step()
            # ZeRO 3 has the parameters elsewhere between steps
            results[way] = launches.counts, [] if way.startswith("zero3") else misaligned(engine.module), len(list(engine.module.parameters()))
        for way in BOUNDED:
            config = config_of(way, num_fp16_res=1)
            engine = make_engine(generator(), config.optimizer.generator, 0, config, run)
            with engine.whole(), Launches() as launches:
                engine.backward(objective(engine.module))
            results["bounded", way] = launches.counts["aten.nan_to_num_.default"]
            engine.step()
    torch.save(results, folder / "launches.pt")
    end_run()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("launches")
    on_ranks(1, count_all, folder)
    return torch.load(folder / "launches.pt", weights_only=False)


@pytest.mark.parametrize("way", ["zero1-fp32", "zero2-fp32", "zero1-bf16", "zero2-bf16"])
def test_a_step_of_zero_launches_a_handful_for_all_parameters_together(results, way):
    launches, _, parameters = results[way]
    assert sum(launches.values()) < 20 < parameters, launches
    assert launches[SYNC] == 0


def test_a_step_of_plain_pytorch_is_one_launch_of_adam(results):
    launches, _, _ = results["torch"]
    assert launches["aten._fused_adam_.default"] == 1 and sum(launches.values()) < 5 and launches[SYNC] == 0, launches


@pytest.mark.parametrize("way", [way for way in WAYS if not way.startswith("zero3")])
def test_every_parameter_lies_on_16_bytes(results, way):
    assert results[way][1] == []


@pytest.mark.parametrize("way", BOUNDED)
def test_overflow_is_bounded_by_one_launch_where_there_is_a_flat_gradient(results, way):
    parameters = results["torch"][2]
    launches = results["bounded", way]
    if way in ("zero3-fp32", "zero1-overlap"):
        # which are reduced while the backward goes on
        assert launches == parameters
    elif way == "zero2-parts":
        assert 1 < launches < parameters
    else:
        assert launches == 1


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight, self.strength = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones([]))


def overflowing(rank: int, batch: int) -> torch.Tensor:
    """Gradients of which some overflow, on rank 1 and in the first of two micro-batches."""
    finite = torch.tensor([1.0, 2.0, 4.0]) * 2.0**batch
    return torch.tensor([math.nan, math.inf, -math.inf]) if (rank, batch) == (1, 0) else finite


def bounded_step(engine, rank: int) -> dict[str, torch.Tensor]:
    for batch in range(2):
        # which ZeRO 3 needs where no layer gathers its own
        with engine.whole():
            loss = (engine.module.weight * overflowing(rank, batch)).sum() + engine.module.strength * overflowing(rank, batch)[batch]
            engine.backward(loss, last=batch == 1)
    engine.step()
    with engine.whole():
        return {name: p.detach().clone() for name, p in engine.module.named_parameters()}


def bound(parameter: nn.Parameter) -> None:
    torch.nan_to_num_(parameter.grad, nan=0.0, posinf=1e5, neginf=-1e5)


def bound_on_two_ranks(run, folder: Path) -> None:
    """As hooks on each parameter would, before the ranks are averaged and after each micro-batch."""
    truth = Small()
    for parameter in truth.parameters():
        parameter.register_post_accumulate_grad_hook(bound)
    adam = config_of("torch").optimizer.generator
    optimizer = torch.optim.Adam(truth.parameters(), lr=adam.lr, betas=(adam.beta1, adam.beta2), eps=adam.eps, fused=True)
    expected = bounded_step(TorchEngine(truth, optimizer), run.rank)
    for way in BOUNDED:
        if way != "zero1-bf16":
            config = config_of(way, num_fp16_res=1)
            got = bounded_step(make_engine(Small(), config.optimizer.generator, 0, config, run), run.rank)
            assert all(torch.equal(got[name], value) for name, value in expected.items()), f"{way}: {got} for {expected}"
    end_run()


def test_overflow_of_one_rank_is_bounded_before_the_ranks_are_averaged(tmp_path):
    on_ranks(2, bound_on_two_ranks, tmp_path)
