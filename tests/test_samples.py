"""Sheets of samples: the same latents throughout, a row for each class."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from fastdgl.grids import grid_shape, to_uint8
from fastdgl.images import ImageDataset
from fastdgl.models import biggan
from fastdgl.models.stylegan2 import Generator
from fastdgl.samples import STEPS, SampleSheet, class_grid, draw, interpolation

R, Z = 8, 4
COLUMNS, ROWS = grid_shape(R)
CPU = torch.device("cpu")


def dataset(folder, classes=None, images=6, channels=3, mirror=False):
    """Images of one level each, which tells which they are; with these classes."""
    for i in range(len(classes) if classes else images):
        pixels = np.full((R, R) if channels == 1 else (R, R, 3), 10 * i, np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:04d}.png")
    if classes:
        (folder / "dataset.json").write_text(json.dumps({"labels": [[f"{i:04d}.png", c] for i, c in enumerate(classes)]}))
    return ImageDataset(folder, labels=classes is not None, mirror=mirror)


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


def test_mirrored_images_stand_in_the_row_of_their_class(tmp_path):
    classes = [0, 1, 2, 2, 1]
    sheet = SampleSheet(dataset(tmp_path, classes, mirror=True), Z, seed=0, device=CPU)
    assert [classes[image[0, 0, 0] // 10] for image in sheet.real] == [c for c in range(3) for _ in range(COLUMNS)]


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


@torch.no_grad()
def test_the_sheet_of_a_biggan_shows_its_images(tmp_path):
    for i in range(3):
        Image.fromarray(np.full((32, 32, 3), i, np.uint8)).save(tmp_path / f"{i}.png")
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": [[f"{i}.png", i % 2] for i in range(3)]}))
    data = ImageDataset(tmp_path, labels=True)
    torch.manual_seed(0)
    G = biggan.Generator(z_dim=8, c_dim=2, img_resolution=32, ch=2, hier=False, shared_dim=0, attention=0).eval()
    sheet = SampleSheet(data, 8, seed=0, device=CPU)
    sheet.save_fake(tmp_path / "fakes.png", G)
    shown = np.asarray(Image.open(tmp_path / "fakes.png"))
    assert shown.shape == (2 * 32, sheet.columns * 32, 3)
    last = to_uint8(G(sheet.z[-1:], sheet.c[-1:]))[0].astype(int)
    assert np.abs(shown[-32:, -32:] - last).max() <= 1


# all classes, and interpolations


def test_a_grid_of_classes_has_a_row_for_each():
    z = torch.arange(6.0).reshape(3, 2)
    latents, classes, columns = class_grid(z, 4, 32)
    assert columns == 3 and latents.shape == (12, 2)
    assert classes.argmax(dim=1).tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3] and classes.sum() == 12
    assert all(torch.equal(latents[3 * i : 3 * i + 3], z) for i in range(4))


@pytest.mark.parametrize("seeds, classes, columns", [(1, 1000, 32), (10, 1000, 100), (300, 40, 300)])
def test_a_grid_of_many_classes_is_about_square_and_keeps_each_class_together(seeds, classes, columns):
    _, c, got = class_grid(torch.zeros(seeds, 1), classes, 128)
    assert got == columns and got % seeds == 0
    assert c.argmax(dim=1).tolist() == [i for i in range(classes) for _ in range(seeds)]


A, B = torch.eye(3)[0], torch.eye(3)[2]
Z0, Z1, Z2 = torch.tensor([[0.0, 9.0], [9.0, 0.0], [1.0, 1.0]])


@pytest.mark.parametrize("what, c, rows", [
    ("z", [A], [((Z0, A), (Z1, A)), ((Z1, A), (Z2, A))]),
    ("class", [A, B], [((Z0, A), (Z0, B)), ((Z1, A), (Z1, B)), ((Z2, A), (Z2, B))]),
    ("both", [A, B], [((Z0, A), (Z1, B)), ((Z1, A), (Z2, B))]),
])
def test_a_row_goes_straight_from_one_end_to_the_other(what, c, rows):
    latents, classes = interpolation(torch.stack([Z0, Z1, Z2]), torch.stack(c), what)
    assert len(latents) == len(classes) == len(rows) * STEPS
    for row, ((z_start, c_start), (z_end, c_end)) in enumerate(rows):
        for step in range(STEPS):
            t = step / (STEPS - 1)
            torch.testing.assert_close(latents[row * STEPS + step], z_start + t * (z_end - z_start))
            torch.testing.assert_close(classes[row * STEPS + step], c_start + t * (c_end - c_start))
        # the ends are the samples themselves
        assert torch.equal(latents[row * STEPS], z_start) and torch.equal(latents[row * STEPS + STEPS - 1], z_end)


def test_truncation_is_of_w_in_a_stylegan2_and_of_z_in_a_biggan():
    G = generator(2)
    G.mapping.w_avg.normal_()
    c = torch.eye(2)[:1]
    assert torch.equal(G.sample_z(5, 0.5), G.sample_z(5))
    expected = to_uint8(G(G.sample_z(5), c, truncation_psi=0.5, noise_mode="none"))
    assert np.array_equal(draw(G, G.sample_z(5), c, 0.5, noise_mode="none"), expected)
    assert not np.array_equal(draw(G, G.sample_z(5), c, noise_mode="none"), expected)

    G = biggan.Generator(z_dim=64, c_dim=2, img_resolution=32, ch=2, hier=False, shared_dim=0, attention=0).eval()
    z = G.sample_z(5, 0.5)
    assert z.abs().max() <= 0.5 < G.sample_z(5).abs().max()
    assert np.array_equal(draw(G, z, c, 0.5), draw(G, z, c))


@pytest.mark.parametrize(("batch", "largest"), [(1, 1), (3, 3), (20, 20), (1000, 32)])
def test_a_sheet_is_generated_in_batches_no_larger_than_trainings(tmp_path, batch, largest):
    G, sizes = generator(), []
    G.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    sheet = SampleSheet(dataset(tmp_path), Z, seed=0, device=CPU, batch=batch)
    sheet.save_fake(tmp_path / "fakes.png", G)
    assert max(sizes) == largest and sum(sizes) == len(sheet.z)
