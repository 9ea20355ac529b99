"""Images as files: bytes from tensors, PNG sheets of samples. What the images show is decided elsewhere."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .atomic_files import atomically

# An 8K screen, and no more images than one looks at: the custom of the field at 1024 px, 7 by 4, and 512 images at most.
SHEET_WIDTH, SHEET_HEIGHT = 7680, 4320  # pixels
MOST_COLUMNS, MOST_ROWS = 32, 16


def to_uint8(images: Tensor) -> np.ndarray:
    """Images as bytes, the way the field does it.

        truncate(clamp(127.5 x + 128, 0, 255))

    -1 becomes 0, 0 becomes 128, 1 becomes 255. Truncation, not rounding, so that published images are met to the byte.

    Args:
        images: `[N, C, H, W]` in [-1, 1]; what lies outside is clamped. Any floating dtype, any device.

    Returns:
        `[N, H, W, C]`, uint8, contiguous.
    """
    return to_levels(images).permute(0, 2, 3, 1).contiguous().cpu().numpy()


def to_levels(images: Tensor) -> Tensor:
    """The same bytes as a tensor where the images are, `[N, C, H, W]`, uint8."""
    # fp16 has steps of 1/8 at 255, bf16 steps of 1: widened first, or truncation falls on the wrong side
    return images.detach().float().mul(127.5).add(128).clamp(0, 255).to(torch.uint8)


def save_image(path: Path | str, image: np.ndarray) -> None:
    """Write one image as PNG; under its name there is never half a file.

    Args:
        path: Where to; its folder exists.
        image: `[H, W, C]`, uint8, grey (C = 1) or RGB (C = 3).
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3):
        got = f"{image.dtype} of shape {list(image.shape)}"
        raise ValueError(f"image must be uint8 of shape [H, W, 1] or [H, W, 3], got {got}")
    with atomically(Path(path)) as unfinished:
        Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).save(unfinished, format="PNG")


def save_image_grid(path: Path | str, images: np.ndarray, columns: int) -> None:
    """Write images as one PNG sheet, row by row from the top left; cells left over are black.

    Args:
        path: Where to; its folder exists.
        images: `[N, H, W, C]`, uint8, grey or RGB.
        columns: Images side by side, at least 1.
    """
    save_image(path, sheet_of(images, columns))


def sheet_of(images: np.ndarray, columns: int) -> np.ndarray:
    """The sheet that `save_image_grid` writes, `[rows * H, columns * W, C]`."""
    if images.ndim != 4 or len(images) == 0 or columns < 1:
        raise ValueError(f"expected images of shape [N, H, W, C] and columns >= 1, got {list(images.shape)} and {columns}")
    N, H, W, C = images.shape
    rows = -(-N // columns)
    cells = np.zeros((rows * columns, H, W, C), images.dtype)
    cells[:N] = images
    sheet = cells.reshape(rows, columns, H, W, C).swapaxes(1, 2)  # [rows, H, columns, W, C]
    return sheet.reshape(rows * H, columns * W, C)


def grid_shape(resolution: int, n: int | None = None) -> tuple[int, int]:
    """How many images a sheet of samples holds: `(columns, rows)`.

    The sheet is at most 7680 x 4320 pixels (one image, if a single one is larger) and at most 32 x 16 images:
    32 x 16 at 32 px, 30 x 16 at 256, 15 x 8 at 512, 7 x 4 at 1024.

    Args:
        resolution: Side of one image, pixels.
        n: At most so many images, for a sheet with no empty cell: as many as fit, then as square as can be,
            never taller than wide. 8 gives 4 x 2. Default: as many as the sheet holds.
    """
    columns = min(max(SHEET_WIDTH // resolution, 1), MOST_COLUMNS)
    rows = min(max(SHEET_HEIGHT // resolution, 1), MOST_ROWS)
    if n is None:
        return columns, rows
    if n < 1:
        raise ValueError(f"a sheet needs at least one image, got n={n}")
    shapes = [(c, r) for c in range(1, columns + 1) for r in range(1, min(rows, c) + 1) if c * r <= n]
    return max(shapes, key=lambda shape: (shape[0] * shape[1], shape[1]))
