"""`fastdgl dataset` makes a dataset of what it can use, reports what it cannot, and leaves nothing half done."""

import hashlib
import io
import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from fastdgl import packing
from fastdgl.images import DatasetError, ImageDataset
from fastdgl.packing import Packed, dataset_command, pack

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def plain(colour=RED, width: int = 8, height: int = 8, mode: str = "RGB") -> Image.Image:
    return Image.new(mode, (width, height), colour)


def save(image: Image.Image, path: Path, **kwargs) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **kwargs)
    return path.parent


def noise(i: int, width: int = 8, height: int = 8) -> Image.Image:
    return Image.fromarray(np.random.default_rng(i).integers(0, 256, (height, width, 3), dtype=np.uint8))


def noises(folder: Path, count: int = 3) -> Path:
    for i in range(count):
        save(noise(i, 12, 10), folder / f"{i}.png")
    return folder


def packed_pixels(source: Path, **kwargs) -> np.ndarray:
    """The one image that packing makes of the one in `source`: `[C, H, W]`."""
    dest = source.parent / "packed.zip"
    report = pack(source, dest, **{"resolution": 8, "progress": False} | kwargs)
    assert report.images == 1 and not report.skipped, str(report)
    return ImageDataset(dest)[0][0]


def assert_colour(pixels: np.ndarray, colour, within: int = 0):
    expected = np.array(colour).reshape(-1, 1, 1)
    assert np.abs(pixels.astype(int) - expected).max() <= within, pixels[:, 0, 0]


def what_lies_in(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


# the dataset


@pytest.mark.parametrize("dest", ["packed", "packed.zip"], ids=["folder", "zip"])
def test_makes_a_dataset_in_nvidias_layout(tmp_path, dest):
    save(noise(1), tmp_path / "in/b/x.png")
    save(noise(0), tmp_path / "in/a.png")
    report = pack(tmp_path / "in", tmp_path / dest, resolution=8, progress=False)
    dataset = ImageDataset(tmp_path / dest)
    assert report == Packed(tmp_path / dest, resolution=8, channels=3, images=2, enlarged=0, skipped=())
    assert dataset.source.files.names == ["00000/img00000000.png", "00000/img00000001.png", "dataset.json"]
    assert json.loads(dataset.source.files.read("dataset.json")) == {"labels": None}
    for i in range(2):
        np.testing.assert_array_equal(dataset[i][0], np.asarray(noise(i)).transpose(2, 0, 1))


def test_numbers_a_thousand_images_to_a_folder():
    assert packing.packed_name(999) == "00000/img00000999.png"
    assert packing.packed_name(1000) == "00001/img00001000.png"
    assert packing.packed_name(12_345_678) == "12345/img12345678.png"


def test_a_zip_is_as_good_a_source_as_the_folder(tmp_path):
    folder = noises(tmp_path / "in")
    with zipfile.ZipFile(tmp_path / "in.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for i in (2, 0, 1):
            archive.write(folder / f"{i}.png", f"{i}.png")
    for source in ("in", "in.zip"):
        pack(tmp_path / source, tmp_path / f"from-{source}.out.zip", resolution=8, progress=False)
    assert (tmp_path / "from-in.out.zip").read_bytes() == (tmp_path / "from-in.zip.out.zip").read_bytes()


def test_the_embedded_digits_can_be_repacked(tmp_path):
    report = pack("digits", tmp_path / "digits16.zip", resolution=16, labels="json", max_images=20, progress=False)
    dataset = ImageDataset(tmp_path / "digits16.zip", labels=True)
    assert (report.channels, report.images, dataset.resolution, dataset.label_dim) == (1, 20, 16, 10)


def test_the_same_input_gives_the_same_bytes(tmp_path):
    noises(tmp_path / "in")
    for name in ("one.zip", "two.zip"):
        pack(tmp_path / "in", tmp_path / name, resolution=8, progress=False)
        for file in (tmp_path / "in").iterdir():
            os.utime(file, (0, 0))
    one, two = (hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in ("one.zip", "two.zip"))
    assert one == two
    with zipfile.ZipFile(tmp_path / "one.zip") as archive:
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_images_are_stored_and_not_deflated_again(tmp_path):
    pack(noises(tmp_path / "in"), tmp_path / "packed.zip", resolution=8, progress=False)
    with zipfile.ZipFile(tmp_path / "packed.zip") as archive:
        assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_STORED}


def test_stops_after_max_images_that_could_be_used(tmp_path):
    noises(tmp_path / "in", 4)
    (tmp_path / "in/0.png").write_bytes(b"no image")
    report = pack(tmp_path / "in", tmp_path / "packed.zip", resolution=8, max_images=2, progress=False)
    assert report.images == 2 and [name for name, _ in report.skipped] == ["0.png"]


def test_shows_its_progress_unless_told_not_to(tmp_path, capsys):
    noises(tmp_path / "in")
    pack(tmp_path / "in", tmp_path / "loud.zip", resolution=8)
    assert "3/3" in capsys.readouterr().err
    pack(tmp_path / "in", tmp_path / "two.zip", resolution=8, max_images=2)
    assert "2/2" in capsys.readouterr().err
    pack(tmp_path / "in", tmp_path / "quiet.zip", resolution=8, progress=False)
    assert capsys.readouterr() == ("", "")


# the pixels


def stripes(width: int, height: int, axis: str) -> Image.Image:
    """Red, a square of green in the middle, blue."""
    image, side = plain(RED, width, height), min(width, height)
    middle = (width - side) // 2 if axis == "x" else (height - side) // 2
    image.paste(GREEN, (middle, 0, width, height) if axis == "x" else (0, middle, width, height))
    image.paste(BLUE, (middle + side, 0, width, height) if axis == "x" else (0, middle + side, width, height))
    return image


@pytest.mark.parametrize("width, height, axis", [(20, 8, "x"), (8, 20, "y"), (21, 16, "x")], ids=["wide", "tall", "odd"])
def test_center_keeps_the_largest_square_in_the_middle(tmp_path, width, height, axis):
    pixels = packed_pixels(save(stripes(width, height, axis), tmp_path / "in/a.png"))
    assert_colour(pixels, GREEN)


def test_resizing_is_lanczos(tmp_path):
    pixels = packed_pixels(save(noise(0, 16, 16), tmp_path / "in/a.png"))
    expected = np.asarray(noise(0, 16, 16).resize((8, 8), Image.Resampling.LANCZOS)).transpose(2, 0, 1)
    np.testing.assert_array_equal(pixels, expected)


def test_without_crop_squares_are_used_and_the_rest_is_skipped(tmp_path):
    save(noise(0, 16, 16), tmp_path / "in/square.png")
    save(noise(1, 16, 12), tmp_path / "in/wide.png")
    report = pack(tmp_path / "in", tmp_path / "packed.zip", resolution=8, crop="none", progress=False)
    assert report.images == 1
    assert report.skipped == (("wide.png", "has 16x12 pixels and is not square; crop center would take its middle"),)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_honoured(tmp_path, orientation):
    upright = noise(0)
    # what a camera that was held so would have stored; 5 to 8 swap the sides
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
    stored = upright if orientation == 1 else upright.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = packed_pixels(save(stored, tmp_path / "in/a.png", exif=exif))
    np.testing.assert_array_equal(pixels, np.asarray(upright).transpose(2, 0, 1))


def test_nothing_of_the_source_but_its_pixels_is_kept(tmp_path):
    exif = Image.Exif()
    exif[0x010E] = "taken at home"
    source = save(plain(), tmp_path / "in/a.png", exif=exif, icc_profile=b"a profile")
    packed_pixels(source)
    assert not Image.open(io.BytesIO(ImageDataset(tmp_path / "packed.zip").source.files.read("00000/img00000000.png"))).info
    assert b"taken at home" not in (tmp_path / "packed.zip").read_bytes()


def transparent_palette() -> Image.Image:
    image = plain(0, mode="P")
    image.putpalette([255, 0, 0, 0, 255, 0])
    return image


@pytest.mark.parametrize(
    "image, kwargs, expected",
    [
        (plain((255, 0, 0, 0), mode="RGBA"), {}, WHITE),
        (plain((255, 0, 0, 255), mode="RGBA"), {}, RED),
        (plain((0, 0, 0, 128), mode="RGBA"), {}, (127, 127, 127)),
        (plain((0, 0), mode="LA"), {}, (255,)),
        (transparent_palette(), {}, RED),
        (transparent_palette(), dict(transparency=0), WHITE),
        (plain(RED), dict(transparency=RED), WHITE),
        (plain(100, mode="L"), {}, (100,)),
        (plain(1, mode="1"), {}, (255,)),
        (Image.fromarray(np.full([8, 8], 65535, np.uint16)), {}, (255,)),
        (Image.fromarray(np.full([8, 8], 32896, np.uint16)), {}, (128,)),
    ],
    ids=[
        "clear-rgba", "opaque-rgba", "half-rgba", "clear-grey", "palette", "clear-palette", "clear-colour", "grey", "bits",
        "16-bit-white", "16-bit-middle",
    ],
)
def test_every_kind_of_pixel_is_converted(tmp_path, image, kwargs, expected):
    assert_colour(packed_pixels(save(image, tmp_path / "in/a.png", **kwargs)), expected)


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I"])
def test_16_bits_are_reduced_to_8_in_either_byte_order(tmp_path, mode):
    source = save(Image.new(mode, (8, 8), 257 * 200), tmp_path / "in/a.tif")
    with Image.open(source / "a.tif") as image:
        assert image.mode == mode
    assert_colour(packed_pixels(source), (200,))


@pytest.mark.parametrize("suffix", ["tif", "jpg"])
def test_cmyk_is_converted(tmp_path, suffix):
    pixels = packed_pixels(save(plain((0, 255, 255, 0), mode="CMYK"), tmp_path / f"in/a.{suffix}"))
    assert_colour(pixels, RED, within=2)


def test_the_first_frame_of_an_animation_is_taken(tmp_path):
    source = save(plain(RED), tmp_path / "in/a.gif", save_all=True, append_images=[plain(BLUE)])
    assert_colour(packed_pixels(source), RED)


@pytest.mark.parametrize("value", range(0, 256, 51))
def test_grey_passes_through_unchanged(tmp_path, value):
    assert_colour(packed_pixels(save(plain(value, mode="L"), tmp_path / "in/a.png"), channels=1), (value,))


def test_colour_becomes_grey_by_its_luma(tmp_path):
    assert_colour(packed_pixels(save(plain(GREEN), tmp_path / "in/a.png"), channels=1), (150,))


def test_channels_are_grey_if_all_images_are_and_as_told_otherwise(tmp_path):
    save(plain(7, mode="L"), tmp_path / "in/a.png")
    assert packed_pixels(tmp_path / "in").shape[0] == 1
    (tmp_path / "packed.zip").unlink()
    assert packed_pixels(tmp_path / "in", channels=3).shape[0] == 3
    save(plain(RED), tmp_path / "in/b.png")
    assert pack(tmp_path / "in", tmp_path / "mixed.zip", resolution=8, progress=False).channels == 3
    assert pack(tmp_path / "in", tmp_path / "grey.zip", resolution=8, channels=1, progress=False).channels == 1
    assert [ImageDataset(tmp_path / f"{name}.zip").channels for name in ("mixed", "grey")] == [3, 1]


# labels


def test_folders_become_classes_by_sorted_name(tmp_path):
    save(noise(0), tmp_path / "in/dog/deep/a.png")
    save(noise(1), tmp_path / "in/cat/a.png")
    save(noise(2), tmp_path / "in/dog/b.png")
    save(noise(3), tmp_path / "in/stray.png")
    report = pack(tmp_path / "in", tmp_path / "packed.zip", resolution=8, labels="folders", progress=False)
    dataset = ImageDataset(tmp_path / "packed.zip", labels=True)
    assert report.classes == (("cat", 1), ("dog", 2))
    assert report.skipped == (("stray.png", "is in no class folder"),)
    assert dataset.all_labels().tolist() == [0, 1, 1]
    assert dataset.class_names == ("cat", "dog")
    np.testing.assert_array_equal(dataset[1][0], np.asarray(noise(2)).transpose(2, 0, 1))    # dog/b before dog/deep/a
    assert json.loads(dataset.source.files.read("dataset.json"))["classes"] == ["cat", "dog"]


@pytest.mark.parametrize("labels", [[3, None, 1], [[0.5, 1], None, [2, 3]]], ids=["classes", "vectors"])
def test_labels_of_dataset_json_are_kept_through_skips(tmp_path, labels):
    noises(tmp_path / "in", 3)
    entries = [[f"{i}.png", label] for i, label in enumerate(labels)]
    (tmp_path / "in/dataset.json").write_text(json.dumps({"labels": entries}))
    report = pack(tmp_path / "in", tmp_path / "packed.zip", resolution=8, labels="json", progress=False)
    assert report.skipped == (("1.png", "has no label in dataset.json"),)
    recorded = json.loads(ImageDataset(tmp_path / "packed.zip").source.files.read("dataset.json"))["labels"]
    assert recorded == [["00000/img00000000.png", labels[0]], ["00000/img00000001.png", labels[2]]]


def test_says_that_the_source_has_no_dataset_json(tmp_path):
    with pytest.raises(DatasetError, match="in has no dataset.json"):
        pack(noises(tmp_path / "in"), tmp_path / "packed.zip", resolution=8, labels="json", progress=False)
    assert what_lies_in(tmp_path) == ["in"]


# the report


def test_what_cannot_be_used_is_reported_with_the_reason(tmp_path):
    folder = noises(tmp_path / "in", 1)
    (folder / "broken.png").write_bytes(b"no image")
    (folder / "cut.png").write_bytes((folder / "0.png").read_bytes()[:80])
    (folder / "notes.txt").write_text("hello")
    (folder / ".hidden").write_text("hello")
    save(Image.fromarray(np.ones([8, 8], np.float32)), folder / "float.tif")
    save(Image.fromarray(np.full([8, 8], 70000, np.int32)), folder / "wide.tif")
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    report = pack(folder, tmp_path / "packed.zip", resolution=8, progress=False)
    reasons = dict(report.skipped)
    assert report.images == 1 and len(report.skipped) == 6
    assert reasons["broken.png"].startswith("cannot be decoded (UnidentifiedImageError")
    assert reasons["cut.png"].startswith("cannot be decoded (")
    assert reasons["notes.txt"].startswith("its name does not end like an image's")
    assert reasons["float.tif"] == "has floating-point pixels, whose range cannot be known"
    assert reasons["wide.tif"] == "has 32-bit pixels, whose range cannot be known"
    assert reasons["gone.png"].startswith("cannot be read (FileNotFoundError")
    for name, reason in report.skipped:
        assert f"  {name}: {reason}" in str(report).splitlines()


def test_a_colour_mode_that_pillow_cannot_convert_is_skipped(tmp_path, monkeypatch):
    def convert(image, mode):
        raise ValueError("conversion from LAB to RGB not supported")

    noises(tmp_path / "in", 1)
    monkeypatch.setattr(Image.Image, "convert", convert)
    with pytest.raises(DatasetError, match="0.png: has colour mode RGB, which cannot be converted .ValueError: conversion"):
        pack(tmp_path / "in", tmp_path / "packed.zip", resolution=8, progress=False)


def test_an_image_with_broken_exif_is_skipped(tmp_path):
    (tmp_path / "in").mkdir()
    noise(0, 8, 8).save(tmp_path / "in/0.png", exif=b"Exif\0\0no TIFF at all")
    with pytest.raises(DatasetError, match="0.png: has EXIF data that cannot be understood .SyntaxError: not a TIFF"):
        pack(tmp_path / "in", tmp_path / "packed.zip", resolution=8, progress=False)


def test_an_image_too_large_to_be_decoded_safely_is_skipped(tmp_path, monkeypatch):
    monkeypatch.setattr("fastdgl.images.decoding.MAX_PIXELS", 100)
    save(noise(0, 20, 20), noises(tmp_path / "in", 0) / "in/large.png")
    save(noise(0, 10, 10), tmp_path / "in/small.png")
    report = pack(tmp_path / "in", tmp_path / "packed.zip", resolution=8, progress=False)
    assert report.images == 1 and report.skipped[0][1] == "has 20x20 pixels, expected at most 100 in all"


def test_enlarged_images_are_counted(tmp_path):
    for side in (4, 7, 8, 9):
        save(noise(side, side + 3, side), tmp_path / f"in/{side}.png")
    report = pack(tmp_path / "in", tmp_path / "packed.zip", resolution=8, progress=False)
    assert report.enlarged == 2 and "2 of them were smaller and have been enlarged" in str(report)


def test_report_reads_as_text():
    report = Packed(Path("cats.zip"), 64, 3, 5, 0, (("a.txt", "bad"),), (("cat", 2), ("dog", 3)))
    assert str(report).splitlines() == [
        "cats.zip: 5 RGB images of 64x64 pixels",
        "class 0: cat, 2 images",
        "class 1: dog, 3 images",
        "1 files skipped:",
        "  a.txt: bad",
    ]


def test_report_shortens_a_long_list_of_skipped_files():
    report = Packed(Path("cats.zip"), 64, 1, 5, 0, tuple((f"{i}.png", "bad") for i in range(25)))
    assert len(report.skipped) == 25
    assert str(report).splitlines()[-2:] == ["  19.png: bad", "  and 5 more"]


# refusals


@pytest.mark.parametrize("dest", ["packed", "packed.zip"], ids=["folder", "zip"])
@pytest.mark.parametrize("there", ["file", "folder", "dangling-link"])
def test_never_overwrites(tmp_path, dest, there):
    noises(tmp_path / "in")
    path = tmp_path / dest
    if there == "file":
        path.write_text("mine")
    elif there == "folder":
        path.mkdir()
    else:
        path.symlink_to("nowhere")
    with pytest.raises(DatasetError, match="packed.* exists and is not overwritten: remove it or choose another name"):
        pack(tmp_path / "in", path, resolution=8, progress=False)
    assert there != "file" or path.read_text() == "mine"
    assert what_lies_in(tmp_path) == sorted(["in", dest])


@pytest.mark.parametrize("dest", ["packed", "packed.zip"], ids=["folder", "zip"])
def test_does_not_overwrite_what_appeared_meanwhile(tmp_path, dest, monkeypatch):
    def slow(image):
        (tmp_path / dest).write_text("mine")
        return b""

    monkeypatch.setattr(packing, "_png", slow)
    with pytest.raises(DatasetError, match="exists and is not overwritten"):
        pack(noises(tmp_path / "in"), tmp_path / dest, resolution=8, progress=False)
    assert (tmp_path / dest).read_text() == "mine" and what_lies_in(tmp_path) == sorted(["in", dest])


@pytest.mark.parametrize("dest", ["packed", "packed.zip"], ids=["folder", "zip"])
@pytest.mark.parametrize(
    "raised, arrives, words",
    [
        (OSError(28, "No space left on device"), DatasetError, "cannot be written .OSError.*No space left.*make room"),
        (KeyboardInterrupt(), KeyboardInterrupt, None),
        (MemoryError("bug"), MemoryError, "bug"),
    ],
    ids=["disk-full", "interrupted", "bug"],
)
def test_leaves_nothing_behind_when_it_fails(tmp_path, dest, raised, arrives, words, monkeypatch):
    written = []

    def fail(name, *args):
        written.append(name)
        if len(written) == 3:
            raise raised
        return original(name, *args)

    where = "write_entry" if dest.endswith(".zip") else "_write_file"
    original = getattr(packing, where)
    monkeypatch.setattr(packing, where, fail)
    with pytest.raises(arrives, match=words):
        pack(noises(tmp_path / "in"), tmp_path / dest, resolution=8, progress=False)
    assert len(written) == 3 and what_lies_in(tmp_path) == ["in"]


@pytest.mark.parametrize("dest", ["packed", "packed.zip"], ids=["folder", "zip"])
def test_nothing_usable_is_an_error_and_writes_nothing(tmp_path, dest):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.png").write_bytes(b"no image")
    (tmp_path / "in/b.txt").write_bytes(b"no image")
    words = "in holds nothing usable: 2 files skipped, among them a.png: cannot be decoded .*; nothing was written"
    with pytest.raises(DatasetError, match=words):
        pack(tmp_path / "in", tmp_path / dest, resolution=8, progress=False)
    assert what_lies_in(tmp_path) == ["in"]


def test_says_that_the_source_is_empty(tmp_path):
    (tmp_path / "in").mkdir()
    with pytest.raises(DatasetError, match="in holds no files: expected images; check the path"):
        pack(tmp_path / "in", tmp_path / "packed.zip", resolution=8, progress=False)
    assert what_lies_in(tmp_path) == ["in"]


@pytest.mark.parametrize(
    "kwargs, words",
    [
        (dict(resolution=0), "resolution must be a power of two such as 64 or 256, got 0"),
        (dict(resolution=-8), "resolution must be a power of two such as 64 or 256, got -8"),
        (dict(resolution=24), "resolution must be a power of two such as 64 or 256, got 24"),
        (dict(crop="centre"), "crop must be one of center, none, got centre"),
        (dict(channels=4), "channels must be 1 or 3, got 4"),
        (dict(labels="guess"), "labels must be one of none, folders, json, source, got guess"),
        (dict(max_images=0), "max_images must be at least 1, got 0"),
        (dict(source="nowhere"), "nowhere does not exist"),
        (dict(dest="new/packed.zip"), "new is no folder: expected one to write packed.zip into; create it first"),
    ],
    ids=["zero", "negative", "24", "crop", "channels", "labels", "max-images", "source", "dest"],
)
def test_refuses_what_makes_no_sense(tmp_path, kwargs, words):
    noises(tmp_path / "in")
    kwargs = dict(source="in", dest="packed.zip", resolution=8, progress=False) | kwargs
    source, dest = tmp_path / kwargs.pop("source"), tmp_path / kwargs.pop("dest")
    with pytest.raises(DatasetError, match=words):
        pack(source, dest, **kwargs)
    assert what_lies_in(tmp_path) == ["in"]


# the command


def test_the_command_packs_and_prints_the_report(tmp_path):
    save(noise(0), tmp_path / "in/cat/a.png")
    save(noise(1), tmp_path / "in/dog/a.png")
    arguments = [str(tmp_path / "in"), str(tmp_path / "packed.zip"), "--resolution", "8", "--labels", "folders"]
    ran = CliRunner().invoke(dataset_command, arguments)
    assert ran.exit_code == 0, ran.output
    assert f"{tmp_path / 'packed.zip'}: 2 RGB images of 8x8 pixels\nclass 0: cat, 1 images\n" in ran.stdout
    assert ImageDataset(tmp_path / "packed.zip", labels=True).label_dim == 2


@pytest.mark.parametrize("flags, channels", [([], 3), (["--grey"], 1), (["--rgb"], 3)], ids=["default", "grey", "rgb"])
def test_the_command_passes_its_options_on(tmp_path, flags, channels):
    noises(tmp_path / "in", 3)
    save(noise(3), tmp_path / "in/square.png")
    arguments = [str(tmp_path / "in"), str(tmp_path / "packed"), "--resolution", "4", "--crop", "none", "--max-images", "1"]
    ran = CliRunner().invoke(dataset_command, arguments + flags)
    assert ran.exit_code == 0, ran.output
    dataset = ImageDataset(tmp_path / "packed")
    assert (len(dataset), dataset.resolution, dataset.channels) == (1, 4, channels)
    assert "3 files skipped" in ran.stdout


def test_the_command_fails_with_the_one_sentence(tmp_path):
    (tmp_path / "taken.zip").write_text("mine")
    arguments = [str(noises(tmp_path / "in")), str(tmp_path / "taken.zip"), "--resolution", "8"]
    ran = CliRunner().invoke(dataset_command, arguments)
    assert ran.exit_code == 1
    assert ran.stderr == f"Error: {tmp_path / 'taken.zip'} exists and is not overwritten: remove it or choose another name\n"
