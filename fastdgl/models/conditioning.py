"""What networks take as z and as the label c, checked and brought into one form."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def check_z(z: Tensor, z_dim: int) -> None:
    """Reject latents of another shape than `[N, z_dim]`.

    Raises:
        ValueError: They are.
    """
    if not isinstance(z, Tensor) or z.ndim != 2 or z.shape[1] != z_dim:
        raise ValueError(f"z must be [N, {z_dim}], got {_shape(z)}")


def as_labels(c: Tensor | Sequence[int] | int | None, N: int, c_dim: int, device: torch.device, kind: str | None = None) -> Tensor:
    """Return labels as networks embed them, float32 `[N, c_dim]`.

    Args:
        c: One-hot classes or vectors `[N, c_dim]`; or class numbers, integers `[N]` or one for all.
        kind: Of the labels that the network was trained with; "vectors" have no numbers.

    Raises:
        ValueError: It is neither, or a number is of no class.
    """
    if isinstance(c, Tensor) and c.ndim == 2:
        if c.shape[0] == N and c.shape[1] == c_dim:
            return c.float()
    elif c is not None:
        numbers = c if isinstance(c, Tensor) else torch.as_tensor(c)
        if not numbers.is_floating_point() and not numbers.is_complex() and numbers.dtype != torch.bool and list(numbers.shape) in ([], [1], [N]):
            if kind == "vectors":
                raise ValueError(f"this network was trained with vectors: c must be [{N}, {c_dim}], got class numbers")
            numbers = numbers.to(device, torch.int64).expand(N)
            if N and not 0 <= int(numbers.min()) <= int(numbers.max()) < c_dim:
                raise ValueError(f"class numbers must be 0 to {c_dim - 1}, got {numbers.tolist()[:10]}")
            return F.one_hot(numbers, c_dim).float()
        if not isinstance(c, Tensor) and list(numbers.shape) == [N, c_dim]:
            return numbers.to(device).float()
    if kind == "vectors":
        raise ValueError(f"c must be vectors [{N}, {c_dim}], one per sample, got {_shape(c)}")
    raise ValueError(f"c must be one-hot classes [{N}, {c_dim}], one per sample, got {_shape(c)}; class numbers, integers [{N}], are accepted too")


def _shape(x: object) -> object:
    """Say what was given in place of a tensor."""
    return list(x.shape) if isinstance(x, Tensor) else x if x is None else f"{x!r:.60}"
