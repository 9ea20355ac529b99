"""A step of Adam over all parameters of a generator, in each implementation of `optimizer.implementation` that is there. Also without a GPU.

    pytest bench/bench_optimizer.py --benchmark-only --benchmark-json=optimizer.json

`extra_info` has how many parameters there are, and how many numbers.
"""

import pytest
import torch
from fastdgl.config import ConfigError
from fastdgl.engines.optimizers import make_adam
from fastdgl.models.stylegan2 import Generator

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# on a CPU a network of a few hundred thousand numbers, so that a round takes milliseconds
SIZE = {"img_resolution": 256} if DEVICE.type == "cuda" else {"img_resolution": 64, "channel_base": 1024, "channel_max": 64, "z_dim": 64, "w_dim": 64}


@pytest.fixture(scope="module")
def gradients():
    return [torch.randn_like(parameter) for parameter in Generator(**SIZE).to(DEVICE).parameters()]


@pytest.mark.parametrize("implementation", ["auto", "foreach", "fused", "apex"])
def bench_optimizer(benchmark, gradients, implementation):
    parameters = [torch.nn.Parameter(torch.zeros_like(gradient)) for gradient in gradients]
    try:
        adam = make_adam(parameters, implementation, DEVICE, lr=0.002, betas=(0.0, 0.99), eps=1e-8)
    # apex's own says of a CPU that it finds no GPU
    except (ConfigError, RuntimeError) as error:
        pytest.skip(str(error))
    for parameter, gradient in zip(parameters, gradients):
        parameter.grad = gradient
    benchmark.extra_info.update(parameters=len(parameters), numbers=sum(parameter.numel() for parameter in parameters))
    benchmark(adam.step)
