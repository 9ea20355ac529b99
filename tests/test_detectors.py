"""Detectors by name and by path: what is downloaded, once, and what is refused."""

import hashlib
import json
import os

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from ranks import free_port
from served import serving
from tiny_networks import BIGGAN, STYLEGAN2, save
from torch import nn

from fastdgl.cli import main
from fastdgl.engines import end_run, start_run
from fastdgl.fidelity import detectors
from fastdgl.fidelity.detectors import DetectorError, Published, open_detector
from fastdgl.download import cache_folder
from fastdgl.fidelity.metrics import METRICS

CPU = torch.device("cpu")


class Averager(nn.Module):
    def __init__(self, weight: float):
        super().__init__()
        self.weight = weight

    def forward(self, img: torch.Tensor) -> torch.Tensor:
        return img.float().mean([2, 3]) * self.weight


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    """Two detectors, as files."""
    folder = tmp_path_factory.mktemp("scripts")
    for name, weight in (("first.pt", 1.0), ("second.pt", 2.0)):
        torch.jit.script(Averager(weight)).save(folder / name)
    return folder


@pytest.fixture
def content(scripts):
    return {path.name: path.read_bytes() for path in scripts.iterdir()}


@pytest.fixture
def published(monkeypatch):
    """Publish a file under a name: `published("inception", address + "a.pt", b"...")`."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")

    def publish(name, url, data):
        monkeypatch.setitem(detectors.PUBLISHED, name, Published(url, hashlib.sha256(data).hexdigest()))
    return publish


@pytest.fixture
def joined():
    start_run()
    yield
    end_run()


def sees(detector):
    return detector.features(torch.full([1, 1, 2, 2], 3, dtype=torch.uint8)).tolist()


def test_a_published_detector_is_downloaded_once(joined, published, content, tmp_path):
    with serving(content) as (address, asked):
        published("inception", address + "first.pt", content["first.pt"])
        for _ in range(2):
            assert sees(open_detector("inception", CPU, cache=tmp_path / "cache")) == [[3.0] * 3]
    assert asked == ["first.pt"]
    assert os.listdir(tmp_path / "cache") == ["first.pt"] and (tmp_path / "cache" / "first.pt").read_bytes() == content["first.pt"]


def test_the_cache_is_the_users(monkeypatch, joined, published, content, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with serving(content) as (address, _):
        published("vgg16", address + "second.pt", content["second.pt"])
        assert open_detector("vgg16", CPU).path == cache_folder() / "second.pt" == tmp_path / "fastdgl" / "second.pt"


def test_a_file_put_there_needs_no_network(joined, published, scripts, content):
    published("inception", f"http://127.0.0.1:{free_port()}/second.pt", content["second.pt"])
    assert sees(open_detector("inception", CPU, cache=scripts)) == [[6.0] * 3]


def refusal(cache):
    """Why "inception" is refused; nothing is left behind."""
    with pytest.raises(DetectorError) as caught:
        open_detector("inception", CPU, cache=cache)
    assert not os.path.isdir(cache) or not os.listdir(cache)
    return str(caught.value)


def test_a_download_cut_short_is_not_kept(joined, published, content, tmp_path):
    data = content["first.pt"]
    with serving({"a.pt": data[:1000]}, announced=len(data)) as (address, _):
        published("inception", address + "a.pt", data)
        assert refusal(tmp_path) == (f"{address}a.pt was cut short after 1000 of {len(data)} bytes; "
                                     f"try again, or fetch it by other means and put it at {tmp_path / 'a.pt'}")


def test_another_file_is_not_kept(joined, published, content, tmp_path):
    with serving({"a.pt": content["second.pt"]}) as (address, _):
        published("inception", address + "a.pt", content["first.pt"])
        sentence = refusal(tmp_path)
    found, expected = (hashlib.sha256(content[name]).hexdigest() for name in ("second.pt", "first.pt"))
    assert sentence.startswith(f"{address}a.pt gives a file with the SHA-256 {found}, expected {expected}, so it was not kept; try again, or")


def test_what_is_not_there_says_where_it_belongs(joined, published, tmp_path):
    with serving({}) as (address, _):
        published("inception", address + "a.pt", b"")
        assert refusal(tmp_path / "cache") == (f"{address}a.pt cannot be downloaded (HTTP Error 404: Not Found); "
                                               f"try again, or fetch it by other means and put it at {tmp_path / 'cache' / 'a.pt'}")


def test_what_cannot_be_written_is_told(joined, published, tmp_path):
    (tmp_path / "file").write_text("")
    published("inception", f"http://127.0.0.1:{free_port()}/a.pt", b"")
    assert "File exists" in refusal(tmp_path / "file")


def test_without_a_network_it_says_where_the_file_belongs(joined, published, tmp_path):
    url = f"http://127.0.0.1:{free_port()}/a.pt"
    published("inception", url, b"")
    sentence = refusal(tmp_path)
    assert sentence.startswith(f"{url} cannot be downloaded (") and "Connection refused" in sentence
    assert sentence.endswith(f"put it at {tmp_path / 'a.pt'}")


def test_another_file_in_the_cache_is_refused_and_stays(joined, published, content, tmp_path):
    (tmp_path / "a.pt").write_bytes(content["second.pt"])
    with serving({"a.pt": content["first.pt"]}) as (address, asked):
        published("inception", address + "a.pt", content["first.pt"])
        with pytest.raises(DetectorError, match="a.pt has the SHA-256 .* its download was cut short: remove it"):
            open_detector("inception", CPU, cache=tmp_path)
    assert not asked and (tmp_path / "a.pt").read_bytes() == content["second.pt"]


def test_a_name_comes_before_a_path(monkeypatch, scripts, tmp_path):
    monkeypatch.setitem(detectors.SHIPPED, "digits", scripts / "second.pt")
    monkeypatch.chdir(tmp_path)
    os.symlink(scripts / "first.pt", "digits")
    assert sees(open_detector("digits", CPU)) == [[6.0] * 3]
    assert sees(open_detector("./digits", CPU)) == sees(open_detector(scripts / "first.pt", CPU)) == [[3.0] * 3]


@torch.no_grad()
def test_the_classifier_of_digits_comes_along():
    detector = open_detector("digits", CPU)
    assert (detector.path.parent / "digits.zip").exists()
    images = torch.rand([2, 1, 32, 32], generator=torch.Generator().manual_seed(0)) * 255
    assert detector.features(images.byte()).shape[0] == 2
    # of floats, as a step of a path needs
    assert not torch.equal(detector.lpips(images), detector.lpips(images.floor()))


def test_an_unknown_name_is_told_the_known_ones(tmp_path):
    with pytest.raises(DetectorError, match="resnet cannot be read .*, or a detector by its name, inception, vgg16, digits"):
        open_detector(tmp_path / "resnet", CPU)


def evaluate(folder, model, *arguments):
    """`fastdgl evaluate` of a tiny network and eight images."""
    save(folder / "run" / "network-snapshot-000001.safetensors", model, 2 if "family" in model else 0, None)
    (folder / "images").mkdir()
    random = np.random.RandomState(0)
    for i in range(8):
        pixels = random.randint(256, size=[model["resolution"], model["resolution"], 3]).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{i}.png")
    (folder / "images" / "dataset.json").write_text(json.dumps({"labels": [[f"{i}.png", i % 2] for i in range(8)]}))
    return CliRunner().invoke(main, ["evaluate", "--network", str(folder / "run"), "--data", str(folder / "images"), "--fakes", "8", "--workers", "0",
                                     "--cache", str(folder / "cache"), *arguments])


def test_each_metric_is_by_the_detector_of_published_numbers(published, content, tmp_path):
    with serving(content) as (address, asked):
        published("inception", address + "first.pt", content["first.pt"])
        published("vgg16", address + "second.pt", content["second.pt"])
        result = evaluate(tmp_path, STYLEGAN2, "--metrics", "fid50k_full,pr50k3_full,kid50k_full")
    assert result.exit_code == 0, result.output
    lines = [json.loads(path.read_text()) for path in (tmp_path / "run").glob("*.jsonl")]
    assert {line["metric"]: line["detector"] for line in lines} == {"fid0.008k_full": "first.pt", "kid0.008k_full": "first.pt",
                                                                    "pr0.008k3_full": "second.pt"}
    assert sorted(asked) == ["first.pt", "second.pt"]


def test_published_numbers_are_by_inception_or_vgg():
    assert {name: metric.detector for name, metric in METRICS.items()} == {
        "fid50k_full": "inception", "kid50k_full": "inception", "is50k": "inception",
        "pr50k3_full": "vgg16", "dc50k5_full": "vgg16", "ppl2_wend": "vgg16",
    }


def test_a_metric_that_cannot_be_is_refused_before_a_download(published, tmp_path):
    published("vgg16", f"http://127.0.0.1:{free_port()}/a.pt", b"")
    result = evaluate(tmp_path, BIGGAN, "--metrics", "ppl2_wend")
    assert result.exit_code == 1 and "ppl2_wend is the length of paths in w" in result.output, result.output


def test_what_does_not_come_is_told_in_a_sentence(published, tmp_path):
    published("inception", f"http://127.0.0.1:{free_port()}/a.pt", b"")
    result = evaluate(tmp_path, STYLEGAN2)
    assert result.exit_code == 1 and result.output.startswith("Error: http://127.0.0.1:") and "cannot be downloaded" in result.output, result.output


def test_a_checksum_is_of_a_named_detector():
    result = CliRunner().invoke(main, ["evaluate", "--network", "none", "--data", "none", "--sha256", "0" * 64])
    assert result.exit_code == 2 and "--sha256 is the checksum of one file: name it by --detector" in result.output
