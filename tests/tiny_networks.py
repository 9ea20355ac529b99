"""Snapshots of networks small enough for a test."""

from types import SimpleNamespace

import torch

from fastdgl import checkpoints, config as configs, models
from fastdgl.models.batch_norm import standing_statistics

STYLEGAN2 = {"resolution": 16, "z_dim": 8, "w_dim": 8, "mapping_layers": 2, "channel_base": 64, "channel_max": 8, "num_fp16_res": 0}
BIGGAN = {"family": "biggan", "resolution": 32, "z_dim": 8, "generator_ch": 4, "discriminator_ch": 4, "hier": False, "shared_dim": 0,
          "attention": 0}


def save(path, model, c_dim, class_names, label_kind="classes"):
    """A snapshot of a tiny network, as training leaves it."""
    torch.manual_seed(0)
    config = configs.from_dict({"images": {"path": "digits"}, "model": model}, "test")
    family = config.model.family
    G, average = (models.generator(family, config.model.generator_arguments(c_dim)) for _ in range(2))
    D = models.discriminator(family, config.model.discriminator_arguments(c_dim))
    if family == "stylegan2":
        average.mapping.w_avg.normal_()
    else:
        # of its own images, or they are all grey
        standing_statistics(average, [(torch.randn(16, 8), torch.eye(c_dim)[torch.arange(16) % c_dim])])
    path.parent.mkdir()
    images = SimpleNamespace(label_dim=c_dim, class_names=class_names, label_kind=label_kind if c_dim else None)
    checkpoints.save_snapshot(path, {"G": G, "D": D, "G_ema": average}, config, images, 1000)
