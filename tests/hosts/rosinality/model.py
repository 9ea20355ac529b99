import torch
from op import FusedLeakyReLU, upfirdn2d
from op.upfirdn2d import upfirdn2d_native
from torch import nn
from torch.nn import functional as F


class Blur(nn.Module):
    def __init__(self, kernel, pad, gain):
        super().__init__()
        kernel = torch.tensor(kernel, dtype=torch.float32)
        self.register_buffer("kernel", kernel.outer(kernel) / kernel.sum() ** 2 * gain)
        self.pad = pad

    def forward(self, input):
        return upfirdn2d(input, self.kernel, pad=self.pad)


class ModulatedConv2d(nn.Module):
    def __init__(
        self, in_channel, out_channel, kernel_size, style_dim, demodulate=True, upsample=False, downsample=False,
        blur_kernel=[1, 3, 3, 1],
    ):
        super().__init__()
        self.upsample, self.downsample, self.demodulate = upsample, downsample, demodulate
        spare = len(blur_kernel) - 2 - (kernel_size - 1)
        if upsample:
            self.blur = Blur(blur_kernel, ((spare + 1) // 2 + 1, spare // 2 + 1), 4)
        if downsample:
            spare += 2 * (kernel_size - 1)
            self.blur = Blur(blur_kernel, ((spare + 1) // 2, spare // 2), 1)
        self.scale = (in_channel * kernel_size**2) ** -0.5
        self.padding = kernel_size // 2
        self.weight = nn.Parameter(torch.randn(1, out_channel, in_channel, kernel_size, kernel_size))
        self.modulation = nn.Linear(style_dim, in_channel)

    def forward(self, input, style):
        """One sample after the other."""
        results = []
        for x, s in zip(input, self.modulation(style)):
            w = self.scale * self.weight[0] * s[:, None, None]
            if self.demodulate:
                w = w * (w.square().sum([1, 2, 3], keepdim=True) + 1e-8).rsqrt()
            if self.upsample:
                y = F.conv_transpose2d(x[None], w.transpose(0, 1), stride=2)
                y = upfirdn2d_native(y, self.blur.kernel, 1, 1, self.blur.pad)
            elif self.downsample:
                y = F.conv2d(upfirdn2d_native(x[None], self.blur.kernel, 1, 1, self.blur.pad), w, stride=2)
            else:
                y = F.conv2d(x[None], w, padding=self.padding)
            results.append(y)
        return torch.cat(results)


class Generator(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = ModulatedConv2d(3, 5, 3, 4, upsample=True)
        self.activate = FusedLeakyReLU(5)

    def forward(self, x, w):
        return self.activate(self.conv(x, w))
