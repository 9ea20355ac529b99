"""Images and datasets that are damaged, or made to do harm: a sentence that names the file, or the right pixels."""

import os
import signal
import time

import numpy as np
import pytest
import torch
from test_images import encoded, image_files, random_image, take, write

from fastdgl.images import DatasetError, ImageDataset, stream
from fastdgl.images.dataset import BAD_ONE_IN

# bad images in training


def damaged(path, count, bad, **options):
    """A zip or folder of images of which those numbered `bad` are none."""
    files = image_files(count) | {f"00000/img{i:08d}.png": b"no image" for i in bad}
    return ImageDataset(write(path, files), corrupt="skip", **options)


def test_a_bad_image_is_replaced_by_the_next_good_one_and_named(tmp_path):
    dataset = damaged(tmp_path / "set.zip", 2 * BAD_ONE_IN, [6, 7], mirror=True)
    for i in (6, 7):
        np.testing.assert_array_equal(dataset[i][0], dataset[8][0])
        np.testing.assert_array_equal(dataset[i + 2 * BAD_ONE_IN][0], dataset[8][0][:, :, ::-1])
    assert list(dataset.faults) == [6, 7]
    assert "img00000006.png in" in dataset.faults[6] and "cannot be decoded" in dataset.faults[6]


def test_the_last_image_is_replaced_by_the_first(tmp_path):
    dataset = damaged(tmp_path / "set.zip", 5, [4])
    np.testing.assert_array_equal(dataset[4][0], dataset[0][0])


def test_the_set_may_begin_with_a_bad_image(tmp_path):
    dataset = damaged(tmp_path / "set.zip", 5, [0])
    assert dataset.resolution == 8 and not dataset.faults
    np.testing.assert_array_equal(dataset[0][0], dataset[1][0])


@pytest.mark.parametrize(("count", "bad"), [(5, [2, 3]), (2, [0, 1]), (3 * BAD_ONE_IN, [7, 8, 9, 10]), (1, [0])], ids=str)
def test_more_bad_images_than_an_accident_leaves_are_refused(tmp_path, count, bad):
    with pytest.raises(DatasetError, match="images.corrupt: skip replaces; the last of them: .*png in|no image that can be used: .*png in"):
        dataset = damaged(tmp_path / "set.zip", count, bad)
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
        return damaged(tmp_path / "set.zip", 2 * BAD_ONE_IN, [6, 7])

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
