"""Stands in for NVIDIA's apex, which needs a GPU: what fastdgl and DeepSpeed use of it, with its habits."""

from . import optimizers as optimizers
