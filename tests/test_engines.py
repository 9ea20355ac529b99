"""DeepSpeed's engines against plain PyTorch on one process, in every ZeRO stage and precision, on one rank and on two: StyleGAN2, through the
gradients of gradients that R1 and path length take, and BigGAN, whose batches come in passes and whose statistics meet between the ranks; each
guided by a teacher, frozen or learning."""

import math
import os
from collections import defaultdict
from contextlib import ExitStack, contextmanager
from itertools import cycle, product
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch

from fastdgl import config as configs
from fastdgl.assembly import assemble
from fastdgl.checkpoints import open_snapshot
from fastdgl.engines import Run, average_over_ranks, end_run, first_rank_decides, make_engine, start_run
from fastdgl.latents import Latents
from fastdgl.train import Progress, iterate

import tiny_networks
from numerics import assert_same_to_rounding, nudge
from ranks import finish, fork, free_port, join, on_ranks

ITERATIONS = 4
CLASSES = 4
# by iteration, the network whose gradients overflow on one rank
OVERFLOWS = {1: "G", 3: "D"}
ZERO_STAGES = (0, 1, 2, 3)
# the seeds of two runs whose first weights are nudged
NUDGES = (0, 1)
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
TEACHERS = ("frozen", "updated")

FAMILIES = {
    "stylegan2": {
        "model": tiny_networks.STYLEGAN2 | {"channels": 1, "conditional": True},
        "loss": {"r1_gamma": 0.1, "r1_interval": 2, "path_length_interval": 2},
        "train": {"batch": 8, "ema_kimg": 0.02},
    },
    "biggan": {
        "model": tiny_networks.BIGGAN | {"channels": 1, "generator_ch": 2, "discriminator_ch": 2, "shared_dim": 4, "attention": 16},
        "loss": {"orthogonal_weight": 1e-4},
        # a bias before a batch norm has no gradient but what rounding leaves, and a small eps makes whole steps of that
        "optimizer": {"generator": {"lr": 1e-3, "eps": 1e-3}, "discriminator": {"lr": 1e-3, "eps": 1e-3}},
        "train": {"batch": 16, "generator_batch": 8, "accumulate_discriminator": 2, "accumulate_generator": 2,
                  "ema_decay": 0.9, "ema_start": 1},
    },
}


def tiny(family="stylegan2", teachers=(), **engine) -> configs.Config:
    guidance = {"weight": 0.5, "teachers": [{"checkpoint": checkpoint, "mode": mode} for checkpoint, mode in teachers]}
    return configs.from_dict({"images": {"path": "digits"}, "engine": engine, "guidance": guidance} | FAMILIES[family], "tiny")


@contextmanager
def everything_whole(student):
    """All networks of which ZeRO 3 leaves each rank a part."""
    with ExitStack() as stack:
        for engine in student.engines.values():
            stack.enter_context(engine.whole())
        for teacher in frozen(student):
            if hasattr(next(teacher.parameters()), "ds_id"):
                import deepspeed
                stack.enter_context(deepspeed.zero.GatheredParameters(teacher.parameters()))
        yield


def frozen(student):
    """The teachers that are in no engine."""
    return [teacher for teacher in student.gan.guide.discriminators if all(teacher is not engine.module for engine in student.engines.values())]


def numbers(network) -> dict[str, int]:
    """How many parameters `network` has whole on this rank, how many as parts, and how many it has in all."""
    parameters = list(network.parameters())
    return {"whole": sum(p.numel() for p in parameters), "parts": sum(p.ds_tensor.numel() for p in parameters),
            "all": sum(p.ds_numel for p in parameters), "tensors": len(parameters)}


def parts(student) -> dict[str, torch.Tensor]:
    """The parameters of each part as one fp32 vector. Those of the mapping networks are a hundred times larger, and would hide the others."""
    parameters = defaultdict(list)
    networks = {name: engine.module for name, engine in student.engines.items()} | {"G_ema": student.average, "D_ema": student.average_D}
    with everything_whole(student):
        for network, module in networks.items():
            for name, parameter in module.named_parameters():
                part = f"{network}.mapping" if name.startswith("mapping.") else f"{network}.rest"
                parameters[part].append(parameter.detach().float().flatten())
    return {part: torch.cat(some) for part, some in parameters.items()}


class Losses(defaultdict):
    """The means of what the steps record, in order, by name: a journal."""

    def record(self, name, values):
        if name.startswith("Loss/") and "/scores/" not in name and "/signs/" not in name:
            self[name].append(float(values.detach().float().mean()))


def overflow_once(engine, rank):
    """Infinity in the gradients of the next backward, on one rank alone."""
    backward = engine.backward

    def overflowing(loss, last=True):
        engine.backward = backward
        backward(loss * math.inf if rank == 1 else loss, last)

    engine.backward = overflowing


# with a kink, a unit within rounding of zero takes another side on one rank than on two, and that makes another step
@patch.object(torch.nn.functional, "relu", torch.nn.functional.softplus)
def train(config: configs.Config, run, overflows=None, nudged=None) -> dict:
    """Some iterations of training with both regularizers: where it began, the losses, and where it ended.

    Args:
        overflows: By iteration, the network whose first gradient of it becomes infinite on rank 1.
        nudged: Seed by which the first weights of all networks are nudged.
    """
    model = config.model
    dataset = SimpleNamespace(resolution=model.resolution, channels=1, label_dim=CLASSES, class_names=None, label_kind="classes")
    student = assemble(config, dataset, run, resumed=False)
    if nudged is not None:
        for network in [*student.networks.values(), *student.gan.guide.discriminators]:
            nudge(network.parameters(), nudged)
    latents = Latents(0, torch.arange(CLASSES), run.device, run.rank, run.world_size, CLASSES)
    N = config.train.batch // run.world_size
    images = ((latents.normal([N, 1, model.resolution, model.resolution]), latents.classes(N)) for _ in iter(int, 1))
    progress, losses, history = Progress(seen=0), Losses(list), [parts(student)]
    for i in range(ITERATIONS):
        if name := (overflows or {}).get(i):
            overflow_once(student.engines[name], run.rank)
        iterate(student, images, latents, config, run.world_size, progress, losses)
        history.append(parts(student))
    networks = student.networks | {f"teacher{i}": teacher for i, teacher in enumerate(student.gan.guide.discriminators)}
    with everything_whole(student):
        state = {f"{name}.{key}": value.clone() for name, network in networks.items() for key, value in network.state_dict().items()}
    return {
        "history": history,
        "losses": {name: torch.tensor(values) for name, values in losses.items()},
        "state": state,
        "path_length_mean": student.gan.path_length_mean,
        "numbers": {name: numbers(networks[name]) for name in ("G", "D", "teacher0")} if config.engine.shards_parameters else {},
        # by network, how many steps were skipped, and the loss scale in the end
        "overflow": {name: (engine.engine.skipped_steps, float(engine.engine.optimizer.loss_scale)) for name, engine in student.engines.items()
                     if config.engine.precision == "fp16"},
    }


WAYS = list(product(FAMILIES, TEACHERS, ZERO_STAGES, PRECISIONS))
# twelve of the forty-eight, in which any two of family, teacher, stage and precision meet
SOME = [(family, teacher, stage, precision) for (stage, precision), (teacher, family)
        in zip(product(ZERO_STAGES, PRECISIONS), cycle(product(TEACHERS, FAMILIES)))]
REST = [way for way in WAYS if way not in SOME]
# how far a loss may be from plain PyTorch's, relative to the largest of its name or to 1
TOLERANCE = {"fp32": 1e-5, "fp16": 0.02, "bf16": 0.15}


def config_of(folder: Path, family, teacher, stage=0, precision="fp32", **engine) -> configs.Config:
    return tiny(family, [(str(folder / family / "teacher.safetensors"), teacher)], zero_stage=stage, precision=precision,
                # DeepSpeed leaves parameters as small as these whole
                zero_options={"stage3_param_persistence_threshold": 0}, **engine)


def train_in_ways(run, folder: Path, ways) -> dict:
    from deepspeed.accelerator import get_accelerator
    # DeepSpeed asks whether this CPU multiplies in fp16; our networks do that in fp32, and only keep parameters in it
    get_accelerator().is_fp16_supported = lambda: True
    return {way: train(config_of(folder, *way), run) for way in ways}


def train_by_plain_pytorch(run: Run, folder: Path) -> None:
    """One of two ranks."""
    results = {family: train(config_of(folder, family, "frozen", kind="torch"), run) for family in FAMILIES}
    without = config_of(folder, "biggan", "frozen", kind="torch")
    without = without.model_copy(update={"model": without.model.model_copy(update={"sync_batchnorm": False})})
    results["unsynchronised"] = train(without, run)
    torch.save(results, folder / f"plain{run.rank}.pt")
    end_run()


def train_in_some_ways(run: Run, folder: Path) -> None:
    """One of two ranks, which also tries what needs two: overflow on one of them, errors of one of them."""
    results = train_in_ways(run, folder, SOME)
    for stage in ZERO_STAGES:
        results["overflow", stage] = train(config_of(folder, "stylegan2", "updated", stage, "fp16"), run, OVERFLOWS)
    # stages 1 and 2 are one optimizer of DeepSpeed's, and have this from the same place as 3
    for stage in (0, 3):
        results["huge", stage] = train(config_of(folder, "stylegan2", "updated", stage, "fp16", initial_scale_power=24), run)
    results["error"] = error_on_the_first_rank(run)
    torch.save(results, folder / f"{run.rank}.pt")
    end_run()


def train_in_the_other_ways(process: int, port: int, folder: Path) -> None:
    """Two processes train together in the ways that are left, and a third alone in all."""
    run = join(0, 1, port) if process == 2 else join(process, 2, port)
    torch.save(train_in_ways(run, folder, WAYS if process == 2 else REST), folder / f"{process}.pt")
    end_run()


def error_on_the_first_rank(run) -> str:
    def refuse():
        assert run.rank == 0, "only rank 0 performs the action"
        raise ValueError("no")

    try:
        first_rank_decides(refuse)
    except ValueError as error:
        mean = torch.tensor([float(run.rank)])
        average_over_ranks([mean])
        return f"{error} {first_rank_decides(lambda: run.rank)} {float(mean)}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """With a teacher of each family."""
    folder = tmp_path_factory.mktemp("results")
    for family, settings in FAMILIES.items():
        tiny_networks.save(folder / family / "teacher.safetensors", settings["model"], CLASSES, None)
    return folder


class Alone(dict):
    """By family and teacher, what `train` gives by plain PyTorch on one process: as it is, and with each nudge."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __missing__(self, key):
        os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
        run = start_run()
        self[key] = [train(config_of(self.folder, *key, kind="torch"), run, nudged=nudged) for nudged in (None, *NUDGES)]
        end_run()
        return self[key]


@pytest.fixture(scope="module")
def alone(folder) -> Alone:
    return Alone(folder)


@pytest.fixture(scope="module")
def plain(folder) -> list[dict]:
    """What `train` gives by plain PyTorch, for each of two ranks."""
    on_ranks(2, train_by_plain_pytorch, folder)
    return [torch.load(folder / f"plain{rank}.pt") for rank in range(2)]


@pytest.fixture(scope="module")
def some(folder) -> list[dict]:
    """What `train` gives, for each of two ranks."""
    on_ranks(2, train_in_some_ways, folder)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.fixture(scope="module")
def rest(folder) -> list[dict]:
    """What `train` gives, for each of two ranks and for a process alone."""
    port = free_port()
    finish([fork(train_in_the_other_ways, process, port, folder) for process in range(3)])
    return [torch.load(folder / f"{process}.pt") for process in range(3)]


def case(way, ranks):
    """A parameter `way, ranks`; those that few tests see are slow."""
    family, teacher, stage, precision = way
    return pytest.param(way, ranks, id=f"{family}-{teacher}-zero{stage}-{precision}-{ranks}rank",
                        marks=[] if way in SOME and ranks == 2 else pytest.mark.slow)


@pytest.fixture
def results(request, way, ranks) -> list[dict]:
    """What `train` gave in this way, on each rank."""
    if ranks == 1:
        return [request.getfixturevalue("rest")[2][way]]
    return [result[way] for result in request.getfixturevalue("some" if way in SOME else "rest")[:2]]


on_two_ranks = pytest.mark.parametrize(("way", "ranks"), [case(way, 2) for way in WAYS])
in_every_way = pytest.mark.parametrize(("way", "ranks"), [case(way, ranks) for ranks in (2, 1) for way in WAYS])


def same_to_the_bit(first: dict, second: dict) -> bool:
    """Networks, their average, the teacher, and the losses' memory."""
    assert first["state"].keys() == second["state"].keys()
    return all(torch.equal(first["state"][name], second["state"][name]) for name in first["state"]) and \
        torch.equal(first["path_length_mean"], second["path_length_mean"])


@on_two_ranks
def test_the_ranks_hold_the_same_networks_to_the_bit(results, way):
    assert same_to_the_bit(*results)


def assert_same_as_alone(got: dict, alone: dict, family: str, teacher: str, of) -> None:
    """`got` is what plain PyTorch gives on one process, to rounding, in what `of` takes from a run."""
    truth, *nudged = map(of, alone[family, teacher])
    assert_same_to_rounding(got, truth, nudged)


def last(result: dict) -> dict:
    return result["history"][-1]


def by_kind(result: dict) -> dict:
    """A run's tensors of one network and kind as one vector: biases before a batch norm, whose gradients are rounding, among the others."""
    kinds = defaultdict(list)
    for name, value in result["state"].items():
        kinds[name.split(".")[0], name.split(".")[-1]].append(value.flatten())
    return {f"{network} {kind}": torch.cat(values) for (network, kind), values in kinds.items()}


@in_every_way
def test_the_losses_are_those_of_plain_pytorch_on_one_process(results, way, alone):
    family, teacher, _, precision = way
    got = {name: torch.stack([result["losses"][name] for result in results]).mean(dim=0) for name in results[0]["losses"]}
    if precision == "fp32":
        return assert_same_as_alone(got, alone, family, teacher, lambda result: result["losses"])
    for name, truth in alone[family, teacher][0]["losses"].items():
        difference = float((got[name] - truth).abs().max() / truth.abs().max().clamp(min=1))
        assert difference < TOLERANCE[precision], f"{name}: {difference:.2g}"


@in_every_way
def test_every_zero_stage_and_precision_trains_as_plain_pytorch_does(results, way, alone):
    family, teacher, _, name = way
    precision = PRECISIONS[name]
    expected, got = alone[family, teacher][0]["history"], results[0]["history"]
    if name == "fp32":
        assert_same_as_alone(got[-1], alone, family, teacher, last)
    for part, truth in expected[-1].items():
        difference = float((got[-1][part] - truth).norm() / truth.norm())
        if "_ema." not in part:
            assert torch.equal(got[-1][part], got[-1][part].to(precision).float()), part
        moved = float((truth - expected[0][part]).norm() / truth.norm())
        # what is stored in 16 bits is rounded, and steps are shorter than the way gone
        assert name == "fp32" or difference < torch.finfo(precision).eps + moved, part
        # and it has moved the same way: one that stands still has nothing in common with it. The mapping networks' parameters
        # are so large that 16 bits do not show so few steps, which their masters keep
        if name != "fp32" and part.endswith("mapping"):
            continue
        steps_taken = torch.stack([truth - expected[0][part], got[-1][part] - got[0][part]])
        assert float(torch.corrcoef(steps_taken)[0, 1]) > (0.999 if name == "fp32" else 0.7), part


@in_every_way
def test_a_frozen_teacher_stays_and_a_learning_one_does_not(results, way, folder):
    family, teacher, _, precision = way
    before = open_snapshot(folder / family / "teacher.safetensors").state_dict("D")
    # in the precision of the engine that a learning one is in
    same = [torch.equal(results[0]["state"][f"teacher0.{name}"].float(), value) for name, value in before.items()]
    assert all(same) == (teacher == "frozen")


@pytest.mark.parametrize(("way", "ranks"), [case(way, 2) for way in WAYS if way[2] == 3])
def test_between_steps_a_rank_of_zero_3_keeps_its_part_of_every_parameter(results, way):
    for result in results:
        for name, kept in result["numbers"].items():
            # a part is rounded up to whole numbers
            assert kept["whole"] == 0 and kept["parts"] <= kept["all"] / 2 + kept["tensors"] / 2, name


@pytest.mark.parametrize("family", FAMILIES)
def test_two_ranks_of_plain_pytorch_train_as_one_does(plain, alone, family):
    together = plain[0][family]
    assert_same_as_alone(last(together), alone, family, "frozen", last)
    assert_same_as_alone(by_kind(together), alone, family, "frozen", by_kind)
    began, ended = (alone[family, "frozen"][0]["history"][i] for i in (0, -1))
    for part in ended:
        assert (ended[part] - began[part]).norm() > 100 * (last(together)[part] - ended[part]).norm(), part


def test_statistics_of_each_rank_s_own_batches_become_one(plain):
    """And are those of another run than synchronised batches make."""
    first, second = (result["unsynchronised"]["state"] for result in plain)
    assert all(torch.equal(first[name], second[name]) for name in first)
    synchronised = plain[0]["biggan"]["state"]
    assert any(not torch.allclose(first[name], synchronised[name], rtol=1e-2) for name in first if name.endswith("stored_var"))


@pytest.mark.parametrize("stage", ZERO_STAGES)
def test_overflow_on_one_rank_is_skipped_on_both(some, stage):
    first, second = (result["overflow", stage] for result in some)
    assert same_to_the_bit(first, second) and all(value.isfinite().all() for value in first["state"].values())
    assert first["overflow"] == second["overflow"]
    assert {name: skipped for name, (skipped, _) in first["overflow"].items()} == {"G": 1, "D": 1, "teacher0": 0}
    for i, (before, after) in enumerate(zip(first["history"], first["history"][1:])):
        for part in before:
            # the step that overflowed is left out, and no other; the average follows what there is
            assert torch.equal(before[part], after[part]) == (part.split(".")[0] == OVERFLOWS.get(i)), f"{part} in iteration {i}"


@pytest.mark.parametrize("stage", [0, 3])
def test_a_loss_scale_too_large_is_lowered_on_both_ranks_alike(some, stage):
    first, second = (result["huge", stage] for result in some)
    assert same_to_the_bit(first, second) and all(value.isfinite().all() for value in first["state"].values())
    assert first["overflow"] == second["overflow"]
    for name, (skipped, scale) in first["overflow"].items():
        assert skipped > 0 and scale < 2.0**24, name
    # the steps that fit into fp16 again are taken
    assert not torch.equal(first["history"][0]["D.rest"], first["history"][-1]["D.rest"])


def test_what_the_first_rank_finds_is_known_to_all(some):
    assert [result["error"] for result in some] == ["no 0 0.5"] * 2


def test_overflow_in_a_gradient_is_bounded_where_blocks_compute_in_16_bits():
    config = tiny(kind="torch")
    mixed = config.model_copy(update={"model": config.model.model_copy(update={"num_fp16_res": 1})})
    overflowed = torch.tensor([[float("nan"), float("inf"), -float("inf"), 2.0]])
    for settings, expected in ((mixed, torch.tensor([[0.0, 1e5, -1e5, 2.0]])), (config, overflowed)):
        engine = make_engine(torch.nn.Linear(4, 1, bias=False), config.optimizer.generator, 0, settings, run=None)
        engine.backward((engine.module.weight * overflowed).sum())
        assert torch.equal(engine.module.weight.grad.nan_to_num(7.0), expected.nan_to_num(7.0))
