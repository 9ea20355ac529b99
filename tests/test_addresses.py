"""Networks by an address and in the home folder: fetched once, known again by their checksum, refused in a sentence."""

import hashlib
import os
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from ranks import free_port
from served import serving
from tiny_networks import BIGGAN, STYLEGAN2, save
from tiny_runs import TINY, dump, refusal
from tiny_runs import train as run

from fastdgl import load_generator, train
from fastdgl.checkpoints import CheckpointError, open_snapshot
from fastdgl.cli import main
from fastdgl.config import from_dict
from fastdgl.download import is_address


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    save(folder / "a" / "a.safetensors", STYLEGAN2, 0, None)
    save(folder / "b" / "b.safetensors", BIGGAN, 3, None)
    return {"ffhq.safetensors": (folder / "a" / "a.safetensors").read_bytes(), "pets.safetensors": (folder / "b" / "b.safetensors").read_bytes(),
            "page.html": b"  <!DOCTYPE html><p>Too large to be scanned</p>", "noise.pkl": b"noise"}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return tmp_path / "cache" / "fastdgl" / "networks"


@pytest.mark.parametrize(("name", "asked_for"), [("ffhq.safetensors", "ffhq.safetensors"), ("pets.safetensors", "pets.safetensors"),
                                                 ("ffhq.safetensors", "ffhq.safetensors?download=1")])
def test_a_network_is_fetched_once_and_its_checksum_is_shown_and_kept(cache, files, capfd, name, asked_for):
    served = files | {asked_for: files[name]}
    with serving(served) as (address, asked):
        snapshots = [open_snapshot(address + asked_for) for _ in range(2)]
        assert load_generator(address + asked_for).z_dim == 8
    assert asked == [asked_for] and all(snapshot.network("G_ema").z_dim == 8 for snapshot in snapshots)
    checksum = hashlib.sha256(files[name]).hexdigest()
    assert capfd.readouterr().err.count(f"{address + asked_for}: SHA-256 {checksum}, kept at {snapshots[0].path}") == 3
    assert snapshots[0].path.parent.parent == cache and snapshots[0].path.name == name
    assert sorted(os.listdir(snapshots[0].path.parent)) == [name, f"{name}.sha256"]
    assert (snapshots[0].path.parent / f"{name}.sha256").read_text() == f"{checksum}  {name}\n"


def test_files_of_one_name_at_two_addresses_are_two(cache, files):
    with serving(files | {"x/pets.safetensors": files["ffhq.safetensors"]}) as (address, _):
        families = [open_snapshot(address + name).family for name in ("pets.safetensors", "x/pets.safetensors", "pets.safetensors")]
    assert families == ["biggan", "stylegan2", "biggan"]


@pytest.mark.parametrize("command", [["generate", "--seeds", "0", "--outdir", "out"], ["export", "--format", "hub", "out"], ["convert"]], ids=lambda command: command[0])
def test_commands_take_an_address(cache, files, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    with serving(files) as (address, _):
        network = address + "ffhq.safetensors"
        arguments = [command[0], network, "out.pth"] if command == ["convert"] else [command[0], "--network", network, *command[1:]]
        result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert os.path.exists("out") or os.path.exists("out.pth")


@pytest.mark.parametrize(("source", "said"), [
    ("none.pkl", "none.pkl cannot be downloaded (HTTP Error 404"),
    ("page.html", "page.html gives a web page and no file; give the address that the page's download button leads to"),
    ("noise.pkl", "noise.pkl: is not a snapshot of fastdgl, or is damaged"),
])
def test_what_is_no_network_is_refused_in_a_sentence(cache, files, source, said):
    with serving(files) as (address, _), pytest.raises(CheckpointError) as error:
        open_snapshot(address + source)
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("source", ["s3://bucket/a.pkl", "ftp://x/a.pkl", "gs://b/a.pkl", "file:///tmp/a.pkl", "https://"])
def test_an_address_that_is_not_fetched_is_named_as_it_was_given(cache, source):
    with pytest.raises(CheckpointError) as error:
        open_snapshot(source)
    assert str(error.value) == f"{source}: is no address that fastdgl fetches from; expected http:// or https://, or the path of a file"


def test_an_address_without_a_server_is_named_as_it_was_given(cache):
    address = f"http://127.0.0.1:{free_port()}/ffhq.pkl"
    result = CliRunner().invoke(main, ["generate", "--network", address, "--seeds", "0", "--outdir", "out"])
    assert result.exit_code == 1 and f"{address} cannot be downloaded" in result.output and result.output.count("\n") == 1
    assert not cache.exists() or not list(cache.rglob("*.pkl*"))


def test_a_file_that_has_changed_since_it_came_is_refused(cache, files):
    with serving(files) as (address, _):
        path = open_snapshot(address + "ffhq.safetensors").path
        path.write_bytes(files["pets.safetensors"])
        with pytest.raises(CheckpointError, match="and had .* when it came; remove it to fetch it again"):
            open_snapshot(address + "ffhq.safetensors")
        path.unlink()
        assert open_snapshot(address + "ffhq.safetensors").family == "stylegan2"


@pytest.mark.parametrize(("source", "expected"), [("https://x/y.pkl", True), ("HTTP://x/y", True), ("s3://x", True), ("~/y.pkl", False), ("c:/y", False),
                                                  ("a/b.pkl", False), ("stage:a", False)])
def test_an_address_is_told_from_a_path(source, expected):
    assert is_address(source) is expected


@pytest.mark.parametrize("name", ["~/a.safetensors", "~/run", "./~"])
def test_the_home_folder_is_the_users(files, tmp_path, monkeypatch, name):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home" / "run").mkdir(parents=True)
    (tmp_path / "~").mkdir()
    monkeypatch.chdir(tmp_path)
    for place in ("home/a.safetensors", "home/run/network-snapshot-000001.safetensors", "~/network-snapshot-000001.safetensors"):
        (tmp_path / place).write_bytes(files["ffhq.safetensors"])
    assert open_snapshot(name).network("G_ema").z_dim == 8
    result = CliRunner().invoke(main, ["generate", "--network", name, "--seeds", "0", "--outdir", "out"])
    assert result.exit_code == 0, result.output


def test_a_run_starts_from_and_is_taught_by_addresses(cache, tmp_path, monkeypatch):
    """Which stay in its config, though rank 0 fetches them."""
    monkeypatch.chdir(tmp_path)
    config = TINY | {"train": {"batch": 8, "kimg": 0.008}, "outdir": "runs"}
    (tmp_path / "a.yaml").write_text(dump(config))
    run("--config", "a.yaml")
    data = next((tmp_path / "runs").glob("*/network-snapshot-*.safetensors")).read_bytes()
    with serving({"t.safetensors": data, "s.safetensors": data}) as (address, asked):
        guided = config | {"name": "guided", "start": address + "s.safetensors", "guidance": {"teachers": [{"checkpoint": address + "t.safetensors", "check": "warn"}]}}
        (tmp_path / "b.yaml").write_text(dump(guided))
        run("--config", "b.yaml")
        assert sorted(asked) == ["s.safetensors", "t.safetensors"]
    folder, = (tmp_path / "runs").glob("*-guided")
    assert f"start: {address}s.safetensors" in (folder / "config.yaml").read_text() and f"checkpoint: {address}t.safetensors" in (folder / "config.yaml").read_text()


def test_a_rank_that_cannot_see_what_was_fetched_says_what_to_do(tmp_path):
    as_written = from_dict({"images": {"path": "digits"}, "model": {"resolution": 32}, "start": "https://x/a.pkl"}, "test")
    with pytest.raises(train.TrainingError, match="which rank 0 has fetched, is not there for rank 1 .* set XDG_CACHE_HOME to a folder that all machines share"):
        train.check_fetched(as_written, as_written.with_references({"start": str(tmp_path / "a.pkl")}), SimpleNamespace(rank=1))


def test_an_address_in_a_config_that_gives_nothing_is_one_sentence(cache, tmp_path):
    address = f"http://127.0.0.1:{free_port()}/t.pkl"
    (tmp_path / "a.yaml").write_text(dump(TINY | {"outdir": str(tmp_path / "runs"), "start": address}))
    assert f"{address} cannot be downloaded" in refusal("--config", tmp_path / "a.yaml")
