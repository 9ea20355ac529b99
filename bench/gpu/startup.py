"""How long the first steps of training take in a process that starts: one line of JSON.

    python -m bench.gpu.startup              kernels are compiled as they come
    python -m bench.gpu.startup --ahead      all of them side by side before the first step
"""

import json
import sys
import time

import torch
from fastdgl.models.stylegan2 import Discriminator, Generator
from fastdgl_kernels import implementation, warm_up
from torch import Tensor, nn

from ..shapes import NETWORKS
from .machine import prepared
from .networks import STEPS, inputs, networks, ready


def main() -> None:
    device, resolution = prepared(), 256
    G, D = networks(Generator, Discriminator, resolution, device)
    given = inputs(NETWORKS[resolution] // 4, resolution, device)
    seconds = []
    with implementation("fastest"):
        start = time.perf_counter()
        if sys.argv[1:] == ["--ahead"]:
            with warm_up():
                _every_step(G, D, given)
        ahead = time.perf_counter() - start
        for _ in range(2):
            torch.cuda.synchronize()
            start = time.perf_counter()
            _every_step(G, D, given)
            torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
    print(json.dumps({"first_s": ahead + seconds[0], "second_s": seconds[1]}))


def _every_step(G: nn.Module, D: nn.Module, given: tuple[Tensor, Tensor]) -> None:
    for step in STEPS:
        ready(step, G, D, *given)()


if __name__ == "__main__":
    main()
