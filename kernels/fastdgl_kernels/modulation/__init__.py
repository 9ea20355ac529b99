"""Convolution whose weights are modulated by a style, sample by sample."""

from .op import modulated_conv2d, modulated_conv2d_bias_act

__all__ = ["modulated_conv2d", "modulated_conv2d_bias_act"]
