"""Grids of images, by the signatures of today's torchvision."""

import torch


@torch.no_grad()
def make_grid(tensor, nrow=8, padding=2, normalize=False, value_range=None, scale_each=False, pad_value=0.0):
    low, high = value_range or (tensor.min(), tensor.max())
    return torch.cat([*(tensor.clamp(low, high) - low) / (high - low)], 2) if normalize else torch.cat([*tensor], 2)


@torch.no_grad()
def save_image(tensor, fp, format=None, **kwargs):
    torch.save(make_grid(tensor, **kwargs), fp)
