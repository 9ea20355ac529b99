"""What a network costs: trainable parameters, and multiply-accumulates of one image."""

import copy

import torch
from torch import Tensor, nn

from .biggan import SelfAttention


def parameter_count(network: nn.Module) -> int:
    """Trainable numbers in `network`."""
    return sum(p.numel() for p in network.parameters())


def macs(network: nn.Module, *inputs: Tensor | None) -> int:
    """Multiply-accumulates of the linear and convolution layers of `network(*inputs)`, and of attention, per sample.

    A transposed convolution counts at the resolution of its input. Resampling filters, noise, normalizations and
    activations do not count. Nothing is computed: the network runs on the meta device, and stays where it is.

    Args:
        inputs: The arguments of the network; only their shapes matter.
    """
    total = 0

    def count(layer: nn.Module, args: tuple, output: Tensor) -> None:
        nonlocal total
        positions = min(args[0][0, 0].numel(), output[0, 0].numel())
        total += layer.weight.numel() * positions

    def count_attention(layer: SelfAttention, args: tuple, output: Tensor) -> None:
        nonlocal total
        total += layer.product_macs(*output.shape[2:])

    # in evaluation no layer looks for other ranks
    ghost = copy.deepcopy(network).to("meta").eval()
    for layer in ghost.modules():
        if isinstance(getattr(layer, "weight", None), nn.Parameter):
            layer.register_forward_hook(count)
        if isinstance(layer, SelfAttention):
            layer.register_forward_hook(count_attention)
    with torch.no_grad():
        ghost(*[None if x is None else x.to("meta") for x in inputs])
    return total
