"""For pytest-benchmark: a clock that waits for the GPU, what the machine is, and the cases of bench/gpu as parameters.

    pytest bench/ --benchmark-only --benchmark-group-by=param:operator,param:order,param:layer
"""

import time
from functools import cache, partial
from itertools import cycle
from pathlib import Path

import pytest
import torch

from bench.gpu import cases, machine, timing
from bench.gpu.case import call, moved_bytes, named


def clock() -> float:
    """Seconds, when all that was launched is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def pytest_collection_modifyitems(items):
    reason = machine.why_not()
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.benchmark(timer=clock, warmup=True, min_rounds=timing.REPETITIONS))
            if reason and "device" in item.fixturenames:
                item.add_marker(pytest.mark.skip(reason=f"benchmarks need a GPU: {reason}"))


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_machine_info(machine_info):
    machine_info.update(machine.facts())


def pytest_generate_tests(metafunc):
    """A module of benchmarks names its OPERATORS; each of their cases runs as ours and as each of its rivals."""
    if "turn" in metafunc.fixturenames:
        own = [case for case in timed().values() if case.operator in metafunc.module.OPERATORS]
        impls = ("ours", "reference", "cudnn")
        values = [(c.operator, c.order, c.layer, impl) for c in own for impl in impls if impl in ("ours", *c.rivals)]
        metafunc.parametrize(("operator", "order", "layer", "impl"), values, ids=["-".join(v).replace(" ", "_") for v in values])


@cache
def timed():
    return {case.key: case for case in cases.timed()}


@pytest.fixture(scope="session")
def device():
    torch.backends.cudnn.benchmark = True
    return machine.prepared()


@pytest.fixture
def turn(operator, order, layer, impl, device, benchmark):
    """One run on the next set of inputs."""
    case = timed()[f"{operator} {order} {layer}"]
    sets = timing.rotation(case, device, 0, machine.cache_bytes(device))
    moved = moved_bytes(case, sets[0], call(case.run, sets[0]))
    benchmark.extra_info.update(bytes=moved, flops=case.flops)
    f = case.run if impl == "ours" else case.rivals[impl]
    turns = cycle([partial(f, **named(f, tensors)) for tensors in sets])
    return lambda: next(turns)()
