from torch import nn


class ModulatedConv2d(nn.Module):
    """Another layer of that name, which uses none of the operators."""

    def __init__(
        self, in_channels, out_channels, kernel_size, num_style_feat, demodulate=True, sample_mode=None, eps=1e-8
    ):
        super().__init__()

    def forward(self, x, style):
        return x
