"""Layers whose weight is divided by its largest singular value, and the embedding that is not.

Parameter and buffer names are those of BigGAN-PyTorch, so that its state dicts load strictly.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdgl_kernels import bias_act

from ..precision import Fp32Buffers, widened


class SpectralNorm(Fp32Buffers):
    """A weight W that is used as W / sigma, sigma its largest singular value, estimated by one step of power iteration.

        v = normalize(u W),  u' = normalize(v W^T),  sigma = v W^T u'^T

    No gradient flows through u and v. The buffer `u0` becomes u', and `sv0` sigma, in training mode; in evaluation both
    stand still, and the same weight gives the same sigma. Computed in fp32 whatever the weight is kept in.

    Args:
        shape: Of the weight: `[O, ...]`, a matrix of O rows.
        eps: The least norm that is divided by.

    Source: Miyato et al., "Spectral Normalization for Generative Adversarial Networks", ICLR 2018, algorithm 1.
    """

    def __init__(self, *shape: int, eps: float, bias: bool = False):
        super().__init__()
        self.eps = eps
        bound = 1 / math.sqrt(math.prod(shape[1:]))
        self.weight = nn.Parameter(torch.empty(shape).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(shape[0]).uniform_(-bound, bound)) if bias else None
        self.register_buffer("u0", torch.randn(1, shape[0]))
        self.register_buffer("sv0", torch.ones(1))

    def normalized_weight(self) -> Tensor:
        """W / sigma, in at least fp32."""
        weight = widened(self.weight)
        matrix = weight.flatten(1)                                        # [O, K]
        with torch.no_grad():
            v = F.normalize(self.u0.to(matrix.dtype) @ matrix, eps=self.eps)
            u = F.normalize(v @ matrix.t(), eps=self.eps)
        sigma = (v @ matrix.t() @ u.t()).squeeze()
        if self.training:
            self.u0.copy_(u)
            self.sv0.copy_(sigma.detach())
        return weight / sigma


class Conv2d(SpectralNorm):
    """Convolution that keeps the resolution, bias, activation; in the dtype of its input."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, eps: float, bias: bool = True, activation: str = "linear"):
        super().__init__(out_channels, in_channels, kernel_size, kernel_size, eps=eps, bias=bias)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:                               # [N, I, H, W] -> [N, O, H, W]
        x = F.conv2d(x, self.normalized_weight().to(x.dtype), padding=self.weight.shape[-1] // 2)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return bias_act(x, bias, act=self.activation, gain=1)


class Linear(SpectralNorm):
    """Linear layer, in the dtype of its input."""

    def __init__(self, in_features: int, out_features: int, eps: float, bias: bool = True):
        super().__init__(out_features, in_features, eps=eps, bias=bias)

    def forward(self, x: Tensor) -> Tensor:                               # [N, in] -> [N, out]
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.normalized_weight().to(x.dtype), bias)


class NormalizedEmbedding(SpectralNorm):
    """A vector for each class."""

    def __init__(self, classes: int, features: int, eps: float):
        super().__init__(classes, features, eps=eps)

    def forward(self, c: Tensor) -> Tensor:                               # [N, classes] -> [N, features]
        return c @ self.normalized_weight().to(c.dtype)


class Embedding(nn.Module):
    """A vector for each class, as it is learnt: normalizing those of the generator cripples it."""

    def __init__(self, classes: int, features: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(classes, features))

    def forward(self, c: Tensor) -> Tensor:                               # [N, classes] -> [N, features]
        return c @ self.weight.to(c.dtype)
