"""What the labels of images are, where a person would look for them: class folders, archives of every system, upright images, 16 bits."""

import io
import json
import struct
import unicodedata
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from fastdgl.images import CLASSES, VECTORS, DatasetError, ImageDataset, LabelsMissing, formats, suffixes
from fastdgl.packing import pack


def picture(value=0, side=8, kind="PNG", mode="RGB", **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((side, side, 3), value, np.uint8)).convert(mode).save(file, kind, **options)
    return file.getvalue()


def folder(path, *names, **files):
    for i, name in enumerate(names):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(picture(i))
    for name, data in files.items():
        (path / name).write_bytes(data)
    return path


def entry(name: str, raw: bytes | None = None, **attributes) -> zipfile.ZipInfo:
    found = zipfile.ZipInfo("x")
    found.filename = name
    for key, value in attributes.items():
        setattr(found, key, value)
    return found


def archive(path, entries):
    with zipfile.ZipFile(path, "w") as file:
        for i, one in enumerate(entries):
            file.writestr(one if isinstance(one, zipfile.ZipInfo) else entry(one), b"" if str(getattr(one, "filename", one)).endswith(("/", "\\")) else picture(i))
    return path


def renamed_in_place(path, old: bytes, new: bytes):
    """Write a name's bytes into a zip, as a program without UTF-8 does; Python itself writes none."""
    data = path.read_bytes()
    assert len(old) == len(new) and data.count(old) == 2
    path.write_bytes(data.replace(old, new))
    return path


# where the classes are

@pytest.mark.parametrize("names, classes, values", [
    pytest.param(["photos/cats/a.png", "photos/dogs/b.png"], ("cats", "dogs"), [0, 1], id="the-folder-was-zipped"),
    pytest.param(["a/b/c/n1/1.png", "a/b/c/n1/deep/2.png", "a/b/c/n2/3.png"], ("n1", "n2"), [0, 0, 1], id="three-too-many"),
    pytest.param(["train/n01/1.png", "train/n02/1.png", "val/n01/1.png", "val/n02/1.png"], ("n01", "n02"), [0, 1, 0, 1], id="train-and-val"),
    pytest.param(["set/Training/x/1.png", "set/Testing/y/1.png", "set/Validation/x/1.png"], ("x", "y"), [1, 0, 0], id="parts-in-a-folder"),
    pytest.param(["train/a/1.png", "train/b/1.png"], ("a", "b"), [0, 1], id="one-part"),
    pytest.param(["train/1.png", "car/1.png", "bus/1.png"], ("bus", "car", "train"), [0, 1, 2], id="trains-are-no-part"),
    pytest.param(["cats/2019/1.png", "cats/2.png", "dogs/1.png"], ("cats", "dogs"), [0, 0, 1], id="folders-below-classes"),
    pytest.param(["cats/1.png", "cats/2.png"], ("cats",), [0, 0], id="one-class"),
])
@pytest.mark.parametrize("form", ["folder", "zip"])
def test_classes_are_the_folders_that_a_person_would_name(tmp_path, form, names, classes, values):
    source = folder(tmp_path / "set", *names) if form == "folder" else archive(tmp_path / "set.zip", sorted(names))
    dataset = ImageDataset(source, labels=True)
    assert dataset.class_names == classes and dataset.all_labels().tolist() == values and dataset.label_kind == CLASSES
    packed = pack(source, tmp_path / "packed.zip", resolution=8, labels="folders", progress=False)
    assert [name for name, _ in packed.classes] == list(classes)
    assert packed.notes == dataset.notes
    stepped_in = classes[0] not in {name.split("/")[0] for name in names}
    assert stepped_in == bool(dataset.notes)


@pytest.mark.parametrize("names, message", [
    pytest.param(["train/n01/1.png", "val/n01/1.png", "test/7.png"], "test/7.png lies in no class folder", id="a-part-without-classes"),
    pytest.param(["train/1.png", "val/2.png"], "train/1.png lies in no class folder", id="parts-without-classes"),
    pytest.param(["photos/cats/1.png", "cover.png"], "cover.png lies in no class folder", id="a-stray-image"),
    pytest.param(["set/00000/img00000000.png", "set/00001/img00001000.png"], "has no dataset.json", id="numbered-images"),
])
def test_images_without_a_class_are_not_given_one(tmp_path, names, message):
    with pytest.raises(LabelsMissing, match=message):
        ImageDataset(folder(tmp_path, *names), labels=True)


def test_folders_that_repeat_in_each_class_are_named(tmp_path):
    dataset = ImageDataset(folder(tmp_path, *(f"{a}/{b}/1.png" for a in ("cats", "dogs") for b in ("big", "small"))), labels=True)
    assert dataset.class_names == ("cats", "dogs") and "each holds folders called big, small" in dataset.notes[0]


def test_an_empty_class_folder_is_found_at_any_depth(tmp_path):
    folder(tmp_path, "photos/cats/1.png", "photos/dogs/1.png")
    (tmp_path / "photos/cows").mkdir()
    with pytest.raises(DatasetError, match="cows in .* holds no images"):
        ImageDataset(tmp_path, labels=True)


@pytest.mark.parametrize("labels, kind", [([1, 0], CLASSES), ([[0.5], [0.25]], VECTORS), ([[1, 0], [0, 1]], VECTORS)])
def test_a_dataset_json_one_folder_down_is_found_and_tells_the_kind(tmp_path, labels, kind):
    folder(tmp_path, "set/00000/img00000000.png", "set/00000/img00000001.png")
    content = {"labels": [[f"00000\\img0000000{i}.png", label] for i, label in enumerate(labels)]}
    (tmp_path / "set/dataset.json").write_text(json.dumps(content))
    dataset = ImageDataset(tmp_path, labels=True)
    assert dataset.all_labels().tolist() == labels and dataset.label_kind == kind and not dataset.source.others
    packed = pack(tmp_path, tmp_path.with_suffix(".zip"), resolution=8, labels="json", progress=False)
    assert ImageDataset(packed.path, labels=True).all_labels().tolist() == labels


# archives of every system

@pytest.mark.parametrize("names", [
    pytest.param(["cats\\", "cats\\1.png", "dogs\\", "dogs\\1.png"], id="powershell"),
    pytest.param(["photos\\cats\\1.png", "photos\\dogs\\1.png"], id="backslashes-one-level-down"),
    pytest.param(["cats/1.png", "dogs\\1.png"], id="mixed"),
    pytest.param(["./cats/1.png", "./dogs/1.png"], id="dot"),
    pytest.param(["/home/me/cats/1.png", "/home/me/dogs/1.png"], id="absolute"),
    pytest.param(["C:\\photos\\cats\\1.png", "C:\\photos\\dogs\\1.png"], id="drive"),
    pytest.param(["__MACOSX/cats/._1.png", "__MACOSX/._cats", "cats/.DS_Store", "cats/1.png", "dogs/1.png", ".DS_Store"], id="macos"),
    pytest.param(["cats/Thumbs.db", "cats/1.png", "dogs/desktop.ini", "dogs/1.png", "$RECYCLE.BIN/x.png"], id="windows"),
    pytest.param(["cats/1.png", "cats/@eaDir/1.png", "dogs/1.png", "lost+found/"], id="servers"),
])
def test_a_zip_of_any_system_has_the_same_classes(tmp_path, names):
    dataset = ImageDataset(archive(tmp_path / "set.zip", names), labels=True)
    assert dataset.class_names == ("cats", "dogs") and len(dataset) == 2 and not dataset.source.others
    assert dataset[1][0].shape == (3, 8, 8) and len(dataset.fingerprint) == 64


@pytest.mark.parametrize("raw, expected", [
    pytest.param("käse", "käse", id="utf-8-unmarked"),
    pytest.param(unicodedata.normalize("NFD", "café"), "café", id="accents-apart"),
    pytest.param("写真", "写真", id="japanese"),
])
def test_names_in_utf_8_without_the_mark_are_read(tmp_path, raw, expected):
    name = raw.encode()
    path = archive(tmp_path / "set.zip", ["x" * len(name) + "/1.png", "b/1.png"])
    dataset = ImageDataset(renamed_in_place(path, b"x" * len(name), name), labels=True)
    assert set(dataset.class_names) == {expected, "b"} and dataset[0][0].shape == (3, 8, 8)


def test_the_utf_8_name_beside_an_old_one_is_read(tmp_path):
    name = "dachs-größe/1.png".encode()
    extra = struct.pack("<HHBI", 0x7075, 5 + len(name), 1, zlib.crc32(b"ax\x81/1.png")) + name
    path = archive(tmp_path / "set.zip", [entry("axy/1.png", extra=extra), "b/1.png"])
    dataset = ImageDataset(renamed_in_place(path, b"axy/1.png", b"ax\x81/1.png"), labels=True)
    assert dataset.class_names == ("b", "dachs-größe")


@pytest.mark.parametrize("name, classes", [("表/1.png", 2), ("ソース/1.png", 2), ("能/1.png", 2)])
def test_the_second_half_of_a_letter_is_no_separator(tmp_path, name, classes):
    raw = name.encode("cp932")
    assert b"\\" in raw
    path = archive(tmp_path / "set.zip", ["x" * len(raw), "b/1.png"])
    dataset = ImageDataset(renamed_in_place(path, b"x" * len(raw), raw), labels=False)
    assert len(dataset) == 2
    assert len(ImageDataset(path, labels=True).class_names) == classes


def test_two_entries_that_become_one_name_are_rejected(tmp_path):
    with pytest.raises(DatasetError, match="are one name with forward slashes"):
        ImageDataset(archive(tmp_path / "set.zip", ["a/1.png", "a\\1.png"]))


@pytest.mark.parametrize("name", ["set.tar", "set.tar.gz", "set.tgz"])
def test_a_tar_is_named(tmp_path, name):
    import tarfile

    with tarfile.open(tmp_path / name, "w:gz" if "gz" in name else "w") as file:
        file.add(folder(tmp_path / "in", "1.png"), "in")
    with pytest.raises(DatasetError, match="is a tar archive: .*; unpack it"):
        ImageDataset(tmp_path / name)


def test_accents_apart_in_file_names_meet_dataset_json(tmp_path):
    apart = unicodedata.normalize("NFD", "é.png")
    folder(tmp_path, apart, "b.png")
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": [["é.png", 1], ["b.png", 0]]}))
    assert ImageDataset(tmp_path, labels=True).all_labels().tolist() == [0, 1]


# upright, in training and in packing

def turned(path, orientation, kind="JPEG"):
    """A file whose picture is dark above and bright below once it is upright, whatever the orientation it is stored in."""
    upright = np.zeros((8, 8), np.uint8)
    upright[4:] = 240
    stored = {1: upright, 3: upright[::-1, ::-1], 6: np.rot90(upright), 8: np.rot90(upright, -1), 2: upright[:, ::-1], 4: upright[::-1],
              5: upright.T, 7: np.rot90(upright, 2).T}[orientation]
    image = Image.fromarray(np.ascontiguousarray(stored)).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(path, kind, exif=exif)


@pytest.mark.parametrize("orientation", [1, 2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_images_are_upright_in_training_and_when_packed(tmp_path, orientation, kind):
    (tmp_path / "in").mkdir()
    turned(tmp_path / f"in/1.{kind.lower()}", orientation, kind)
    trained = ImageDataset(tmp_path / "in")[0][0]
    packed = ImageDataset(pack(tmp_path / "in", tmp_path / "out.zip", resolution=8, progress=False).path)[0][0]
    assert np.array_equal(trained, packed)
    assert trained[:, :3].mean() < 60 and trained[:, 5:].mean() > 180


# 16 bits

def deep(path, bits, colour=False):
    values = (np.arange(64).reshape(8, 8) * (2**bits - 1) // 63).astype(np.uint16)
    if not colour:
        Image.fromarray(values).save(path)
        return
    rows = b"".join(b"\0" + np.repeat(row, 3).astype(">u2").tobytes() for row in values)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
                                                     for kind, data in chunks))


@pytest.mark.parametrize("bits, suffix", [(10, "png"), (12, "png"), (12, "tif"), (14, "tif"), (15, "png")])
def test_values_of_fewer_bits_than_the_format_are_reported_and_taken_when_told(tmp_path, bits, suffix):
    (tmp_path / "in").mkdir()
    deep(tmp_path / f"in/1.{suffix}", bits)
    dark = pack(tmp_path / "in", tmp_path / "dark.zip", resolution=8, progress=False)
    assert f"none of their values needs more than {bits}" in str(dark) and f"--bits {bits}" in str(dark)
    right = pack(tmp_path / "in", tmp_path / "right.zip", resolution=8, bits=bits, progress=False)
    assert right.notes == () and ImageDataset(right.path)[0][0].max() == 255
    expected = np.round((np.arange(64) * (2**bits - 1) // 63) * 255 / (2**bits - 1))
    assert np.abs(ImageDataset(right.path)[0][0].ravel() - expected).max() <= 1


def test_sixteen_full_bits_are_not_reported(tmp_path):
    (tmp_path / "in").mkdir()
    deep(tmp_path / "in/1.png", 16)
    assert pack(tmp_path / "in", tmp_path / "out.zip", resolution=8, progress=False).notes == ()


def test_a_value_beyond_the_bits_is_rejected(tmp_path):
    (tmp_path / "in").mkdir()
    deep(tmp_path / "in/1.png", 13)
    with pytest.raises(DatasetError, match="has the value 8191, expected at most 4095 in 12 bits"):
        pack(tmp_path / "in", tmp_path / "out.zip", resolution=8, bits=12, progress=False)


@pytest.mark.parametrize("bits", [9, 12, 15])
def test_colour_of_fewer_bits_is_reported_and_named_in_training(tmp_path, bits):
    (tmp_path / "in").mkdir()
    deep(tmp_path / "in/1.png", bits, colour=True)
    dark = pack(tmp_path / "in", tmp_path / "dark.zip", resolution=8, progress=False)
    assert f"none of their values needs more than {bits}" in str(dark) and "convert them to 8 bits first" in str(dark)
    with pytest.raises(DatasetError, match="has 16 bits in each channel, expected 8; run `fastdgl dataset`"):
        ImageDataset(tmp_path / "in")
    with pytest.raises(DatasetError, match="Pillow reads the upper 8"):
        pack(tmp_path / "in", tmp_path / "right.zip", resolution=8, bits=12, progress=False)


# names of files

@pytest.mark.parametrize("name, kind", [("a.jfif", "JPEG"), ("a.JPE", "JPEG"), ("a.avif", "AVIF"), ("a.jp2", "JPEG2000"), ("a.apng", "PNG"), ("a.pnm", "PPM")])
def test_every_suffix_that_pillow_has_for_a_format_is_read(tmp_path, name, kind):
    if kind not in formats():
        pytest.skip(f"this Pillow does not read {kind}")
    (tmp_path / name).write_bytes(picture(100, kind=kind))
    assert abs(int(ImageDataset(tmp_path)[0][0].mean()) - 100) <= 3
    assert not {".eps", ".pdf", ".ps", ".mpg", ".h5"} & set(suffixes())


@pytest.mark.parametrize("name, hint", [("IMG_1.HEIC", "pillow-heif"), ("a.heif", "pillow-heif"), ("b.hif", "pillow-heif"), ("a.txt", "does not end like an image's")])
def test_what_is_no_image_says_what_to_do(tmp_path, name, hint):
    if "HEIF" in formats():
        pytest.skip("pillow-heif is installed")
    (tmp_path / name).write_bytes(b"ftypheic")
    with pytest.raises(DatasetError, match=hint):
        ImageDataset(tmp_path)
    (tmp_path / "1.png").write_bytes(picture())
    assert hint in str(pack(tmp_path, tmp_path.with_suffix(".zip"), resolution=8, progress=False))
