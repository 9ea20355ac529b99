import torch
from torch_utils import misc, persistence
from torch_utils.ops import bias_act, conv2d_resample, fma, upfirdn2d


@misc.profiled_function
def modulated_conv2d(
    x, weight, styles, noise=None, up=1, down=1, padding=0, resample_filter=None, demodulate=True, flip_weight=True,
    fused_modconv=True,
):
    """By weights of each sample's own."""
    N, O = len(x), len(weight)
    w = weight * styles[:, None, :, None, None]
    if demodulate:
        w = w * (w.square().sum([2, 3, 4], keepdim=True) + 1e-8).rsqrt()
    x = x.reshape(1, -1, *x.shape[2:])
    x = conv2d_resample.conv2d_resample(x, w.flatten(0, 1), resample_filter, up, down, padding, N, flip_weight)
    x = x.view(N, O, *x.shape[2:])
    return x if noise is None else fma.fma(x, x.new_ones(1), noise)


@persistence.persistent_class
class Generator(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.affine = torch.nn.Linear(4, 3)
        self.weight = torch.nn.Parameter(torch.randn(5, 3, 3, 3))
        self.bias = torch.nn.Parameter(torch.randn(5))
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
        self.register_buffer("resample_filter", taps.outer(taps) / 64)

    def forward(self, x, w):
        x = modulated_conv2d(
            x, self.weight, self.affine(w), up=2, padding=1, resample_filter=self.resample_filter, flip_weight=False
        )
        x = bias_act.bias_act(x, self.bias, act="lrelu", clamp=256)
        return upfirdn2d.upsample2d(x, self.resample_filter)
