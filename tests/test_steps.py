"""One step of each network: which gradients arise, which do not, and what is done with them."""

import copy
from types import SimpleNamespace

import pytest
import torch
from numerics import normal
from torch import nn

from fastdgl import config as configs
from fastdgl import losses, steps
from fastdgl.engines import Run, TorchEngine, make_engine
from fastdgl.guidance import Guide, freeze
from fastdgl.latents import Latents
from fastdgl.models.stylegan2 import Discriminator, Generator

CPU = torch.device("cpu")
N, R, Z, CLASSES = 8, 8, 6, 3
LOSS = configs.StyleGAN2Loss()
CONFIG = configs.from_dict({"images": {"path": "digits"}, "model": {"resolution": R}, "engine": {"kind": "torch"}}, "test")
WIDTH = {"c_dim": CLASSES, "img_resolution": R, "channel_base": 64, "channel_max": 8}


def discriminator(seed):
    torch.manual_seed(seed)
    return Discriminator(**WIDTH)


def adversaries(frozen=(), updated=(), weight=0.1, dynamic=False):
    """A GAN of the same numbers every time, with teachers of these seeds."""
    torch.manual_seed(0)
    G = Generator(z_dim=Z, w_dim=Z, mapping_layers=2, **WIDTH)
    for name, parameter in G.named_parameters():
        if name.endswith("noise_strength"):
            nn.init.constant_(parameter, 0.1)
    return with_engines(CONFIG, G, discriminator, frozen, updated, weight, dynamic)


def with_engines(config, G, discriminator, frozen, updated, weight, dynamic=False):
    """The networks of a GAN in their engines; `discriminator` gives that of a seed, 1 the student's."""
    frozen, updated = [freeze(discriminator(seed)) for seed in frozen], [discriminator(seed) for seed in updated]
    run, adam, loss = Run(0, 1, CPU), config.optimizer, config.loss
    gan = steps.Adversaries(
        G=make_engine(G, adam.generator, loss.path_length_interval, config, run),
        D=make_engine(discriminator(1), adam.discriminator, loss.r1_interval, config, run),
        guide=Guide(frozen + updated, weight, dynamic=dynamic),
        updated_teachers=[make_engine(D, adam.discriminator, loss.r1_interval, config, run) for D in updated],
        path_length_mean=torch.zeros([]),
    )
    for engine in [gan.G, gan.D, *gan.updated_teachers]:
        engine.module.requires_grad_(False)
    return gan


def random_inputs():
    return Latents(3, torch.eye(CLASSES), CPU)


REAL = normal(N, 3, R, R, seed=5, dtype=torch.float32).clamp(-1, 1)
REAL_C = torch.eye(CLASSES)[torch.arange(N) % CLASSES]


def ignore(name, values):
    """Record nothing."""


class Recorded(dict):
    """What a step reports, by name."""

    def __call__(self, name, values):
        self[name] = values.detach().clone()


def generator_step(gan, latents, loss=LOSS, weight=None, record=ignore):
    steps.generator_step(gan, latents, loss, N, gan.guide.weight_at(0) if weight is None else weight, record)


def path_length_step(gan, latents, loss=LOSS, record=ignore):
    steps.path_length_step(gan, latents, loss, N, record)


def discriminator_step(gan, latents, loss=LOSS, record=ignore):
    steps.discriminator_step(gan, REAL, REAL_C, latents, loss, record)


def r1_step(gan, latents, loss=LOSS, record=ignore, gamma=10):
    steps.r1_step(gan, REAL, REAL_C, loss, gamma, record)


STEPS = {"generator": generator_step, "path-length": path_length_step, "discriminator": discriminator_step, "r1": r1_step}


def state(network, but=()):
    return {name: value.clone() for name, value in network.state_dict().items() if name.rpartition(".")[2] not in but}


def same(before, after):
    return all(torch.equal(before[name], after[name]) for name in before)


def everything(gan, but=()):
    """The states of all networks, but for the tensors of these names."""
    networks = {"G": gan.G.module, "D": gan.D.module} | {f"teacher{i}": D for i, D in enumerate(gan.guide.discriminators)}
    return {name: state(network, but) for name, network in networks.items()}


class Kept:
    """An engine that keeps the gradients of its last step, the losses it was given and which were the last of a step, and steps on."""

    def __init__(self, engine):
        self.engine, self.module, self.whole, self.losses, self.lasts = engine, engine.module, engine.whole, [], []

    def backward(self, loss, last):
        if not self.lasts or self.lasts[-1]:
            assert all(p.grad is None for p in self.module.parameters()), "gradients left over from before"
        self.losses.append(loss.detach().clone())
        self.lasts.append(last)
        self.engine.backward(loss, last)

    def step(self):
        assert self.lasts[-1], "a step in the middle of its passes"
        self.gradients = {name: None if p.grad is None else p.grad.clone() for name, p in self.module.named_parameters()}
        self.engine.step()


def kept(gan):
    gan.G, gan.D, gan.updated_teachers = Kept(gan.G), Kept(gan.D), [Kept(engine) for engine in gan.updated_teachers]
    return gan


@pytest.mark.parametrize(("step", "moved"), [
    ("generator", {"G"}), ("path-length", {"G"}), ("discriminator", {"D", "teacher1"}), ("r1", {"D", "teacher1"}),
])
def test_a_step_moves_its_own_networks_and_leaves_no_gradient_anywhere(step, moved):
    gan = adversaries(frozen=[11], updated=[12])
    before = everything(gan)
    STEPS[step](gan, random_inputs())
    after = everything(gan)
    assert {name for name in before if not same(before[name], after[name])} == moved
    for network in [gan.G.module, gan.D.module, *gan.guide.discriminators]:
        assert all(p.grad is None for p in network.parameters())
        assert not any(p.requires_grad for p in network.parameters())


@pytest.mark.parametrize("step", ["generator", "path-length", "discriminator", "r1"])
def test_every_parameter_of_the_stepping_network_gets_a_gradient(step):
    """Zero where it plays no part, so that its moments decay; none at all would leave them."""
    gan = kept(adversaries(updated=[12]))
    STEPS[step](gan, random_inputs())
    engines = [gan.G] if step in ("generator", "path-length") else [gan.D, *gan.updated_teachers]
    for engine in engines:
        assert all(g is not None and g.isfinite().all() for g in engine.gradients.values())


def test_a_length_that_overflows_leaves_the_mean_as_it_was(monkeypatch):
    """It would never come back from infinity."""
    gan, lengths = adversaries(), steps.path_lengths
    path_length_step(gan, random_inputs())
    before = gan.path_length_mean.clone()
    monkeypatch.setattr(steps, "path_lengths", lambda *arguments: lengths(*arguments) * float("inf"))
    path_length_step(gan, random_inputs())
    assert before > 0 and torch.equal(gan.path_length_mean, before)


def test_touch_is_zero_with_zero_gradients():
    D = discriminator(1)
    logits = D(REAL, REAL_C)
    assert steps.touch(logits).shape == (N,) and steps.touch(logits).eq(0).all()
    gradients = torch.autograd.grad(steps.touch(logits).sum(), list(D.parameters()))
    assert all(g.eq(0).all() for g in gradients)


@pytest.mark.parametrize(("frozen", "updated"), [([11], []), ([], [12]), ([11, 13], [12])], ids=["frozen", "updated", "several"])
def test_lambda_0_is_the_baseline_bit_for_bit(frozen, updated):
    guided, baseline = adversaries(frozen, updated, weight=0), adversaries(weight=0)
    for gan in (guided, baseline):
        latents = random_inputs()
        for i in range(4):
            generator_step(gan, latents)
            if i % 2 == 0:
                path_length_step(gan, latents)
            discriminator_step(gan, latents)
            if i % 2 == 0:
                r1_step(gan, latents)
    for name in ("G", "D"):
        assert same(everything(baseline)[name], everything(guided)[name]), name
    assert torch.equal(baseline.path_length_mean, guided.path_length_mean)


def test_at_lambda_0_a_broken_teacher_does_no_harm():
    """0 times infinity is no number."""
    guided, baseline = adversaries([11], weight=0), adversaries()
    nn.init.constant_(guided.guide.discriminators[0].b4.out.bias, -torch.inf)
    for gan in (guided, baseline):
        generator_step(gan, random_inputs())
    assert same(everything(baseline)["G"], everything(guided)["G"])


def test_lambda_is_not_0_for_nothing():
    guided, baseline = adversaries([11]), adversaries()
    for gan in (guided, baseline):
        generator_step(gan, random_inputs())
    assert not same(everything(baseline)["G"], everything(guided)["G"])


@pytest.mark.parametrize("dynamic", [False, True], ids=["uniform", "dynamic"])
def test_a_frozen_teacher_is_bit_identical_after_training(dynamic):
    gan = adversaries([11, 13], dynamic=dynamic)
    before = [state(teacher) for teacher in gan.guide.discriminators]
    latents = random_inputs()
    for _ in range(3):
        for step in STEPS.values():
            step(gan, latents)
    assert all(same(old, state(teacher)) for old, teacher in zip(before, gan.guide.discriminators))


@pytest.mark.parametrize("dynamic", [False, True], ids=["uniform", "dynamic"])
def test_the_generator_minimises_both_losses_of_the_same_images(dynamic):
    gan = kept(adversaries(frozen=[11], updated=[12], weight=0.7, dynamic=dynamic))
    G, D, teachers = copy.deepcopy(gan.G.module), gan.D.module, gan.guide.discriminators
    recorded = Recorded()
    generator_step(gan, random_inputs(), record=recorded)

    # the same again, by hand
    G.requires_grad_(True)
    latents = random_inputs()
    c = latents.classes(N)
    fake = G.training_images(latents, c, track=False, **LOSS.sampling)
    score = [teacher(fake, c) for teacher in teachers]
    terms = [nn.functional.softplus(-s) * ((-s.detach()).clamp(min=0) if dynamic else 1) for s in score]
    objective = nn.functional.softplus(-D(fake, c)).mean() + 0.7 * sum(terms).mean()
    expected = dict(zip(dict(G.named_parameters()), torch.autograd.grad(objective, list(G.parameters()))))

    torch.testing.assert_close(gan.G.losses, [objective.detach()])
    for name, gradient in gan.G.gradients.items():
        torch.testing.assert_close(gradient, expected[name], msg=lambda text: f"{name}: {text}")
    torch.testing.assert_close(recorded["Loss/scores/fake"], D(fake, c).detach())
    torch.testing.assert_close(recorded["Loss/G/guidance"], sum(terms).detach())
    torch.testing.assert_close(recorded["Loss/G/adversarial"], nn.functional.softplus(-D(fake, c)).detach())
    for i in range(2):
        torch.testing.assert_close(recorded[f"Loss/scores/teacher{i}_fake"], score[i].detach())


def test_discriminator_and_teachers_are_given_one_tensor_of_images():
    gan, given = adversaries(frozen=[11], updated=[12]), []
    for network in [gan.D.module, *gan.guide.discriminators]:
        network.register_forward_pre_hook(lambda module, inputs: given.append(inputs))
    generator_step(gan, random_inputs())
    assert len(given) == 3
    assert all(images is given[0][0] and c is given[0][1] for images, c in given)


def test_the_gradient_of_a_frozen_teacher_reaches_the_generator():
    """With D's own part taken away, what is left is lambda times the teacher's."""
    gradients = {}
    for weight in (0.0, 0.1, 0.2):
        gan = kept(adversaries([11], weight=weight))
        generator_step(gan, random_inputs())
        gradients[weight] = torch.cat([g.flatten() for g in gan.G.gradients.values()]).double()
    once, twice = gradients[0.1] - gradients[0.0], gradients[0.2] - gradients[0.0]
    assert once.ne(0).any()
    # differences of float32 numbers, each of which is exact to one step of the largest
    floor = 8 * torch.finfo(torch.float32).eps * gradients[0.0].abs().max()
    torch.testing.assert_close(twice, 2 * once, atol=floor.item(), rtol=0)


def test_discriminator_minimises_its_loss_on_fresh_images():
    gan = kept(adversaries())
    D = copy.deepcopy(gan.D.module).requires_grad_(True)
    latents = random_inputs()
    discriminator_step(gan, latents)
    again = random_inputs()
    c = again.classes(N)
    with torch.no_grad():
        fake = gan.G.module.training_images(again, c, track=False, **LOSS.sampling)
    objective = (nn.functional.softplus(D(fake, c)) + nn.functional.softplus(-D(REAL, REAL_C))).mean()
    torch.testing.assert_close(gan.D.losses, [objective.detach()])
    objective.backward()
    for name, parameter in D.named_parameters():
        torch.testing.assert_close(gan.D.gradients[name], parameter.grad, msg=lambda text: f"{name}: {text}")


@pytest.mark.parametrize(("gamma", "interval"), [(10, 16), (2.5, 4), (0, 16)], ids=str)
def test_r1_is_weighted_by_half_gamma_and_the_interval(gamma, interval):
    gan = kept(adversaries())
    D = copy.deepcopy(gan.D.module).requires_grad_(True)
    recorded = Recorded()
    r1_step(gan, None, configs.StyleGAN2Loss(r1_interval=interval), recorded, gamma)
    x = REAL.clone().requires_grad_()
    penalty = losses.r1_penalty(D(x, REAL_C), x)
    torch.testing.assert_close(recorded["Loss/r1_penalty"], penalty.detach())
    torch.testing.assert_close(gan.D.losses, [(gamma / 2 * interval * penalty.mean()).detach()])
    assert not REAL.requires_grad


@pytest.mark.parametrize(("weight", "interval", "shrink"), [(2, 4, 2), (0.5, 8, 1), (2, 4, 4)], ids=str)
def test_path_length_is_weighted_by_the_interval_on_a_smaller_batch(weight, interval, shrink):
    loss = configs.StyleGAN2Loss(path_length_weight=weight, path_length_interval=interval, path_length_batch_shrink=shrink)
    gan = kept(adversaries())
    G = copy.deepcopy(gan.G.module).requires_grad_(True)
    gan.path_length_mean.fill_(0.3)
    recorded = Recorded()
    path_length_step(gan, random_inputs(), loss, recorded)

    latents = random_inputs()
    ws = G.training_ws(latents, latents.classes(N // shrink), loss.style_mixing)
    fake = G.synthesis(ws, normal=latents.normal)
    lengths = losses.path_lengths(fake, ws, latents.normal).detach()
    assert lengths.shape == (N // shrink,)
    # the mean moves first, and the penalty is towards the new one
    mean = 0.99 * 0.3 + 0.01 * lengths.mean()
    torch.testing.assert_close(gan.path_length_mean, mean)
    torch.testing.assert_close(recorded["Loss/pl_penalty"], (lengths - mean).square())
    torch.testing.assert_close(gan.G.losses, [weight * interval * (lengths - mean).square().mean()])


SHARES = {
    "generator": lambda gan, latents, share, passes: steps.generator_step(gan, latents, LOSS, len(REAL[share]), 0.1, ignore, passes),
    "path-length": lambda gan, latents, share, passes: steps.path_length_step(gan, latents, LOSS, len(REAL[share]), ignore, passes),
    "discriminator": lambda gan, latents, share, passes: steps.discriminator_step(gan, REAL[share], REAL_C[share], latents, LOSS, ignore, passes),
    "r1": lambda gan, latents, share, passes: steps.r1_step(gan, REAL[share], REAL_C[share], LOSS, 10, ignore, passes),
}


@pytest.mark.parametrize("step", SHARES.values(), ids=SHARES.keys())
def test_several_passes_are_one_step_on_the_mean_of_their_gradients(step):
    whole, first, second = (kept(adversaries(updated=[12])) for _ in range(3))
    step(whole, random_inputs(), slice(0, 8), 2)
    latents = random_inputs()
    step(first, latents, slice(0, 4), 1)
    second.path_length_mean.copy_(first.path_length_mean)
    step(second, latents, slice(4, 8), 1)
    stepped = 0
    for engines in zip(*([gan.G, gan.D, *gan.updated_teachers] for gan in (whole, first, second))):
        if not engines[0].losses:
            continue
        stepped += 1
        for name, gradient in engines[0].gradients.items():
            expected = (engines[1].gradients[name] + engines[2].gradients[name]) / 2
            torch.testing.assert_close(gradient, expected, atol=1e-6 * float(expected.abs().max()), rtol=1e-5, msg=lambda text: f"{name}: {text}")
    assert stepped


def test_teachers_have_no_part_in_path_length():
    guided, baseline = adversaries([11], [12]), adversaries()
    for gan in (guided, baseline):
        path_length_step(gan, random_inputs())
    assert same(everything(guided)["G"], everything(baseline)["G"])


def test_the_mean_of_w_moves_with_the_generators_own_step_alone():
    gan = adversaries()
    latents = random_inputs()
    for step in (path_length_step, discriminator_step, r1_step):
        step(gan, latents)
        assert gan.G.module.mapping.w_avg.eq(0).all()
    generator_step(gan, latents)
    assert gan.G.module.mapping.w_avg.ne(0).any()


@pytest.mark.parametrize(("probability", "mixed"), [(0, False), (1, True)], ids=["never", "always"])
def test_style_mixing_changes_the_later_styles(probability, mixed):
    G = adversaries().G.module
    ws = G.training_ws(random_inputs(), REAL_C, probability)
    changes = (ws[:, 1:] != ws[:, :-1]).any(dim=2)
    # one change, at the same layer for all samples
    assert changes.sum(dim=1).tolist() == [int(mixed)] * N and len(changes.unique(dim=0)) == 1


class TestUpdatedTeacher:
    def test_learns_as_if_it_were_the_discriminator(self):
        """Same images, same loss without lambda, same R1, same optimiser rule: the student's D in its place ends the same."""
        teacher, student = adversaries(updated=[12], weight=0.5), adversaries(weight=0)
        student.D.module.load_state_dict(teacher.guide.discriminators[0].state_dict())
        for gan in (teacher, student):
            latents = random_inputs()
            for _ in range(3):
                discriminator_step(gan, latents)
                r1_step(gan, latents)
        assert same(state(student.D.module), state(teacher.updated_teachers[0].module))

    def test_gets_no_gradient_from_the_generators_steps(self):
        gan = adversaries(updated=[12])
        before = state(gan.updated_teachers[0].module)
        latents = random_inputs()
        generator_step(gan, latents)
        path_length_step(gan, latents)
        assert same(before, state(gan.updated_teachers[0].module))

    def test_starts_each_step_without_gradients(self):
        gan = kept(adversaries(updated=[12]))
        latents = random_inputs()
        # Kept asserts it at each backward
        for _ in range(2):
            for step in STEPS.values():
                step(gan, latents)

    def test_learns_after_the_discriminator(self):
        gan, order = adversaries(updated=[12]), []

        def named(engine, name):
            return SimpleNamespace(module=engine.module, backward=engine.backward, whole=engine.whole,
                                   step=lambda: (order.append(name), engine.step()))

        gan.D, gan.updated_teachers = named(gan.D, "D"), [named(gan.updated_teachers[0], "teacher")]
        discriminator_step(gan, random_inputs())
        r1_step(gan, None)
        assert order == ["D", "teacher", "D", "teacher"]

    def test_reports_its_loss_under_a_name_of_its_own(self):
        gan, recorded = adversaries(updated=[12]), Recorded()
        discriminator_step(gan, random_inputs(), record=recorded)
        r1_step(gan, None, record=recorded)
        for name in ("D/loss", "r1_penalty"):
            assert not torch.equal(recorded[f"Loss/{name}"], recorded[f"Loss/updated0_{name}"])


@pytest.mark.parametrize("k", [0, 4, 16])
def test_adam_is_corrected_for_lazy_regularization(k):
    adam = configs.Adam(lr=0.002, beta1=0.5, beta2=0.99, eps=1e-8)
    optimizer = make_engine(nn.Linear(2, 2), adam, k, CONFIG, Run(0, 1, CPU)).optimizer
    c = k / (k + 1) if k else 1
    assert type(optimizer) is torch.optim.Adam
    assert optimizer.defaults["lr"] == pytest.approx(0.002 * c)
    assert optimizer.defaults["betas"] == pytest.approx((0.5**c, 0.99**c))
    assert optimizer.defaults["eps"] == 1e-8 and optimizer.defaults["weight_decay"] == 0


def test_adam_takes_floats_as_betas():
    # torch refuses (0, 0.99), an integer beside a float
    optimizer = make_engine(nn.Linear(2, 2), configs.Adam(), 16, CONFIG, Run(0, 1, CPU)).optimizer
    assert all(type(beta) is float for beta in optimizer.defaults["betas"])


def test_regularization_shares_the_moments_of_the_ordinary_steps():
    gan = adversaries()
    latents = random_inputs()
    discriminator_step(gan, latents)
    r1_step(gan, latents)
    assert isinstance(gan.D, TorchEngine)
    assert {int(entry["step"]) for entry in gan.D.optimizer.state.values()} == {2}
