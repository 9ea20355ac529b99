from torch.nn import functional as F

from .. import misc
from . import upfirdn2d


@misc.profiled_function
def conv2d_resample(x, w, f=None, up=1, down=1, padding=0, groups=1, flip_weight=True, flip_filter=False):
    """Slowly, in the order of the definition: resample up, convolve, resample down."""
    taps = 1 if f is None else len(f)
    before = after = padding
    if up > 1:
        before, after = before + (taps + up - 1) // 2, after + (taps - up) // 2
    if down > 1:
        before, after = before + (taps - down + 1) // 2, after + (taps - down) // 2
    around = [before, after, before, after]
    x = upfirdn2d.upfirdn2d(x, f if up > 1 else None, up, 1, around, flip_filter, up**2, impl="ref")
    x = F.conv2d(x, w if flip_weight else w.flip([2, 3]), groups=groups)
    return upfirdn2d.upfirdn2d(x, f if down > 1 else None, 1, down, 0, flip_filter, impl="ref")
