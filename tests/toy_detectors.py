"""Detectors small enough for a test."""

import torch
from numerics import normal
from torch import nn

FEATURES = 5


class Seer(nn.Module):
    """Sees colours at three places, with the keywords of NVIDIA's Inception and VGG-16."""

    def __init__(self):
        super().__init__()
        self.register_buffer("weight", normal(FEATURES, 9).float())

    def forward(self, img: torch.Tensor, resize_images: bool = True, return_features: bool = False, no_output_bias: bool = False,
                return_lpips: bool = False) -> torch.Tensor:
        x = img.float() / 255
        if return_lpips:
            x = x[:, :, ::2, ::2] if resize_images else x
            return torch.cat([x.flatten(1) ** 2, (x[:, :, 1:] * x[:, :, :-1]).flatten(1)], dim=1)
        x = torch.cat([x[:, :, 2, 3], x[:, :, 7, 1], x.mean([2, 3])], dim=1) @ self.weight.T
        return x if return_features else torch.softmax(x if no_output_bias else x + 1000 * self.weight[:, 0], dim=1)


class Averager(nn.Module):
    def forward(self, img: torch.Tensor) -> torch.Tensor:
        return img.float().mean([2, 3])
