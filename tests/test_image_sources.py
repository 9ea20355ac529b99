"""Class folders, CIFAR-10's binary files and BigGAN-PyTorch's HDF5 are read where they lie. Files with a dataset.json are in test_images.py."""

import importlib.util
import io
import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastdgl.images import DatasetError, ImageDataset, stream
from fastdgl.packing import pack

NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

needs_h5py = pytest.mark.skipif(importlib.util.find_spec("h5py") is None, reason="needs h5py")


def random_pixels(count: int, size: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, [count, channels, size, size], dtype=np.uint8)


def png(pixels: np.ndarray) -> bytes:
    """Of `[C, H, W]`."""
    file = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(file, "PNG")
    return file.getvalue()


def class_folders(path: Path, names=("cat/a.png", "cat/deep/b.png", "dog/a.png"), empty=()) -> Path:
    """A folder, or a zip where the name says so; image i holds the i-th of `random_pixels`."""
    images = dict(zip(names, map(png, random_pixels(len(names), 8))))
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in images.items():
                archive.writestr(name, data)
            for name in empty:
                archive.writestr(f"{name}/", "")
        return path
    for name, data in images.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    for name in empty:
        (path / name).mkdir()
    return path


def cifar10(path: Path, pixels: np.ndarray, labels, files: int = 2, names=NAMES) -> Path:
    """The layout of cifar-10-batches-bin."""
    path.mkdir()
    records = np.concatenate([np.array(labels, np.uint8)[:, None], pixels.reshape(len(pixels), -1)], axis=1)
    for i, part in enumerate(np.array_split(records, files)):
        (path / f"data_batch_{i + 1}.bin").write_bytes(part.tobytes())
    (path / "test_batch.bin").write_bytes(records[:1].tobytes())
    (path / "batches.meta.txt").write_text("\n".join([*names, "", ""]))
    (path / "readme.html").write_text("")
    return path


def hdf5(path: Path, **datasets) -> Path:
    import h5py

    with h5py.File(path, "w") as file:
        for name, values in datasets.items():
            file.create_dataset(name, data=values, chunks=True)
    return path


def make(kind: str, folder: Path) -> tuple[Path, np.ndarray, list[int], tuple[str, ...] | None]:
    """A small dataset, its pixels, classes and their names."""
    if kind == "class-folders":
        return class_folders(folder / "set"), random_pixels(3, 8), [0, 0, 1], ("cat", "dog")
    if kind == "zip-of-class-folders":
        return class_folders(folder / "set.zip"), random_pixels(3, 8), [0, 0, 1], ("cat", "dog")
    if kind == "cifar10":
        return cifar10(folder / "set", random_pixels(5, 32), [3, 0, 9, 3, 1]), random_pixels(5, 32), [3, 0, 9, 3, 1], NAMES
    channels = 1 if kind == "grey-hdf5" else 3
    pixels, labels = random_pixels(5, 8, channels), np.array([3, 0, 2, 3, 1])
    return hdf5(folder / "set.hdf5", imgs=pixels, labels=labels), pixels, labels.tolist(), None


every_kind = pytest.mark.parametrize("kind", [
    "class-folders", "zip-of-class-folders", "cifar10", pytest.param("hdf5", marks=needs_h5py), pytest.param("grey-hdf5", marks=needs_h5py)])


def sentence(path: Path, **kwargs) -> str:
    """What is wrong with a dataset."""
    with pytest.raises(DatasetError) as error:
        ImageDataset(path, **kwargs)
    assert "\n" not in str(error.value) and str(path) in str(error.value)
    return str(error.value)


# all


@every_kind
def test_reads_pixels_classes_and_their_names(tmp_path, kind):
    path, pixels, classes, names = make(kind, tmp_path)
    dataset = ImageDataset(path, labels=True, mirror=True)
    assert (dataset.name, dataset.resolution, dataset.channels) == ("set", pixels.shape[-1], pixels.shape[1])
    assert dataset.class_names == names and dataset.label_dim == (4 if names is None else len(names))
    assert dataset.all_labels().tolist() == classes and dataset.all_labels().dtype == np.int64
    assert len(dataset) == 2 * len(pixels)
    for i, (image, label) in enumerate(zip(pixels, classes)):
        got, one_hot = dataset[i]
        assert got.dtype == np.uint8 and got.flags["C_CONTIGUOUS"] and one_hot.dtype == np.float32
        np.testing.assert_array_equal(got, image)
        np.testing.assert_array_equal(one_hot, np.eye(dataset.label_dim)[label])
        np.testing.assert_array_equal(dataset[len(pixels) + i][0], image[:, :, ::-1])


@every_kind
def test_without_labels_has_no_classes(tmp_path, kind):
    path, pixels, _, _ = make(kind, tmp_path)
    dataset = ImageDataset(path)
    assert dataset.label_dim == 0 and dataset.class_names is None
    np.testing.assert_array_equal(dataset[len(pixels) - 1][0], pixels[-1])


@every_kind
def test_a_fingerprint_is_that_of_the_content(tmp_path, kind):
    (tmp_path / "copy").mkdir()
    path, copy = (make(kind, folder)[0] for folder in (tmp_path, tmp_path / "copy"))
    fingerprint = ImageDataset(path).source.fingerprint()
    assert len(fingerprint) == 64
    assert ImageDataset(copy).source.fingerprint() == fingerprint
    change_a_pixel(copy)
    assert ImageDataset(copy).source.fingerprint() != fingerprint


def change_a_pixel(path: Path) -> None:
    """Of the last image."""
    if path.suffix == ".hdf5":
        import h5py

        with h5py.File(path, "r+") as file:
            file["imgs"][-1, 0, 0, 0] ^= 1
    elif path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            entries = {name: archive.read(name) for name in archive.namelist()}
        entries["dog/a.png"] = with_another_pixel(entries["dog/a.png"])
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in entries.items():
                archive.writestr(name, data)
    elif (path / "data_batch_2.bin").exists():
        data = bytearray((path / "data_batch_2.bin").read_bytes())
        data[-1] ^= 1
        (path / "data_batch_2.bin").write_bytes(data)
    else:
        (path / "dog" / "a.png").write_bytes(with_another_pixel((path / "dog" / "a.png").read_bytes()))


def with_another_pixel(data: bytes) -> bytes:
    pixels = np.array(Image.open(io.BytesIO(data))).transpose(2, 0, 1)
    pixels[0, 0, 0] ^= 1
    return png(pixels)


@every_kind
def test_only_the_first_image_is_read_when_it_is_opened(tmp_path, kind, monkeypatch):
    path, _, _, _ = make(kind, tmp_path)
    source = type(ImageDataset(path).source)
    read, image = [], source.image
    monkeypatch.setattr(source, "image", lambda self, i: read.append(i) or image(self, i))
    ImageDataset(path, labels=True)
    assert set(read) == {0}


@every_kind
def test_workers_read_what_one_process_would(tmp_path, kind):
    path, _, _, _ = make(kind, tmp_path)
    dataset = ImageDataset(path, labels=True)
    dataset[0]                                                        # opens what the workers must open for themselves

    def batches(workers):
        images = stream(dataset, 2, seed=0, workers=workers)
        taken = [next(images) for _ in range(6)]
        images.close()
        return taken

    for alone, shared in zip(batches(0), batches(2), strict=True):
        assert torch.equal(alone[0], shared[0]) and torch.equal(alone[1], shared[1])


@every_kind
def test_a_pickled_dataset_is_small_and_reads_the_same(tmp_path, kind):
    path, pixels, _, _ = make(kind, tmp_path)
    dataset = ImageDataset(path, labels=True)
    dataset[0]
    pickled = pickle.dumps(dataset)
    assert len(pickled) < 3000
    np.testing.assert_array_equal(pickle.loads(pickled)[2][0], pixels[2])


@every_kind
def test_packing_keeps_images_classes_and_names(tmp_path, kind):
    path, pixels, classes, names = make(kind, tmp_path)
    report = pack(path, tmp_path / "packed.zip", resolution=pixels.shape[-1], labels="source", progress=False)
    dataset = ImageDataset(tmp_path / "packed.zip", labels=True)
    assert report.images == len(pixels) and report.classes == tuple((name, classes.count(i)) for i, name in enumerate(names or ()))
    assert (dataset.channels, dataset.class_names, dataset.all_labels().tolist()) == (pixels.shape[1], names, classes)
    for i, image in enumerate(pixels):
        np.testing.assert_array_equal(dataset[i][0], image)


@pytest.mark.parametrize("kind", ["cifar10", pytest.param("hdf5", marks=needs_h5py)])
@pytest.mark.parametrize("labels", ["json", "folders"])
def test_packing_says_which_labels_there_are(tmp_path, kind, labels):
    path, _, _, _ = make(kind, tmp_path)
    with pytest.raises(DatasetError, match=f"set.* holds no files that could have labels by {labels}: expected labels source"):
        pack(path, tmp_path / "packed.zip", resolution=8, labels=labels, progress=False)
    assert not (tmp_path / "packed.zip").exists()


# class folders


def test_a_class_may_be_a_link_to_a_folder(tmp_path):
    path = class_folders(tmp_path / "set", ["cat/a.png"])
    class_folders(tmp_path / "elsewhere", ["x/a.png"])
    (path / "ant").symlink_to(tmp_path / "elsewhere/x")
    dataset = ImageDataset(path, labels=True)
    assert dataset.class_names == ("ant", "cat") and dataset.all_labels().tolist() == [0, 1]


def test_dataset_json_comes_before_folders(tmp_path):
    path = class_folders(tmp_path / "set", ["cat/a.png", "dog/a.png"])
    (path / "dataset.json").write_text(json.dumps({"labels": [["cat/a.png", 1], ["dog/a.png", 0]]}))
    assert ImageDataset(path, labels=True).all_labels().tolist() == [1, 0]


def test_hidden_folders_are_no_classes(tmp_path):
    path = class_folders(tmp_path / "set", ["cat/a.png", "dog/a.png"], empty=[".cache", "__MACOSX"])
    assert ImageDataset(path, labels=True).class_names == ("cat", "dog")


@pytest.mark.parametrize("name", ["set", "set.zip"], ids=["folder", "zip"])
def test_an_empty_class_folder_is_refused_by_name(tmp_path, name):
    path = class_folders(tmp_path / name, empty=["cow"])
    assert sentence(path, labels=True).startswith(f"cow in {path} holds no images: expected some in every class folder; remove it")
    assert len(ImageDataset(path)) == 3


def test_a_folder_without_classes_is_refused_when_labels_are_asked_for(tmp_path):
    path = class_folders(tmp_path / "set", ["a.png", "b.png"])
    assert "has no dataset.json, and a.png lies in no class folder: labels were asked for" in sentence(path, labels=True)


def test_an_image_beside_the_class_folders_is_refused_by_name(tmp_path):
    path = class_folders(tmp_path / "set", ["cat/a.png", "stray.png"])
    assert "stray.png lies in no class folder" in sentence(path, labels=True)


def test_folders_that_number_images_are_no_classes(tmp_path):
    path = class_folders(tmp_path / "set", ["00000/img00000000.png", "00001/img00001000.png"])
    assert "has no dataset.json: labels were asked for" in sentence(path, labels=True)


def test_an_image_of_another_size_is_refused_by_name(tmp_path):
    path = class_folders(tmp_path / "set")
    (path / "dog/a.png").write_bytes(png(random_pixels(1, 16)[0]))
    dataset = ImageDataset(path, labels=True)
    with pytest.raises(DatasetError, match="^dog/a.png in .* has 16x16 pixels, expected 8x8 like the first image; run `fastdgl dataset`"):
        dataset[2]


# CIFAR-10


def test_files_of_the_wrong_length_are_refused_by_name(tmp_path):
    path = cifar10(tmp_path / "set", random_pixels(4, 32), [0, 1, 2, 3])
    whole = (path / "data_batch_2.bin").read_bytes()
    for content in (whole[:-1], b""):
        (path / "data_batch_2.bin").write_bytes(content)
        assert f"data_batch_2.bin has {len(content)} bytes, expected a multiple of 3073" in sentence(path)


def test_files_that_cannot_be_read_are_refused_by_name(tmp_path):
    path = cifar10(tmp_path / "set", random_pixels(4, 32), [0, 1, 2, 3])
    dataset = ImageDataset(path)
    (path / "data_batch_2.bin").unlink()
    with pytest.raises(DatasetError, match="^image 0 of data_batch_2.bin in .* cannot be read .FileNotFoundError"):
        dataset[2]
    (path / "data_batch_2.bin").symlink_to("nowhere")
    assert "data_batch_2.bin cannot be read (FileNotFoundError" in sentence(path)


def test_a_label_beyond_the_ten_classes_is_refused_with_its_place(tmp_path):
    path = cifar10(tmp_path / "set", random_pixels(4, 32), [0, 1, 2, 10])
    assert "gives image 1 of data_batch_2.bin the label 10, expected a class from 0 to 9" in sentence(path, labels=True)
    assert len(ImageDataset(path)) == 4


@pytest.mark.parametrize("names, words", [(NAMES[:9], "names 9 classes, expected 10"), (None, "cannot be read (FileNotFoundError")])
def test_says_that_the_names_of_the_classes_are_missing(tmp_path, names, words):
    path = cifar10(tmp_path / "set", random_pixels(1, 32), [0], files=1, names=names or NAMES)
    if names is None:
        (path / "batches.meta.txt").unlink()
    assert words in sentence(path, labels=True)


def test_the_python_version_is_refused_without_being_opened(tmp_path, monkeypatch):
    (tmp_path / "set").mkdir()
    for name in ("data_batch_1", "batches.meta"):
        (tmp_path / "set" / name).write_bytes(pickle.dumps({}))

    def refuse(*arguments, **options):
        raise AssertionError("unpickled")

    monkeypatch.setattr(pickle, "load", refuse)
    monkeypatch.setattr(pickle, "loads", refuse)
    words = "holds the Python version of CIFAR-10, whose pickles run code when they are opened: expected the binary version"
    assert words in sentence(tmp_path / "set")


# HDF5


def test_says_how_to_install_what_reads_hdf5(tmp_path, monkeypatch):
    (tmp_path / "set.hdf5").write_bytes(b"\x89HDF\r\n\x1a\n")
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "h5py" else find_spec(name))
    assert "reading one needs h5py: install it by `pip install -c constraints.txt -e \".[hdf5]\"`" in sentence(tmp_path / "set.hdf5")


@needs_h5py
@pytest.mark.parametrize("labels, words", [
    pytest.param(None, r"has no `labels`: expected .* integers `labels` \[N\], as BigGAN-PyTorch writes them$", id="missing"),
    pytest.param([0, -1], r"gives imgs\[1\] the label -1, expected a class from 0 to 999999", id="negative"),
    pytest.param([10**9, 0], r"gives imgs\[0\] the label 1000000000, expected a class from 0 to 999999", id="huge"),
    pytest.param([0, 1, 2], r"has int64 `labels` \[3\] for 2 images: expected", id="too-many"),
    pytest.param([0.0, 1.0], r"has float64 `labels` \[2\] for 2 images: expected", id="fractions"),
    pytest.param([[1, 0], [0, 1]], r"has int64 `labels` \[2, 2\] for 2 images: expected", id="one-hot"),
])
def test_says_what_is_wrong_with_labels_in_hdf5(tmp_path, labels, words):
    path = hdf5(tmp_path / "set.hdf5", imgs=random_pixels(2, 8), **({} if labels is None else {"labels": labels}))
    with pytest.raises(DatasetError, match=f"set.hdf5 {words}"):
        ImageDataset(path, labels=True)
    assert len(ImageDataset(path)) == 2


@needs_h5py
@pytest.mark.parametrize("datasets, words", [
    pytest.param({"images": np.zeros([1, 3, 8, 8], np.uint8)}, "has no `imgs`: expected uint8 `imgs`", id="missing"),
    pytest.param({"imgs/x": np.zeros(1)}, "has no `imgs`: expected", id="group"),
    pytest.param({"imgs": np.zeros([1, 3, 8, 8], np.float32)}, r"has float32 `imgs` \[1, 3, 8, 8\]: expected", id="float"),
    pytest.param({"imgs": np.zeros([1, 8, 8, 3], np.uint8)}, r"has uint8 `imgs` \[1, 8, 8, 3\]: expected", id="channels-last"),
    pytest.param({"imgs": np.zeros([1, 3, 8, 4], np.uint8)}, r"has 4x8 pixels, expected a square", id="oblong"),
])
def test_says_what_is_wrong_with_images_in_hdf5(tmp_path, datasets, words):
    with pytest.raises(DatasetError, match=words):
        ImageDataset(hdf5(tmp_path / "set.hdf5", **datasets))


@needs_h5py
def test_an_hdf5_file_is_known_by_its_first_bytes_or_its_name(tmp_path):
    assert len(ImageDataset(hdf5(tmp_path / "I8", imgs=random_pixels(2, 8)))) == 2
    (tmp_path / "set.hdf5").write_bytes(b"no such file")
    assert "is no HDF5 file that opens (OSError" in sentence(tmp_path / "set.hdf5")
