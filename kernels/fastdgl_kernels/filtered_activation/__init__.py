"""An activation that does not alias: at a higher sampling rate, between two filters."""

from .op import filtered_lrelu

__all__ = ["filtered_lrelu"]
