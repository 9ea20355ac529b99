"""Images and datasets that are damaged, or made to do harm: a sentence that names the file, or the right pixels."""

import io
import json
import os
import signal
import struct
import time
import warnings
import zipfile
import zlib

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hostile import damaged, examples, for_all, not_for_ever, one_sentence
from hypothesis import strategies as st
from PIL import Image
from test_image_sources import cifar10, random_pixels
from test_images import encoded, image_files, labelled, random_image, take, write

from fastdgl.images import DatasetError, ImageDataset, stream
from fastdgl.images.dataset import BAD_ONE_IN
from fastdgl.packing import dataset_command, pack

# bad images in training


def with_bad_images(path, count, bad, **options):
    """A zip or folder of images of which those numbered `bad` are none."""
    files = image_files(count) | {f"00000/img{i:08d}.png": b"no image" for i in bad}
    return ImageDataset(write(path, files), corrupt="skip", **options)


def test_a_bad_image_is_replaced_by_the_next_good_one_and_named(tmp_path):
    dataset = with_bad_images(tmp_path / "set.zip", 2 * BAD_ONE_IN, [6, 7], mirror=True)
    for i in (6, 7):
        np.testing.assert_array_equal(dataset[i][0], dataset[8][0])
        np.testing.assert_array_equal(dataset[i + 2 * BAD_ONE_IN][0], dataset[8][0][:, :, ::-1])
    assert list(dataset.faults) == [6, 7]
    assert "img00000006.png in" in dataset.faults[6] and "cannot be decoded" in dataset.faults[6]


def test_the_last_image_is_replaced_by_the_first(tmp_path):
    dataset = with_bad_images(tmp_path / "set.zip", 5, [4])
    np.testing.assert_array_equal(dataset[4][0], dataset[0][0])


def test_the_set_may_begin_with_a_bad_image(tmp_path):
    dataset = with_bad_images(tmp_path / "set.zip", 5, [0])
    assert dataset.resolution == 8 and not dataset.faults
    np.testing.assert_array_equal(dataset[0][0], dataset[1][0])


@pytest.mark.parametrize(("count", "bad"), [(5, [2, 3]), (2, [0, 1]), (3 * BAD_ONE_IN, [7, 8, 9, 10]), (1, [0])], ids=str)
def test_more_bad_images_than_an_accident_leaves_are_refused(tmp_path, count, bad):
    with pytest.raises(DatasetError, match="images.corrupt: skip replaces; the last of them: .*png in|no image that can be used: .*png in"):
        dataset = with_bad_images(tmp_path / "set.zip", count, bad)
        for i in range(count):
            dataset[i]
            dataset.check_faults(dataset.faults)


def test_bad_images_are_refused_unless_told_otherwise(tmp_path):
    dataset = ImageDataset(write(tmp_path / "set.zip", image_files(3) | {"00000/img00000001.png": b"no image"}))
    with pytest.raises(DatasetError, match="img00000001.png in"):
        dataset[1]
    with pytest.raises(ValueError, match="corrupt must be one of stop, skip, got 'ignore'"):
        ImageDataset(tmp_path / "set.zip", corrupt="ignore")


@pytest.mark.parametrize("workers", [0, 2])
def test_replacements_are_the_same_for_any_workers_and_ranks_and_after_a_resume(tmp_path, workers):
    def fresh():
        return with_bad_images(tmp_path / "set.zip", 2 * BAD_ONE_IN, [6, 7])

    first = fresh()
    alone = take(stream(first, 40, seed=0, workers=0), 6)
    assert sorted(first.faults) == [6, 7]
    dataset = fresh()
    for (pixels, _), (others, _) in zip(alone, take(stream(dataset, 40, seed=0, workers=workers), 6), strict=True):
        assert torch.equal(pixels, others)
    assert dataset.faults == first.faults
    for rank in range(2):
        for (pixels, _), (others, _) in zip(alone[2:], take(stream(fresh(), 40, seed=0, workers=workers, rank=rank, world_size=2, start=80), 4), strict=True):
            assert torch.equal(pixels[rank::2], others)


# readers that stall or die


@pytest.fixture
def quick_end(monkeypatch):
    """PyTorch waits five seconds for each stalled worker before it ends it."""
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.1)


def in_a_worker(monkeypatch, dataset, name, act):
    """Have the workers call `act` at the image of that name."""
    source, read = type(dataset.source), type(dataset.source).image

    def image(self, i):
        if self.name(i) == name and torch.utils.data.get_worker_info():
            act()
        return read(self, i)

    monkeypatch.setattr(source, "image", image)


def test_a_read_that_stalls_is_named(tmp_path, monkeypatch, quick_end):
    dataset = ImageDataset(write(tmp_path / "set", image_files(10)))
    in_a_worker(monkeypatch, dataset, "00000/img00000007.png", lambda: time.sleep(600))
    with pytest.raises(DatasetError) as error:
        take(stream(dataset, 5, seed=0, workers=1, timeout=1), 2)
    assert str(error.value) == (f"{tmp_path / 'set'}: no images came within 1 seconds; being read: 00000/img00000007.png; "
                                "check the disk or network they are on, or raise images.timeout")


def test_a_reader_that_dies_is_said_to_have(tmp_path, monkeypatch, quick_end):
    dataset = ImageDataset(write(tmp_path / "set", image_files(10)))
    in_a_worker(monkeypatch, dataset, "00000/img00000007.png", lambda: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(DatasetError, match="a process that reads images has died; being read: 00000/img00000007.png; where memory ran out"):
        take(stream(dataset, 5, seed=0, workers=1), 2)


def test_what_else_goes_wrong_in_a_reader_keeps_its_traceback(tmp_path, monkeypatch):
    def fail():
        raise RuntimeError("a mistake of ours")

    dataset = ImageDataset(write(tmp_path / "set", image_files(10)))
    in_a_worker(monkeypatch, dataset, "00000/img00000007.png", fail)
    with pytest.raises(RuntimeError, match="Caught RuntimeError in DataLoader worker(.|\n)*a mistake of ours"):
        take(stream(dataset, 5, seed=0, workers=1), 2)


# damaged files


def saved(image, format, **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def small_files():
    """An image of every format and kind of pixel that is read."""
    rgb, grey, rgba = Image.fromarray(random_image(0)), Image.fromarray(random_image(1, channels=1)), Image.fromarray(random_image(2, channels=4))
    exif = Image.Exif()
    exif[0x0112] = 6
    files = [saved(rgb, format) for format in ("PNG", "BMP", "GIF", "JPEG", "PPM", "TIFF", "WEBP")]
    files += [saved(rgb.convert(mode), "PNG") for mode in ("P", "1", "L")] + [saved(rgba, "PNG"), saved(rgba.convert("LA"), "PNG")]
    files += [saved(grey.convert("I").point(lambda x: x * 257).convert("I;16"), "PNG"), saved(rgb.convert("CMYK"), "JPEG")]
    files += [saved(rgb, "JPEG", exif=exif), saved(rgb, "PNG", exif=exif), saved(rgb.convert("P"), "PNG", transparency=3)]
    files += [saved(rgb, "JPEG", progressive=True), saved(rgb, "TIFF", compression="tiff_lzw"), saved(rgb, "TIFF", compression="tiff_adobe_deflate")]
    files += [saved(rgb, format, save_all=True, append_images=[grey.convert("RGB")]) for format in ("GIF", "PNG", "WEBP", "TIFF")]
    files += [saved(grey.convert("F"), "TIFF"), saved(rgba, "WEBP"), saved(rgba, "TIFF"), saved(rgba, "BMP")]
    return files


def quietly(check):
    """Pillow's decoders warn of what they meet, and libtiff writes it to the terminal."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return check()


def good_or_refused(act):
    """What comes of reading: a result, or one sentence."""
    try:
        return quietly(act)
    except DatasetError as error:
        one_sentence(error)


@examples(few=80, many=20000)
def test_a_damaged_image_is_decoded_or_refused(examples, tmp_path):
    path = tmp_path / "set"
    write(path, {"a.png": small_files()[0]})

    def check(data):
        (path / "a.png").write_bytes(data)
        dataset = good_or_refused(lambda: ImageDataset(path))
        if dataset is not None:
            pixels, _ = dataset[0]
            assert pixels.dtype == np.uint8 and pixels.shape == (dataset.channels, dataset.resolution, dataset.resolution)

    for_all(damaged(small_files()), examples, check)


@examples(few=60, many=6000)
def test_packing_takes_or_skips_a_damaged_image_and_writes_nothing_else(examples, tmp_path):
    path = write(tmp_path / "set", {"good.png": encoded(random_image(0)), "a.png": b""})

    def check(data):
        (path / "a.png").write_bytes(data)
        packed = quietly(lambda: pack(path, tmp_path / "packed.zip", resolution=8, channels=3, progress=False))
        assert packed.images + len(packed.skipped) == 2 and len(ImageDataset(tmp_path / "packed.zip")) == packed.images
        assert str(packed).replace("\n", "").isprintable()
        (tmp_path / "packed.zip").unlink()
        assert sorted(os.listdir(tmp_path)) == ["set"]

    for_all(damaged(small_files()), examples, check)


@examples(few=60, many=6000)
def test_a_damaged_zip_is_read_or_refused(examples, tmp_path):
    path = write(tmp_path / "set.zip", image_files(2) | {"dataset.json": labelled([0, 1])})
    whole = [path.read_bytes()]
    for compression in (zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        with zipfile.ZipFile(path, "w", compression) as archive:
            for i, name in enumerate(("cat/ä.png", "dog/b.png")):
                archive.writestr(zipfile.ZipInfo(name), encoded(random_image(i)), compress_type=compression)
        whole.append(path.read_bytes())

    def check(data):
        path.write_bytes(data)
        dataset = good_or_refused(lambda: ImageDataset(path, labels=True))
        for i in range(len(dataset) if dataset is not None else 0):
            good_or_refused(lambda: dataset[i])
        if dataset is not None:
            good_or_refused(dataset.source.fingerprint)

    for_all(damaged(whole), examples, check)


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-3, 3), st.integers(), st.floats(), st.text(max_size=5), st.just("a.png"), st.just(10**400)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.sampled_from(["labels", "classes", "a.png"]), inner, max_size=3)), max_leaves=12)
LABELS = st.lists(st.tuples(st.one_of(st.sampled_from(["a.png", "b.png", "../../etc/passwd"]), json_values), json_values), max_size=4)


@examples(few=80, many=10000)
def test_any_dataset_json_is_understood_or_refused(examples, tmp_path):
    path = write(tmp_path / "set", {"a.png": encoded(random_image(0)), "b.png": encoded(random_image(1))})

    def check(value):
        (path / "dataset.json").write_text(json.dumps(value))
        dataset = good_or_refused(lambda: ImageDataset(path, labels=True))
        if dataset is not None:
            assert np.isfinite(dataset[0][1]).all() and dataset[1][1].shape == (dataset.label_dim,)

    for_all(st.one_of(json_values, st.fixed_dictionaries({"labels": LABELS, "classes": json_values}), st.fixed_dictionaries({"labels": LABELS})),
            examples, check)


@pytest.mark.parametrize("content", [
    b"[" * 100_000, b'{"labels":' + b"[" * 100_000, b'{"labels": [["a.png", ' + b"[" * 900 + b"0" + b"]" * 900 + b"]]}",
    b'{"labels": [["a.png", 0]], "classes": [' + b"[" * 900 + b"]" * 900 + b"]}", b'{"labels": [["a.png", ' + b"9" * 5000 + b"]]}",
    b"\xff\xfe", b'{"labels": [["a.png", 999999999999]]}', b'{"labels": [["a.png", NaN]]}', b'{"labels": [["a.png", [Infinity]]]}',
], ids=["lists", "lists-of-labels", "deep-label", "deep-class", "digits", "no-text", "huge-class", "nan", "infinity"])
def test_dataset_json_made_to_do_harm_is_refused(content, tmp_path):
    path = write(tmp_path / "set", {"a.png": encoded(random_image(0)), "dataset.json": content})
    with pytest.raises(DatasetError) as error:
        ImageDataset(path, labels=True)
    one_sentence(error.value)


@examples(few=60, many=6000)
def test_damaged_hdf5_is_read_or_refused(examples, tmp_path):
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "set.hdf5"
    with h5py.File(path, "w") as file:
        file["imgs"], file["labels"] = np.zeros([2, 3, 8, 8], np.uint8), np.arange(2)
    whole = path.read_bytes()

    def check(data):
        path.write_bytes(data)
        dataset = good_or_refused(lambda: ImageDataset(path, labels=True))
        if dataset is not None:
            good_or_refused(lambda: dataset[min(1, len(dataset) - 1)])
            dataset.source._open().close()

    for_all(damaged([whole]), examples, check)


def test_hdf5_does_not_open_other_files(tmp_path):
    h5py = pytest.importorskip("h5py")
    (tmp_path / "secret").write_bytes(bytes(2 * 3 * 8 * 8))
    with h5py.File(tmp_path / "other.hdf5", "w") as file:
        file["imgs"] = np.zeros([2, 3, 8, 8], np.uint8)

    def external(file):
        file.create_dataset("imgs", [2, 3, 8, 8], np.uint8, external=[(str(tmp_path / "secret"), 0, 384)])

    def linked(file):
        file["imgs"] = h5py.ExternalLink(str(tmp_path / "other.hdf5"), "imgs")

    def virtual(file):
        layout = h5py.VirtualLayout((2, 3, 8, 8), np.uint8)
        layout[:] = h5py.VirtualSource(str(tmp_path / "other.hdf5"), "imgs", (2, 3, 8, 8))
        file.create_virtual_dataset("imgs", layout)

    for i, make in enumerate((external, linked, virtual)):
        path = tmp_path / f"{i}.hdf5"
        with h5py.File(path, "w") as file:
            make(file)
        with pytest.raises(DatasetError, match="`imgs` in another file"):
            ImageDataset(path)


def test_hdf5_that_claims_more_than_there_can_be_is_refused(tmp_path):
    h5py = pytest.importorskip("h5py")
    for i, shape in enumerate([(2, 3, 2**20, 2**20), (2, 3, 0, 0), (2**40, 3, 8, 8)]):
        with h5py.File(tmp_path / f"{i}.hdf5", "w") as file:
            file.create_dataset("imgs", shape, np.uint8, chunks=(1, 1, 8, 8) if shape[2] else None)
            file.create_dataset("labels", shape[:1], np.int64, chunks=(2,))
        with pytest.raises(DatasetError) as error:
            ImageDataset(tmp_path / f"{i}.hdf5", labels=True)
        one_sentence(error.value)


# files made to do harm


def test_an_image_is_what_it_holds_and_starts_no_program(tmp_path):
    """Pillow hands EPS to Ghostscript, whatever the file is called."""
    eps = saved(Image.fromarray(random_image(0)), "EPS")
    assert Image.open(io.BytesIO(eps)).format == "EPS"
    with pytest.raises(DatasetError, match="a.png in .* cannot be decoded .UnidentifiedImageError"):
        ImageDataset(write(tmp_path / "set", {"a.png": eps}))
    assert ImageDataset(write(tmp_path / "other", {"a.png": encoded(random_image(0), "BMP")}))[0][0].shape == (3, 8, 8)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize(("width", "height"), [(2**31 - 1, 2**31 - 1), (2**16, 2**16), (1, 2**31 - 1), (0, 0), (0, 8), (9460, 9459)], ids=str)
def test_a_size_that_is_claimed_is_refused_before_a_pixel_is_decoded(tmp_path, width, height):
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    path = write(tmp_path / "set", {"a.png": png})
    for act in (lambda: ImageDataset(path), lambda: pack(path, tmp_path / "packed", resolution=8, progress=False)):
        with pytest.raises(DatasetError) as error:
            quietly(act)
        one_sentence(error.value)
    assert sorted(os.listdir(tmp_path)) == ["set"]


@pytest.fixture
def hostile_zip(tmp_path):
    """A zip whose members are called as if they belonged elsewhere."""
    names = ["../../escaped.png", "/absolute.png", "..\\windows.png", "a/../../b.png", "\x1b[2J.png", "twice.png", "twice.png", "C:\\c.png", "n\nl.png"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with zipfile.ZipFile(tmp_path / "hostile.zip", "w") as archive:
            for i, name in enumerate(names):
                archive.writestr(name, encoded(random_image(i)))
            archive.writestr("inner.zip", (b"PK\x05\x06" + bytes(18)))
            archive.writestr("\x1b]0;title\x07.txt", b"")
            link = zipfile.ZipInfo("link.png")
            link.external_attr = 0o120777 << 16
            archive.writestr(link, "/etc/passwd")
    return tmp_path / "hostile.zip"


@pytest.mark.parametrize("dest", ["packed", "packed.zip"])
def test_names_in_a_zip_lead_nowhere(hostile_zip, tmp_path, dest):
    packed = pack(hostile_zip, tmp_path / dest, resolution=8, progress=False)
    assert sorted(os.listdir(tmp_path)) == sorted(["hostile.zip", dest])
    names = ImageDataset(tmp_path / dest).source.image_names
    assert names == [f"00000/img{i:08d}.png" for i in range(packed.images)]
    assert dict(packed.skipped)["link.png"].startswith("cannot be decoded")
    assert str(packed).replace("\n", "").isprintable()


def test_a_zip_that_unpacks_to_more_than_an_image_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr("fastdgl.images.files.MAX_BYTES", 10**6)
    with zipfile.ZipFile(tmp_path / "set.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", bytes(10**7))
    with pytest.raises(DatasetError, match="has 10000000 bytes, expected at most 1000000"):
        ImageDataset(tmp_path / "set.zip")
    # a size that is claimed to be small
    data = (tmp_path / "set.zip").read_bytes()
    (tmp_path / "set.zip").write_bytes(data.replace(struct.pack("<I", 10**7), struct.pack("<I", 1000)))
    with pytest.raises(DatasetError, match="a.png in .* cannot be read"):
        ImageDataset(tmp_path / "set.zip")


@pytest.mark.parametrize("flag", [0x1, 0x41])
def test_an_encrypted_zip_is_refused(tmp_path, flag):
    data = bytearray(write(tmp_path / "set.zip", {"a.png": encoded(random_image(0))}).read_bytes())
    for start, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(start) + offset] |= flag
    (tmp_path / "set.zip").write_bytes(data)
    with pytest.raises(DatasetError, match="a.png in .* cannot be read .*(encrypted|encryption)"):
        ImageDataset(tmp_path / "set.zip")


def test_pipes_and_devices_are_not_waited_for(tmp_path):
    path = write(tmp_path / "set", {"b.png": encoded(random_image(0))})
    os.mkfifo(path / "a.png")
    os.mkfifo(tmp_path / "pipe.zip")
    (path / "c.png").symlink_to("/dev/zero")
    with not_for_ever():
        with pytest.raises(DatasetError, match="a.png in .* is no regular file"):
            ImageDataset(path)
        with pytest.raises(DatasetError, match="neither a folder nor a regular file"):
            ImageDataset(tmp_path / "pipe.zip")
        packed = pack(path, tmp_path / "packed.zip", resolution=8, progress=False)
    assert packed.images == 1 and packed.skipped == (("a.png", "is no regular file"), ("c.png", "is no regular file"))


def test_links_that_lead_back_are_refused(tmp_path):
    path = write(tmp_path / "set", {"a/a.png": encoded(random_image(0)), "b/b.png": encoded(random_image(1))})
    (path / "a/to_b").symlink_to("../b")
    (path / "b/to_a").symlink_to("../a")
    with pytest.raises(DatasetError, match="is reached through links that lead back"):
        ImageDataset(path)


def test_a_maze_of_links_is_refused(tmp_path):
    """Forty folders with two links each are a million million ways."""
    path = write(tmp_path / "set", {"0/a.png": encoded(random_image(0))})
    for i in range(30):
        (path / f"{i + 1}").mkdir()
        for name in "xy":
            (path / f"{i + 1}/{name}").symlink_to(f"../{i}")
    with not_for_ever(), pytest.raises(DatasetError, match="over and over to the same folder"):
        ImageDataset(path)


def test_names_on_a_disk_need_not_be_text(tmp_path):
    path = write(tmp_path / "set", {"a.png": encoded(random_image(0))})
    (path / os.fsdecode(b"\xff.png")).write_bytes(b"no image")
    dataset = ImageDataset(path)
    assert len(dataset.source.fingerprint()) == 64
    with pytest.raises(DatasetError) as error:
        dataset[1]
    one_sentence(error.value)
    result = CliRunner().invoke(dataset_command, [str(path), str(tmp_path / "packed.zip"), "--resolution", "8"])
    assert result.exit_code == 0 and "?.png: cannot be decoded" in result.output


def test_a_file_of_cifar10_that_is_cut_short_in_training_is_named(tmp_path):
    path = cifar10(tmp_path / "set", random_pixels(4, 32), [0, 1, 2, 3])
    dataset = ImageDataset(path, labels=True)
    dataset[3]
    os.truncate(path / "data_batch_2.bin", 4000)
    with pytest.raises(DatasetError, match="^image 1 of data_batch_2.bin in .* is 927 bytes instead of 3073: the file has been cut short"):
        dataset[3]
    os.truncate(path / "data_batch_1.bin", 0)
    with pytest.raises(DatasetError, match="have changed while they were read"):
        dataset.source.labels()
