"""One step of each of BigGAN's networks, and what its steps have that StyleGAN2's have not: passes, one batch, hinge."""

import copy

import pytest
import torch
from numerics import assert_same_to_rounding, normal, nudge, nudged_gradients
from test_steps import Kept, everything, ignore, kept, same, state, with_engines
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from fastdgl import config as configs
from fastdgl import ema, losses, steps
from fastdgl.assembly import Student
from fastdgl.journal import Statistics
from fastdgl.latents import Latents
from fastdgl.models import biggan
from fastdgl.models.batch_norm import running_statistics
from fastdgl.train import record_teachers

CPU = torch.device("cpu")
N, R, CLASSES = 8, 32, 3
MODEL = {"family": "biggan", "resolution": R, "channels": 1, "z_dim": 8, "generator_ch": 2, "discriminator_ch": 2, "shared_dim": 4, "attention": 16}
CONFIG = configs.from_dict({"images": {"path": "digits"}, "model": MODEL, "engine": {"kind": "torch"}}, "test")
LOSS = CONFIG.loss
REAL = normal(N, 1, R, R, seed=5, dtype=torch.float32).clamp(-1, 1)
REAL_C = torch.eye(CLASSES)[torch.arange(N) % CLASSES]


def discriminator(seed):
    torch.manual_seed(seed)
    D = biggan.Discriminator(**CONFIG.model.discriminator_arguments(CLASSES))
    # logits within the hinge, where there are gradients
    nn.init.constant_(D.linear.bias, 0.1 * seed)
    return D


def adversaries(frozen=(), updated=(), weight=0.1):
    """A GAN of the same numbers every time, with teachers of these seeds."""
    torch.manual_seed(0)
    G = biggan.Generator(**CONFIG.model.generator_arguments(CLASSES))
    return with_engines(CONFIG, G, discriminator, frozen, updated, weight)


def random_inputs():
    return Latents(3, torch.eye(CLASSES), CPU)


def generator_step(gan, latents, loss=LOSS, passes=1, record=ignore):
    steps.generator_step(gan, latents, loss, N, gan.guide.weight_at(0), record, passes)


def discriminator_step(gan, latents, loss=LOSS, passes=1, record=ignore):
    steps.discriminator_step(gan, REAL, REAL_C, latents, loss, record, passes)


STEPS = {"generator": generator_step, "discriminator": discriminator_step}
# the vectors of spectral norm turn a step further whenever a network is used in training
SPECTRAL = ("u0", "sv0")


def assert_gradients(network, objective, gradients):
    """`gradients` are those of `objective(network)`, for every parameter, but for cuts in other places and sums of another order."""
    truth, *nudged = nudged_gradients(network, objective, (None, 0, 1))
    assert_same_to_rounding(gradients, truth, nudged, remainders=True)


@pytest.mark.parametrize(("step", "moved"), [("generator", {"G"}), ("discriminator", {"D", "teacher1"})])
@pytest.mark.parametrize("passes", [1, 2])
def test_a_step_moves_its_own_networks_and_leaves_no_gradient_anywhere(step, moved, passes):
    gan = kept(adversaries(frozen=[11], updated=[12]))
    before = everything(gan, SPECTRAL)
    # a second one finds no gradient left over, which Kept asserts
    for _ in range(2):
        STEPS[step](gan, random_inputs(), passes=passes)
    after = everything(gan, SPECTRAL)
    assert {name for name in before if not same(before[name], after[name])} == moved
    for network in [gan.G.module, gan.D.module, *gan.guide.discriminators]:
        assert all(p.grad is None for p in network.parameters())
        assert not any(p.requires_grad for p in network.parameters())


def test_every_parameter_of_the_stepping_network_gets_a_gradient():
    gan = kept(adversaries(updated=[12]))
    for step in STEPS.values():
        step(gan, random_inputs())
    for engine in [gan.G, gan.D, *gan.updated_teachers]:
        assert all(g is not None and g.isfinite().all() for g in engine.gradients.values())


class TestFrozenTeacher:
    def test_is_bit_identical_after_training_its_spectral_vectors_too(self):
        gan = adversaries(frozen=[11, 13], updated=[12])
        before = [state(teacher) for teacher in gan.guide.discriminators]
        latents = random_inputs()
        for _ in range(2):
            for step in STEPS.values():
                step(gan, latents)
        unchanged = [same(old, state(teacher)) for old, teacher in zip(before, gan.guide.discriminators)]
        assert unchanged == [True, True, False]
        assert "u0" in str(before[0].keys())

    def test_gives_the_generator_its_gradient(self):
        gradients = {}
        for weight in (0.0, 10.0):
            gan = kept(adversaries([11], weight=weight))
            generator_step(gan, random_inputs())
            gradients[weight] = gan.G.gradients
        assert any(not torch.equal(g, gradients[10.0][name]) for name, g in gradients[0.0].items())


class TestUpdatedTeacher:
    def test_gets_no_gradient_from_the_generators_step(self):
        gan = adversaries(updated=[12])
        before = state(gan.guide.discriminators[0], SPECTRAL)
        generator_step(gan, random_inputs())
        assert same(before, state(gan.guide.discriminators[0], SPECTRAL))

    def test_learns_as_if_it_were_the_discriminator(self):
        teacher, student = adversaries(updated=[12], weight=0.5), adversaries(weight=0)
        student.D.module.load_state_dict(teacher.guide.discriminators[0].state_dict())
        for gan in (teacher, student):
            latents = random_inputs()
            for _ in range(3):
                discriminator_step(gan, latents, passes=2)
        assert same(state(student.D.module), state(teacher.updated_teachers[0].module))

    def test_is_watched_without_being_moved(self):
        gan, statistics = adversaries(frozen=[11], updated=[12]), Statistics()
        before = everything(gan)
        record_teachers(Student(gan, gan.G.module, 0), REAL, REAL_C, 2, statistics)
        after = everything(gan)
        assert all(same(before[name], after[name]) for name in before)
        assert [D.training for D in gan.guide.discriminators] == [False, True]
        assert {name: found["num"] for name, found in statistics.collect().items()} == {f"Loss/scores/teacher{i}_real": N for i in range(2)}

    def test_is_in_training_mode_and_a_frozen_one_is_not(self):
        gan = adversaries(frozen=[11], updated=[12])
        frozen, updated = gan.guide.discriminators
        assert all(m.training for m in updated.modules()) and not any(m.training for m in frozen.modules())


def test_lambda_0_is_the_baseline_bit_for_bit():
    guided, baseline = adversaries([11], [12], weight=0), adversaries(weight=0)
    for gan in (guided, baseline):
        latents = random_inputs()
        for _ in range(2):
            generator_step(gan, latents)
            discriminator_step(gan, latents)
    for name in ("G", "D"):
        assert same(everything(baseline)[name], everything(guided)[name]), name


@pytest.mark.parametrize("passes", [1, 2])
def test_the_generator_minimises_both_hinges_of_the_same_images(passes):
    gan = kept(adversaries(frozen=[11], updated=[12], weight=0.7))
    G, discriminators = copy.deepcopy(gan.G.module).requires_grad_(True), [copy.deepcopy(D) for D in (gan.D.module, *gan.guide.discriminators)]
    generator_step(gan, random_inputs(), passes=passes)

    def objective(G):
        latents, networks, total = random_inputs(), copy.deepcopy(discriminators), 0
        for _ in range(passes):
            c = latents.classes(N // passes)
            fake = G(latents.normal([N // passes, G.z_dim]), c)
            own, *teachers = [-D(fake, c).mean() for D in networks]
            total = total + (own + 0.7 * sum(teachers)) / passes
        return total

    torch.testing.assert_close(sum(gan.G.losses), objective(copy.deepcopy(G)).detach())
    assert_gradients(G, objective, gan.G.gradients)
    assert gan.G.lasts == [False] * (passes - 1) + [True]


@pytest.mark.parametrize("passes", [1, 4])
def test_the_discriminator_minimises_its_hinge_on_fresh_images(passes):
    gan = kept(adversaries(updated=[12]))
    G, discriminators = copy.deepcopy(gan.G.module), [copy.deepcopy(e.module).requires_grad_(True) for e in (gan.D, *gan.updated_teachers)]
    discriminator_step(gan, random_inputs(), passes=passes)

    latents, parts = random_inputs(), []
    with torch.no_grad():
        for real, real_c in zip(REAL.chunk(passes), REAL_C.chunk(passes)):
            c = latents.classes(N // passes)
            parts.append((G(latents.normal([len(c), G.z_dim]), c), c, real, real_c))

    def objective(D):
        total = 0
        for fake, c, real, real_c in parts:
            logits = D(torch.cat([fake, real]), torch.cat([c, real_c]))
            hinge = (1 + logits[:len(c)]).relu() + (1 - logits[len(c):]).relu()
            total = total + hinge.mean() / passes
        return total

    for D, engine in zip(discriminators, (gan.D, *gan.updated_teachers)):
        torch.testing.assert_close(sum(engine.losses), objective(copy.deepcopy(D)).detach())
        assert_gradients(D, objective, engine.gradients)


class Drawn:
    """Latents that were drawn before, all at once, and are handed out in several passes."""

    def __init__(self, passes):
        whole = random_inputs()
        self.z, self.c = (iter(x.chunk(passes)) for x in (whole.normal([N, MODEL["z_dim"]]), whole.classes(N)))

    def classes(self, count):
        return next(self.c)

    def normal(self, size):
        return next(self.z)


def test_passes_of_the_discriminator_are_one_step_on_all_images():
    """Where no sample meets another: with a generator that normalizes by stored statistics."""
    def gradients(passes, seed=None):
        gan = kept(adversaries())
        gan.G.module.eval()
        # the vectors of spectral norm move once a pass, and stand where they are in evaluation
        gan.D.module.eval()
        if seed is not None:
            nudge(gan.D.module.parameters(), seed)
        discriminator_step(gan, Drawn(passes), passes=passes)
        return gan.D.gradients

    nudged = [gradients(1, seed) for seed in (0, 1)]
    for passes in (2, 4):
        assert_same_to_rounding(gradients(passes), gradients(1), nudged, remainders=True)


def test_real_and_fake_images_share_a_pass_and_the_spectral_norm_moves_once():
    gan, seen = adversaries(), []
    once = copy.deepcopy(gan.D.module)
    gan.D.module.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    discriminator_step(gan, random_inputs())
    assert seen == [2 * N]
    once(REAL, REAL_C)
    spectral = {name for name, _ in once.named_buffers()}
    assert spectral and all(torch.equal(once.get_buffer(name), gan.D.module.get_buffer(name)) for name in spectral)


def test_the_statistics_of_batch_norm_move_with_the_generators_own_steps_alone():
    gan, latents = adversaries(), random_inputs()

    def stored():
        return torch.cat([x.flatten() for x in running_statistics(gan.G.module)]).clone()

    began = stored()
    discriminator_step(gan, latents)
    assert torch.equal(stored(), began)
    generator_step(gan, latents)
    moved = stored()
    assert not torch.equal(moved, began)
    discriminator_step(gan, latents)
    assert torch.equal(stored(), moved)
    generator_step(gan, latents)
    assert not torch.equal(stored(), moved)


@pytest.mark.parametrize(("sync", "averaged"), [(True, 0), (False, 14)], ids=["synchronised", "each-rank-s-own"])
def test_ranks_average_the_statistics_that_differ_between_them_alone(sync, averaged, monkeypatch):
    gan, given = adversaries(), []
    gan.G.module = biggan.Generator(**CONFIG.model.generator_arguments(CLASSES) | {"sync_batchnorm": sync})
    monkeypatch.setattr(steps, "average_over_ranks", lambda tensors: given.extend(tensors))
    generator_step(gan, random_inputs())
    assert len(given) == averaged


@pytest.mark.parametrize("passes", [1, 2])
def test_orthogonal_regularization_adds_its_gradient_once_a_step(passes):
    def gradients(weight, seed=None):
        gan = kept(adversaries())
        if seed is not None:
            nudge(gan.G.module.parameters(), seed)
        generator_step(gan, random_inputs(), LOSS.model_copy(update={"orthogonal_weight": weight}), passes)
        return gan.G.gradients

    weights = copy.deepcopy(adversaries().G.module).requires_grad_(True)
    penalty, expected = losses.orthogonal_penalty(weights.orthogonal_weights()), gradients(0)
    for name, added in zip(expected, torch.autograd.grad(penalty, list(weights.parameters()), allow_unused=True), strict=True):
        if added is not None:
            expected[name] = expected[name] + 0.5 * added
        assert (added is None) == (weights.get_parameter(name).ndim < 2 or name.startswith("shared.")), name
    assert_same_to_rounding(gradients(0.5), expected, [gradients(0.5, seed) for seed in (0, 1)], remainders=True)


class NoWaiting(TorchDispatchMode):
    """Refuses what makes the host wait for the device."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert function not in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default, torch.ops.aten.nonzero.default), function
        return function(*args, **(kwargs or {}))


class Steady(Kept):
    """An engine whose optimizer stands still; Adam keeps its count of steps on the host, and reads it."""

    def step(self):
        for parameter in self.module.parameters():
            parameter.grad = None


def test_no_step_waits_for_the_device():
    gan = adversaries(frozen=[11], updated=[12])
    gan.G, gan.D, gan.updated_teachers = Steady(gan.G), Steady(gan.D), [Steady(engine) for engine in gan.updated_teachers]
    # classes by index, as of a training set
    latents = Latents(3, torch.arange(CLASSES), CPU, c_dim=CLASSES)
    loss, statistics = LOSS.model_copy(update={"orthogonal_weight": 0.5}), Statistics()
    average = ema.averaged_copy(gan.G.module)
    with pytest.raises(AssertionError, match="_local_scalar_dense"), NoWaiting():
        float(REAL.sum())
    with NoWaiting():
        generator_step(gan, latents, loss, passes=2, record=statistics.record)
        discriminator_step(gan, latents, loss, passes=2, record=statistics.record)
        ema.update(average, gan.G.module, 0.999, gan.G.module.averaged_buffers)
