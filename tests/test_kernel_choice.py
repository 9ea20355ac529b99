"""Which kernels a run goes by: what is recorded for their certification, on several machines, through train.py, and on resuming."""

import json
import os
import socket
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
import torch
from certified import certified, pretend_gpu
from fastdgl_kernels import _dispatch, _launch, implementation
from fastdgl_kernels.certify import CertificationError, Verdict, recording
from fastdgl_kernels.certify import verdict as verdicts
from fastdgl_kernels.certify.checks import derivatives
from fastdgl_kernels.certify.verdict import Timing
from PIL import Image
from ranks import on_ranks
from test_steps import CLASSES, CPU, LOSS, STEPS, N, adversaries, random_inputs
from test_warmup import launched
from torch._subclasses.fake_tensor import FakeTensorMode

import fastdgl_kernels
from fastdgl import checkpoints
from fastdgl import config as configs
from fastdgl import kernel_choice
from fastdgl.config import ConfigError
from fastdgl.engines import Run
from fastdgl.kernel_choice import RECORD, calls_of, choose_kernels, continued, kept
from fastdgl.samples import SampleSheet
from fastdgl.warmup import rehearse
from tiny_runs import TINY, dump, refusal, train

TIMING = Timing("bias_act", "float16", "NHWC", "lrelu 64>64 @64 N=8 float16 NHWC", "triton", {"reference": 4.0, "triton": 2.0})


@pytest.fixture(autouse=True)
def nothing_certified(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("FASTDGL_IMPL", raising=False)
    # what is used in this process must not outlive the test
    monkeypatch.setattr(_dispatch, "_verdicts", {})
    monkeypatch.setattr(_dispatch, "_said", set())


@pytest.fixture(scope="module")
def rehearsed():
    """The calls of a rehearsal, as the trainer records them, and as they are where kernels run."""
    pytest.importorskip("triton")
    gan = adversaries()
    with pytest.MonkeyPatch.context() as patch, FakeTensorMode(allow_non_fake_inputs=True):
        patch.setenv("TRITON_INTERPRET", "1")
        with implementation("reference"), recording() as plain:
            rehearse(gan, LOSS, N, N, CLASSES, CPU)
        with recording() as kernels:
            launched(lambda: rehearse(gan, LOSS, N, N, CLASSES, CPU))
    return set(plain), set(kernels)


def in_any_layout(calls):
    """The calls, the layouts of their operands left out: PyTorch's convolutions on a CPU have their own."""
    return {replace(call, operands={name: replace(o, layout="") for name, o in call.operands.items()}) for call in calls}


def covered(calls, others):
    """Whether each call is among the others; one that takes no gradients may be there with gradients: it launches the same and less."""
    values = {without_gradients(call) for call in others}
    return all(call in others or (not any(o.grad for o in call.operands.values()) and call in values) for call in calls)


def without_gradients(call):
    return replace(call, operands={name: replace(o, grad=False) for name, o in call.operands.items()})


class TestRecording:
    @pytest.mark.parametrize("name", STEPS)
    def test_the_calls_of_a_step_are_those_of_its_rehearsal(self, name, rehearsed, triton):
        plain, kernels = rehearsed
        with implementation("reference"), recording() as calls:
            STEPS[name](adversaries(), random_inputs())
        assert len(calls) > 5 and covered(in_any_layout(calls), in_any_layout(plain))
        with recording() as calls:
            launched(lambda: STEPS[name](adversaries(), random_inputs()))
        assert len(calls) > 5 and covered(calls, kernels)

    @pytest.mark.parametrize("name", STEPS)
    def test_what_a_step_launches_is_certified(self, name, rehearsed, triton):
        def certification():
            with FakeTensorMode(allow_non_fake_inputs=True):
                for call, arguments, tensors in made:
                    fake = {name: torch.empty_strided(t.shape, t.stride(), dtype=t.dtype) for name, t in tensors.items()}
                    with mock.patch.object(type(call), "arguments", lambda self, device, a=arguments: a):
                        derivatives(getattr(fastdgl_kernels, call.operator), call, "fastest", fake, Fake())

        made = [(call, call.arguments(CPU), call.tensors(CPU)) for call in rehearsed[1]]
        step = launched(lambda: STEPS[name](adversaries(), random_inputs()))
        assert len(step) > 5 and step <= launched(certification)

    def test_the_networks_of_a_config_are_rehearsed_without_touching_random_numbers(self):
        state = torch.get_rng_state()
        calls = calls_of(config(), Run(0, 1, CPU), 10)
        assert {call.operator for call in calls} == {"bias_act", "upfirdn2d", "conv2d_resample", "modulated_conv2d_bias_act"}
        assert torch.equal(state, torch.get_rng_state())


class Fake:
    def like(self, t, seed):
        return torch.empty_like(t, memory_format=torch.contiguous_format)


def config(**engine):
    return configs.from_dict(TINY | {"engine": {"kind": "torch", **engine}}, "test")


def run(world_size=1):
    return Run(0, world_size, CPU)


@pytest.fixture
def alone(monkeypatch):
    """The ranks are this one."""
    monkeypatch.setattr(kernel_choice, "gathered", lambda mine: [mine])
    monkeypatch.setenv("LOCAL_RANK", "0")


@pytest.fixture
def gpu(monkeypatch, alone):
    return pretend_gpu(monkeypatch)


def fails(words):
    def certify(*arguments, **options):
        raise CertificationError(words)

    return certify


class TestChoice:
    def test_on_a_cpu_the_operators_are_pytorchs(self, alone):
        kernels = choose_kernels(config(), run(), 10)
        assert kernels.verdict is None and kernels.sentence == "PyTorch's own operators: this run computes on the CPU"
        with pytest.raises(ConfigError, match="engine.kernels: required, but no kernel may run: this run computes on the CPU"):
            choose_kernels(config(kernels="required"), run(), 10)

    def test_a_verdict_that_is_there_is_taken(self, gpu, monkeypatch):
        monkeypatch.setattr(kernel_choice, "certify", fails("it need not"))
        verdicts.write(certified(gpu, timings=[TIMING]))
        kernels = choose_kernels(config(kernels="required"), run(), 10)
        assert kernels.sentence.startswith("by the verdict of 2026-11-30T12:00:00+00:00, 60 kinds of calls, 2.00 times as fast")
        assert _dispatch.kernels_in_force(CPU)

    @pytest.mark.parametrize("known", [None, {"pending": ["bias_act"]}], ids=["none", "incomplete"])
    def test_what_is_not_certified_is_before_the_first_step(self, gpu, monkeypatch, known):
        asked = []

        def certify(device, calls, budget, **options):
            asked.append({call.operator for call in calls})
            return certified(gpu)

        monkeypatch.setattr(kernel_choice, "certify", certify)
        if known:
            verdicts.write(certified(gpu, **known))
        kernels = choose_kernels(config(), run(), 10)
        assert len(kernels.verdict.right()) == 60 and "modulated_conv2d_bias_act" in asked[0] and len(asked) == 1

    def test_where_it_fails_the_reference_runs_and_one_sentence_says_why(self, gpu, monkeypatch, recwarn):
        monkeypatch.setattr(kernel_choice, "certify", fails("the GPU is in exclusive mode"))
        kernels = choose_kernels(config(), run(), 10)
        words = "the GPU is in exclusive mode; to try again run `python -m fastdgl_kernels certify`"
        assert kernels.sentence == f"PyTorch's own operators: {words}" and not _dispatch.kernels_in_force(CPU)
        # said in the log, and not a second time by the first operator
        fastdgl_kernels.bias_act(torch.zeros(1, 2), act="relu")
        assert not [w for w in recwarn if "certify" in str(w.message)]
        with pytest.raises(ConfigError, match="engine.kernels: required, but no kernel may run: the GPU is in exclusive mode"):
            choose_kernels(config(kernels="required"), run(), 10)

    def test_off_is_off_and_names_stand_above(self, gpu, monkeypatch):
        verdicts.write(certified(gpu))
        assert choose_kernels(config(kernels="off"), run(), 10).sentence == "PyTorch's own operators: engine.kernels is off"
        assert not _dispatch.kernels_in_force(CPU)
        monkeypatch.setenv("FASTDGL_IMPL", "fastest")
        assert choose_kernels(config(kernels="off"), run(), 10).sentence == "fastest, as FASTDGL_IMPL says"
        assert _dispatch.kernels_in_force(CPU)
        choose_kernels(config(kernels="required"), run(), 10)

    def test_others_do_not_wait_longer_than_they_may(self, gpu, monkeypatch):
        monkeypatch.setattr(kernel_choice, "certify", fails("not reached"))
        assert "engine.timeout of 100 s is too short" in choose_kernels(config(timeout=100.0), run(world_size=2), 10).sentence

    @pytest.mark.parametrize("text, value", [("off", "off"), ("'off'", "off"), ("auto", "auto"), ("required", "required")])
    def test_is_read_from_yaml(self, tmp_path, text, value):
        file = tmp_path / "a.yaml"
        file.write_text(f"images: {{path: digits}}\nmodel: {{resolution: 32}}\nengine: {{kernels: {text}}}\n")
        (read,) = configs.read(file, [])
        assert read.engine.kernels == value
        assert configs.read(file, ["engine.kernels=off"])[0].engine.kernels == "off"
        file.write_text(configs.to_yaml(read))
        assert configs.read(file, [])[0].engine.kernels == value


class TestResuming:
    def test_a_run_keeps_to_its_own_verdict(self):
        own = {"verdict": certified({"gpu": "A"}, timings=[TIMING]).to_json(), "reason": ""}
        verdict, reason, warnings = continued(own, certified({"gpu": "B"}, timings=[TIMING]), "")
        assert verdict.machine == {"gpu": "A"} and verdict.timings == (TIMING,) and warnings == []

    def test_what_is_wrong_here_does_not_run_and_is_told(self):
        own = {"verdict": certified().to_json(), "reason": ""}
        verdict, _, (warning,) = continued(own, certified(wrong=["upfirdn2d"]), "")
        assert not any(operator == "upfirdn2d" for operator, *_ in verdict.right()) and len(verdict.right()) == 54
        assert warning.startswith("the verdict of this machine differs from the one this run began with") and warning.endswith(", and 3 more")

    def test_what_is_right_here_and_was_not_there_does_not_run(self):
        own = {"verdict": certified(wrong=["upfirdn2d"]).to_json(), "reason": ""}
        verdict, _, warnings = continued(own, certified(), "")
        assert not any(operator == "upfirdn2d" for operator, *_ in verdict.right()) and len(warnings) == 1

    def test_without_kernels_it_goes_on_without(self):
        verdict, reason, warnings = continued({"verdict": None, "reason": "engine.kernels is off"}, certified(), "")
        assert verdict is None and "engine.kernels is off" in reason and "engine.kernels=required takes the kernels" in warnings[0]

    def test_kernels_that_cannot_be_certified_here_do_not_run(self):
        verdict, reason, warnings = continued({"verdict": certified().to_json(), "reason": ""}, None, "the GPU is busy")
        assert verdict is None and reason == "the GPU is busy" and "this machine has no verdict: the GPU is busy" in warnings[0]

    @pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"[" * 100_000, b'{"verdict": 1, "reason": ""}', b'{"verdict": null, "reason": 1}',
                                         json.dumps({"verdict": certified().to_json() | {"format": 99}, "reason": ""}).encode()])  # fmt: skip
    def test_a_record_of_something_else_stops_the_run_in_one_sentence(self, tmp_path, content):
        (tmp_path / RECORD).write_bytes(content)
        with pytest.raises(ConfigError, match="does not say which kernels the run went by: .*; remove it to choose again") as error:
            kept(tmp_path)
        assert "\n" not in str(error.value)


def on_a_node(run, folder):
    """One of two machines; the kernels are right on both but for bias_act on the second, which then loses its verdict."""
    os.environ |= {"LOCAL_RANK": "0", "XDG_CACHE_HOME": str(folder / str(run.rank))}
    os.environ.pop("FASTDGL_IMPL", None)
    patch = pytest.MonkeyPatch()
    machine = pretend_gpu(patch, name=f"GPU {run.rank}")
    patch.setattr(socket, "gethostname", lambda: f"node{run.rank}")
    patch.setattr(kernel_choice, "certify", fails("it hangs"))
    verdicts.write(certified(machine, wrong=["bias_act"] if run.rank else []))
    kernels = choose_kernels(config(), run, 10)
    right = {operator for operator, *_ in kernels.verdict.right()}
    verdicts.forget(machine) if run.rank else None
    _dispatch.forget()
    missing = choose_kernels(config(), run, 10)
    assert missing.verdict is None
    (folder / f"{run.rank}.json").write_text(json.dumps([sorted(right), kernels.verdict.machine, missing.sentence]))
    patch.undo()


def test_a_kernel_runs_where_it_is_right_on_every_node(tmp_path):
    on_ranks(2, on_a_node, tmp_path)
    (right, machine, sentence), second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert [right, machine, sentence] == second
    assert "upfirdn2d" in right and "bias_act" not in right and machine["gpu"] == "GPU 0"
    assert sentence.startswith("PyTorch's own operators: rank 1 on node1: it hangs; to try again run")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Eight images of 8 x 8 pixels."""
    folder = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for i in range(8):
        Image.fromarray(random.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return folder


@pytest.fixture
def smallest(tmp_path, images, monkeypatch):
    """A run of one step of G and of D, without sheets of samples: interpreted, many images take long."""
    monkeypatch.setattr(SampleSheet, "save_fake", lambda *arguments: None)
    file = tmp_path / "smallest.yaml"
    file.write_text(dump({
        "name": "smallest", "outdir": str(tmp_path / "runs"), "images": {"path": str(images), "workers": 0},
        "model": {"resolution": 8, "z_dim": 4, "w_dim": 4, "mapping_layers": 1, "channel_base": 32, "channel_max": 4, "num_fp16_res": 0, "mbstd_group": 2},
        "loss": {"r1_gamma": 0.1, "r1_interval": 0, "path_length_interval": 0}, "train": {"batch": 2, "kimg": 0.002, "tick_kimg": 0.002}, "engine": {"kind": "torch"},
    }))  # fmt: skip
    return file


@pytest.fixture
def launches(monkeypatch):
    """Counts the kernels that are launched."""
    options, count = _launch.options, []
    monkeypatch.setattr(_launch, "options", lambda *arguments: count.append(None) or options(*arguments))
    return count


class TestThroughTraining:
    # interpreted, a step takes a minute
    @pytest.mark.slow
    @pytest.mark.parametrize("capability", ["9.0", "8.9", "12.0"])
    def test_with_a_verdict_the_kernels_run(self, capability, smallest, launches, monkeypatch, triton, tmp_path):
        machine = pretend_gpu(monkeypatch, capability=capability)
        verdicts.write(certified(machine))
        output = train("--config", smallest)
        assert len(launches) > 20 and "kernels   by the verdict of 2026-11-30" in output and output.count("certify") == 0
        folder = tmp_path / "runs" / "00000-smallest"
        own = json.loads((folder / RECORD).read_text())
        assert Verdict.from_json(own["verdict"]).machine == machine
        newest = checkpoints.newest_checkpoint(folder)
        assert checkpoints.load_state(newest)["kernels"] == own
        # what the folder has lost, the checkpoint has kept
        (folder / RECORD).unlink()
        assert kept(folder) == own

    def test_without_a_verdict_they_do_not_and_the_run_says_so_once(self, smallest, launches, monkeypatch, recwarn):
        pretend_gpu(monkeypatch)
        monkeypatch.setattr(kernel_choice, "certify", fails("the GPU is in exclusive mode"))
        output = train("--config", smallest)
        assert launches == [] and output.count("run `python -m fastdgl_kernels certify`") == 1
        assert not [w for w in recwarn if "certify" in str(w.message)]
        assert "engine.kernels: required, but no kernel may run: the GPU is in exclusive mode" in refusal("--config", smallest, "engine.kernels=required")

    def test_a_resumed_run_warns_where_this_machine_differs(self, smallest, launches, monkeypatch, tmp_path):
        # PyTorch computes: which verdict is used is what counts
        first = pretend_gpu(monkeypatch, name="one")
        verdicts.write(certified(first, wrong=["upfirdn2d"], halted="a test"))
        train("--config", smallest)
        second = pretend_gpu(monkeypatch, name="another")
        verdicts.write(certified(second))
        folder = tmp_path / "runs" / "00000-smallest"
        output = train("--resume", folder, "train.kimg=0.004")
        assert "warning: the verdict of this machine differs from the one this run began with" in output and launches == []
        assert Verdict.from_json(json.loads((folder / RECORD).read_text())["verdict"]).machine == first
