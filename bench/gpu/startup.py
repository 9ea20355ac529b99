"""How long the first steps of training take in a process that starts: `python -m bench.gpu.startup`, one line of JSON."""

import json
import time

import torch
from fastdgl.models.stylegan2 import Discriminator, Generator
from fastdgl_kernels import implementation

from ..shapes import NETWORKS
from .machine import prepared
from .networks import STEPS, inputs, networks, ready


def main() -> None:
    device, resolution = prepared(), 256
    G, D = networks(Generator, Discriminator, resolution, device)
    given = inputs(NETWORKS[resolution] // 4, resolution, device)
    seconds = []
    with implementation("fastest"):
        for _ in range(2):
            torch.cuda.synchronize()
            start = time.perf_counter()
            for step in STEPS:
                ready(step, G, D, *given)()
            torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
    print(json.dumps({"first_s": seconds[0], "second_s": seconds[1]}))


if __name__ == "__main__":
    main()
