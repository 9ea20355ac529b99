"""Convolution whose weights are modulated by a style, sample by sample."""

from .op import modulated_conv2d

__all__ = ["modulated_conv2d"]
