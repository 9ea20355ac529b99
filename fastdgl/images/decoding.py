"""From the bytes of an image file to pixels, without being led to decode a bomb."""

import io

from PIL import Image

from .errors import DatasetError, cause

# beyond this an image is taken for a decompression bomb and not decoded
MAX_PIXELS = 89_478_485
# Pillow's names of what is opened, whatever a file is called: it knows others, such as EPS, for which it starts other programs
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")


def open_image(data: bytes) -> Image.Image:
    """An image with its header read and its pixels not yet decoded, so that its size can be judged first."""
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DatasetError(f"is too large to decode safely, expected at most {MAX_PIXELS} pixels") from error
    # decoders meet damage with whatever they trip over: OSError, SyntaxError, struct.error, ...
    except Exception as error:
        raise DatasetError(f"cannot be decoded ({_without_address(error)})") from error
    if image.width < 1 or image.height < 1:
        raise DatasetError(f"has {image.width}x{image.height} pixels, expected at least one")
    if image.width * image.height > MAX_PIXELS:
        raise DatasetError(f"has {image.width}x{image.height} pixels, expected at most {MAX_PIXELS} in all")
    return image


def decode(image: Image.Image) -> Image.Image:
    """The same image with its pixels decoded."""
    try:
        image.load()
    # as in open_image
    except Exception as error:
        raise DatasetError(f"cannot be decoded ({cause(error)})") from error
    return image


def is_power_of_two(size: int) -> bool:
    return size > 0 and size & (size - 1) == 0


def _without_address(error: Exception) -> str:
    # Pillow names the buffer it was given, which tells the reader nothing
    return cause(error).split(" <_io.BytesIO")[0]
