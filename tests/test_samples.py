"""Sheets of samples: the same latents throughout, a row for each class."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from fastdgl.grids import grid_shape, to_uint8
from fastdgl.images import ImageDataset
from fastdgl.models.stylegan2 import Generator
from fastdgl.samples import SampleSheet

R, Z = 8, 4
COLUMNS, ROWS = grid_shape(R)
CPU = torch.device("cpu")


def dataset(folder, classes=None, images=6, channels=3):
    """Images of one level each, which tells which they are; with these classes."""
    for i in range(len(classes) if classes else images):
        pixels = np.full((R, R) if channels == 1 else (R, R, 3), 10 * i, np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:04d}.png")
    if classes:
        (folder / "dataset.json").write_text(json.dumps({"labels": [[f"{i:04d}.png", c] for i, c in enumerate(classes)]}))
    return ImageDataset(folder, labels=classes is not None)


def generator(c_dim=0, channels=3):
    torch.manual_seed(0)
    return Generator(z_dim=Z, c_dim=c_dim, w_dim=4, img_resolution=R, img_channels=channels, mapping_layers=1, channel_base=32).eval()


def cells(path, columns=COLUMNS):
    """The images of a sheet, in order: `[N, R, R, C]`."""
    sheet = np.asarray(Image.open(path).convert("RGB"))
    rows = sheet.shape[0] // R
    return sheet.reshape(rows, R, columns, R, 3).swapaxes(1, 2).reshape(rows * columns, R, R, 3)


def test_a_sheet_without_classes_is_full(tmp_path):
    sheet = SampleSheet(dataset(tmp_path), Z, seed=0, device=CPU)
    assert len(sheet.real) == len(sheet.z) == len(sheet.c) == COLUMNS * ROWS
    assert sheet.z.shape == (COLUMNS * ROWS, Z) and sheet.c.shape == (COLUMNS * ROWS, 0)


@pytest.mark.parametrize("classes", [
    pytest.param([0, 1, 2, 0, 1, 2], id="all-there"),
    pytest.param([0, 2, 0, 2, 5], id="some-without-images"),
    pytest.param([3, 3, 3], id="only-the-last"),
    pytest.param(list(range(ROWS + 4)), id="more-than-rows"),
    pytest.param([ROWS + 1, ROWS + 2, 0], id="beyond-the-rows"),
])
def test_each_row_is_a_class_that_has_images(tmp_path, classes):
    data = dataset(tmp_path, classes)
    sheet = SampleSheet(data, Z, seed=0, device=CPU)
    shown = sorted(set(classes))[:ROWS]
    assert sheet.c.argmax(dim=1).tolist() == [c for c in shown for _ in range(COLUMNS)]
    assert len(sheet.real) == len(sheet.z) == len(sheet.c)
    # the level of a real image says which it is
    assert [classes[image[0, 0, 0] // 10] for image in sheet.real] == sheet.c.argmax(dim=1).tolist()
    sheet.save_fake(tmp_path / "fakes.png", generator(data.label_dim))
    assert Image.open(tmp_path / "fakes.png").size == (COLUMNS * R, len(shown) * R)


def test_the_real_sheet_shows_images_of_the_dataset(tmp_path):
    sheet = SampleSheet(dataset(tmp_path, [0, 1, 0]), Z, seed=0, device=CPU)
    sheet.save_real(tmp_path / "reals.png")
    assert np.array_equal(cells(tmp_path / "reals.png"), sheet.real)
    assert set(cells(tmp_path / "reals.png")[:COLUMNS].ravel()) == {0, 20}


@pytest.mark.parametrize("channels", [1, 3], ids=["grey", "rgb"])
@torch.no_grad()
def test_the_fake_sheet_shows_the_generators_images_of_its_latents(tmp_path, channels):
    sheet = SampleSheet(dataset(tmp_path, [0, 1, 0], channels=channels), Z, seed=0, device=CPU)
    G = generator(2, channels)
    sheet.save_fake(tmp_path / "fakes.png", G)
    shown = cells(tmp_path / "fakes.png")
    # taken in batches of another size, sums round another way, and one level is the most that shows of it
    expected = to_uint8(G(sheet.z, sheet.c, noise_mode="const")).astype(int)
    assert np.abs(shown - expected).max() <= 1
    assert Image.open(tmp_path / "fakes.png").mode == ("L" if channels == 1 else "RGB")


def test_sheets_of_one_run_show_the_same_latents(tmp_path):
    data = dataset(tmp_path)
    sheet, resumed = (SampleSheet(data, Z, seed=0, device=CPU) for _ in range(2))
    G = generator()
    torch.nn.init.constant_(G.synthesis.b8.conv1.noise_strength, 1)
    sheet.save_fake(tmp_path / "a.png", G)
    sheet.save_fake(tmp_path / "b.png", G)
    resumed.save_fake(tmp_path / "c.png", G)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes() == (tmp_path / "c.png").read_bytes()


def test_another_seed_shows_other_latents(tmp_path):
    data = dataset(tmp_path)
    assert not torch.equal(SampleSheet(data, Z, 0, CPU).z, SampleSheet(data, Z, 1, CPU).z)


def test_latents_are_standard_normal(tmp_path):
    z = SampleSheet(dataset(tmp_path), 64, seed=0, device=CPU).z
    # the mean and variance of n numbers err by 1/sqrt(n) and sqrt(2/n); five of those is once in a million
    assert z.mean().abs() < 5 / z.numel()**0.5 and (z.var() - 1).abs() < 5 * (2 / z.numel())**0.5


def test_saving_a_sheet_takes_no_gradients_and_leaves_the_generator_alone(tmp_path):
    sheet, G = SampleSheet(dataset(tmp_path), Z, seed=0, device=CPU), generator()
    before = {name: value.clone() for name, value in G.state_dict().items()}
    sheet.save_fake(tmp_path / "fakes.png", G)
    assert all(torch.equal(value, before[name]) for name, value in G.state_dict().items())
    assert all(p.grad is None for p in G.parameters())
