"""Adam in every implementation, under every engine: a checkpoint of one goes on under any other. NVIDIA's apex is a stand-in, written for these tests."""

from itertools import cycle, product
from pathlib import Path

import pytest
import torch
from torch import nn

from fastdgl import config as configs
from fastdgl.doctor import programs
from fastdgl.engines import check_state, end_run, make_engine
from fastdgl.engines.optimizers import apex_found, check_implementation

from ranks import on_ranks
from stand_ins import STAND_IN, apex_in
from test_engine_states import allow_fp16
from tiny_runs import TINY, dump, refusal, train

IMPLEMENTATIONS = ("auto", "foreach", "fused", "apex")
STEPS = 3
# stages 1 and 2 are one optimizer of DeepSpeed's, which needs each precision once
ENGINES = {"torch": {"kind": "torch"}} | {f"zero{stage}-{precision}": {"zero_stage": stage, "precision": precision} for stage, precision in (
    (0, "fp32"), (0, "bf16"), (0, "fp16"), (1, "fp32"), (1, "bf16"), (2, "fp32"), (2, "fp16"), (3, "fp16"))}
ENGINES["zero3-fp16"]["zero_options"] = {"stage3_param_persistence_threshold": 0}
# Adam steps the parts of all parameters one after the other
ENGINES["zero3-parts"] = {"zero_stage": 3, "zero_options": {"stage3_param_persistence_threshold": 0, "sub_group_size": 4}}
LR, BETA1, BETA2, EPS = 0.01, 0.5, 0.9, 1e-8


class Small(nn.Module):
    """Parameters of sizes that no alignment divides, among them one of no dimension."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight, self.bias, self.strength = (nn.Parameter(torch.randn(shape, generator=generator)) for shape in ([5, 3], [3], []))


def config_of(engine: str, implementation: str) -> configs.Config:
    adam = {"lr": LR, "beta1": BETA1, "beta2": BETA2, "eps": EPS}
    return configs.from_dict(TINY | {"engine": ENGINES[engine], "optimizer": {"implementation": implementation, "generator": adam}}, "test")


def engine_of(engine: str, implementation: str, run):
    config = config_of(engine, implementation)
    return make_engine(Small(), config.optimizer.generator, 0, config, run)


def gradients(step: int) -> dict[str, torch.Tensor]:
    """Those of a step, which 16 bits hold too."""
    generator = torch.Generator().manual_seed(step)
    return {name: torch.randint(-64, 64, shape, generator=generator) / 64 for name, shape in (("weight", [5, 3]), ("bias", [3]), ("strength", []))}


def step(engine, number: int, factor: float = 1.0) -> None:
    with engine.whole():
        engine.backward(sum((p * gradients(number)[name].to(p.dtype)).sum() for name, p in engine.module.named_parameters()) * factor)
    engine.step()


def train_and_move(run, folder: Path) -> None:
    """With each engine: train under each implementation, and load what was saved into each other, and into other engines."""
    allow_fp16()
    results = {}
    with apex_in():
        for name in ENGINES:
            engines = {implementation: engine_of(name, implementation, run) for implementation in IMPLEMENTATIONS}
            for implementation, engine in engines.items():
                results[name, implementation, "begin"] = engine.state_dict()
                for number in range(STEPS):
                    step(engine, number)
                results[name, implementation] = engine.state_dict()
                step(engine, STEPS)
                results[name, implementation, "on"] = engine.state_dict()
            # an engine that has trained is as good as a new one
            for saved, loaded in product(IMPLEMENTATIONS, repeat=2):
                engines[loaded].load_state_dict(results[name, saved])
                results[name, saved, loaded] = engines[loaded].state_dict()
                step(engines[loaded], STEPS)
                results[name, saved, loaded, "on"] = engines[loaded].state_dict()
            engines["apex"].load_state_dict(results[name, "foreach", "begin"])
            for number in range(STEPS):
                step(engines["apex"], number)
            results[name, "apex", "again"] = engines["apex"].state_dict()
            if name.endswith("fp16"):
                for implementation, engine in engines.items():
                    before = engine.state_dict()
                    step(engine, 0, factor=float("nan") if run.rank == 0 else 1.0)
                    results[name, implementation, "overflow"] = before, engine.state_dict(), engine.skipped_steps
    if run.rank == 0:
        torch.save(results, folder / f"{run.world_size}.pt")
    end_run()


def load_elsewhere(run, folder: Path) -> None:
    """What two ranks have saved, into every engine under another implementation."""
    allow_fp16()
    saved, results = torch.load(folder / "2.pt"), {}
    others = cycle(product(("torch", "zero1-fp32", "zero3-parts", "zero0-fp16", "zero1-bf16", "zero3-fp16"), IMPLEMENTATIONS))
    with apex_in():
        for (name, implementation), (other, its) in zip(product(ENGINES, IMPLEMENTATIONS), others):
            if ENGINES[name].get("precision", "fp32") == ENGINES[other].get("precision", "fp32"):
                engine = engine_of(name, implementation, run)
                engine.load_state_dict(saved[other, its])
                results[name, implementation, other, its] = engine.state_dict()
    torch.save(results, folder / "elsewhere.pt")
    end_run()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("optimizers")
    on_ranks(2, train_and_move, folder)
    return folder


@pytest.fixture(scope="module")
def results(folder):
    return torch.load(folder / "2.pt")


def same(a, b) -> bool:
    return a["parameters"].keys() == b["parameters"].keys() and a["moments"].keys() == b["moments"].keys() and \
        all(torch.equal(a["parameters"][name], b["parameters"][name]) for name in a["parameters"]) and \
        all(torch.equal(a["moments"][name][key], b["moments"][name][key]) for name in a["moments"] for key in a["moments"][name])


def in_float64(state, numbers):
    """Further steps from a state, by Adam's formulas."""
    parameters = {name: value.double() for name, value in state["parameters"].items()}
    moments = {name: {key: value.double() for key, value in state["moments"][name].items()} if state["moments"] else
               {key: torch.zeros_like(p) for key in ("step", "exp_avg", "exp_avg_sq")} for name, p in parameters.items()}
    for number in numbers:
        for name, g in gradients(number).items():
            m, g = moments[name], g.double()
            t = m["step"] = m["step"].max() + 1
            m["exp_avg"] = BETA1 * m["exp_avg"] + (1 - BETA1) * g
            m["exp_avg_sq"] = BETA2 * m["exp_avg_sq"] + (1 - BETA2) * g * g
            parameters[name] = parameters[name] - LR * (m["exp_avg"] / (1 - BETA1**t)) / ((m["exp_avg_sq"] / (1 - BETA2**t)).sqrt() + EPS)
    return parameters, moments


def assert_to_rounding(state, expected, steps: int, name: str) -> None:
    """A step rounds some dozen results in turn, none of which is larger than the largest of the parameter, the update and the moment."""
    parameters, moments = expected
    rounding = 16 * steps * torch.finfo(torch.float32).eps
    for key, value in parameters.items():
        error = (state["parameters"][key] - value).abs()
        # an update is at most LR times what the corrections can make of a moment
        assert (error <= rounding * (value.abs() + 10 * LR)).all(), f"{name}: {key}: {float(error.max()):.3g}"
        for moment in ("exp_avg", "exp_avg_sq"):
            error = (state["moments"][key][moment] - moments[key][moment]).abs()
            assert (error <= rounding).all(), f"{name}: {moment} of {key}: {float(error.max()):.3g}"
        assert float(state["moments"][key]["step"]) == float(moments[key]["step"]), f"{name}: step of {key}"


@pytest.mark.parametrize("name", ENGINES)
def test_every_implementation_is_adam(results, name):
    for implementation in IMPLEMENTATIONS:
        begin, state = results[name, implementation, "begin"], results[name, implementation]
        check_state(state)
        # what DeepSpeed's fp16 optimizers make before the first step are zeros
        assert all(float(moments["step"]) == 0 for moments in begin["moments"].values())
        assert_to_rounding(state, in_float64(begin, range(STEPS)), STEPS, implementation)


@pytest.mark.parametrize("name", ENGINES)
def test_a_checkpoint_goes_on_under_every_other_implementation(results, name):
    for saved, loaded in product(IMPLEMENTATIONS, repeat=2):
        assert same(results[name, saved, loaded], results[name, saved]), f"{saved} into {loaded}"
        on = results[name, saved, loaded, "on"]
        assert_to_rounding(on, in_float64(results[name, saved], [STEPS]), 1, f"{saved} into {loaded}")
        if saved == loaded or {saved, loaded} == {"auto", "foreach"}:
            # the same arithmetic
            assert same(on, results[name, saved, "on"]), f"{saved} into {loaded}"


@pytest.mark.parametrize("name", ENGINES)
def test_a_checkpoint_of_before_the_first_step_takes_the_steps_back(results, name):
    assert same(results[name, "apex", "again"], results[name, "apex"])


@pytest.mark.parametrize("name", [name for name in ENGINES if name.endswith("fp16")])
def test_fp16_leaves_out_a_step_that_overflows_under_every_implementation(results, name):
    for implementation in IMPLEMENTATIONS:
        before, after, skipped = results[name, implementation, "overflow"]
        assert skipped == 1 and same(before, after), implementation
        # some lower the scale at once, and others at the second overflow
        before, after, first = before["loss_scale"], after["loss_scale"], results[name, "auto", "overflow"][1]["loss_scale"]
        assert after["last_overflow_iter"] == before["cur_iter"] and after["cur_iter"] == before["cur_iter"] + 1, implementation
        assert (after["cur_scale"], after.get("cur_hysteresis")) == (first["cur_scale"], first.get("cur_hysteresis")), implementation


def test_a_checkpoint_moves_to_another_engine_and_number_of_ranks(results, folder):
    on_ranks(1, load_elsewhere, folder)
    elsewhere = torch.load(folder / "elsewhere.pt")
    assert len(elsewhere) > 10
    for (name, implementation, other, its), state in elsewhere.items():
        assert same(state, results[other, its]), f"{other} {its} into {name} {implementation}"


def test_auto_on_a_cpu_is_torchs_adam_as_it_comes(results):
    module = Small()
    adam = torch.optim.Adam(module.parameters(), lr=LR, betas=(BETA1, BETA2), eps=EPS)
    for number in range(STEPS):
        for name, p in module.named_parameters():
            p.grad = gradients(number)[name]
        adam.step()
    assert all(torch.equal(results["torch", "auto"]["parameters"][name], p) for name, p in module.named_parameters())


def test_apex_steps_parameters_that_have_no_gradient_now_and_then():
    with apex_in():
        engine, truth = (engine_of("torch", implementation, None) for implementation in ("apex", "auto"))
        for number in range(STEPS):
            for one in (engine, truth):
                for name, p in one.module.named_parameters():
                    p.grad = None if name == "bias" and number == 1 else gradients(number)[name].clone()
                kept = [p.grad for p in one.module.parameters()]
                one.optimizer.step()
                assert all(p.grad is grad for p, grad in zip(one.module.parameters(), kept))
    assert {name: float(moments["step"]) for name, moments in engine.state_dict()["moments"].items()} == {"weight": 3, "bias": 2, "strength": 3}
    for name, value in engine.state_dict()["parameters"].items():
        torch.testing.assert_close(value, truth.state_dict()["parameters"][name])


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


NO_GPU = 'class FusedAdam:\n    def __init__(self, *_, **__):\n        raise RuntimeError("No CUDA GPUs are available")\n'
WRONG = {
    "absent": (None, "not installed"),
    "another project": ({"apex/__init__.py": ""}, "is another project than NVIDIA's: it has no apex.optimizers.FusedAdam"),
    "a folder": ({"apex/readme.txt": ""}, "is another project than NVIDIA's: it has no apex.optimizers.FusedAdam"),
    "without extensions": ({"apex/__init__.py": "", "apex/optimizers.py": "class FusedAdam: pass"}, "built without its CUDA extensions: there is no amp_C"),
    "broken": ({"apex/__init__.py": "raise OSError('libcudart.so.11: cannot open')"}, "cannot be imported (libcudart.so.11: cannot open)"),
    "for another torch": ({"apex/__init__.py": "", "apex/optimizers.py": "raise ImportError('undefined symbol')"}, "cannot be imported (undefined symbol)"),
    "without a GPU": ({"apex/__init__.py": "", "apex/optimizers.py": NO_GPU, "amp_C.py": ""}, "cannot step a parameter on cpu (No CUDA GPUs are available)"),
}


@pytest.mark.parametrize("case", WRONG)
def test_an_apex_that_cannot_step_is_said_before_the_run_starts(tmp_path, case):
    files, expected = WRONG[case]
    with apex_in(None if files is None else write(tmp_path, files)):
        with pytest.raises(configs.ConfigError) as error:
            check_implementation(config_of("torch", "apex"), torch.device("cpu"))
    sentence = str(error.value)
    assert sentence.startswith("optimizer.implementation: apex") and expected in sentence and "use " in sentence and "\n" not in sentence


def test_what_steps_here_passes():
    with apex_in():
        for implementation in IMPLEMENTATIONS:
            check_implementation(config_of("torch", implementation), torch.device("cpu"))
        assert apex_found()[0].startswith("NVIDIA's apex of no known version in ")


@pytest.mark.parametrize("value", [-1.0, 0.5, float("nan"), float("inf")])
def test_a_step_that_counts_nothing_is_rejected(value):
    engine = engine_of("torch", "auto", None)
    for p in engine.module.parameters():
        p.grad = torch.ones_like(p)
    engine.step()
    state = engine.state_dict()
    state["moments"]["bias"]["step"] = torch.tensor(value)
    with pytest.raises(ValueError, match="step of bias is .*, expected a whole number"):
        check_state(state)


@pytest.mark.parametrize(("text", "sentence"), [
    ("optimizer: {implementation: adamw}", "optimizer.implementation: expected 'auto', 'foreach', 'fused' or 'apex', got 'adamw'"),
    ("optimizer: {implementation: 1}", "optimizer.implementation: expected 'auto', 'foreach', 'fused' or 'apex', got 1"),
    ("optimizer: {implementatoin: fused}", "optimizer.implementatoin: there is no such key; did you mean implementation?"),
    ("engine: {zero_options: {offload_optimizer: {device: cpu}}}", "engine.zero_options: offload_optimizer works with DeepSpeed's own Adam alone"),
    ("engine: {zero_options: {cpu_offload: true}}", "engine.zero_options: offload_optimizer works with DeepSpeed's own Adam alone"),
])
def test_what_no_engine_carries_is_said_when_the_config_is_read(tmp_path, text, sentence):
    path = tmp_path / "config.yaml"
    path.write_text(f"images: {{path: digits}}\nmodel: {{resolution: 32}}\n{text}\n")
    with pytest.raises(configs.ConfigError) as error:
        configs.read(path)
    assert sentence in str(error.value)


def test_offload_that_is_switched_off_is_left_to_deepspeed(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("images: {path: digits}\nmodel: {resolution: 32}\nengine: {zero_options: {offload_optimizer: {device: none}}}\n")
    assert configs.read(path)[0].engine.zero_options == {"offload_optimizer": {"device": "none"}}


def test_a_run_under_a_missing_apex_ends_before_it_makes_a_folder(tmp_path):
    path = tmp_path / "config.yaml"
    stages = {"first": {}, "second": {"optimizer": {"implementation": "apex"}}}
    path.write_text(dump(TINY | {"outdir": str(tmp_path / "runs"), "stages": stages}))
    with apex_in(None):
        sentence = refusal("--config", path)
    assert sentence.startswith("Error: optimizer.implementation: apex needs NVIDIA's apex with its CUDA extensions, which is not installed; ")
    assert not (tmp_path / "runs").exists()


def test_a_run_goes_on_under_another_implementation_and_the_doctor_names_the_apex(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(dump(TINY | {"outdir": str(tmp_path / "runs")}))
    with apex_in():
        output = train("--config", path, "train.kimg=0.016", "optimizer.implementation=foreach")
        assert "fp32, Adam by torch's foreach" in output
        output = train("--resume", tmp_path / "runs" / "00000-tiny", "train.kimg=0.032", "optimizer.implementation=apex")
        assert "fp32, Adam by apex" in output
        assert [finding.value for finding in programs() if finding.name == "apex"] == [f"NVIDIA's apex of no known version in {STAND_IN / 'apex'}"]
    with apex_in(None):
        said, = [finding.value for finding in programs() if finding.name == "apex"]
    assert said == "not installed; for optimizer.implementation: apex, install NVIDIA's from github.com/NVIDIA/apex"
