import torch
from pkg_resources import parse_version

enabled = False
recent = parse_version(torch.__version__) >= parse_version("1.12.0a")


def grid_sample(input, grid):
    if enabled:
        torch._C._jit_get_operation("aten::grid_sampler_2d_backward")(input, grid)
    return torch.nn.functional.grid_sample(input, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
