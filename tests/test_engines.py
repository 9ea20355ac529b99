"""DeepSpeed's engines on two ranks, in every ZeRO stage and precision: StyleGAN2, through the gradients of gradients that R1 and path length
take, and BigGAN, whose batches come in passes and whose statistics meet between the ranks."""

import os
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp

from fastdgl import config as configs, steps
from fastdgl.assembly import assemble
from fastdgl.engines import average_over_ranks, end_run, first_rank_decides, make_engine, start_run
from fastdgl.images import ImageDataset
from fastdgl.latents import Latents

from ranks import free_port, join

ITERATIONS = 6
ZERO_STAGES = (0, 1, 2)
PRECISIONS = ("fp32", "bf16", "fp16")


FAMILIES = {
    "stylegan2": {
        "model": {"resolution": 32, "channels": 1, "conditional": True, "z_dim": 8, "w_dim": 8, "mapping_layers": 2,
                  "channel_base": 128, "channel_max": 8, "num_fp16_res": 0},
        "loss": {"r1_gamma": 0.1, "r1_interval": 2, "path_length_interval": 2},
        "train": {"batch": 8},
    },
    "biggan": {
        "model": {"family": "biggan", "resolution": 32, "channels": 1, "z_dim": 8, "generator_ch": 2, "discriminator_ch": 2,
                  "shared_dim": 4, "attention": 16},
        "loss": {"orthogonal_weight": 1e-4},
        # a bias before a batch norm has no gradient but what rounding leaves, and a small eps makes whole steps of that
        "optimizer": {"generator": {"lr": 1e-3, "eps": 1e-3}, "discriminator": {"lr": 1e-3, "eps": 1e-3}},
        "train": {"batch": 16, "generator_batch": 8, "accumulate_discriminator": 2, "accumulate_generator": 2, "discriminator_steps": 2},
    },
}


def tiny(family="stylegan2", **engine) -> configs.Config:
    return configs.from_dict({"images": {"path": "digits"}, "engine": engine} | FAMILIES[family], "tiny")


def parts(gan) -> dict[str, torch.Tensor]:
    """The parameters of each part as one fp32 vector. Those of the mapping networks are a hundred times larger, and would hide the others."""
    parameters: dict[str, list[torch.Tensor]] = {}
    for network, engine in (("G", gan.G), ("D", gan.D)):
        for name, parameter in engine.module.named_parameters():
            part = f"{network}.mapping" if name.startswith("mapping.") else f"{network}.rest"
            parameters.setdefault(part, []).append(parameter.detach().float().flatten())
    return {part: torch.cat(some) for part, some in parameters.items()}


def train(config: configs.Config, run) -> dict[str, dict[str, torch.Tensor]]:
    """The parts before and after some iterations with both regularizers."""
    dataset = ImageDataset("digits", labels=True)
    student = assemble(config, dataset, run, resumed=False)
    latents = Latents(0, torch.from_numpy(dataset.all_labels()), run.device, run.rank, run.world_size, dataset.label_dim)
    gan, loss, settings = student.gan, config.loss, config.train
    N, N_D = settings.generator_images // run.world_size, settings.batch // run.world_size
    passes, passes_D = settings.accumulate_generator, settings.accumulate_discriminator
    began = parts(gan)

    def ignore(name, values):
        pass

    for i in range(ITERATIONS):
        steps.generator_step(gan, latents, loss, N, 0, ignore, passes)
        if loss.path_length_interval and i % 2 == 0:
            steps.path_length_step(gan, latents, loss, N, ignore, passes)
        for _ in range(settings.discriminator_steps):
            real, real_c = latents.normal([N_D, 1, 32, 32]), latents.classes(N_D)
            steps.discriminator_step(gan, real, real_c, latents, loss, ignore, passes_D)
            if loss.r1_interval and i % 2 == 0:
                steps.r1_step(gan, real, real_c, loss, config.r1_gamma, ignore, passes_D)
    buffers = {f"{name}.{key}": value.clone() for name, network in student.networks.items() for key, value in network.named_buffers()}
    return {"began": began, "ended": parts(gan), "buffers": buffers}


def train_in_every_way(rank: int, port: int, folder: str) -> None:
    run = join(rank, 2, port)
    from deepspeed.accelerator import get_accelerator
    # DeepSpeed asks whether this CPU multiplies in fp16; our networks do that in fp32, and only keep parameters in it
    get_accelerator().is_fp16_supported = lambda: True
    results = {}
    for family in FAMILIES:
        results[family] = {"torch": train(tiny(family, kind="torch"), run)}
        for stage in ZERO_STAGES:
            for precision in PRECISIONS:
                results[family][f"{stage}-{precision}"] = train(tiny(family, zero_stage=stage, precision=precision), run)
    without = tiny("biggan", kind="torch")
    without = without.model_copy(update={"model": without.model.model_copy(update={"sync_batchnorm": False})})
    results["unsynchronised"] = train(without, run)
    torch.save(results, Path(folder) / f"{rank}.pt")
    end_run()


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> list[dict]:
    """What `train` gives, by family, ZeRO stage and precision, for each of two ranks."""
    folder = tmp_path_factory.mktemp("results")
    mp.spawn(train_in_every_way, (free_port(), str(folder)), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


ways = pytest.mark.parametrize("way", [f"{stage}-{precision}" for stage in ZERO_STAGES for precision in PRECISIONS], ids="zero{}".format)


families = pytest.mark.parametrize("family", FAMILIES)


@families
@ways
def test_the_ranks_hold_the_same_parameters_to_the_bit(results, family, way):
    for part, values in results[0][family][way]["ended"].items():
        assert torch.equal(values, results[1][family][way]["ended"][part]), part


@families
@ways
def test_every_zero_stage_and_precision_trains_as_plain_pytorch_does(results, family, way):
    expected, got = results[0][family]["torch"], results[0][family][way]
    precision = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[way.split("-")[1]]
    for part, truth in expected["ended"].items():
        difference = float((got["ended"][part] - truth).norm() / truth.norm())
        assert torch.equal(got["ended"][part], got["ended"][part].to(precision).float()), part
        moved = float((truth - expected["began"][part]).norm() / truth.norm())
        # in fp32 the same sums in another order; in 16 bits what is stored is rounded, and steps are shorter than the way gone
        assert difference < (1e-5 if precision == torch.float32 else torch.finfo(precision).eps + moved), part
        # and it has moved the same way: one that stands still has nothing in common with it. The mapping networks' parameters
        # are so large that 16 bits do not show so few steps, which their masters keep
        if precision != torch.float32 and part.endswith("mapping"):
            continue
        steps_taken = torch.stack([truth - expected["began"][part], got["ended"][part] - got["began"][part]])
        assert float(torch.corrcoef(steps_taken)[0, 1]) > (0.999 if precision == torch.float32 else 0.7), part


@families
def test_two_ranks_train_as_one_does(results, family):
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    alone = train(tiny(family, kind="torch"), start_run())
    end_run()
    together = results[0][family]["torch"]
    for part, truth in alone["ended"].items():
        difference, moved = (torch.linalg.vector_norm(x - truth) / truth.norm() for x in (together["ended"][part], alone["began"][part]))
        assert difference < 1e-5 and moved > 100 * difference, part
    for name, truth in alone["buffers"].items():
        torch.testing.assert_close(together["buffers"][name], truth, rtol=1e-3, atol=1e-4, msg=lambda text: f"{name}: {text}")


def test_statistics_of_each_rank_s_own_batches_become_one(results):
    """And are those of another run than synchronised batches make."""
    first, second = (result["unsynchronised"]["buffers"] for result in results)
    assert all(torch.equal(first[name], second[name]) for name in first)
    synchronised = results[0]["biggan"]["torch"]["buffers"]
    assert any(not torch.allclose(first[name], synchronised[name], rtol=1e-2) for name in first if name.endswith("stored_var"))


def error_on_the_first_rank(rank: int, port: int, folder: str) -> None:
    run = join(rank, 2, port)

    def refuse():
        assert rank == 0, "only rank 0 performs the action"
        raise ValueError("no")

    try:
        first_rank_decides(refuse)
    except ValueError as error:
        mean = torch.tensor([float(rank)])
        average_over_ranks([mean])
        Path(folder, str(rank)).write_text(f"{error} {first_rank_decides(lambda: run.rank)} {float(mean)}")
    end_run()


def test_what_the_first_rank_finds_is_known_to_all(tmp_path):
    mp.spawn(error_on_the_first_rank, (free_port(), str(tmp_path)), nprocs=2)
    assert [(tmp_path / str(rank)).read_text() for rank in range(2)] == ["no 0 0.5"] * 2


def test_overflow_in_a_gradient_is_bounded_where_blocks_compute_in_16_bits():
    config = tiny(kind="torch")
    mixed = config.model_copy(update={"model": config.model.model_copy(update={"num_fp16_res": 1})})
    overflowed = torch.tensor([[float("nan"), float("inf"), -float("inf"), 2.0]])
    for settings, expected in ((mixed, torch.tensor([[0.0, 1e5, -1e5, 2.0]])), (config, overflowed)):
        engine = make_engine(torch.nn.Linear(4, 1, bias=False), config.optimizer.generator, 0, settings, run=None)
        engine.backward((engine.module.weight * overflowed).sum())
        assert torch.equal(engine.module.weight.grad.nan_to_num(7.0), expected.nan_to_num(7.0))
