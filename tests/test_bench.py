"""bench.gpu, without a GPU: what it would check, how it judges, and that nothing stops it."""

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from fastdgl.models.stylegan2 import Discriminator, Generator  # noqa: E402
from fastdgl_kernels import explain, modulated_conv2d_bias_act  # noqa: E402
from fastdgl_kernels._tuning import TABLE  # noqa: E402

from bench.gpu import acceptance, cases, isolation, networks, nvidia, plan, timing, tuning  # noqa: E402
from bench.gpu.case import Case, Choice, call, moved_bytes  # noqa: E402
from bench.gpu.checks import check, relative_error  # noqa: E402
from bench.gpu.report import Report, summary  # noqa: E402
from bench.shapes import filters  # noqa: E402

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
FP16, FP32 = torch.float16, torch.float32


def first(found, order):
    return next(case for case in found if case.order == order)


REPRESENTATIVE = [
    *cases.bias_act(1, 5, 8, FP16),
    *cases.bias_act(1, 4, 6, FP32, channels_last=False, act="tanh"),
    *cases.upfirdn2d(1, 6, 8, filters(6)[0], FP16),
    *cases.upfirdn2d(1, 4, 3, filters(4)[3], FP32, channels_last=False),
    *cases.tail(2, 4, 8, FP16),
    *cases.convolution(1, 8, 64, FP16),
    *cases.resampling_convolution(1, 16, 64, FP16),
    *cases.resampling_convolution(1, 16, 32, FP16),
    *cases.convolution_with_own_weights(1, 8, 64, FP16),
    *cases.modulated_layer(1, 8, 16, "same", "cudnn", FP16),
    cases.second_order_of_layer(1, 4, 8, "rgb", "cudnn", FP32),
    first(cases.convolution_layer(1, 4, 8, "down", "cudnn", FP32), "second order"),
    *cases.to_rgb(2, 4, 8, FP16),
    *cases.batch_norm(2, 4, 8, 2, FP16),
    first(cases.filtered_layer(1, 3, 2, FP32, channels_last=False, taps=3), "second order"),
]


@pytest.mark.parametrize("case", REPRESENTATIVE, ids=lambda case: case.key)
def test_kernels_pass_the_check(triton, case):
    assert check(case, CPU, seed=3)["wrong"] == []


def doubling(run, **change):
    """The case of y = 2 x, as `run` computes it."""
    case = Case(
        "double", "forward", "of three", FP32, lambda random: {"x": random.normal(1000)}, run, lambda x: {"y": 2 * x}
    )
    return replace(case, **change)


@pytest.fixture
def uninitialized():
    """Memory that is handed out as it is, which the other tests do without."""
    torch.use_deterministic_algorithms(False)
    yield
    left = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert not left


def with_a_hole(x):
    y = torch.empty_like(x)
    y[1:] = 2 * x[1:]
    return {"y": y}


def with_one_number_off(x):
    y = 2 * x
    y[7] += 5e-5
    return {"y": y}


def into_what_was_given(x):
    return {"y": x.mul_(2)}


def unlike_before(x, calls=[]):
    calls.append(None)
    return {"y": 2 * x * (1 + 1e-7 * len(calls))}


@pytest.mark.parametrize(
    "run, words",
    [
        (lambda x: {"y": x + x}, None),
        (with_a_hole, "y errs by nan"),
        (with_one_number_off, "y errs by"),
        (into_what_was_given, "x was given and is written to"),
        (unlike_before, "y differs when computed again"),
    ],
    ids=["right", "hole", "one number", "overwrites", "varies"],
)
def test_each_fault_of_a_kernel_is_found(run, words, uninitialized):
    wrong = check(doubling(run), CPU, seed=0)["wrong"]
    assert wrong == [] if words is None else any(words in one for one in wrong)


def test_what_fuses_roundings_may_err_twice_as_much_as_pytorch():
    def reference(x):
        # as PyTorch would err in fewer bits
        return {"y": 2 * (x if x.dtype == torch.float64 else x * (1 + 1e-3))}

    for error, passes in ((1.9e-3, True), (2.1e-3, False)):
        case = doubling(lambda x, error=error: {"y": 2 * x * (1 + error)}, reference=reference, fused=True)
        assert (check(case, CPU, seed=0)["wrong"] == []) == passes
    assert check(replace(case, fused=False), CPU, seed=0)["wrong"]


def test_an_error_is_relative_and_nan_is_none():
    exact = torch.tensor([3.0, 4.0], dtype=torch.float64)
    assert relative_error(exact + torch.tensor([0.0, 0.05]), exact) == pytest.approx(0.01)
    assert not relative_error(torch.tensor([3.0, torch.nan]), exact) <= 1e9
    with pytest.raises(ValueError, match="shape"):
        relative_error(exact[:1], exact)


def test_every_item_has_a_name_of_its_own():
    for listed in (cases.checked, cases.timed):
        keys = [case.key for case in listed()]
        # layers meet where a network and a list of formats both name them
        assert len(set(keys)) > 0.8 * len(keys)
    assert all(plan.names(part, True) for part in plan.PARTS)


def test_every_criterion_has_cases_and_rivals():
    timed = list(cases.timed())
    for criterion in acceptance.KERNELS:
        matching = [case for case in timed if re.fullmatch(criterion.cases, case.key)]
        assert matching, criterion.about
        kind, _, rival = criterion.ratio.partition(" ")
        assert kind == "copy" or all(rival in case.rivals for case in matching), criterion.about
    for criterion in acceptance.NETWORKS:
        assert any(re.fullmatch(criterion.cases, name) for name in plan.names("networks", True))


def test_every_timed_kernel_is_checked():
    checked = {(case.operator, case.order) for case in cases.checked()}
    assert {(case.operator, case.order) for case in cases.timed()} <= checked


def test_bytes_are_those_of_what_goes_in_and_out():
    case = first(cases.bias_act(1, 4, 8, FP16), "gradient")
    tensors = {name: torch.empty(1, 8, 4, 4, dtype=FP16) for name in ("x", "dy", "y", "ddx")}
    # dy and y are read, dx is written
    assert moved_bytes(case, tensors, {"dx": tensors["dy"]}) == 3 * 8 * 16 * 2


def recorded(speeds):
    """A stopwatch that reads a number off what runs."""
    return lambda run, repetitions: [float(speeds[run(0)])] * repetitions


def test_times_are_medians_and_a_rival_that_fails_is_told():
    def fail():
        raise RuntimeError("no such\nkernel")

    order = []

    def stopwatch(run, repetitions):
        order.append(run(0))
        return [1.0] * (repetitions - 1) + [50.0]

    found = timing.times({"ours": [lambda: "ours"], "theirs": [lambda: "theirs"], "bad": [fail]}, stopwatch)
    assert found["ours"]["us"] == 1.0 and found["ours"]["repetitions"] >= 20
    assert found["bad"] == {"error": "RuntimeError: no such kernel"}
    # in turns, so that both meet the same clock
    assert order == ["ours", "theirs", "ours", "theirs"]


def test_inputs_are_rotated_past_the_cache():
    case = doubling(lambda x: {"y": x})
    sets = timing.rotation(case, CPU, seed=0, cache_bytes=8000)
    assert len(sets) == 6 and not torch.equal(sets[0]["x"], sets[1]["x"])
    assert len(timing.rotation(case, CPU, seed=0, cache_bytes=1)) == 2


def cpu_stopwatch(run, repetitions):
    """Microseconds of each call."""
    ends = [time.perf_counter()]
    for i in range(repetitions):
        run(i)
        ends.append(time.perf_counter())
    return [(end - start) * 1e6 for start, end in zip(ends, ends[1:])]


def test_a_case_is_timed_beside_its_rivals():
    case = doubling(lambda x: {"y": 2 * x}, flops=7)
    found = timing.timed(case, {"sum": lambda x: x + x}, CPU, 0, 1, cpu_stopwatch)
    assert found["bytes"] == 8000 and found["flops"] == 7 and found["us"] > 0 and found["rivals"]["sum"]["us"] > 0


def test_the_cpu_is_timed_per_call(triton):
    assert set(plan.cpu_per_call(CPU, "reference", calls=1)) == {"bias_act", "upfirdn2d", "modulated layer"}


@pytest.mark.parametrize("step", networks.STEPS)
def test_a_step_gives_the_gradients_of_the_network_that_learns(step):
    torch.manual_seed(0)
    G, D = networks.networks(Generator, Discriminator, 8, CPU, channel_base=32, channel_max=4)
    gradients = networks.ready(step, G, D, *networks.inputs(4, 8, CPU))()
    learning = G if networks.STEPS[step][1] == "G" else D
    assert len(gradients) == len(list(learning.parameters()))
    some = [g for g in gradients if g is not None]
    assert len(some) > len(gradients) / 2 and all(g.isfinite().all() for g in some)


@pytest.mark.parametrize("step", networks.BIGGAN_STEPS)
def test_a_step_of_biggan_gives_the_gradients_of_the_network_that_learns(step):
    torch.manual_seed(0)
    G, D = networks.biggan_networks(2, CPU, resolution=32, attention=16, c_dim=3)
    gradients = networks.ready(step, G, D, *networks.biggan_inputs(4, G, CPU))()
    learning = G if networks.BIGGAN_STEPS[step][1] == "G" else D
    assert [g.shape for g in gradients] == [p.shape for p in learning.parameters()]
    assert all(g.isfinite().all() for g in gradients) and any(g.any() for g in gradients)


def test_candidates_take_the_place_of_a_table_entry(triton):
    case = first(cases.bias_act(1, 4, 8, FP16), "forward")
    seen = []
    cases_of_table = dict((choice.value, run) for choice, run in case.candidates())
    before = dict(TABLE["cpu"])
    tensors = case.tensors(cases.Random(CPU, 0))
    from fastdgl_kernels.activation import kernel

    original = kernel.tuned
    try:
        kernel.tuned = lambda name, arch: seen.append(original(name, arch)) or seen[-1]
        got = call(cases_of_table[(1024, 4)], tensors)
    finally:
        kernel.tuned = original
    assert seen == [(1024, 4)] and TABLE["cpu"] == before
    assert torch.equal(got["y"], call(case.run, tensors)["y"])


def test_the_best_tile_is_proposed_and_a_wrong_one_never():
    last = None

    def candidate(name, factor):
        def run(x):
            nonlocal last
            last = name
            return {"y": factor * x}

        return run

    def candidates():
        yield Choice("table", (1,)), candidate("fast", 2)
        yield Choice("table", (2,)), candidate("faster and wrong", 2.1)
        yield Choice("table", (3,)), candidate("slow", 2)

    def stopwatch(run, repetitions):
        run(0)
        return [{"today": 10.0, "fast": 5.0, "faster and wrong": 1.0, "slow": 20.0}[last]] * repetitions

    case = doubling(candidate("today", 2), candidates=candidates)
    found = tuning.tuned(case, CPU, 0, 1, stopwatch)
    assert found["candidates"]["[2]"] == {"error": "wrong: y"}
    proposed = tuning.proposal({"layer": found, "skipped": {"skipped": "time"}})
    assert proposed == {"table": {"layers": {"layer": {"best": "[1]", "of today": 0.5}}, "for all": "[1]"}}


def test_the_layers_whose_backend_is_measured_are_those_the_table_is_asked_for(triton):
    asked = {case.entry for case in cases.chosen()}
    for entry in ("same 512>512 @64 N=32 float16 NHWC", "to_rgb 32>3 @1024 N=8 float16 NHWC"):
        assert entry in asked
    small = next(cases.modulated_layer(1, 8, 8, "up", "fastest", FP16))
    tensors = small.tensors(cases.Random(CPU, 0))
    text = explain(
        modulated_conv2d_bias_act, tensors["x"], tensors["weight"], tensors["styles"], up=2, padding=1, impl="fastest"
    )
    assert repr(small.entry) in text


def test_the_faster_convolution_is_proposed_as_an_entry_of_its_table(tmp_path):
    case = doubling(lambda x: {"y": 2 * x}, entry="same 8>8 @4 N=1 float32 NCHW")
    times = {"today": 9.0, "cudnn": 10.0, "triton": 5.0}
    last = None

    def candidate(name):
        def run(x):
            nonlocal last
            last = name
            return {"y": 2 * x}

        return run

    def stopwatch(run, repetitions):
        run(0)
        return [times[last]] * repetitions

    case = replace(
        case, run=candidate("today"),
        candidates=lambda: [(Choice(case.entry, name), candidate(name)) for name in ("cudnn", "triton")],
    )  # fmt: skip
    found = tuning.tuned(case, CPU, 0, 1, stopwatch)
    report = Report(tmp_path, {})
    report.add("tuning", "layer", found)
    # what has no rival has not won
    failed = {"table": "down 8>8", "candidates": {"today": {"us": 1.0}, "cudnn": {"us": 1.0}, "triton": {"error": "no"}}}
    report.add("tuning", "failed", failed)
    written = json.loads((tmp_path / "results.json").read_text())
    assert written["backends"] == {case.entry: {"name": "triton", "of the other": 0.5}} and written["proposed"] == {}
    assert f'`"{case.entry}": "triton",` | 0.50 |' in (tmp_path / "results.md").read_text()


def measured(us, bytes=10**9, **rivals):
    times = {"us": us, "low_us": us, "high_us": us, "repetitions": 20, "dtype": "float16"}
    return times | {"bytes": bytes, "flops": 0, "rivals": {name: {"us": t} for name, t in rivals.items()}}


RESULTS = {
    "checks": {"a": {"wrong": [], "errors": {}}, "b": {"wrong": ["y errs by 1, allowed 0.001"], "errors": {}}},
    "ceilings": {"copy": {"us": 1000.0, "bytes": 10**9}},
    "kernels": {
        "bias_act forward lrelu 128@256 N=32 float16 NHWC": measured(1040.0),
        "bias_act gradient lrelu 128@256 N=32 float16 NHWC": measured(1100.0),
        # too small to judge
        "bias_act forward lrelu 8@8 N=1 float16 NHWC": measured(10.0, bytes=10**3),
        "convolution forward 128@256 N=32 float16 NHWC": measured(100.0, cudnn=70.0),
        "convolution forward with tail 128@256 N=32 float16 NHWC": measured(90.0, cudnn=100.0),
        "upfirdn2d forward 4 taps up 3@256 N=32 float32 NCHW": {"error": "RuntimeError: broken"},
    },
    "networks": {"G 256 N=32": {"fastest eager": {"us": 70.0}, "nvidia eager": {"us": 100.0}, "reference eager": {"us": 200.0}}},
    "start-up": {"CPU per call": {"bias_act": {"us": 14.0}, "seconds": 1.0}, "first steps": {"cold, compiled ahead": {"s": 25.0}, "warm": {"s": 1.0}}},
}  # fmt: skip


def test_verdicts_say_what_is_met_missed_and_not_measured():
    found = {v.about: v for v in acceptance.verdicts(RESULTS)}
    assert found["right: near float64, wholly written, the same bits again"].must == "missed"
    bias_act = found["bias_act, forward and gradient"]
    # 1000 / 1100 of a copy: enough, but not what is wanted
    assert (bias_act.must, bias_act.want) == ("met", "missed")
    assert "2 of 2; worst 0.91, bias_act gradient" in bias_act.words
    convolution = found["convolution and data gradient, of cuDNN, from 128 channels and 32 x 32"]
    assert convolution.must == "missed" and "worst 0.70" in convolution.words
    assert found["convolution and tail, of cuDNN and the tail's kernel"].must == "met"
    assert found["filters, NCHW, fp32"].must == "not measured"
    assert found["G, forward and backward, of NVIDIA's"].must == "met"
    assert found["D, forward and backward, of NVIDIA's"].must == "not measured"
    assert found["CPU, bias_act"].must == "met"
    assert (found["start, cold, compiled ahead"].must, found["start, warm"].must) == ("missed", "met")


def test_nothing_measured_is_nothing_met():
    assert {v.must for v in acceptance.verdicts({})} == {"not measured"}
    skipped = {part: {"x": {"skipped": "the time of this part was over"}} for part in plan.PARTS}
    assert {v.must for v in acceptance.verdicts(skipped)} == {"not measured"}


def test_results_are_on_disk_after_each_of_them(tmp_path):
    report = Report(tmp_path / "out", {"gpu": "a fake | one", "seed": 5})
    for part, results in RESULTS.items():
        for name, result in results.items():
            report.add(part, name, result)
            written = json.loads((tmp_path / "out" / "results.json").read_text())
            assert written["parts"][part][name] == result and written["seed"] == 5
    text = (tmp_path / "out" / "results.md").read_text()
    for words in ("a fake / one", "y errs by 1", "RuntimeError: broken", "0.91", "| G 256 N=32 |"):
        assert words in text, words
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"results.json", "results.md"}
    assert not report.right and "missed" in summary(report) and "certify" not in summary(report)


def test_all_checks_passed_is_worth_confirming(tmp_path):
    report = Report(tmp_path, {})
    report.add("checks", "a", {"wrong": [], "errors": {}})
    assert report.right and "certify" in summary(report)
    report.add("checks", "b", {"skipped": "the time of this part was over"})
    assert "certify" not in summary(report)


def test_a_part_that_ends_early_leaves_its_time_to_the_next():
    until = dict(plan.schedule(["tuning", "checks", "ceilings"], 100.0, 151.0))
    assert list(until) == ["checks", "ceilings", "tuning"]
    assert until == {"checks": 140.0, "ceilings": 145.0, "tuning": 151.0}


ITEMS = '''
import os
import time
from pathlib import Path


def fail():
    raise ValueError("no such tile")


def hang():
    Path(__file__).with_name("hanging").write_text(str(os.getpid()))
    time.sleep(600)


def opened(reason):
    if reason == "broken":
        raise OSError("no GPU today")
    steps = []

    def good():
        steps.append(0)
        return {"of this process": len(steps)}

    items = {"good": good, "fails": fail, "dies": lambda: os._exit(3), "hangs": hang}
    # after a failure, the process is no good
    return {name: items[name.split()[0]] for name in reason}, lambda: reason != ("fails", "good")
'''


@pytest.fixture
def opened(tmp_path, monkeypatch):
    (tmp_path / "crashing.py").write_text(ITEMS)
    monkeypatch.syspath_prepend(str(tmp_path))
    from crashing import opened

    yield opened
    del sys.modules["crashing"]


def isolated(opened, *names, until=1e9, end=1e9, limit_s=60.0, workers=1, reason=None, clock=time.monotonic):
    found = isolation.results(
        opened, (reason or names,), names, until=until, end=end, limit_s=limit_s, workers=workers, clock=clock
    )
    return {name: {k: v for k, v in result.items() if k != "seconds"} for name, result in found}


def test_what_crashes_takes_nothing_with_it(opened):
    found = isolated(opened, "good 1", "dies", "good 2", "fails", "good 3")
    assert found == {
        "good 1": {"of this process": 1},
        "dies": {"error": "its process died, with exit code 3"},
        "good 2": {"of this process": 1},
        "fails": {"error": "ValueError: no such tile"},
        # that failure did the process no harm
        "good 3": {"of this process": 2},
    }


def test_what_hangs_is_stopped(opened):
    found = isolated(opened, "hangs", "good", limit_s=2.0)
    assert found == {"hangs": {"error": "stopped: it took more than 2 s"}, "good": {"of this process": 1}}


def test_an_unsound_process_is_left(opened):
    assert isolated(opened, "fails", "good")["good"] == {"of this process": 1}


def test_time_that_is_over_skips_what_waits(opened):
    found = isolated(opened, "good 1", "good 2", until=0.0)
    assert found == dict.fromkeys(("good 1", "good 2"), {"skipped": "the time of this part was over"})


def test_time_that_is_over_stops_what_runs(opened, tmp_path):
    def clock():
        """Half a second passes while the item hangs, and none before."""
        return 0.5 * (tmp_path / "hanging").exists()

    found = isolated(opened, "hangs", "good", until=0.2, end=0.4, clock=clock)
    assert found["hangs"] == {"error": "stopped: the time of the run was over"} and "skipped" in found["good"]


def test_several_processes_share_the_items(opened):
    found = isolated(opened, *(f"good {i}" for i in range(5)), "dies", workers=2)
    assert len(found) == 6 and "error" in found["dies"] and sum("error" in r for r in found.values()) == 1


def test_a_process_that_cannot_start_is_told_for_every_item(opened):
    found = isolated(opened, "good 1", "good 2", workers=2, reason="broken")
    assert found == dict.fromkeys(("good 1", "good 2"), {"error": "OSError: no GPU today"})


def test_says_what_is_no_checkout_of_nvidias(tmp_path):
    with pytest.raises(ValueError, match="expected a checkout of stylegan3"):
        nvidia.use(tmp_path)


KILLED = """
from bench.gpu import isolation
from crashing import opened

if __name__ == "__main__":
    list(isolation.results(opened, (("hangs",),), ["hangs"], until=1e9, end=1e9, limit_s=600))
"""


def test_a_run_that_is_killed_leaves_no_process_behind(tmp_path, opened):
    (tmp_path / "killed.py").write_text(KILLED)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)])}
    run = subprocess.Popen([sys.executable, str(tmp_path / "killed.py")], env=environment)
    hanging = tmp_path / "hanging"
    within(60, lambda: hanging.exists() and hanging.read_text())
    run.kill()
    run.wait()
    within(60, lambda: not alive(int(hanging.read_text())))


def within(seconds, holds):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def alive(pid):
    """Whether a process runs, and is not merely waiting for its end to be noticed."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


WITHOUT_THE_TRAINER = """
import runpy, sys
sys.modules |= dict.fromkeys(["pydantic", "deepspeed", "yaml", "PIL", "safetensors", "click", "pytest", "pytest_benchmark"])
sys.argv = ["bench.gpu", "--out", sys.argv[1]]
runpy.run_module("bench.gpu", run_name="__main__", alter_sys=True)
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_and_needs_no_trainer(tmp_path):
    environment = {key: value for key, value in os.environ.items() if key not in ("TRITON_INTERPRET", "PYTHONPATH")}
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT_THE_TRAINER, str(tmp_path / "out")],
        cwd=ROOT, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 2 and "sees no CUDA GPU" in run.stderr and "bench.static" in run.stderr
    assert not (tmp_path / "out").exists()
