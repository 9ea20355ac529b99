"""`fastdgl evaluate`: what the metrics are computed of, what is kept and found again, on one rank and on two."""

import copy
import json
import os
import zipfile

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from ranks import on_ranks
from served import serving
from tiny_networks import BIGGAN, STYLEGAN2, save
from toy_detectors import Averager, Seer
from torch import nn

from fastdgl import checkpoints, drawing
from fastdgl.cli import main
from fastdgl.engines import Run, end_run, start_run
from fastdgl.fidelity import detectors
from fastdgl.fidelity.cache import CacheError, real_features
from fastdgl.fidelity.detectors import DetectorError, TorchScriptDetector
from fastdgl.fidelity.features import collect, fake_images, shares
from fastdgl.fidelity.frechet_distance import frechet_distance
from fastdgl.fidelity.inception_score import inception_score
from fastdgl.fidelity.kernel_distance import kernel_distance
from fastdgl.fidelity.metrics import METRICS, evaluate, name_of, plain_name, resizing
from fastdgl.fidelity.moments import Moments
from fastdgl.fidelity.path_length import path_lengths
from fastdgl.fidelity.precision_recall import precision_recall
from fastdgl.grids import to_uint8
from fastdgl.images import ImageDataset
from fastdgl.images.files import sha256_of_file

CPU = torch.device("cpu")
ALONE = Run(0, 1, CPU)
NUM, REAL = 14, 23
# of features, which every network has
OF_FEATURES = [name for name in METRICS if name != "ppl2_wend"]


class Blind(nn.Module):
    def forward(self, img: torch.Tensor) -> torch.Tensor:
        return img.float().mean([1, 2, 3])


class Divider(nn.Module):
    def forward(self, img: torch.Tensor) -> torch.Tensor:
        return img.float().mean([2, 3]) / 0


class Picky(nn.Module):
    def forward(self, img: torch.Tensor) -> torch.Tensor:
        assert img.shape[2] == 299, "takes 299x299"
        return img.float().mean([2, 3])


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Detectors, networks and real images, which no test changes."""
    folder = tmp_path_factory.mktemp("files")
    for module in (Seer(), Blind(), Averager(), Divider(), Picky()):
        torch.jit.script(module).save(folder / f"{type(module).__name__.lower()}.pt")
    save(folder / "stylegan2" / "network-snapshot-000001.safetensors", STYLEGAN2, 0, None)
    save(folder / "biggan" / "network-snapshot-000001.safetensors", BIGGAN, 3, None)
    write_images(folder / "rgb16", 16, 3)
    write_images(folder / "rgb32", 32, 3, classes=[0, 2, 2])
    write_images(folder / "grey32", 32, 1)
    (folder / "text.pt").write_text("no module")
    return folder


def write_images(folder, resolution, channels, classes=None):
    folder.mkdir()
    random = np.random.RandomState(1)
    for i in range(REAL):
        pixels = random.randint(256, size=[resolution, resolution, 3] if channels == 3 else [resolution, resolution])
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i:04d}.png")
    if classes:
        labels = [[f"{i:04d}.png", classes[i % len(classes)]] for i in range(REAL)]
        (folder / "dataset.json").write_text(json.dumps({"labels": labels}))


def call(files, tmp_path, *arguments, network="stylegan2", data="rgb16", detector="seer.pt"):
    return CliRunner().invoke(main, ["evaluate", "--network", str(files / network), "--data", str(files / data), "--detector",
                                     str(files / detector), "--fakes", str(NUM), "--batch", "5", "--workers", "0",
                                     "--cache", str(tmp_path / "cache"), "--outdir", str(tmp_path / "out"), *map(str, arguments)])


def line_of(folder, name):
    lines = (folder / f"metric-{name}.jsonl").read_text().splitlines()
    return json.loads(lines[-1])


@torch.no_grad()
def seen(images, **keyword):
    """What the detector sees in all images at once, `uint8 [N, H, W, C]`."""
    return Seer()(torch.from_numpy(images).permute(0, 3, 1, 2), **keyword)


@pytest.mark.parametrize(("network", "data"), [("stylegan2", "rgb16"), ("biggan", "rgb32")])
@torch.no_grad()
def test_metrics_are_those_of_the_images_of_the_seeds(files, tmp_path, network, data):
    result = call(files, tmp_path, "--metrics", ",".join(OF_FEATURES), network=network, data=data)
    assert result.exit_code == 0, result.output
    dataset = ImageDataset(files / data, labels=network == "biggan")
    real = np.stack([dataset[i][0].transpose(1, 2, 0) for i in range(REAL)])
    G = checkpoints.open_snapshot(files / network).network("G_ema")
    z = torch.cat([G.sample_z(seed) for seed in range(NUM)])
    c = torch.from_numpy(np.stack([dataset.label(i) for i in np.random.RandomState(0).randint(REAL, size=NUM)]))
    fake = to_uint8(G.sample_images(z, c))
    x, y, p = seen(real, return_features=True), seen(fake, return_features=True), seen(fake, no_output_bias=True)
    # a sum in another order may take one level to the next
    close = {"rel": 1e-3, "abs": 1e-5}
    results = {name: line_of(tmp_path / "out", name_of(name, NUM))["results"] for name in OF_FEATURES}
    assert results["fid50k_full"] == {"fid0.014k_full": pytest.approx(frechet_distance(Moments.of(x), Moments.of(y)), **close)}
    assert results["kid50k_full"] == {"kid0.014k_full": pytest.approx(kernel_distance(x, y), **close)}
    assert list(results["pr50k3_full"].values()) == pytest.approx(precision_recall(x, y), **close)
    assert list(results["is50k"].values()) == pytest.approx(inception_score(p), **close)
    assert sorted(results["pr50k3_full"]) == ["pr0.014k3_full_precision", "pr0.014k3_full_recall"]
    assert sorted(results["dc50k5_full"]) == ["dc0.014k5_full_coverage", "dc0.014k5_full_density"]


def test_a_line_says_how_its_number_came_about(files, tmp_path):
    for _ in range(2):
        result = call(files, tmp_path, "--metrics", "fid50k_full,is50k")
        assert result.exit_code == 0, result.output
    lines = (tmp_path / "out" / "metric-fid0.014k_full.jsonl").read_text().splitlines()
    first, line = map(json.loads, lines)
    assert list(line)[:7] == ["results", "metric", "total_time", "total_time_str", "num_gpus", "snapshot_pkl", "timestamp"]
    assert line["results"] == first["results"] and line["metric"] == "fid0.014k_full"
    assert line["snapshot_pkl"] == "network-snapshot-000001.safetensors" and line["seen"] == 1000 and line["num_gpus"] == 1
    assert line["detector"] == "seer.pt" and line["detector_sha256"] == sha256_of_file(files / "seer.pt")
    assert (line["num_real"], line["num_fake"], line["resizing"]) == (REAL, NUM, "none before the detector")
    assert line_of(tmp_path / "out", "is0.014k")["num_real"] == 0
    assert f"fid0.014k_full {line['results']['fid0.014k_full']:.6g}" in result.stdout


def test_lines_go_beside_the_network_by_default(files, tmp_path):
    save(tmp_path / "run" / "network-snapshot-000001.safetensors", STYLEGAN2, 0, None)
    arguments = ["--network", tmp_path / "run", "--data", files / "rgb16", "--detector", files / "averager.pt", "--fakes", 4,
                 "--cache", tmp_path, "--workers", 0]
    result = CliRunner().invoke(main, ["evaluate", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "run" / "metric-fid0.004k_full.jsonl").exists()


@pytest.mark.parametrize(("num", "name"), [(50_000, "fid50k_full"), (1000, "fid1k_full"), (1500, "fid1.5k_full"), (10_050, "fid10.05k_full")])
def test_a_name_says_how_many_fakes(num, name):
    assert name_of("fid50k_full", num) == name


@torch.no_grad()
def test_random_noise_belongs_to_the_seed(files):
    G = checkpoints.open_snapshot(files / "stylegan2").network("G_ema")
    nn.init.constant_(G.synthesis.b8.conv1.noise_strength, 1)
    dataset = ImageDataset(files / "rgb16")
    in_threes, in_fives = (torch.cat([images for images, _ in fake_images(G, dataset, 7, ALONE, batch)]).int() for batch in (3, 5))
    assert (in_threes - in_fives).abs().max() <= 1
    fixed = torch.from_numpy(to_uint8(G.sample_images(torch.cat([G.sample_z(i) for i in range(7)]), torch.zeros(7, 0)))).permute(0, 3, 1, 2)
    assert (in_threes - fixed).abs().max() > 1


def noisy_layers(G):
    """In the order in which they draw."""
    return [module for module in G.synthesis.modules() if hasattr(module, "noise_const")]


def lengths_one_by_one(G, labels, factor):
    """Of each path in turn, with the noise of its first seed stored in the network; of images scaled down by `factor`."""
    lengths = []
    for i, label in enumerate(labels):
        generator, images = torch.Generator().manual_seed(2 * i), []
        for layer in noisy_layers(G):
            layer.noise_const.copy_(torch.randn([1, *layer.noise_const.shape], generator=generator)[0])
        w = [G.mapping(G.sample_z(seed), torch.from_numpy(label)[None]) for seed in (2 * i, 2 * i + 1)]
        for step in (0.0, 1e-4):
            image = G.synthesis(w[0] + step * (w[1] - w[0]), noise_mode="const").numpy().astype(np.float64)[0]
            C, R = len(image), len(image[0]) // factor
            image = ((image + 1) / 2).reshape(C, R, factor, R, factor).mean(axis=(2, 4))
            images.append(np.concatenate([(image**2).ravel(), (image[:, 1:] * image[:, :-1]).ravel()]))
        lengths.append(((images[1] - images[0]) ** 2).sum() / 1e-8)
    return np.array(lengths)


@pytest.mark.parametrize(("c_dim", "most_pixels"), [(0, 256), (3, 8)], ids=["unconditional", "conditional-scaled-down"])
@torch.no_grad()
def test_path_lengths_are_those_of_each_path_by_itself(files, tmp_path, monkeypatch, c_dim, most_pixels):
    monkeypatch.setattr("fastdgl.fidelity.path_length.MOST_PIXELS", most_pixels)
    save(tmp_path / "snapshot" / "network-snapshot-000001.safetensors", {**STYLEGAN2, "resolution": 32, "num_fp16_res": 2}, c_dim, None)
    G = checkpoints.open_snapshot(tmp_path / "snapshot").network("G_ema", low_precision="bfloat16")
    for layer in noisy_layers(G):
        nn.init.constant_(layer.noise_strength, 0.5)
    dataset, before = ImageDataset(files / "rgb32", labels=c_dim > 0), copy.deepcopy(G.state_dict())
    lengths = path_lengths(G, dataset, 9, TorchScriptDetector(files / "seer.pt", CPU), ALONE, 5)
    assert lengths.dtype == torch.float64
    # G is left as it was
    assert G.synthesis.b32.dtype == torch.bfloat16 and all(torch.equal(before[name], tensor) for name, tensor in G.state_dict().items())
    G.synthesis.b16.dtype = G.synthesis.b32.dtype = torch.float32
    labels = [dataset.label(i) for i in np.random.RandomState(0).randint(REAL, size=9)]
    # the rounding of fp32 is divided by epsilon
    assert lengths.numpy() == pytest.approx(lengths_one_by_one(G, labels, max(32 // most_pixels, 1)), rel=0.02)


def test_ppl_is_in_the_line_of_all_paths(files, tmp_path):
    result = call(files, tmp_path, "--metrics", "ppl2_wend,is50k")
    assert result.exit_code == 0, result.output
    line = line_of(tmp_path / "out", "ppl2_wend")
    lengths = path_lengths(checkpoints.open_snapshot(files / "stylegan2").averaged_generator(CPU), ImageDataset(files / "rgb16"), NUM,
                           TorchScriptDetector(files / "seer.pt", CPU), ALONE, 5)
    assert line["results"] == {"ppl2_wend": pytest.approx(float(lengths.mean()), rel=1e-6)}
    assert (line["num_real"], line["num_fake"], line["resizing"]) == (0, NUM, "none before the detector")
    assert f"ppl2_wend {line['results']['ppl2_wend']:.6g}" in result.stdout


def test_a_line_says_that_images_were_scaled_down():
    assert resizing("ppl2_wend", 1024) == "to 256x256 by means over squares, before the detector"
    assert resizing("ppl2_wend", 256) == resizing("fid50k_full", 1024) == "none before the detector"


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_ranks_share_each_batch_evenly(ranks):
    of_ranks = [list(shares(11, 2, Run(rank, ranks, CPU))) for rank in range(ranks)]
    images = []
    for batch in zip(*of_ranks, strict=True):
        assert len({len(indices) for indices, _ in batch}) == 1
        in_order = [i for together in zip(*(indices for indices, _ in batch)) for i in together]
        images += in_order[:batch[0][1]]
    assert images == list(range(11))


def evaluation(folder, out, run, detector):
    """The results of all metrics, exactly as they are."""
    cache = out / f"cache{run.world_size}"
    cache.mkdir(exist_ok=True)
    collected = {}
    for network, data, metrics in (("biggan", "rgb32", OF_FEATURES), ("stylegan2", "rgb16", ["ppl2_wend"])):
        G, dataset = checkpoints.open_snapshot(folder / network).averaged_generator(CPU), ImageDataset(folder / data, labels=network == "biggan")
        found = evaluate(metrics, G, dataset, detector, run, num=NUM, cache=cache, batch=4 // run.world_size, workers=0)
        collected |= {key: value for _, results, _ in found for key, value in results.items()}
    return collected


def evaluate_on_two(run, folder, out, url):
    os.environ["no_proxy"] = "127.0.0.1"
    detectors.PUBLISHED["inception"] = detectors.Published(url, sha256_of_file(folder / "seer.pt"))
    results = evaluation(folder, out, run, detectors.open_detector("inception", CPU, cache=out))
    (out / f"{run.rank}.json").write_text(json.dumps(results))
    end_run()


def test_two_ranks_find_what_one_finds(files, tmp_path):
    with serving({"seer.pt": (files / "seer.pt").read_bytes()}) as (address, asked):
        on_ranks(2, evaluate_on_two, files, tmp_path, address + "seer.pt")
    assert asked == ["seer.pt"]
    on_first, on_second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    start_run()
    alone = evaluation(files, tmp_path, ALONE, TorchScriptDetector(files / "seer.pt", CPU))
    end_run()
    assert on_first == on_second
    # a sum in another order may take one level to the next
    assert on_first == pytest.approx(alone, rel=1e-3, abs=1e-5)


class Counter:
    """A detector that counts the images it is shown."""

    name = "counter"

    def __init__(self, sha256="0" * 64):
        self.sha256, self.shown = sha256, 0

    def features(self, images):
        self.shown += len(images)
        return images.float().mean(dim=[2, 3])

    def probabilities(self, images):
        raise AssertionError("nobody asked")


@pytest.fixture
def joined():
    start_run()
    yield
    end_run()


def look(data, cache, detector=None, parts=("moments", "bank")):
    """Features of the real images, and how many were looked at for them."""
    detector = detector or Counter()
    found = real_features(ImageDataset(data), detector, parts, ALONE, cache, 5, 0)
    return found, detector.shown


def test_features_of_real_images_are_kept(joined, files, tmp_path):
    first, shown = look(files / "rgb16", tmp_path)
    assert shown == REAL and first.moments.count == len(first.bank) == REAL
    again, shown = look(files / "rgb16", tmp_path)
    assert shown == 0
    assert torch.equal(again.bank, first.bank) and torch.equal(again.moments.mean, first.moments.mean)
    assert torch.equal(again.moments.scatter, first.moments.scatter) and again.moments.count == REAL
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".safetensors"] * 2


def test_what_is_missing_alone_is_looked_at(joined, files, tmp_path):
    look(files / "rgb16", tmp_path, parts=["moments"])
    found, shown = look(files / "rgb16", tmp_path)
    assert shown == REAL and found.moments.count == len(found.bank) == REAL


def zipped(folder, path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in folder.iterdir():
            archive.write(file, file.name)


def test_images_are_known_by_their_content(joined, files, tmp_path):
    (tmp_path / "cache").mkdir()
    look(files / "rgb16", tmp_path / "cache")
    # of the same name, which is part of the name of the kept file
    zipped(files / "rgb16", tmp_path / "rgb16.zip")
    assert look(tmp_path / "rgb16.zip", tmp_path / "cache")[1] == 0
    assert look(files / "rgb16", tmp_path / "cache", Counter("1" * 64))[1] == REAL
    changed = tmp_path / "rgb16"
    with zipfile.ZipFile(tmp_path / "rgb16.zip") as archive:
        archive.extractall(changed)
    pixels = np.array(Image.open(changed / "0003.png"))
    pixels[0, 0, 0] ^= 1
    Image.fromarray(pixels).save(changed / "0003.png")
    assert look(changed, tmp_path / "cache")[1] == REAL


@pytest.mark.parametrize("damage", [lambda data: data[:100], lambda data: b""], ids=["short", "empty"])
def test_a_damaged_file_is_named(joined, files, tmp_path, damage):
    look(files / "rgb16", tmp_path, parts=["moments"])
    path, = tmp_path.iterdir()
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CacheError, match=f"{path.name} is damaged.*remove it"):
        look(files / "rgb16", tmp_path, parts=["moments"])


def test_a_file_of_other_images_under_this_name_is_refused(joined, files, tmp_path):
    look(files / "rgb16", tmp_path, parts=["moments"])
    path, = tmp_path.iterdir()
    look(files / "rgb16", tmp_path, Counter("1" * 64), parts=["moments"])
    other, = set(tmp_path.iterdir()) - {path}
    os.replace(other, path)
    with pytest.raises(CacheError, match=f"{path.name} is damaged"):
        look(files / "rgb16", tmp_path, parts=["moments"])


def test_evenly_spaced_images_are_banked_of_many(files, monkeypatch):
    monkeypatch.setattr("fastdgl.fidelity.features.MAX_BANK", 4)
    images = torch.arange(10, dtype=torch.uint8).reshape(10, 1, 1, 1)
    found = collect(((part, len(part)) for part in images.split(3)), 10, Counter(), ["moments", "bank"], ALONE, "images")
    assert found.bank.flatten().tolist() == [0, 2, 5, 7]
    assert found.moments.count == 10 and float(found.moments.mean) == pytest.approx(4.5)


@torch.no_grad()
def test_grey_images_are_seen_in_three_channels(files):
    grey = torch.arange(2 * 16 * 16).reshape(2, 1, 16, 16).to(torch.uint8)
    detector = TorchScriptDetector(files / "seer.pt", CPU)
    assert torch.equal(detector.features(grey), detector.features(grey.repeat(1, 3, 1, 1)))


@pytest.mark.parametrize(("arguments", "options", "sentence"), [
    pytest.param([], {"detector": "none.pt"}, "none.pt cannot be read (No such file or directory): expected a TorchScript file", id="no-detector"),
    pytest.param([], {"detector": "text.pt"}, "text.pt is no TorchScript file", id="no-torchscript"),
    pytest.param(["--sha256", "0" * 64], {}, "expected 000000", id="another-detector"),
    pytest.param([], {"detector": "blind.pt"}, "returns torch.float32 [5] for 5 images: expected floating-point numbers [5, d]", id="no-features"),
    pytest.param([], {"detector": "divider.pt"}, "returns numbers that are infinite or NaN", id="infinite"),
    pytest.param([], {"detector": "picky.pt"}, "fails on images [5, 3, 16, 16] of type uint8: ", id="fails"),
    pytest.param(["--metrics", "is50k"], {"detector": "averager.pt"}, "returns no probabilities of classes", id="no-probabilities"),
    pytest.param(["--metrics", "fid50k_full,ppl2_wend"], {"detector": "averager.pt"}, "averager.pt cannot tell perceptual distances", id="no-lpips"),
    pytest.param(["--metrics", "fid50k_full,ppl2_wend"], {"network": "biggan", "data": "rgb32"},
                 "ppl2_wend is the length of paths in w, which a StyleGAN2 has and this network has not", id="no-w"),
    pytest.param(["--metrics", "fid50k_full,fid"], {}, "there is no metric 'fid'; expected some of fid50k_full, kid50k_full", id="unknown-metric"),
    pytest.param(["--metrics", "pr50k3_full", "--fakes", 3], {}, "pr50k3_full needs at least 4 fakes, got 3", id="too-few-fakes"),
    pytest.param(["--fakes", 0], {}, "0 is not in the range x>=1", id="no-fakes"),
    pytest.param([], {"data": "rgb32"}, "was trained with resolution 16, this run has 32", id="other-resolution"),
    pytest.param([], {"data": "grey32", "network": "biggan"}, "labels were asked for", id="no-labels"),
    pytest.param([], {"data": "nothing"}, "nothing does not exist", id="no-data"),
    pytest.param([], {"network": "nothing"}, "nothing: no such file", id="no-network"),
    pytest.param(["--outdir", __file__], {}, "cannot be written to: File exists; choose another folder by --outdir", id="outdir-is-a-file"),
    pytest.param(["--cache", __file__], {}, "cannot be written to: File exists; choose another folder by --cache", id="cache-is-a-file"),
])
def test_a_wrong_call_is_refused_in_a_sentence(files, tmp_path, arguments, options, sentence):
    result = call(files, tmp_path, *arguments, **options)
    assert result.exit_code != 0 and sentence in result.output and "Traceback" not in result.output, result.output
    assert not list(tmp_path.glob("out/*"))


def test_too_few_real_images_are_refused(joined, files, tmp_path):
    (tmp_path / "few").mkdir()
    for i in range(3):
        Image.open(files / "rgb16" / f"{i:04d}.png").save(tmp_path / "few" / f"{i}.png")
    G = checkpoints.open_snapshot(files / "stylegan2").network("G_ema")
    with pytest.raises(ValueError, match="dc50k5_full needs at least 6 real images, got 3"):
        list(evaluate(["dc50k5_full"], G, ImageDataset(tmp_path / "few"), Counter(), ALONE, num=10, cache=tmp_path, batch=2, workers=0))


def test_another_checksum_is_refused(files):
    with pytest.raises(DetectorError, match=sha256_of_file(files / "seer.pt")):
        TorchScriptDetector(files / "seer.pt", CPU, "0" * 64)


# images as they are shown, and images that were drawn elsewhere

@torch.no_grad()
def test_truncated_and_standing_images_have_metrics_of_their_own_names(files, tmp_path):
    dataset = ImageDataset(files / "rgb32", labels=True)
    real = np.stack([dataset[i][0].transpose(1, 2, 0) for i in range(REAL)])
    for arguments, name, truncation, standing in ((["--trunc", 0.5], "fid0.014k_full_trunc0.5", 0.5, None), (["--standing", 2], "fid0.014k_full_standing2", None, 2),
                                                  (["--trunc", 0.5, "--standing", 2], "fid0.014k_full_trunc0.5_standing2", 0.5, 2)):
        result = call(files, tmp_path, *arguments, network="biggan", data="rgb32")
        assert result.exit_code == 0 and result.output.splitlines()[-1].startswith(name), result.output
        line = line_of(tmp_path / "out", name)
        assert (line["truncation"], line["standing"], line["metric"]) == (truncation, standing, name)
        G = checkpoints.open_snapshot(files / "biggan").network("G_ema")
        if standing:
            drawing.stand(G, standing, truncation)
        drawn = np.random.RandomState(0).randint(REAL, size=NUM)
        c = torch.from_numpy(np.stack([dataset.label(i) for i in drawn]))
        fake = to_uint8(G(torch.cat([G.sample_z(seed, truncation) for seed in range(NUM)]), c))
        moments = [Moments.of(seen(images, return_features=True)) for images in (real, fake)]
        assert line["results"][name] == pytest.approx(frechet_distance(*moments), rel=1e-2)
        assert plain_name(name) == "fid0.014k_full"
    assert not (tmp_path / "out" / "metric-fid0.014k_full.jsonl").exists()


def test_psi_becomes_part_of_the_name_of_a_stylegan2s_metrics(files, tmp_path):
    values = []
    for psi in (None, 1, 0.25):
        result = call(files, tmp_path, *([] if psi is None else ["--trunc", psi]), "--metrics", "fid50k_full,kid50k_full")
        assert result.exit_code == 0, result.output
        name = "fid0.014k_full" + ("" if psi is None else f"_trunc{psi}")
        values.append(line_of(tmp_path / "out", name)["results"][name])
    assert values[0] == values[1] != values[2]


@pytest.mark.parametrize("kind", ["folder", "zip", "class-folders"])
def test_a_folder_of_images_is_compared_with_a_folder(files, tmp_path, kind):
    write_images(tmp_path / "a", 16, 3)
    images = sorted((tmp_path / "a").glob("*.png"))[:9]
    fakes = tmp_path / ("fakes.zip" if kind == "zip" else "fakes")
    if kind == "zip":
        with zipfile.ZipFile(fakes, "w") as archive:
            for image in images:
                archive.write(image, image.name)
    else:
        for i, image in enumerate(images):
            to = fakes / (f"class{i % 2}" if kind == "class-folders" else "") / image.name
            to.parent.mkdir(parents=True, exist_ok=True)
            to.write_bytes(image.read_bytes())
    arguments = ["evaluate", "--network", str(fakes), "--data", str(files / "rgb16"), "--detector", str(files / "seer.pt"), "--workers", "0",
                 "--cache", str(tmp_path / "cache"), "--metrics", "fid50k_full,kid50k_full,pr50k3_full"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    line = line_of(tmp_path, "fid0.009k_full")
    assert line["snapshot_pkl"] == fakes.name and line["num_fake"] == 9 and line["num_real"] == REAL
    pixels = [np.stack([np.asarray(Image.open(path)) for path in paths]) for paths in (sorted((files / "rgb16").glob("*.png")), images)]
    assert line["results"]["fid0.009k_full"] == pytest.approx(frechet_distance(*(Moments.of(seen(some, return_features=True)) for some in pixels)), rel=1e-6)
    result = CliRunner().invoke(main, [*arguments, "--fakes", "5"])
    assert result.exit_code == 0 and "fid0.005k_full" in result.output


@pytest.mark.parametrize(("arguments", "changes", "sentence"), [
    pytest.param(["--trunc", "0.5"], {"network": "rgb16"}, "--trunc 0.5: images have been drawn already", id="truncated-images"),
    pytest.param(["--standing", "2"], {"network": "rgb16"}, "--standing 2: images have been drawn already", id="standing-images"),
    pytest.param(["--metrics", "ppl2_wend"], {"network": "rgb16"}, "which a network has and images have not", id="paths-of-images"),
    pytest.param([], {"network": "rgb16", "data": "rgb32"}, "holds images of resolution 16, and the real ones have 32", id="images-of-another-size"),
    pytest.param([], {"network": "grey32", "data": "rgb32"}, "holds images of channels 1, and the real ones have 3", id="images-of-another-colour"),
    pytest.param(["--fakes", "1000"], {"network": "rgb16"}, "holds 23 images; expected at most so many", id="more-than-there-are"),
    pytest.param(["--standing", "2"], {}, "have no batch norm; leave it out", id="standing-stylegan2"),
    pytest.param(["--trunc", "0"], {"network": "biggan", "data": "rgb32"}, "must be at least 0.01", id="truncated-to-nothing"),
    pytest.param(["--trunc", "0.5", "--metrics", "ppl2_wend"], {}, "paths in w are not truncated", id="truncated-paths"),
])
def test_what_does_not_go_together_is_said_before_anything_is_drawn(files, tmp_path, arguments, changes, sentence):
    result = call(files, tmp_path, *arguments, **changes)
    assert result.exit_code != 0 and sentence in " ".join(result.output.split()) and "Traceback" not in result.output
