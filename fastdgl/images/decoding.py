"""From the bytes of an image file to pixels, without being led to decode a bomb."""

import importlib.util
import io
from functools import cache

from PIL import Image, ImageOps

from .errors import DatasetError, cause

# beyond this an image is taken for a decompression bomb and not decoded
MAX_PIXELS = 89_478_485
# Pillow's names of what is opened, whatever a file is called: it knows others, such as EPS, for which it starts other programs
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")
# what pillow-heif calls the pictures of phones once it is registered, and how their names end
HEIF, HEIF_SUFFIXES = "HEIF", (".heic", ".heif", ".hif")
ORIENTATION = 0x0112  # EXIF tag


@cache
def formats() -> tuple[str, ...]:
    """Pillow's names of the formats that are read here: those of FORMATS that this Pillow has, and HEIF where pillow-heif is installed."""
    Image.init()
    found = [name for name in FORMATS if name in Image.OPEN]
    if importlib.util.find_spec("pillow_heif") is not None:
        import pillow_heif

        pillow_heif.register_heif_opener()
        found.append(HEIF)
    return tuple(found)


@cache
def suffixes() -> tuple[str, ...]:
    """How names of images end, in lower case: Pillow's own list for `formats`."""
    known = formats()
    return tuple(sorted(suffix for suffix, name in Image.registered_extensions().items() if name in known))


def why_no_image(name: str) -> str:
    """Say why a file is not read as an image, by its name."""
    lower = name.lower()
    if lower.endswith(HEIF_SUFFIXES):
        return "is a HEIC picture, which needs pillow-heif: run `pip install pillow-heif`, or convert it to JPEG"
    if lower.endswith((".avif", ".avifs")):
        return "is an AVIF picture, which needs a Pillow that reads AVIF: run `pip install -U pillow`, or convert it to PNG"
    return f"its name does not end like an image's ({' '.join(suffixes())})"


def open_image(data: bytes) -> Image.Image:
    """An image with its header read and its pixels not yet decoded, so that its size can be judged first."""
    try:
        image = Image.open(io.BytesIO(data), formats=formats())
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


def upright(image: Image.Image) -> Image.Image:
    """Return the image as its EXIF orientation says that it is looked at.

    Raises:
        DatasetError: Its EXIF data cannot be understood.
    """
    try:
        if image.getexif().get(ORIENTATION, 1) == 1:
            return image
        return ImageOps.exif_transpose(image)
    # broken EXIF: whatever its parser trips over
    except Exception as error:
        raise DatasetError(f"has EXIF data that cannot be understood ({cause(error)})") from error


def stored_bits(image: Image.Image) -> int:
    """Return the bits of one channel in the file: 16 or 8. Call it before the pixels are decoded.

    Pillow keeps 16 bits of grey images (mode I;16), and the upper 8 of colour images, whose mode then says nothing of it.
    """
    raw = "".join(str(tile[3]) for tile in getattr(image, "tile", ()))
    return 16 if ";16" in image.mode or image.mode == "I" or ";16" in raw else 8


def is_power_of_two(size: int) -> bool:
    return size > 0 and size & (size - 1) == 0


def _without_address(error: Exception) -> str:
    # Pillow names the buffer it was given, which tells the reader nothing
    return cause(error).split(" <_io.BytesIO")[0]
