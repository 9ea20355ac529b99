"""Where the kernels are tested: on a GPU if there is one, else in Triton's interpreter."""

import pytest
import torch
from numerics import normal
from torch import Tensor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
every_format = pytest.mark.parametrize("channels_last", [False, True], ids=["NCHW", "NHWC"])


def on_device(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32, channels_last: bool = False) -> Tensor:
    """Normal numbers where the kernels run."""
    x = normal(*shape, seed=seed, dtype=dtype).to(DEVICE)
    return x.contiguous(memory_format=torch.channels_last) if channels_last else x
