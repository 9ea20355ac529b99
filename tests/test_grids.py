import numpy as np
import pytest
import torch
from PIL import Image

from fastdgl.grids import grid_shape, save_image, save_image_grid, to_uint8


def test_bytes_follow_the_convention_of_the_field():
    levels = torch.tensor([-2.0, -1.0, 0.0, 0.999, 1.0, 3.0]).reshape(1, 1, 1, 6)
    # 0.999 * 127.5 + 128 = 255.37; truncated, not rounded, and clamped at both ends
    assert to_uint8(levels).ravel().tolist() == [0, 0, 128, 255, 255, 255]
    assert to_uint8(torch.full((1, 1, 1, 1), 0.0117)).item() == 129  # 129.49
    assert to_uint8(torch.full((1, 1, 1, 1), 0.0150)).item() == 129  # 129.91


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_bytes_of_low_precision_are_those_of_the_same_values_in_float(dtype):
    images = torch.linspace(-1, 1, 3 * 5 * 7).reshape(1, 3, 5, 7).to(dtype)
    assert np.array_equal(to_uint8(images), to_uint8(images.float()))


def test_bytes_have_channels_last_and_need_no_detach():
    images = torch.rand(2, 3, 5, 7, requires_grad=True)
    array = to_uint8(images)
    assert array.shape == (2, 5, 7, 3) and array.dtype == np.uint8 and array.flags.c_contiguous
    assert array[1, 4, 2, 0] == int(images[1, 0, 4, 2].item() * 127.5 + 128)


@pytest.mark.parametrize(("C", "mode"), [(1, "L"), (3, "RGB")], ids=["grey", "rgb"])
def test_an_image_is_read_back_as_it_was(tmp_path, C, mode):
    image = np.random.RandomState(0).randint(0, 256, (5, 7, C), dtype=np.uint8)
    save_image(tmp_path / "image.png", image)
    with Image.open(tmp_path / "image.png") as stored:
        assert (stored.format, stored.mode) == ("PNG", mode)
        assert np.array_equal(np.asarray(stored).reshape(5, 7, C), image)
    assert [path.name for path in tmp_path.iterdir()] == ["image.png"]


def test_an_image_is_replaced_not_overwritten(tmp_path):
    path = tmp_path / "image.png"
    save_image(path, np.full((2, 2, 3), 7, np.uint8))
    with path.open("rb") as reader:
        before = path.read_bytes()
        save_image(path, np.zeros((2, 2, 3), np.uint8))
        assert reader.read() == before != path.read_bytes()


def test_a_failed_write_leaves_the_old_image_and_no_rest(tmp_path, monkeypatch):
    path = tmp_path / "image.png"
    save_image(path, np.full((2, 2, 3), 7, np.uint8))
    before = path.read_bytes()

    def full_disk(self, file, format):
        file.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(Image.Image, "save", full_disk)
    with pytest.raises(OSError, match="no space"):
        save_image(path, np.zeros((2, 2, 3), np.uint8))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_sheet_is_filled_row_by_row_and_ends_in_black(tmp_path):
    images = np.stack([np.full((2, 3, 3), 10 * (i + 1), np.uint8) for i in range(5)])
    images[1, 0, 2] = [1, 2, 3]
    save_image_grid(tmp_path / "sheet.png", images, columns=3)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape == (4, 9, 3)
    for i in range(5):
        row, column = divmod(i, 3)
        assert np.array_equal(sheet[2 * row : 2 * row + 2, 3 * column : 3 * column + 3], images[i])
    assert not sheet[2:, 6:].any()


def test_says_what_it_expects_of_an_image(tmp_path):
    with pytest.raises(ValueError, match=r"uint8 of shape .* got float32 of shape \[2, 2, 3\]"):
        save_image(tmp_path / "image.png", np.zeros((2, 2, 3), np.float32))
    with pytest.raises(ValueError, match=r"got uint8 of shape \[3, 2, 2\]"):
        save_image(tmp_path / "image.png", np.zeros((3, 2, 2), np.uint8))
    with pytest.raises(ValueError, match="columns >= 1"):
        save_image_grid(tmp_path / "image.png", np.zeros((1, 2, 2, 3), np.uint8), columns=0)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("resolution", "shape"),
    [(16, (32, 16)), (32, (32, 16)), (256, (30, 16)), (512, (15, 8)), (1024, (7, 4)), (9000, (1, 1))],
)
def test_a_sheet_fits_the_screen(resolution, shape):
    assert grid_shape(resolution) == shape
    columns, rows = shape
    assert resolution > 7680 or (columns * resolution <= 7680 and rows * resolution <= 4320)


@pytest.mark.parametrize(
    ("n", "shape"),
    [(1, (1, 1)), (2, (2, 1)), (4, (2, 2)), (7, (7, 1)), (8, (4, 2)), (61, (10, 6)), (64, (8, 8)), (9999, (30, 16))],
)
def test_a_sheet_of_n_images_has_no_empty_cell(n, shape):
    assert grid_shape(256, n) == shape


def test_a_sheet_needs_an_image():
    with pytest.raises(ValueError, match="n=0"):
        grid_shape(256, 0)
