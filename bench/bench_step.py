"""Whole steps of training, forward and backward: G, D, R1 and path length, eager and as a CUDA graph."""

import pytest
from fastdgl.models.stylegan2 import Discriminator, Generator
from fastdgl_kernels import implementation

from bench.gpu.networks import STEPS, captured, inputs, networks, ready
from bench.shapes import NETWORKS


@pytest.mark.parametrize("mode", ["eager", "graph"])
@pytest.mark.parametrize("impl", ["reference", "fastest"])
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("resolution", NETWORKS)
def bench_step(benchmark, device, resolution, step, impl, mode):
    G, D = networks(Generator, Discriminator, resolution, device)
    run = ready(step, G, D, *inputs(NETWORKS[resolution], resolution, device))
    benchmark.extra_info["images"] = NETWORKS[resolution]
    with implementation(impl):
        benchmark(captured(run) if mode == "graph" else run)
