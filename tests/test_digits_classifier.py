"""The classifier that comes with fastdgl, by which metrics work without a download."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import fastdgl
from fastdgl.fidelity.detectors import TorchScriptDetector
from fastdgl.images import ImageDataset

ASSETS = Path(fastdgl.__file__).parent / "assets"
SHIPPED = ASSETS / "digits_classifier.pt"


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    """All images `uint8 [5000, 1, 32, 32]` and their classes."""
    dataset = ImageDataset("digits", labels=True)
    return torch.from_numpy(np.stack([dataset[i][0] for i in range(len(dataset))])), torch.from_numpy(dataset.all_labels()).long()


@pytest.fixture(scope="module")
def detector() -> TorchScriptDetector:
    return TorchScriptDetector(SHIPPED, torch.device("cpu"))


def held_out(digits: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Every tenth of each class, which come in turns."""
    chosen = torch.arange(5000) // 10 % 10 == 0
    return digits[0][chosen], digits[1][chosen]


@torch.no_grad()
def test_it_is_as_good_as_the_file_says_on_digits_it_has_not_seen(digits, detector):
    about = {"about.json": ""}
    torch.jit.load(SHIPPED, _extra_files=about)
    about = json.loads(about["about.json"])
    images, classes = held_out(digits)
    accuracy = (detector.probabilities(images).argmax(dim=1) == classes).float().mean().item()
    assert len(images) == about["held_out"] == 500
    assert abs(accuracy - about["accuracy"]) < 0.003 and accuracy > 0.98
    assert f"{about['accuracy']:.1%}".replace("%", " %") in (ASSETS / "README.md").read_text(encoding="utf-8")


@torch.no_grad()
def test_its_features_tell_digits_of_another_size_and_of_three_channels(digits, detector):
    images, classes = held_out(digits)
    features = detector.features(images[:50])
    assert features.shape == (50, 64)
    torch.testing.assert_close(detector.features(images[:50].expand(-1, 3, -1, -1)), features)
    larger = images[:50].repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    assert (detector.probabilities(larger).argmax(dim=1) == classes[:50]).float().mean() > 0.95


@torch.no_grad()
def test_its_perceptual_features_have_a_length_of_one_a_layer(digits, detector):
    module = torch.jit.load(SHIPPED).eval()
    images, _ = held_out(digits)
    features = module(images[:20], return_lpips=True)
    assert features.shape == (20, 16 * 32**2 + 32 * 16**2 + 64 * 8**2)
    # a pixel in which no feature fires has length 0
    assert (features.square().sum(dim=1) <= 3 + 1e-4).all() and (features.square().sum(dim=1) > 1).all()
    # nearer to a brighter self than to the next digit
    brighter = module((images[:20] * 0.9).byte(), return_lpips=True)
    assert ((features - brighter).square().sum(dim=1) < (features - features.roll(1, 0)).square().sum(dim=1)).all()


@pytest.mark.slow
def test_it_is_made_anew_from_the_digits(tmp_path, digits, detector):
    spec = importlib.util.spec_from_file_location("train_digits_classifier", ASSETS / "train_digits_classifier.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    threads = torch.get_num_threads()
    try:
        module.main(str(tmp_path / "again.pt"))
    finally:
        torch.set_num_threads(threads)
    images, classes = held_out(digits)
    with torch.no_grad():
        again = TorchScriptDetector(tmp_path / "again.pt", torch.device("cpu")).probabilities(images)
        # other machines round otherwise, and so learn otherwise
        assert (again.argmax(dim=1) == classes).float().mean() > 0.975
        assert (again.argmax(dim=1) == detector.probabilities(images).argmax(dim=1)).float().mean() > 0.97
