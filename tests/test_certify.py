"""Certifying: what is checked, blamed, timed and kept. No process starts here but for one of a copy under another name."""

import fcntl
import itertools
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import fastdgl_kernels
import pytest
import torch
from certified import CPU, pretend_gpu
from fastdgl_kernels import _dispatch, explain, setup_filter
from fastdgl_kernels.certify import Call, CertificationError, cases, certification, certify, recording, timing
from fastdgl_kernels.certify import verdict as verdicts
from fastdgl_kernels.certify.calls import CONTAINS, IMPLEMENTATIONS, Operand
from fastdgl_kernels.certify.command import described, main, summary
from fastdgl_kernels.certify.pool import CRASHED, HUNG, OVER, DeviceLost, PoolError

IMAGE = Operand((2, 3, 4, 4), "float32")
FP16 = Operand((2, 64, 4, 4), "float16", "channels_last")
F = [[0.25, 0.25], [0.25, 0.25]]


def calls_of(image):
    I, dtype = image.shape[1], image.dtype
    w, styles, factor = Operand((4, I, 3, 3), dtype), Operand((2, I), "float32"), Operand((I,), "float32")
    return [
        Call("bias_act", {"x": image}, {}, {"act": "relu"}),
        Call("upfirdn2d", {"x": image}, {"f": F}),
        Call("scale_shift_act", {"x": image, "scale": factor, "shift": factor}),
        Call("conv2d_resample", {"x": image, "w": w}, {}, {"padding": 1}),
        Call("filtered_lrelu", {"x": image}, {"fu": F, "fd": F}, {"up": 2, "down": 2, "padding": 1}),
        Call("modulated_conv2d", {"x": image, "weight": w, "styles": styles}, {}, {"padding": 1}),
        Call("modulated_conv2d_bias_act", {"x": image, "weight": w, "styles": styles}, {}, {"padding": 1}),
    ]


@pytest.fixture(autouse=True)
def gpu(monkeypatch, tmp_path):
    """A GPU in name only, with nothing certified yet, and few calls to be certified."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("FASTDGL_IMPL", raising=False)
    monkeypatch.setattr(cases, "general", lambda interpreted=False: [*calls_of(IMAGE), *calls_of(FP16)])
    return pretend_gpu(monkeypatch)


class Checks:
    """Takes the place of the pool: says of each job what `judge` does, and remembers the jobs."""

    def __init__(self, judge=lambda call, name: "right", samples=None):
        self.judge, self.samples, self.jobs = judge, samples or {"reference": 4.0, "cudnn": 3.0, "triton": 2.0}, []

    def __call__(self, device, size, until):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def outcomes(self, jobs, skip=lambda job: False):
        for job in jobs:
            if skip(job):
                continue
            call = Call.from_json(job["call"])
            if job["kind"] == "time":
                samples = {name: [[self.samples[name]] * 3] * 3 for name in job["implementations"]}
                yield job, {"outcome": "right", "layer": str(call), "default": job["implementations"][0], "samples": samples}
                continue
            self.jobs.append((call, job["implementation"]))
            outcome = self.judge(call, job["implementation"])
            if isinstance(outcome, Exception):
                raise outcome
            yield job, {"outcome": outcome, "words": "" if outcome == "right" else f"it {outcome}"}


def run(checks, **options):
    return certify("cpu", pool=checks, **options)


def faulty(operator, implementation="triton", dtype=None, outcome="wrong"):
    """A judge to whom one implementation of an operator is wrong."""
    return lambda call, name: outcome if (call.operator, name) == (operator, implementation) and dtype in (None, call.dtype) else "right"


def wrong(verdict):
    return {(r.operator, r.implementation, r.dtype) for r in verdict.results if r.outcome == "wrong"}


def test_all_that_is_right_is_kept_and_taken(gpu):
    said = []
    verdict = run(Checks(), report=said.append)
    assert verdicts.read(gpu)[0].to_json() == verdict.to_json() and verdict.complete
    classes = {(o, d, f, n) for o, names in IMPLEMENTATIONS.items() for n in names for d, f in (("float32", "NCHW"), ("float16", "NHWC"))}
    assert verdict.right() == classes
    assert "bias_act runs as 'triton'" in explain(fastdgl_kernels.bias_act, torch.zeros(2, 3, 4, 4))
    assert said[-1].startswith("verdict kept in ")


def test_a_wrong_result_is_its_class_and_of_all_that_contains_it():
    found = wrong(run(Checks(faulty("bias_act", dtype="float16"))))
    assert found == {("bias_act", "triton", "float16"), ("filtered_lrelu", "triton", "float16"),
                     ("modulated_conv2d_bias_act", "cudnn", "float16"), ("modulated_conv2d_bias_act", "triton", "float16")}


@pytest.mark.parametrize("outcome", [CRASHED, HUNG])
def test_what_crashes_or_hangs_is_wrong_for_all_numbers(outcome):
    found = wrong(run(Checks(faulty("scale_shift_act", dtype="float16", outcome=outcome))))
    assert found == {("scale_shift_act", "triton", dtype) for dtype in ("float16", "float32")}


def test_what_does_not_compile_is_wrong_for_its_numbers():
    assert wrong(run(Checks(faulty("scale_shift_act", dtype="float16", outcome="failed")))) == {("scale_shift_act", "triton", "float16")}


def test_a_convolution_of_our_own_is_in_what_is_called_triton_alone():
    assert wrong(run(Checks(faulty("conv2d_resample", dtype="float16")))) == {
        (operator, "triton", "float16") for operator in ("conv2d_resample", "modulated_conv2d", "modulated_conv2d_bias_act")}
    # between PyTorch's convolutions and ours lie the same filters
    assert ("modulated_conv2d", "cudnn", "float16") in wrong(run(Checks(faulty("conv2d_resample", "cudnn", "float16")), force=True))


def test_what_contains_a_fault_is_not_started_and_the_rest_goes_on():
    checks = Checks(faulty("upfirdn2d", outcome=CRASHED))
    run(checks)
    started = {call.operator for call, _ in checks.jobs}
    assert started == {"bias_act", "upfirdn2d", "scale_shift_act"}
    assert sum(call.operator == "upfirdn2d" for call, _ in checks.jobs) == 1


def test_inner_operators_are_checked_first():
    order = list(IMPLEMENTATIONS)
    assert all(order.index(inner) < order.index(outer) for outer, inners in CONTAINS.items() for inner in inners)
    checks = Checks()
    run(checks)
    asked = [order.index(call.operator) for call, _ in checks.jobs]
    assert asked == sorted(asked)


def test_what_the_budget_leaves_is_checked_the_next_time():
    few = Checks(lambda call, name: "right" if call.operator == "bias_act" else OVER)
    verdict = run(few)
    assert {o for o, *_ in verdict.right()} == {"bias_act"} and not verdict.complete
    assert "the reference" not in verdict.why_not("upfirdn2d", "float32", "NCHW", "triton")
    rest = Checks()
    assert run(rest).complete and "bias_act" not in {call.operator for call, _ in rest.jobs}
    # and then nothing is left, but what begins again
    again, forced = Checks(), Checks()
    run(again)
    run(forced, force=True)
    assert again.jobs == [] and len(forced.jobs) == len(few.jobs)


def test_what_is_too_large_to_be_checked_says_nothing():
    verdict = run(Checks(lambda call, name: "skipped" if call.dtype == "float16" else "right"))
    assert verdict.complete and {d for _, d, *_ in verdict.right()} == {"float32"}


def test_a_lost_device_runs_none_of_them(gpu):
    verdict = run(Checks(lambda call, name: DeviceLost("a stopped kernel still holds the GPU") if call.operator == "upfirdn2d" else "right"))
    assert verdict.right() == set() and verdicts.read(gpu)[0].right() == set()
    assert "none of the kernels may run: a stopped kernel still holds the GPU" in described(verdict)
    # and is not tried again by itself
    assert verdicts.read(gpu)[0].halted


def test_a_device_without_processes_has_no_verdict(gpu):
    with pytest.raises(CertificationError, match="cannot be certified on cpu: the GPU is in exclusive mode"):
        run(Checks(lambda call, name: PoolError("the GPU is in exclusive mode")))
    assert verdicts.read(gpu) == (None, "this machine has no verdict yet")


def test_a_verdict_that_cannot_be_kept_holds_in_this_process(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    said = []
    run(Checks(), report=said.append)
    assert "cannot be kept" in said[-1] and said[-1].endswith("it holds for this process only")
    assert "bias_act runs as 'triton'" in explain(fastdgl_kernels.bias_act, torch.zeros(2, 3, 4, 4))


def test_of_two_processes_at_once_one_says_so_or_waits(gpu, monkeypatch):
    lock = verdicts.path(gpu).with_suffix(".lock")
    lock.parent.mkdir(parents=True)
    with lock.open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(CertificationError, match="another process is certifying this machine .*; run `python -m fastdgl_kernels certify` when"):
            run(Checks())
        assert verdicts.read(gpu)[0] is None
        # the other one ends while this one waits, and leaves its verdict
        monkeypatch.setattr(certification, "LOOK_AGAIN", 0.01)
        theirs = verdicts.Verdict(gpu, "2026-11-30", [certification._result(call.with_samples(), name, "right", "")
                                                      for call in cases.general() for name in IMPLEMENTATIONS[call.operator]])

        def ends():
            verdicts.write(theirs)
            fcntl.flock(other, fcntl.LOCK_UN)

        threading.Timer(0.2, ends).start()
        checks = Checks()
        assert run(checks, patience=600.0, force=True).right() == theirs.right() and checks.jobs == []


class TestTiming:
    def test_a_stopwatch_decides(self):
        verdict = run(Checks(samples={"reference": 4.0, "cudnn": 3.0, "triton": 2.0}))
        assert {t.fastest for t in verdict.timings} == {"triton"}
        verdict = run(Checks(samples={"reference": 1.0, "cudnn": 3.0, "triton": 2.0}), force=True)
        assert {t.fastest for t in verdict.timings} == {"reference"}

    @pytest.mark.parametrize("us, taken", [(1.94, "triton"), (1.96, "cudnn"), (2.5, "cudnn")])
    def test_the_default_is_taken_within_five_percent(self, us, taken):
        samples = {"cudnn": [[2.04, 2.04, 9.0]] * 3, "triton": [[us, us, 9.0]] * 3}
        assert timing.fastest(samples, "cudnn")[0] == taken

    def test_a_round_in_which_another_program_ran_does_not_count(self):
        samples = {"cudnn": [[9.0] * 20, [9.0] * 20, [2.0] * 20], "triton": [[3.0] * 20] * 3}
        assert timing.fastest(samples, "triton") == ("cudnn", {"cudnn": 2.0, "triton": 3.0})

    def test_rounds_take_turns(self):
        events, stopwatch = [], lambda run, repetitions: events.append((run(), repetitions)) or [1.0] * repetitions
        samples = timing.rounds({"a": lambda: "a", "b": lambda: "b"}, stopwatch)
        assert "".join(name for name, _ in events) == "abbaab" and {n for _, n in events} == {20}
        assert {name: [len(turn) for turn in turns] for name, turns in samples.items()} == {"a": [20] * 3, "b": [20] * 3}

    def test_what_is_not_right_is_not_timed(self):
        verdict = run(Checks(lambda call, name: "right" if call.operator == "bias_act" else "wrong"))
        assert {t.operator for t in verdict.timings} == {"bias_act"}

    def test_a_layer_is_spelled_as_auto_asks_for_it(self):
        for call in calls_of(IMAGE):
            operator, tensors = getattr(fastdgl_kernels, call.operator), call.tensors(CPU)
            layer, default = _dispatch.layer_of(operator, **tensors, **call.arguments(CPU))
            assert default in IMPLEMENTATIONS[call.operator]
            us = {"reference": 1.0, "triton": 2.0}
            found = verdicts.Timing(call.operator, call.dtype, call.layout, layer, "reference", us)
            _dispatch.use(CPU, verdicts.Verdict({}, "2026-11-30", run(Checks()).results, [found]))
            assert "'reference' first, as timed on 2026-11-30" in explain(operator, **tensors, **call.arguments(CPU))


class TestCalls:
    def test_a_call_survives_as_text(self):
        for call in itertools.chain(calls_of(IMAGE), cases.typical()):
            again = Call.from_json(json.loads(json.dumps(call.to_json())))
            assert again == call and hash(again) == hash(call) and again.id == call.id

    def test_two_samples_stand_for_all(self):
        noise = Operand((8, 1, 4, 4), "float32")
        call = Call("modulated_conv2d", {"x": Operand((8, 3, 4, 4), "float32"), "weight": Operand((4, 3, 3, 3), "float32"),
                                         "styles": Operand((8, 3), "float32"), "noise": noise})
        shapes = {name: operand.shape for name, operand in call.with_samples().operands.items()}
        assert shapes == {"x": (2, 3, 4, 4), "weight": (4, 3, 3, 3), "styles": (2, 3), "noise": (2, 1, 4, 4)}
        along = Call("bias_act", {"x": Operand((8, 3), "float32"), "b": Operand((8,), "float32")}, {}, {"dim": 0})
        assert along.with_samples() == along

    def test_recording_notes_each_distinct_call_once(self):
        x = torch.zeros(4, 3, 8, 8, requires_grad=True)
        f = setup_filter([1, 3, 3, 1])
        with recording() as calls:
            for _ in range(2):
                fastdgl_kernels.bias_act(x, torch.zeros(3), act="lrelu")
            fastdgl_kernels.upsample2d(x.detach().contiguous(memory_format=torch.channels_last), f)
            fastdgl_kernels.bias_act(x, impl="reference")
        fastdgl_kernels.bias_act(x, act="tanh")
        first, second = calls
        assert first == Call("bias_act", {"x": Operand((4, 3, 8, 8), "float32"), "b": Operand((3,), "float32", "contiguous", False)}, {}, {"act": "lrelu"})
        assert second.filters == {"f": f.tolist()} and second.layout == "NHWC" and not second.x.grad
        assert explain(fastdgl_kernels.upfirdn2d, **second.tensors(CPU), **second.arguments(CPU)).startswith("upfirdn2d runs as")

    def test_strides_are_made_again(self):
        x = torch.zeros(4, 3, 8, 8)
        with recording() as calls:
            fastdgl_kernels.bias_act(x[:, :, ::2], torch.zeros(3, 2)[:, 0])
        (call,) = calls
        made = call.tensors(CPU)
        assert made["b"].stride() != (1,) and not made["x"].is_contiguous() and made["x"].shape == (4, 3, 4, 8)

    def test_misaligned_tensors_are(self):
        from dataclasses import replace

        call = Call("bias_act", {"x": FP16, "b": Operand((64,), "float16")}, misaligned=True)
        made = call.tensors(CPU)
        assert made["x"].data_ptr() % 16 and made["x"].is_contiguous(memory_format=torch.channels_last) and made["b"].stride() == (3,)
        assert torch.equal(made["x"], replace(call, misaligned=False).tensors(CPU)["x"])

    def test_every_operator_and_implementation_is_known(self):
        for call in calls_of(IMAGE):
            lines = explain(getattr(fastdgl_kernels, call.operator), **call.tensors(CPU), **call.arguments(CPU)).splitlines()[1:]
            assert {line.partition(":")[0].strip() for line in lines} == {*IMPLEMENTATIONS[call.operator], "reference"}


def test_general_cases_cover_every_operator_dtype_and_layout(monkeypatch):
    monkeypatch.undo()
    general = cases.general()
    classes = {(call.operator, call.dtype, call.layout) for call in general}
    assert classes >= set(itertools.product(IMPLEMENTATIONS, ("float16", "bfloat16", "float32"), ("NCHW", "NHWC")))
    misaligned = {(call.operator, call.dtype) for call in general if call.misaligned}
    assert misaligned == set(itertools.product(IMPLEMENTATIONS, ("float16", "bfloat16", "float32")))


class TestCommand:
    def test_shows_and_forgets(self, gpu, capsys):
        assert main(["--show", "--device", "cpu"]) == 1
        assert capsys.readouterr().out == "no verdict for cpu: this machine has no verdict yet\n"
        run(Checks(faulty("upfirdn2d")))
        assert main(["--show", "--device", "cpu"]) == 0
        shown = capsys.readouterr().out
        assert "a pretended GPU" in shown and "upfirdn2d" in shown and "wrong: it wrong" in shown and "1.85 times as fast" not in shown
        assert "bias_act                   2.00 times as fast as the reference over 2 timed layers" in shown
        assert main(["--forget", "--device", "cpu"]) == 0 and "the verdict is removed" in capsys.readouterr().out
        assert main(["--forget", "--device", "cpu"]) == 0 and "there was no verdict" in capsys.readouterr().out

    @pytest.mark.parametrize("arguments, words", [
        (["--budget", "0"], "above 0 and below 86400"), (["--budget", "soon"], "above 0 and below 86400"), (["--operators", "conv"], "invalid choice"),
    ])  # fmt: skip
    def test_rejects_what_it_does_not_know(self, arguments, words, capsys):
        with pytest.raises(SystemExit):
            main(arguments)
        assert words in capsys.readouterr().err

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
    def test_says_in_one_sentence_that_there_is_no_such_gpu(self, capsys):
        for device in ("cuda:7", "no device"):
            assert main(["--device", device]) == 1
            said = capsys.readouterr().err
            assert device in said and said.count("\n") == 1

    def test_the_doctors_tell_the_verdict_its_date_and_its_ratio(self):
        assert summary(CPU) == "this machine has no verdict yet: the reference runs; run `python -m fastdgl_kernels certify` to prove and use the kernels"
        verdict = run(Checks())
        _dispatch.forget()
        assert summary(CPU) == f"verdict of {verdict.date}: 20 of 20 kinds of calls run as kernels, 2.00 times as fast as the reference over 14 timed layers"


COPY = """
from host.ops.certify import Call, certify, cases
from host.ops.certify.calls import Operand
cases.general = lambda interpreted: [Call("scale_shift_act", {"x": Operand((1, 2, 3, 3), "float32"), "scale": Operand((2,), "float32"), "shift": Operand((2,), "float32")})]
verdict = certify("cpu", budget=600.0, report=print)
assert verdict.right() == {("scale_shift_act", "float32", "NCHW", "triton")}, verdict.to_json()
import sys
assert not any(name.partition(".")[0] == "fastdgl_kernels" for name in sys.modules)
"""


def test_a_copy_certifies_under_its_own_name(tmp_path):
    pytest.importorskip("triton")
    package = Path(fastdgl_kernels.__file__).parent
    shutil.copytree(package, tmp_path / "host/ops", ignore=shutil.ignore_patterns("__pycache__"))
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "FASTDGL_IMPL")}
    environment |= {"TRITON_INTERPRET": "1", "XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, "-c", COPY], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 checks of 1 calls on cpu" in done.stdout
    shown = subprocess.run([sys.executable, "-m", "host.ops", "certify", "--show", "--device", "cpu"], cwd=tmp_path, env=environment,
                           capture_output=True, text=True)
    assert shown.returncode == 0 and "scale_shift_act            triton  right: float32 NCHW" in shown.stdout, shown.stdout + shown.stderr
