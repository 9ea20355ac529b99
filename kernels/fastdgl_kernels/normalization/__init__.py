"""What follows the statistics of a normalization: scale, shift, activation and upsampling in one operator."""

from .op import scale_shift_act

__all__ = ["scale_shift_act"]
