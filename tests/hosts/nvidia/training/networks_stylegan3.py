from torch.nn import functional as F
from torch_utils import misc


@misc.profiled_function
def modulated_conv2d(x, w, s, demodulate=True, padding=0, input_gain=None):
    N, O = len(x), len(w)
    if demodulate:
        w = w / w.square().mean([1, 2, 3], keepdim=True).sqrt()
        s = s / s.square().mean().sqrt()
    w = w * s[:, None, :, None, None]
    if demodulate:
        w = w / (w.square().sum([2, 3, 4], keepdim=True) + 1e-8).sqrt()
    if input_gain is not None:
        w = w * input_gain.expand(N, x.shape[1])[:, None, :, None, None]
    x = F.conv2d(x.reshape(1, -1, *x.shape[2:]), w.flatten(0, 1), padding=padding, groups=N)
    return x.view(N, O, *x.shape[2:])
