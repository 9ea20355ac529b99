"""Whole steps of training, forward and backward, eager and as a CUDA graph: StyleGAN2's G, D, R1 and path length, BigGAN's G and D."""

import pytest
from fastdgl.models.stylegan2 import Discriminator, Generator
from fastdgl_kernels import implementation

from bench.gpu.networks import BIGGAN_STEPS, STEPS, biggan_inputs, biggan_networks, captured, inputs, networks, ready
from bench.shapes import BIGGAN_BATCH, BIGGAN_WIDTHS, NETWORKS

every_mode = pytest.mark.parametrize("mode", ["eager", "graph"])
every_implementation = pytest.mark.parametrize("impl", ["reference", "fastest"])


@every_mode
@every_implementation
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("resolution", NETWORKS)
def bench_step(benchmark, device, resolution, step, impl, mode):
    G, D = networks(Generator, Discriminator, resolution, device)
    run = ready(step, G, D, *inputs(NETWORKS[resolution], resolution, device))
    benched(benchmark, run, impl, mode, NETWORKS[resolution])


@every_mode
@every_implementation
@pytest.mark.parametrize("step", BIGGAN_STEPS)
@pytest.mark.parametrize("ch", BIGGAN_WIDTHS)
def bench_biggan_step(benchmark, device, ch, step, impl, mode):
    G, D = biggan_networks(ch, device)
    run = ready(step, G, D, *biggan_inputs(BIGGAN_BATCH, G, device))
    benched(benchmark, run, impl, mode, BIGGAN_BATCH)


def benched(benchmark, run, impl, mode, images):
    benchmark.extra_info["images"] = images
    with implementation(impl):
        benchmark(captured(run) if mode == "graph" else run)
