"""Arguments on which a stand-in's operators and ours are held against one another."""

import torch
from numerics import normal

F4 = torch.tensor([1.0, 3.0, 3.0, 1.0]).outer(torch.tensor([1.0, 3.0, 3.0, 1.0])) / 64
F6 = torch.tensor([1.0, 4.0, 6.0, 5.0, 3.0, 1.0]) / 32

X, B, STYLES = normal(2, 3, 6, 5), normal(3, seed=1), normal(2, 3, seed=2)
WEIGHT, NOISE = normal(4, 3, 3, 3, seed=3), normal(12, 10, seed=4)

# differentiable inputs and other arguments, for the functions of NVIDIA's modules
BIAS_ACT = [
    ([X, B], dict(act="lrelu")),
    ([X, B], dict(act="lrelu", alpha=0.5, gain=0.7, clamp=0.4)),
    ([X, B], dict(act="tanh", clamp=0.8)),
    ([X, B], dict(act="swish")),
    ([STYLES, B], dict(gain=2.0)),
    ([X], dict(act="swish", dim=2)),
]
UPFIRDN2D = [
    dict(f=F4, up=2, padding=[2, 1, 0, 3]),
    dict(f=F6, down=2, padding=[3, 2], flip_filter=True, gain=3.0),
    dict(f=F4, up=[2, 1], down=[1, 3], padding=-1),
]
FILTERED_LRELU = [
    dict(fu=F6, fd=F6, up=2, down=2, padding=[5, 4, 6, 3], clamp=0.6),
    dict(fu=F6, fd=F6, up=4, down=2, padding=[9, 8, 7, 9], gain=0.9, slope=0.3, flip_filter=True),
]
CONV2D_RESAMPLE = [
    dict(padding=1),
    dict(f=F4, up=2, padding=1, flip_weight=False),
    dict(f=F4, down=2, padding=1),
]
MODULATED_CONV2D = [
    dict(padding=1),
    dict(up=2, padding=1, resample_filter=F4, flip_weight=False),
    dict(padding=1, demodulate=False, fused_modconv=False),
]
STYLEGAN3 = [
    dict(padding=2),
    dict(padding=[2, 0], input_gain=torch.tensor(0.7)),
    dict(demodulate=False, input_gain=normal(3, seed=5)),
    dict(padding=1, input_gain=normal(2, 3, seed=6)),
]
