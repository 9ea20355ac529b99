"""What an engine saves is whole: the same engine goes on bit for bit, and any other, on any number of ranks, as closely as it trains."""

from pathlib import Path

import pytest
import torch

from fastdgl import checkpoints, config as configs, steps
from fastdgl.assembly import assemble
from fastdgl.engines import end_run
from fastdgl.images import ImageDataset
from fastdgl.latents import Latents

from numerics import assert_same_to_rounding, nudge
from ranks import on_ranks
from tiny_runs import TINY, same

ENGINES = {"torch": {"kind": "torch"}} | {f"zero{stage}-{precision}": {"zero_stage": stage, "precision": precision}
                                          for stage in (0, 1, 2, 3) for precision in ("fp32", "bf16", "fp16")}
for name in ENGINES:
    if name.startswith("zero3"):
        # so that these small networks are scattered at all
        ENGINES[name]["zero_options"] = {"stage3_param_persistence_threshold": 0}
# each of the ways in which an engine keeps what it trains
SOME = ("torch", "zero0-fp16", "zero2-fp32", "zero3-fp32")
# saved by, and loaded into; the oracle last
PAIRS = [("torch", "zero1-fp32"), ("zero2-fp32", "zero0-fp32"), ("zero2-fp32", "torch"), ("zero3-fp32", "torch"), ("torch", "zero3-fp32"), ("torch", "torch")]
# seeds
NUDGES = (0, 1)


class Training:
    """Two networks in engines, with all that they need to train."""

    def __init__(self, engine, run):
        self.config, self.run = configs.from_dict(TINY | {"engine": ENGINES[engine]}, "test"), run
        dataset = ImageDataset("digits", labels=True)
        self.student = assemble(self.config, dataset, run, resumed=False)
        self.latents = Latents(0, torch.from_numpy(dataset.all_labels()), run.device, run.rank, run.world_size, dataset.label_dim)

    def go_on(self):
        gan, loss, N = self.student.gan, self.config.loss, self.config.train.batch // self.run.world_size

        def ignore(name, values):
            pass

        steps.generator_step(gan, self.latents, loss, N, 0, ignore)
        steps.path_length_step(gan, self.latents, loss, N, ignore)
        real, real_c = self.latents.normal([N, 1, 8, 8]), self.latents.classes(N)
        steps.discriminator_step(gan, real, real_c, self.latents, loss, ignore)
        steps.r1_step(gan, real, real_c, loss, self.config.r1_gamma, ignore)

    def save(self, root):
        state = {"student": self.student.state_dict(), "latents": self.latents.state_dict()}
        checkpoints.save_checkpoint(root, self.student.engines, state, 0, keep=1)

    def load(self, root):
        folder, = checkpoints.saved_checkpoints(root)
        state = checkpoints.load_state(folder)
        checkpoints.load_engines(folder, self.student.engines)
        self.student.load_state_dict(state["student"])
        self.latents.load_state_dict(state["latents"])

    def networks(self):
        with self.student.whole():
            return {f"{name}.{key}": value.clone() for name in ("G", "D") for key, value in self.student.networks[name].state_dict().items()}


def allow_fp16():
    """DeepSpeed asks whether this CPU multiplies in fp16; our networks do that in fp32, and only keep parameters in it."""
    from deepspeed.accelerator import get_accelerator
    get_accelerator().is_fp16_supported = lambda: True


def train_save_and_load(run, folder: Path, engines):
    """With each engine: train, save, train on; load into a new one and into the old one, and train on."""
    allow_fp16()
    results = {}
    for name in engines:
        first, second = Training(name, run), Training(name, run)
        first.go_on()
        first.save(folder / name)
        first.go_on()
        whole = first.networks()
        for training, how in ((second, "another"), (first, "the same")):
            training.load(folder / name)
            training.go_on()
            results[name, how] = same(training.networks(), whole)
    torch.save(results, folder / f"{run.rank}.pt")
    end_run()


def load_into_others(run, folder: Path):
    """What some kinds of engines have saved, into others; and into the oracle again, nudged by a seed each."""
    results = {}
    for saved, name, seed in [(*pair, None) for pair in PAIRS] + [(*PAIRS[-1], seed) for seed in NUDGES]:
        training = Training(name, run)
        training.load(folder / saved)
        if seed is not None:
            for network in ("G", "D"):
                nudge(training.student.networks[network].parameters(), seed)
        training.go_on()
        results[saved, name, seed] = training.networks()
    if run.rank == 0:
        torch.save(results, folder / f"on-{run.world_size}.pt")
    end_run()


def begin_again(run, folder: Path):
    """Load what was saved before any step into an engine that has made some."""
    for name in SOME[2:]:
        first, second = Training(name, run), Training(name, run)
        first.save(folder / name)
        second.go_on()
        second.load(folder / name)
        for training in (first, second):
            training.go_on()
        assert same(first.networks(), second.networks()), name
    end_run()


def test_a_state_of_before_the_first_step_leaves_no_moments(tmp_path):
    on_ranks(2, begin_again, tmp_path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What two ranks have saved by some engines, and how they went on from it."""
    folder = tmp_path_factory.mktemp("engines")
    on_ranks(2, train_save_and_load, folder, SOME)
    return folder


def assert_went_on_bit_for_bit(folder, engine):
    for rank in range(2):
        results = torch.load(folder / f"{rank}.pt")
        assert results[engine, "another"] and results[engine, "the same"]


@pytest.mark.parametrize("engine", SOME)
def test_the_same_kind_of_engine_goes_on_bit_for_bit(folder, engine):
    assert_went_on_bit_for_bit(folder, engine)


@pytest.mark.slow
@pytest.mark.parametrize("engine", [name for name in ENGINES if name not in SOME])
def test_every_other_kind_of_engine_goes_on_bit_for_bit(tmp_path, engine):
    on_ranks(2, train_save_and_load, tmp_path, [engine])
    assert_went_on_bit_for_bit(tmp_path, engine)


@pytest.mark.parametrize("world_size", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_another_kind_goes_on_as_closely_as_it_trains_on_any_number_of_ranks(folder, world_size):
    """Two ranks have saved."""
    on_ranks(world_size, load_into_others, folder)
    results = torch.load(folder / f"on-{world_size}.pt")
    truth, *nudged = (results[(*PAIRS[-1], seed)] for seed in (None, *NUDGES))
    for pair in PAIRS:
        assert_same_to_rounding(results[(*pair, None)], truth, nudged)
