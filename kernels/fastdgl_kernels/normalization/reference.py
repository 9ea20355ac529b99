"""scale_shift_act in plain PyTorch. Arguments are checked at the public door, not here."""

import torch
import torch.nn.functional as F
from torch import Tensor


def scale_shift_act(x: Tensor, scale: Tensor, shift: Tensor, act: str, up: int) -> Tensor:
    """y = upsample_nearest(act(x * scale + shift), up), for scale and shift `[1, C]` or `[N, C]`."""
    wide = torch.promote_types(x.dtype, torch.float32)
    scale, shift = scale.to(wide)[:, :, None, None], shift.to(wide)[:, :, None, None]
    # 16-bit images are widened on the way through, and rounded once
    y = torch.addcmul(shift, x, scale).to(x.dtype)
    y = F.relu(y) if act == "relu" else y
    return F.interpolate(y, scale_factor=up, mode="nearest") if up > 1 else y
