"""Resampling of images: zero insertion, padding, FIR filter, decimation, in one operator."""

from .op import downsample2d, filter2d, setup_filter, upfirdn2d, upsample2d

__all__ = ["downsample2d", "filter2d", "setup_filter", "upfirdn2d", "upsample2d"]
