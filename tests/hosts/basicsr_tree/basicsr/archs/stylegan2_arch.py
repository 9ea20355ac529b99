import torch
from basicsr.ops.upfirdn2d import upfirdn2d
from torch import nn
from torch.nn import functional as F


class UpFirDnSmooth(nn.Module):
    def __init__(self, resample_kernel, upsample_factor, kernel_size):
        super().__init__()
        kernel = torch.tensor(resample_kernel, dtype=torch.float32)
        self.kernel = kernel.outer(kernel) / kernel.sum() ** 2 * upsample_factor**2
        spare = len(kernel) - 2 + (kernel_size - 1) * (1 if upsample_factor == 1 else -1)
        self.pad = ((spare + 1) // 2 + upsample_factor - 1, spare // 2 + upsample_factor - 1)

    def forward(self, x):
        return upfirdn2d(x, self.kernel.type_as(x), pad=self.pad)


class ModulatedConv2d(nn.Module):
    def __init__(
        self, in_channels, out_channels, kernel_size, num_style_feat, demodulate=True, sample_mode=None,
        resample_kernel=(1, 3, 3, 1), eps=1e-8,
    ):
        super().__init__()
        self.sample_mode, self.demodulate, self.eps, self.padding = sample_mode, demodulate, eps, kernel_size // 2
        if sample_mode is not None:
            self.smooth = UpFirDnSmooth(resample_kernel, 2 if sample_mode == "upsample" else 1, kernel_size)
        self.scale = (in_channels * kernel_size**2) ** -0.5
        self.modulation = nn.Linear(num_style_feat, in_channels)
        self.weight = nn.Parameter(torch.randn(1, out_channels, in_channels, kernel_size, kernel_size))

    def forward(self, x, style):
        """By weights of each sample's own."""
        N, C = x.shape[:2]
        w = self.scale * self.weight * self.modulation(style)[:, None, :, None, None]
        if self.demodulate:
            w = w * (w.square().sum([2, 3, 4], keepdim=True) + self.eps).rsqrt()
        if self.sample_mode == "downsample":
            x = self.smooth(x)
        x = x.reshape(1, -1, *x.shape[2:])
        if self.sample_mode == "upsample":
            y = F.conv_transpose2d(x, w.transpose(1, 2).flatten(0, 1), stride=2, groups=N)
        elif self.sample_mode == "downsample":
            y = F.conv2d(x, w.flatten(0, 1), stride=2, groups=N)
        else:
            y = F.conv2d(x, w.flatten(0, 1), padding=self.padding, groups=N)
        y = y.view(N, -1, *y.shape[2:])
        return self.smooth(y) if self.sample_mode == "upsample" else y
