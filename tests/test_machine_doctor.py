"""`fastdgl doctor`: it says in a screen what a run would use, and names what would stop one. That of the kernels is in test_doctor.py."""

import pytest
import torch
from click.testing import CliRunner

from fastdgl import doctor
from fastdgl.cli import main
from fastdgl.engines import end_run


@pytest.fixture
def diagnosis(tmp_path, monkeypatch):
    """A call of the command, with its caches and runs below tmp_path."""
    # a run that failed in this process has left its group to the launcher
    end_run()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton"))
    monkeypatch.setattr(doctor, "LEAST_MEMORY", 0)
    monkeypatch.setattr(doctor, "LEAST_DISK", 0)
    monkeypatch.setattr(doctor, "LEAST_SHARED", 0)
    monkeypatch.setattr(doctor, "open_files", lambda: 1024)
    if not torch.cuda.is_available():
        # a torch for CUDA without a GPU is a problem of its own
        monkeypatch.setattr(doctor.torch.version, "cuda", None)
    return lambda *arguments: CliRunner().invoke(main, ["doctor", "--outdir", str(tmp_path / "runs"), *arguments])


def test_a_machine_that_is_well_is_said_to_be_in_a_screen(diagnosis, tmp_path):
    result = diagnosis()
    assert result.exit_code == 0, result.output
    assert result.output.endswith("\nnothing would stop a run\n") and len(result.output.splitlines()) < 30
    for words in (torch.__version__, "deepspeed", "triton", "launcher torchrun", "memory", "open files", f"{tmp_path / 'cache/fastdgl'}, can be written",
                  "nccl" if torch.cuda.is_available() else "gloo", "operators"):
        assert words in result.output
    # nothing was made on the way
    assert not list(tmp_path.iterdir()) and not torch.distributed.is_initialized()


@pytest.mark.parametrize(("name", "value", "words"), [
    ("LEAST_MEMORY", 10**18, "is little memory, expected"),
    ("LEAST_DISK", 10**18, "remove old runs, or choose another outdir"),
    ("open_files", lambda: 256, "only 256 files may be open at once, expected 1024: run `ulimit -n 1024` first"),
], ids=["memory", "disk", "open-files"])
def test_what_there_is_too_little_of_is_named_with_what_to_do(diagnosis, monkeypatch, name, value, words):
    monkeypatch.setattr(doctor, name, value)
    result = diagnosis()
    assert result.exit_code == 1 and words in result.output and "\n! " in "\n" + result.output


def test_little_shared_memory_is_named(diagnosis, monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(doctor, "LEAST_SHARED", 10**18)
    assert "--shm-size 8g, or set images.workers=0" in diagnosis().output


def test_a_cache_that_cannot_be_written_is_named(diagnosis, monkeypatch):
    def refuse(folder):
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(doctor, "write_into", refuse)
    result = diagnosis()
    assert result.exit_code == 1 and "Permission denied" in result.output and "choose another by XDG_CACHE_HOME" in result.output


def test_an_outdir_that_is_a_file_is_named(diagnosis, tmp_path):
    (tmp_path / "runs").write_text("")
    result = diagnosis()
    assert result.exit_code == 1 and f"{tmp_path / 'runs'} is no folder; choose another outdir" in result.output


def test_ranks_that_cannot_talk_are_named(diagnosis, monkeypatch):
    def refuse(backend):
        raise RuntimeError("no such\nbackend")

    monkeypatch.setattr(doctor, "add_up", refuse)
    result = diagnosis()
    assert result.exit_code == 1 and ": no such backend; no run can start" in result.output


def test_a_torch_for_cuda_without_a_gpu_is_a_problem(diagnosis, monkeypatch):
    monkeypatch.setattr(doctor.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(doctor.torch.version, "cuda", "12.8")
    assert "no GPU answers it: look at nvidia-smi" in diagnosis().output


@pytest.mark.parametrize("wrong", [0, 1])
def test_the_kernels_are_checked_when_asked_for(diagnosis, monkeypatch, wrong):
    monkeypatch.setattr(doctor.doctor_of_kernels, "main", lambda: wrong)
    assert diagnosis("--kernels").exit_code == wrong
