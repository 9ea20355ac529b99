"""Bias and activation in one operator."""

from .op import FusedLeakyReLU, bias_act, fused_leaky_relu
from .reference import activation_funcs

__all__ = ["FusedLeakyReLU", "activation_funcs", "bias_act", "fused_leaky_relu"]
