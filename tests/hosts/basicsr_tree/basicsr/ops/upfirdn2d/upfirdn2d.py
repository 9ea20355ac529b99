from torch.nn import functional as F


def upfirdn2d(input, kernel, up=1, down=1, pad=(0, 0)):
    """As on CPUs, without the extension."""
    N, C, H, W = input.shape
    y = input.new_zeros(N, C, H, up, W, up)
    y[:, :, :, 0, :, 0] = input
    y = F.pad(y.view(N, C, H * up, W * up), (*pad, *pad))
    return F.conv2d(y, kernel.flip([0, 1]).expand(C, 1, *kernel.shape), groups=C)[:, :, ::down, ::down]
