"""Networks of shapes alone: to compare a file with before memory is taken, and to put its tensors into."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

# what makes a tensor of a given size, and what only changes the numbers in one
FACTORIES = (torch.empty, torch.zeros, torch.ones, torch.randn)
ARITHMETIC = (Tensor.div, Tensor.mul, Tensor.uniform_)


class Skeletons(TorchFunctionMode):
    """Inside, parameters and buffers have a shape and a dtype, and no memory; no random number is generated.

        with Skeletons():
            G = Generator(img_resolution=1024)
        G.load_state_dict(state, assign=True)

    PyTorch's own way, `torch.device("meta")`, imports 160 MB of its compiler at the first sum.
    """

    def __torch_function__(self, function: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if function in FACTORIES:
            return function(*args, **kwargs) if "device" in kwargs else torch.empty(*args, device="meta", **kwargs)
        if function is torch.full:
            return torch.empty(args[0], device="meta")
        if function in ARITHMETIC and args[0].is_meta:
            return args[0]
        return function(*args, **kwargs)
