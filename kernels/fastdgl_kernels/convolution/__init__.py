"""Convolution with resampling before or after it."""

from .op import conv2d_resample

__all__ = ["conv2d_resample"]
