"""The neighbours of DGL, which compare features with a teacher's: the bank of features, the terms, and what they leave alone."""

import os
from typing import get_args

import pytest
import torch
from numerics import normal
from ranks import on_ranks
from test_steps import Kept, Recorded, everything, ignore, same, state, with_engines
from tiny_networks import BIGGAN, STYLEGAN2, save
from torch import nn

from fastdgl import config as configs
from fastdgl import models, steps
from fastdgl.assembly import assemble
from fastdgl.checkpoints import CheckpointError
from fastdgl.engines import Run, end_run, make_engine, start_run
from fastdgl.guidance import Adaptors, FeatureBank, FeatureTeacher, FeatureTerm, freeze
from fastdgl.images import ImageDataset
from fastdgl.latents import Latents
from fastdgl.losses import ADVERSARIAL, DISTANCES

CPU = torch.device("cpu")
N, CLASSES, ITERATIONS = 4, 3, 2
MODELS = {"stylegan2": STYLEGAN2 | {"channels": 1, "conditional": True, "mbstd_group": 2, "num_fp16_res": 0}, "biggan": BIGGAN | {"channels": 1}}
NARROW = {"stylegan2": {"generator_fraction": 0.5, "discriminator_fraction": 0.5}, "biggan": {"generator_ch": 2, "discriminator_ch": 2}}
# of D-bar, and of the generators
MODULES = {"stylegan2": ["b16", "b8"], "biggan": ["blocks.1.0", "blocks.2.0"]}
RESOLUTIONS = {"stylegan2": [4, 8, 16], "biggan": [8, 32]}
ZERO_STAGES = {"stylegan2": (0, 1, 2), "biggan": (2,)}
families = pytest.mark.parametrize("family", MODELS)


def settings(model, **changes):
    return configs.from_dict({"images": {"path": "digits"}, "model": model, "engine": {"kind": "torch"}, "train": {"batch": 8}} | changes, "test")


def networks(family, seed, **width):
    """A generator whose noise is seen, and a discriminator; the same every time."""
    model = settings(MODELS[family] | width).model
    torch.manual_seed(seed)
    G = models.generator(family, model.generator_arguments(CLASSES))
    for name, parameter in G.named_parameters():
        if name.endswith("noise_strength"):
            nn.init.constant_(parameter, 0.3)
    return G, models.discriminator(family, model.discriminator_arguments(CLASSES))


def adversaries(family, images=True, generators=True):
    """A narrow GAN, with a teacher of features of the full width and these terms."""
    config = settings(MODELS[family] | NARROW[family])
    G, _ = networks(family, 0, **NARROW[family])
    gan = with_engines(config, G, lambda seed: networks(family, seed, **NARROW[family])[1], [], [], 0)
    teacher, judge = networks(family, 7)
    gan.feature_teacher = FeatureTeacher(
        freeze(teacher), freeze(judge),
        FeatureTerm("image_features", 0.5, MODULES[family], ["rmse", "gram"]) if images else None,
        FeatureTerm("generator_features", 2.0, RESOLUTIONS[family], ["l1"]) if generators else None)
    if generators:
        adaptors = Adaptors([(G.features[R][1], teacher.features[R][1]) for R in RESOLUTIONS[family]])
        gan.adaptors = make_engine(adaptors, config.optimizer.generator, 0, config, Run(0, 1, CPU))
        adaptors.requires_grad_(False)
    return gan, config.loss


def random_inputs():
    return Latents(3, torch.eye(CLASSES), CPU)


def a_copy(latents):
    """That goes on to draw the same numbers."""
    other = random_inputs()
    other.load_state_dict(latents.state_dict())
    return other


def generator_features(family, G, latents, x, c):
    """The image, and features by resolution, block by block: of w, or of z."""
    features, image = {}, None
    if family == "stylegan2":
        ws, x, position = x, None, 0
        for block in G.synthesis.blocks:
            x, image = block(x, image, ws[:, position:position + block.num_conv + 1], "random", latents.normal)
            position += block.num_conv
            features[x.shape[-1]] = x
        return image, features
    x = G.linear(x).unflatten(1, (-1, 4, 4))
    for block, in G.blocks:
        x = block(x, c)
        features[x.shape[-1]] = x
    return torch.tanh(G.output_layer(x)), features


def discriminator_features(family, D, x):
    features = {}
    for name in ["b16", "b8"] if family == "stylegan2" else [f"blocks.{i}.0" for i in range(4)]:
        features[name] = x = D.get_submodule(name)(x)
    return features


@families
def test_a_bank_holds_what_the_blocks_put_out_and_changes_nothing(family):
    G, D = (network.eval() for network in networks(family, 0))
    z, c, image = normal(N, 8, dtype=torch.float32), torch.eye(CLASSES)[[0, 1, 2, 0]], normal(N, 1, G.img_resolution, G.img_resolution, dtype=torch.float32)
    x, latents = G.mapping(z, c) if family == "stylegan2" else z, random_inputs()
    expected_image, expected = generator_features(family, G, a_copy(latents), x, c)
    with FeatureBank(G, [module for module, _ in G.features.values()]) as bank:
        drawn = G(z, c, normal=latents.normal) if family == "stylegan2" else G(z, c)
    torch.testing.assert_close(drawn, expected_image)
    for R, (module, channels) in G.features.items():
        assert bank[module].shape == (N, channels, R, R)
        torch.testing.assert_close(bank[module], expected[R])

    alone, expected = D(image, c), discriminator_features(family, D, image)
    with FeatureBank(D, D.feature_modules) as bank:
        assert torch.equal(D(image, c), alone)
    torch.testing.assert_close(bank, expected)
    assert not any(module._forward_hooks for network in (G, D) for module in network.modules())


def test_hooks_are_gone_after_an_error_too():
    _, D = networks("stylegan2", 0)
    with pytest.raises(ZeroDivisionError), FeatureBank(D, ["b16", "b8"]):
        1 / 0
    assert not any(module._forward_hooks for module in D.modules())


@pytest.mark.parametrize(("modules", "said"), [
    (["b16", "b8.con0"], "'b8.con0' is no module of the discriminator; did you mean b8.conv0?"),
    (["b61"], "did you mean b16?"),
    (["b4.out"], r"module 'b4.out' puts out \[4, 8\]; expected one that puts out features \[N, C, H, W\]"),
    (["b8.skip", "absent"], "module 'absent' took no part in the forward pass"),
    (["twice"], "module 'twice' ran twice"),
    (["tuple"], "module 'tuple' puts out a tuple"),
])
def test_a_bank_refuses_what_has_no_features(modules, said):
    class Pair(nn.Module):
        def forward(self, x):
            return x, x

    class Odd(type(networks("stylegan2", 0)[1])):
        def forward(self, x, c):
            self.tuple(self.twice(self.twice(x)))
            return super().forward(x, c)

    _, D = networks("stylegan2", 0)
    D.__class__ = Odd
    D.absent, D.twice, D.tuple = nn.Identity(), nn.Identity(), Pair()
    Odd.__name__ = "Discriminator"
    with pytest.raises(ValueError, match=said), FeatureBank(D, modules):
        D(torch.zeros(N, 1, 16, 16), torch.eye(CLASSES)[[0, 1, 2, 0]])
    assert not any(module._forward_hooks for module in D.modules())


@families
@pytest.mark.parametrize("passes", [1, 2])
def test_g_and_the_adaptors_take_the_gradients_of_one_loss(family, passes):
    """Which is written out here, block by block, and differentiated at once by the parameters of both."""
    gan, loss = adversaries(family)
    latents, parameters = random_inputs(), [*gan.G.module.parameters(), *gan.adaptors.module.parameters()]
    G, teacher, total = gan.G.module, gan.feature_teacher, 0
    for p in parameters:
        p.requires_grad_(True)
    for _ in range(passes):
        c = latents.classes(N // passes)
        fake = G.training_images(latents, c, track=True, **loss.sampling)
        total = total + ADVERSARIAL[loss.adversarial].generator(gan.D.module(fake, c)).mean() / passes
        z = latents.normal([len(c), 8])
        x = teacher.G.mapping(z, c).detach() if family == "stylegan2" else z
        target, theirs = generator_features(family, teacher.G, a_copy(latents), x, c)
        image, mine = generator_features(family, G, latents, x, c)
        for R, adaptor in zip(RESOLUTIONS[family], gan.adaptors.module):
            total = total + 2.0 * (adaptor(mine[R]) - theirs[R].detach()).abs().mean() / passes
        mine, theirs = (discriminator_features(family, teacher.D, some) for some in (image, target.detach()))
        for name in MODULES[family]:
            total = total + 0.5 * sum(DISTANCES[kind](mine[name], theirs[name]).mean() for kind in ("rmse", "gram")) / passes
    expected = torch.autograd.grad(total, parameters)

    gan, loss = adversaries(family)
    gan.G, gan.adaptors = Kept(gan.G), Kept(gan.adaptors)
    steps.generator_step(gan, random_inputs(), loss, N, 0, ignore, passes)
    got = [*gan.G.gradients.values(), *gan.adaptors.gradients.values()]
    scale = max(g.abs().max() for g in expected)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6 * float(scale))
    assert all(g.abs().max() > 0 for g in gan.adaptors.gradients.values())


@families
def test_nothing_reaches_the_teacher_and_the_student_s_statistics_are_those_of_its_own_images(family):
    gan, loss = adversaries(family)
    alone, _ = adversaries(family)
    alone.feature_teacher = alone.adaptors = None
    teachers = [gan.feature_teacher.G, gan.feature_teacher.D]
    before, adaptors = [state(network) for network in teachers], state(gan.adaptors.module)
    for one in (gan, alone):
        steps.generator_step(one, random_inputs(), loss, N, 0, ignore)
    assert all(same(old, state(network)) for old, network in zip(before, teachers))
    for network in [*teachers, gan.G.module, gan.D.module, gan.adaptors.module]:
        assert all(p.grad is None and not p.requires_grad for p in network.parameters())
    assert not same(adaptors, state(gan.adaptors.module))
    mine, theirs = gan.G.module.running_statistics() or stored(gan.G.module), alone.G.module.running_statistics() or stored(alone.G.module)
    assert mine and all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
    assert same(everything(gan)["D"], everything(alone)["D"])


def stored(G):
    return [buffer for name, buffer in G.named_buffers() if name.endswith(("stored_mean", "stored_var"))]


@families
def test_a_student_equal_to_its_teacher_is_at_no_distance(family):
    """The latents, the noise and what is mixed are the same for both, or it would be."""
    gan, loss = adversaries(family)
    teacher = gan.feature_teacher
    gan.G.module = networks(family, 7)[0].eval()
    of_images, of_generators = teacher.pairs(gan.G.module, random_inputs(), torch.eye(CLASSES)[[0, 1, 2, 0]])
    for mine, theirs in [*of_images, *of_generators]:
        assert torch.equal(mine, theirs) and mine.requires_grad and not theirs.requires_grad
    assert teacher.images(of_images).tolist() == teacher.generators(of_generators).tolist() == [0] * N
    # and each draw is another one
    latents = random_inputs()
    first, second = (gan.G.module.paired_images(teacher.G, latents, torch.eye(CLASSES)[[0, 0, 0, 0]])[0] for _ in range(2))
    assert not torch.equal(first, second)


@families
@pytest.mark.parametrize("only", ["images", "generators"])
def test_each_term_stands_alone_and_is_recorded_before_its_weight(family, only):
    gan, loss = adversaries(family, images=only == "images", generators=only == "generators")
    recorded = Recorded()
    steps.generator_step(gan, random_inputs(), loss, N, 0, recorded)
    name, weight = {"images": ("image_features", 0.5), "generators": ("generator_features", 2.0)}[only]
    assert {key for key in recorded if "features" in key} == {f"Loss/G/{name}"}
    assert recorded[f"Loss/G/{name}"].shape == (N,) and recorded[f"Loss/G/{name}"].min() > 0
    expected = recorded["Loss/G/adversarial"].mean() + weight * recorded[f"Loss/G/{name}"].mean()
    torch.testing.assert_close(recorded["Loss/G/loss"], expected)


def test_every_distance_of_a_config_has_its_formula():
    for section in (configs.FeatureTerm, configs.ImageFeatures, configs.GeneratorFeatures):
        kind, = get_args(section.model_fields["distances"].annotation)
        assert set(get_args(kind)) == set(DISTANCES)


@pytest.mark.parametrize(("family", "features", "said"), [
    ("stylegan2", {}, "guidance.features.images: is missing, and so is generators"),
    ("stylegan2", {"images": {}}, "guidance.features.images.weight: is missing"),
    ("stylegan2", {"images": {"weight": 0}}, "guidance.features.images.weight: expected a number greater than 0, got 0"),
    ("stylegan2", {"images": {"weight": 1, "distances": ["l2"]}}, "guidance.features.images.distances.0: expected 'l1', 'rmse' or 'gram', got 'l2'"),
    ("stylegan2", {"images": {"weight": 1, "modules": []}}, r"guidance.features.images.modules: expected at least one entry, and none twice, got \[\]"),
    ("stylegan2", {"generators": {"weight": 1, "distances": ["l1", "l1"]}}, "distances: expected at least one entry, and none twice"),
    ("stylegan2", {"images": {"weight": 1, "modulse": ["b8"]}}, "images.modulse: there is no such key; did you mean modules?"),
    ("stylegan2", {"generators": {"weight": 1, "resolutions": [8, 32]}}, "guidance.features.generators.resolutions: expected some of 4, 8, 16, .* got 32"),
    ("biggan", {"generators": {"weight": 1, "resolutions": [4]}}, "expected some of 8, 16, 32, which are those of biggan's features at 32x32, got 4"),
])
def test_a_config_refuses_terms_that_cannot_be(family, features, said):
    with pytest.raises(configs.ConfigError, match=said):
        settings(MODELS[family], guidance={"features": {"checkpoint": "x"} | features})


def assembled(family, snapshot=None, run=None, engine=None, model=None, **features):
    """A narrow student of the digits, and its config; a term's settings each in `features`."""
    changes = {} if snapshot is None else {"guidance": {"features": {"checkpoint": str(snapshot)} | features}}
    engine = {"kind": "torch"} if engine is None else engine
    # a small eps makes whole steps of gradients that are nothing but rounding
    adam = {"generator": {"lr": 1e-3, "eps": 1e-3}}
    config = settings(MODELS[family] | {"resolution": 32} | NARROW[family] | (model or {}), engine=engine, optimizer=adam, **changes)
    return assemble(config, ImageDataset("digits", labels=True), run or Run(0, 1, CPU), resumed=False), config


@pytest.fixture(scope="module")
def snapshots(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teachers")
    for family in MODELS:
        save(folder / family / "teacher.safetensors", MODELS[family] | {"resolution": 32}, 10, ImageDataset("digits", labels=True).class_names)
    return {family: folder / family / "teacher.safetensors" for family in MODELS}


@families
def test_without_the_section_there_is_no_teacher_of_features(family):
    student, config = assembled(family)
    assert config.guidance.features is None and student.gan.feature_teacher is None and student.gan.adaptors is None
    assert student.engines.keys() == {"G", "D"}


@families
def test_a_config_names_the_teacher_and_the_rest_has_defaults(family, snapshots):
    student, _ = assembled(family, snapshots[family], images={"weight": 1}, generators={"weight": 2})
    teacher = student.gan.feature_teacher
    assert teacher.images == FeatureTerm("image_features", 1, {"stylegan2": ["b32", "b16"], "biggan": ["blocks.1.0", "blocks.2.0"]}[family], ["rmse", "gram"])
    assert teacher.generators == FeatureTerm("generator_features", 2, [8, 32], ["l1"])
    for network in (teacher.G, teacher.D):
        assert not any(module.training for module in network.modules()) and not any(p.requires_grad for p in network.parameters())
    # the adaptors are trained and kept, and are neither counted nor averaged nor in a snapshot
    assert student.engines.keys() == {"G", "D", "adaptors"} and student.networks.keys() == {"G", "D", "G_ema", "D_ema"}
    plain, _ = assembled(family)
    for name, network in plain.networks.items():
        assert same(state(network), state(student.networks[name])), name


@pytest.mark.parametrize(("features", "model", "error", "said"), [
    ({"images": {"weight": 1, "modules": ["b61"]}}, {}, configs.ConfigError, "guidance.features.images.modules: 'b61' is no module .* did you mean b16?"),
    ({"images": {"weight": 1, "modules": ["b4.out"]}}, {}, configs.ConfigError, "guidance.features.images.modules: module 'b4.out' puts out"),
    ({"generators": {"weight": 1}}, {"z_dim": 4}, CheckpointError, "has z_dim 8, this run has 4; .* they must agree"),
    ({"generators": {"weight": 1}}, {"w_dim": 4}, CheckpointError, "has w_dim 8, this run has 4; .* they must agree"),
])
def test_a_teacher_of_features_that_does_not_fit_is_refused(snapshots, features, model, error, said):
    with pytest.raises(error, match=said):
        assembled("stylegan2", snapshots["stylegan2"], model=model, **features)


def test_a_teacher_of_another_family_is_refused(snapshots):
    with pytest.raises(CheckpointError, match="holds networks of family biggan, this run trains stylegan2"):
        assembled("stylegan2", snapshots["biggan"], images={"weight": 1})


def trained(family, snapshot, run, engine):
    """The parameters of G, and of the adaptors, before and after some steps of G with both terms and the path length's."""
    student, config = assembled(family, snapshot, run, engine, images={"weight": 0.5}, generators={"weight": 2})
    gan, latents = student.gan, Latents(0, torch.arange(10), run.device, run.rank, run.world_size, 10)
    parts = {"G": gan.G.module, "adaptors": gan.adaptors.module}

    def vectors():
        return {name: torch.cat([p.detach().flatten() for key, p in part.named_parameters() if not key.startswith("mapping")]) for name, part in parts.items()}

    began = vectors()
    for _ in range(ITERATIONS):
        steps.generator_step(gan, latents, config.loss, 8 // run.world_size, 0, ignore, passes=2)
        if config.loss.path_length_interval:
            steps.path_length_step(gan, latents, config.loss, 8 // run.world_size, ignore)
    return {"began": began, "ended": vectors()}


def train_on_two_ranks(run, snapshots, folder):
    results = {}
    for family, stages in ZERO_STAGES.items():
        ways = {"torch": {"kind": "torch"}} | {f"zero{stage}": {"zero_stage": stage} for stage in stages}
        results[family] = {way: trained(family, snapshots[family], run, engine) for way, engine in ways.items()}
    torch.save(results, folder / f"{run.rank}.pt")
    end_run()


@pytest.fixture(scope="module")
def on_two_ranks(snapshots, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    on_ranks(2, train_on_two_ranks, snapshots, folder)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def assert_went_the_same_way(got, expected):
    for part, truth in expected["ended"].items():
        moved = (truth - expected["began"][part]).norm()
        assert moved > 0 and (got["ended"][part] - truth).norm() < 1e-3 * moved, part


@pytest.mark.parametrize(("family", "stage"), [(family, stage) for family, stages in ZERO_STAGES.items() for stage in stages])
def test_g_and_the_adaptors_train_on_two_ranks_in_every_zero_stage_as_in_plain_pytorch(on_two_ranks, family, stage):
    first, second = (results[family][f"zero{stage}"]["ended"] for results in on_two_ranks)
    assert all(torch.equal(first[part], second[part]) for part in first)
    assert_went_the_same_way(on_two_ranks[0][family][f"zero{stage}"], on_two_ranks[0][family]["torch"])


def test_two_ranks_train_the_adaptors_as_one_does(on_two_ranks, snapshots):
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    alone = trained("stylegan2", snapshots["stylegan2"], start_run(), {"kind": "torch"})
    end_run()
    assert_went_the_same_way(on_two_ranks[0]["stylegan2"]["torch"], alone)
