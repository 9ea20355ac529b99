"""Count the kernels, bytes and FLOPs of a training step of StyleGAN2, config F, and price them; no GPU is needed.

    python -m bench.launches                                 256 and 1024, priced for an H100
    python -m bench.launches --gpu "RTX 4090" --tf32         for another GPU, with TF32
    python -m bench.launches --nvidia ../stylegan3           and NVIDIA's networks, from your checkout
    python -m bench.launches --resolution 256 --names        and which kernels these are
"""

import argparse
import sys
from pathlib import Path

HERE = Path(__file__).parent


def main() -> int:
    from ..shapes import NETWORKS
    from .prices import GPUS

    parser = argparse.ArgumentParser(prog="python -m bench.launches", description=__doc__.partition("\n")[0])
    parser.add_argument("--resolution", type=int, nargs="+", choices=list(NETWORKS), default=list(NETWORKS), help="of the networks")
    parser.add_argument("--gpu", choices=sorted(GPUS), default="H100", help="whose roofline prices the kernels")
    parser.add_argument("--tf32", action="store_true", help="price fp32 products with inputs of 10 bits")
    parser.add_argument("--nvidia", type=Path, metavar="CHECKOUT", help="of stylegan3 or stylegan2-ada-pytorch, whose networks are counted, too")
    parser.add_argument("--names", action="store_true", help="list the launches by name")
    arguments = parser.parse_args()

    from . import nvidia, steps, table

    if arguments.nvidia is not None:
        try:
            nvidia.use(arguments.nvidia)
        except ValueError as error:
            parser.error(str(error))
    for resolution in arguments.resolution:
        found = {"kernels": steps.count_steps(resolution, "kernels"), "reference": steps.count_steps(resolution, "reference")}
        if arguments.nvidia is not None:
            try:
                found["NVIDIA"] = nvidia.count_steps(resolution)
            except ValueError as error:
                parser.error(str(error))
        print(table.text(resolution, found, GPUS[arguments.gpu], arguments.tf32))
        if arguments.names:
            print(table.names(found))
    return 0


if __name__ == "__main__":
    # from a clone, installed or not
    sys.path[:0] = [str(HERE.parents[1]), str(HERE.parents[1] / "kernels")]
    sys.exit(main())
