"""Making a dataset for training out of arbitrary images: `fastdgl dataset`.

Reading datasets is `images/`.
"""

import io
import json
import os
import shutil
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from PIL import Image
from tqdm import tqdm

from .images import DatasetError, Source, cause, decode, is_power_of_two, open_source, stored_bits, upright, why_no_image
from .images.image_files import ImageFiles
from .images.labels import class_folders, recorded_class_names, recorded_labels
from .paths import expanded
from .sentences import printable

CROPS = ("center", "none")
LABELS = ("none", "folders", "json", "source")
GREY_MODES = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "F")
SHOWN = 20  # skipped files in the printed report
# bits of the values in an image of more than 8
MOST_BITS = 16


@dataclass(frozen=True)
class Packed:
    """What `pack` made. `str()` of it is the report."""

    path: Path
    resolution: int                                 # pixels
    channels: int
    images: int
    enlarged: int                                   # of the images, those that were smaller than the resolution
    skipped: tuple[tuple[str, str], ...]            # name and reason, in the order met
    classes: tuple[tuple[str, int], ...] = ()       # name and images of class 0, 1, ..., where the classes have names
    notes: tuple[str, ...] = ()                     # what a person should check, a sentence each

    def __str__(self) -> str:
        colour = {1: "grey", 3: "RGB"}[self.channels]
        lines = [f"{self.path}: {self.images} {colour} images of {self.resolution}x{self.resolution} pixels"]
        if self.enlarged:
            lines += [f"{self.enlarged} of them were smaller and have been enlarged"]
        lines += [printable(f"note: {note}") for note in self.notes]
        lines += [printable(f"class {i}: {name}, {count} images") for i, (name, count) in enumerate(self.classes)]
        if self.skipped:
            lines += [f"{len(self.skipped)} files skipped:"]
            lines += ["  " + printable(f"{name}: {reason}") for name, reason in self.skipped[:SHOWN]]
        if len(self.skipped) > SHOWN:
            lines += [f"  and {len(self.skipped) - SHOWN} more"]
        return "\n".join(lines)


def pack(
    source: str | os.PathLike,
    dest: str | os.PathLike,
    *,
    resolution: int,
    crop: str = "center",
    channels: int | None = None,
    labels: str = "none",
    max_images: int | None = None,
    bits: int | None = None,
    progress: bool = True,
) -> Packed:
    """Make a dataset, `dest`, of the images of `source`.

    Each image is turned upright as its EXIF says, laid on white where it is transparent, reduced to 8 bits, cropped,
    resized (Lanczos) and stored as PNG; of several frames the first counts. Colour profiles are not applied.
    The same input gives the same bytes.

    Args:
        source: A folder or zip with images anywhere below, CIFAR-10's binary files, or an HDF5 file. Hidden files are passed
            over in silence, every other that cannot be used is in the report.
        dest: Must not exist. A zip if it ends in .zip, otherwise a folder.
        resolution: Side of the images in pixels, a power of two. Smaller images are enlarged, and counted.
        crop: "center" keeps the largest square in the middle; "none" skips what is not square.
        channels: 1 for grey, 3 for RGB. Default: grey if all images are.
        labels: "none"; "folders", where each folder directly below `source` is a class, numbered by sorted name
            (a folder around all others, or the parts `train` and `val`, are stepped into, and the report says so); "json", which keeps the labels of the source's `dataset.json`; or "source", those that training would take from there.
        max_images: Stop after this many images, taken in the order of their names.
        bits: Of the values in files of 16 bits, whose format does not say how many are used: white is 2^bits - 1.
            Default: 16; the report says where no value needs so many.
        progress: Whether to show a progress bar.

    Either all of `dest` is written or, with a DatasetError, none of it.
    """
    source, dest = expanded(source), Path(expanded(dest))
    _check_choices(resolution, crop, channels, labels, max_images, bits)
    _check_dest(dest)
    images = open_source(source)
    label_of, classes, notes = _labelling(images, labels)
    channels = channels or _common_channels(images)

    skipped = [(name, why_no_image(name)) for name in images.others]
    depth = _Depth(bits)
    recorded, enlarged = [], 0
    total = min(len(images), max_images or len(images))
    with _written_whole(dest) as write, tqdm(total=total, unit="image", disable=not progress) as bar:
        for i in range(len(images)):
            if len(recorded) == max_images:
                break
            try:
                label = label_of(i)
                image = _upright_in_8_bits(images.image(i), depth)
                png = _png(_resized(_converted(image, channels), resolution, crop))
            except DatasetError as error:
                skipped.append((images.name(i), str(error)))
            else:
                enlarged += min(image.size) < resolution
                recorded.append([packed_name(len(recorded)), label])
                write(recorded[-1][0], png)
            bar.update()
        if not recorded:
            raise DatasetError(_nothing_usable(images.path, skipped))
        write("dataset.json", _dataset_json(recorded, classes, labels))
    counts = Counter(label for _, label in recorded) if classes else {}
    return Packed(
        dest, resolution, channels, len(recorded), enlarged, tuple(skipped),
        tuple((name, counts[i]) for i, name in enumerate(classes)), (*notes, *depth.notes()),
    )


def _check_choices(resolution, crop, channels, labels, max_images, bits):
    if not is_power_of_two(resolution):
        raise DatasetError(f"resolution must be a power of two such as 64 or 256, got {resolution}")
    if crop not in CROPS:
        raise DatasetError(f"crop must be one of {', '.join(CROPS)}, got {crop}")
    if channels not in (None, 1, 3):
        raise DatasetError(f"channels must be 1 or 3, got {channels}")
    if labels not in LABELS:
        raise DatasetError(f"labels must be one of {', '.join(LABELS)}, got {labels}")
    if max_images is not None and max_images < 1:
        raise DatasetError(f"max_images must be at least 1, got {max_images}")
    if bits is not None and not 8 < bits <= MOST_BITS:
        raise DatasetError(f"bits must be 9 to {MOST_BITS}, got {bits}")


def _check_dest(dest: Path):
    if os.path.lexists(dest):
        raise DatasetError(f"{dest} exists and is not overwritten: remove it or choose another name")
    if not dest.parent.is_dir():
        raise DatasetError(f"{dest.parent} is no folder: expected one to write {dest.name} into; create it first")


def _nothing_usable(source: Path, skipped: list[tuple[str, str]]) -> str:
    if not skipped:
        return f"{source} holds no files: expected images; check the path"
    name, reason = skipped[-1]
    return f"{source} holds nothing usable: {len(skipped)} files skipped, among them {name}: {reason}; nothing was written"


def _labelling(source: Source, labels: str) -> tuple[Callable[[int], int | list[float] | None], tuple[str, ...], tuple[str, ...]]:
    """A function from an image's number to its label, the names of the classes where they have names, and what to say about them."""
    if labels == "none":
        return lambda i: None, (), ()
    if labels == "source":
        all_labels = source.labels()
        return lambda i: all_labels.values[i].tolist(), all_labels.class_names or (), all_labels.notes
    if not isinstance(source, ImageFiles):
        raise DatasetError(f"{source.path} holds no files that could have labels by {labels}: expected labels source, those it came with")
    if labels == "json":
        recorded = recorded_labels(source.files)
        by_class = isinstance(next(iter(recorded.values())), int)
        classes = recorded_class_names(source.files) if by_class else None
        return (lambda i: _found(recorded, source.name(i), "has no label in dataset.json")), classes or (), ()
    found = class_folders(source.image_names)
    classes = tuple(sorted(set(found.of_images) - {None}))
    numbers = {name: i for i, name in enumerate(classes)}
    return (lambda i: _found(numbers, found.of_images[i], "is in no class folder")), classes, found.notes


def _found(labels: dict, key: str | None, otherwise: str) -> int | list[float]:
    if key not in labels:
        raise DatasetError(otherwise)
    return labels[key]


def _common_channels(source: Source) -> int:
    """1 if every image that opens is grey by its header, else 3; the first one in colour settles it."""
    return 3 if any(_is_colour(source, i) for i in range(len(source))) else 1


def _is_colour(source: Source, i: int) -> bool:
    try:
        return source.image(i).mode not in GREY_MODES
    except DatasetError:
        return False


class _Depth:
    """How many bits the values of 16-bit files have.

    Args:
        bits: As a person said; None where nobody did.
    """

    def __init__(self, bits: int | None):
        self.bits = bits
        self.images, self.largest, self.colour = 0, 0, False

    def scaled(self, pixels: np.ndarray) -> np.ndarray:
        """Return values of `bits` bits as 8 bits, rounded to the nearest.

        Raises:
            DatasetError: One has more bits.
        """
        white = 2 ** (self.bits or MOST_BITS) - 1
        if pixels.max() > white:
            raise DatasetError(f"has the value {pixels.max()}, expected at most {white} in {self.bits} bits; give the bits of all files")
        self.saw(int(pixels.max()))
        return ((pixels * 255 + white // 2) // white).astype(np.uint8)

    def saw(self, largest: int) -> None:
        """Note the largest value of an image, of 16 bits."""
        self.images += 1
        self.largest = max(self.largest, largest)

    def notes(self) -> list[str]:
        """Say where a person must tell how many bits there are."""
        used = max(self.largest.bit_length(), 9)
        if self.bits is not None or not self.images or used == MOST_BITS:
            return []
        remedy = "convert them to 8 bits first" if self.colour else f"pack them again with --bits {used}"
        return [f"{self.images} images have 16 bits in each channel, and none of their values needs more than {used}: they were packed as 16 bits, "
                f"and are too dark if they hold fewer; if so, remove the dataset and {remedy}"]


def _upright_in_8_bits(image: Image.Image, depth: _Depth) -> Image.Image:
    """Return an image with its pixels decoded, turned upright, and 16-bit ones reduced to 8."""
    sixteen = stored_bits(image) > 8
    image = upright(decode(image))
    if image.mode in ("I", "I;16", "I;16B", "I;16L"):
        return _from_16_bit(image, depth)
    if sixteen:
        if depth.bits not in (None, MOST_BITS):
            raise DatasetError(f"has 16 bits in each of several channels, of which Pillow reads the upper 8: expected a grey image for --bits {depth.bits}; "
                               "convert it to 8 bits first")
        depth.saw(max(high for _, high in _extrema(image)) * 256 + 255)
        depth.colour = True
    return image


def _extrema(image: Image.Image) -> list[tuple[int, int]]:
    """Return the least and largest value of each colour channel."""
    colours = image.getchannel("L") if image.mode == "LA" else image.convert("RGB") if image.mode == "RGBA" else image
    extrema = colours.getextrema()
    return list(extrema) if isinstance(extrema[0], tuple) else [extrema]


def _converted(image: Image.Image, channels: int) -> Image.Image:
    """8 bits, without transparency, in mode L or RGB."""
    if image.mode == "F":
        raise DatasetError("has floating-point pixels, whose range cannot be known")
    try:
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image.convert({1: "L", 3: "RGB"}[channels])
    except ValueError as error:
        raise DatasetError(f"has colour mode {image.mode}, which cannot be converted ({cause(error)})") from error


def _from_16_bit(image: Image.Image, depth: _Depth) -> Image.Image:
    pixels = np.asarray(image).astype(np.int64)
    # mode I is what Pillow makes of some 16-bit files; in 32 bits the range of the values cannot be known
    if pixels.min() < 0 or pixels.max() > 65535:
        raise DatasetError("has 32-bit pixels, whose range cannot be known")
    return Image.fromarray(depth.scaled(pixels))


def _resized(image: Image.Image, resolution: int, crop: str) -> Image.Image:
    side = min(image.size)
    if crop == "none" and image.width != image.height:
        raise DatasetError(f"has {image.width}x{image.height} pixels and is not square; crop center would take its middle")
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    return square.resize((resolution, resolution), Image.Resampling.LANCZOS)


def _png(image: Image.Image) -> bytes:
    # a fresh image: what the source carried (comments, profiles, dates) stays behind
    bare = Image.frombytes(image.mode, image.size, image.tobytes())
    png = io.BytesIO()
    bare.save(png, "PNG")
    return png.getvalue()


def packed_name(index: int) -> str:
    """NVIDIA's: a thousand images to a folder, named by the first five of eight digits."""
    digits = f"{index:08d}"
    return f"{digits[:5]}/img{digits}.png"


def _dataset_json(recorded: list, classes: tuple[str, ...], labels: str) -> bytes:
    content = {"labels": None if labels == "none" else recorded}
    # readers of the format look at labels only; the names are for whoever wonders what class 3 was
    if classes:
        content["classes"] = classes
    return json.dumps(content).encode()


@contextmanager
def _written_whole(dest: Path) -> Iterator[Callable[[str, bytes], None]]:
    """A function that writes a file into `dest`, which comes into being when all are written."""
    partial = dest.with_name(f".{dest.name}.{os.getpid()}.partial")
    try:
        if dest.suffix.lower() == ".zip":
            with zipfile.ZipFile(partial, "x") as archive:
                yield lambda name, data: write_entry(archive, name, data)
        else:
            partial.mkdir()
            yield lambda name, data: _write_file(partial / name, data)
        _check_dest(dest)
        partial.rename(dest)
    except OSError as error:
        raise DatasetError(f"{dest} cannot be written ({cause(error)}): make room or choose another place") from error
    finally:
        if partial.is_dir():
            shutil.rmtree(partial)
        partial.unlink(missing_ok=True)


def write_entry(archive: zipfile.ZipFile, name: str, data: bytes, compression: int = zipfile.ZIP_STORED):
    """Add a file to a zip with fixed date and rights, so that equal content makes equal bytes."""
    entry = zipfile.ZipInfo(name)
    entry.create_system = 3                         # Unix, whatever this is
    entry.external_attr = 0o644 << 16
    archive.writestr(entry, data, compression)


def _write_file(path: Path, data: bytes):
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)


@click.command("dataset")
@click.argument("source")
@click.argument("dest")
@click.option("--resolution", type=int, required=True, help="Side of the images in pixels, a power of two.")
@click.option("--crop", type=click.Choice(CROPS), default="center", show_default=True, help="What becomes of oblong images.")
@click.option("--grey/--rgb", default=None, help="Colour of the dataset; without either, grey if all images are.")
@click.option("--labels", type=click.Choice(LABELS), default="none", show_default=True, help="Where the classes come from.")
@click.option("--max-images", type=int, help="Stop after this many images.")
@click.option("--bits", type=click.IntRange(9, MOST_BITS), help="Bits of the values in 16-bit files, such as 12.  [default: 16; the report says "
              "where no value needs so many]")
def dataset_command(source, dest, resolution, crop, grey, labels, max_images, bits):
    """Make a dataset, DEST, of the images of SOURCE.

    SOURCE is a folder or zip with images anywhere below, a folder of CIFAR-10's binary files, or an HDF5 file as
    BigGAN-PyTorch writes it. DEST is a zip if it ends in .zip, otherwise a folder. "--labels folders" makes each folder
    directly below SOURCE a class (below a folder that holds all others, and below train and val); "--labels json" keeps the labels of its dataset.json; "--labels source" keeps those that
    training would take from SOURCE.
    """
    channels = {None: None, True: 1, False: 3}[grey]
    try:
        packed = pack(
            source, dest, resolution=resolution, crop=crop, channels=channels, labels=labels, max_images=max_images, bits=bits
        )
    except DatasetError as error:
        raise click.ClickException(str(error)) from error
    click.echo(packed)
