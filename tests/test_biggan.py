"""BigGAN against BigGAN-PyTorch's networks, and what its normalizations do in training, on two ranks and in 16 bits."""

import json

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from numerics import GOLDEN, assert_close, assert_same_to_rounding, normal, nudge
from ranks import on_ranks

from fastdgl import models
from fastdgl.engines import average_over_ranks, end_run
from fastdgl.models.batch_norm import BatchNormReLU, ConditionalBatchNormReLU, batch_norms, running_statistics, standing_statistics
from fastdgl.models.biggan import Discriminator, DiscriminatorBlock, Generator, GeneratorBlock, SelfAttention, add_upsampled
from fastdgl.models.cost import macs, parameter_count
from fastdgl.models.spectral_norm import Conv2d, Linear, NormalizedEmbedding, SpectralNorm

# the smallest with every part: chunks of z, a shared embedding, attention
SMALL = {"z_dim": 20, "c_dim": 3, "img_resolution": 64, "ch": 4, "shared_dim": 6, "attention": 32}
SMALL_D = {"c_dim": 3, "img_resolution": 64, "ch": 8, "attention": 32}
# as for CIFAR-10: no chunks, and an embedding for each batch norm
CIFAR = {"z_dim": 128, "c_dim": 10, "img_resolution": 32, "hier": False, "shared_dim": 0, "attention": 0, "init": "normal", "sn_eps": 1e-8}
CIFAR_D = {"c_dim": 10, "img_resolution": 32, "attention": 0, "init": "normal", "sn_eps": 1e-8}


def classes(N, c_dim=3):
    return F.one_hot(torch.arange(N) % c_dim, c_dim).float()


def latents(N, z_dim=20, seed=0):
    return normal(N, z_dim, seed=seed, dtype=torch.float32)


def attentive(network):
    """`network` with attention that counts: new ones add nothing."""
    for layer in network.modules():
        if isinstance(layer, SelfAttention):
            torch.nn.init.constant_(layer.gamma, 0.5)
    return network


class Golden:
    """BigGAN-PyTorch's two networks in ours, and what theirs computed."""

    def __init__(self, name):
        with np.load(GOLDEN / f"ajbrock_biggan_{name}.npz") as file:
            config = json.loads(file["meta.json"].tobytes())["config"]
            self.data = {key: torch.from_numpy(file[key]) for key in file.files if key != "meta.json"}
        arguments = {"c_dim": config["ncls"], "img_resolution": config["res"], "ch": config["ch"], "attention": int(config["attn"])}
        self.G = Generator(**arguments, z_dim=config["dz"], hier=config["hier"], shared_dim=config["sh"])
        self.D = Discriminator(**arguments)
        for prefix, network in (("state/G.", self.G), ("state/D.", self.D)):
            state = {key.removeprefix(prefix): value for key, value in self.data.items() if key.startswith(prefix)}
            network.load_state_dict(state, strict=True)
            network.eval()
        self.c = F.one_hot(self.data["y"], config["ncls"]).float()

    def __getitem__(self, name):
        return self.data[name]


@pytest.fixture(scope="module", params=["c10", "hier"])
def golden(request):
    return Golden(request.param)


@torch.no_grad()
def test_paints_as_biggan_pytorch(golden):
    assert_close(golden.G(golden["z"], golden.c), golden["img"], tolerance=1e-4)


@pytest.mark.parametrize(("images", "logits"), [("real", "logits_real"), ("img", "logits_fake")], ids=["real", "fake"])
@torch.no_grad()
def test_judges_as_biggan_pytorch(golden, images, logits):
    assert_close(golden.D(golden[images], golden.c), golden[logits], tolerance=1e-4)


# ch, and of ImageNet at 128 pixels: parameters of G and D, multiply-accumulates of G; of CIFAR-10: parameters of G and D
COSTS = [
    (96, 70_433_988, 87_982_370, "21.12", 9_258_243, 9_456_769),
    (64, 31_978_628, 39_448_258, "9.51", 4_304_387, 4_207_361),
    (48, 18_383_460, 22_383_698, "5.42", 2_527_875, 2_369_089),
    (24, 5_031_348, 5_789_978, "1.42", 738_627, 594_721),
]


@pytest.mark.parametrize(("ch", "G_parameters", "D_parameters", "G_macs", "G_cifar", "D_cifar"), COSTS, ids=[f"ch{row[0]}" for row in COSTS])
class TestEveryWidth:
    @pytest.fixture(autouse=True)
    def nothing_is_computed(self):
        with torch.device("meta"):
            yield

    def test_parameters(self, ch, G_parameters, D_parameters, G_macs, G_cifar, D_cifar):
        imagenet = {"c_dim": 1000, "img_resolution": 128, "ch": ch, "init": "normal"}
        assert parameter_count(Generator(**imagenet)) == G_parameters
        assert parameter_count(Discriminator(**imagenet)) == D_parameters
        assert parameter_count(Generator(**CIFAR, ch=ch)) == G_cifar
        assert parameter_count(Discriminator(**CIFAR_D, ch=ch)) == D_cifar

    def test_macs_are_the_known_ones_but_for_the_shortcuts(self, ch, G_parameters, D_parameters, G_macs, G_cifar, D_cifar):
        """Known with the shortcuts' convolutions after upsampling, at four times the pixels."""
        G = Generator(c_dim=1000, img_resolution=128, ch=ch, init="normal")
        resolutions = [4, 8, 16, 32, 64]
        shortcuts = sum(block.conv_sc.weight.numel() * R**2 for (block, *_), R in zip(G.blocks, resolutions))
        assert f"{(macs(G, torch.empty(1, 120), torch.empty(1, 1000)) + 3 * shortcuts) / 1e9:.2f}" == G_macs


def test_macs_of_attention_are_those_of_its_convolutions_and_products():
    layer = SelfAttention(16, 1e-6)
    # 2 channels for theta and phi, 8 for g and o; 36 pixels ask 9
    assert macs(layer, torch.empty(1, 16, 6, 6)) == 36 * 16 * (2 + 2 + 8 + 8) + 36 * 9 * (2 + 8)


def test_counting_asks_no_other_rank(monkeypatch):
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    arguments = {"z_dim": 8, "c_dim": 3, "img_resolution": 32, "ch": 2, "hier": False, "attention": 0}
    inputs = torch.empty(1, 8), torch.empty(1, 3)
    assert macs(Generator(**arguments, sync_batchnorm=True), *inputs) == macs(Generator(**arguments), *inputs)


@pytest.mark.parametrize("img_channels", [1, 3])
@pytest.mark.parametrize(("resolution", "z_dim", "attention", "G_attention", "D_attention"), [
    (32, 8, 0, [], []), (64, 10, 32, ["blocks.2.1"], ["blocks.0.1"]),
    (128, 12, 64, ["blocks.3.1"], ["blocks.0.1"]), (256, 14, 64, ["blocks.3.1"], ["blocks.1.1"]),
], ids=["32", "64", "128", "256"])
def test_every_resolution(resolution, img_channels, z_dim, attention, G_attention, D_attention):
    arguments = {"c_dim": 3, "img_resolution": resolution, "img_channels": img_channels, "attention": attention, "init": "normal"}
    G, D = Generator(**arguments, z_dim=z_dim, ch=4, shared_dim=4), Discriminator(**arguments, ch=8)
    assert (G.z_dim, G.c_dim, G.img_resolution, G.img_channels) == (z_dim, 3, resolution, img_channels)
    assert (D.c_dim, D.img_resolution, D.img_channels) == (3, resolution, img_channels)
    images = G(latents(2, z_dim), classes(2))
    assert images.shape == (2, img_channels, resolution, resolution) and images.dtype == torch.float32
    assert D(images, classes(2)).shape == (2, 1)
    for network, places in ((G, G_attention), (D, D_attention)):
        assert [name for name, layer in network.named_modules() if isinstance(layer, SelfAttention)] == places


def test_is_built_from_what_a_snapshot_keeps():
    arguments = json.loads(json.dumps(SMALL | {"init": "normal", "sync_batchnorm": True, "img_channels": 1}))
    G = models.generator("biggan", arguments)
    assert isinstance(G, Generator) and G(latents(2), classes(2)).shape == (2, 1, 64, 64)
    assert isinstance(models.discriminator("biggan", SMALL_D), Discriminator)


def test_the_class_and_every_chunk_of_z_change_the_image():
    G = Generator(**SMALL).eval()
    z, c = latents(1), classes(3)[:1]
    image = G(z, c)
    assert not torch.equal(G(z, classes(3)[1:2]), image)
    for chunk in range(5):
        other = z.clone()
        other[:, 4 * chunk] += 1
        assert not torch.equal(G(other, c), image), chunk


def test_the_class_changes_the_logit():
    logits = Discriminator(**SMALL_D)(normal(1, 3, 64, 64, dtype=torch.float32).repeat(3, 1, 1, 1), classes(3))
    assert len(logits.unique()) == 3


@pytest.mark.parametrize("init", ["orthogonal", "normal"])
@pytest.mark.parametrize(("network", "arguments"), [(Generator, SMALL), (Discriminator, SMALL_D)])
def test_weights_begin_as_asked(network, arguments, init):
    for name, weight in network(**arguments, init=init).named_parameters():
        if name.endswith("weight") and min(weight.flatten(1).shape) > 1:
            matrix = weight.flatten(1)
            if init == "orthogonal":
                torch.testing.assert_close(torch.linalg.svdvals(matrix), torch.ones(min(matrix.shape)))
            else:
                # as far from 0.02 as so few draws may be
                assert abs(matrix.std().item() / 0.02 - 1) < 5 / (2 * matrix.numel())**0.5, name


LAYERS = {
    "linear": lambda: (Linear(11, 7, 1e-8), normal(2, 11, dtype=torch.float32)),
    "convolution": lambda: (Conv2d(3, 7, 3, 1e-8), normal(2, 3, 5, 5, dtype=torch.float32)),
    "embedding": lambda: (NormalizedEmbedding(7, 5, 1e-8), classes(2, 7)),
}


@pytest.mark.parametrize("kind", LAYERS)
class TestSpectralNorm:
    @pytest.fixture
    def layer(self, kind):
        torch.manual_seed(0)
        return LAYERS[kind]()

    def test_converges_to_the_largest_singular_value(self, layer, kind):
        layer, x = layer
        for _ in range(300):
            layer(x)
        truth = torch.linalg.svdvals(layer.weight.flatten(1))[0]
        torch.testing.assert_close(layer.sv0, truth[None].detach())
        torch.testing.assert_close(torch.linalg.svdvals(layer.normalized_weight().flatten(1))[0], torch.ones([]))

    def test_its_gradient_is_that_of_dividing_by_the_largest_singular_value(self, layer, kind):
        layer, x = layer
        for _ in range(300):
            layer(x)
        weight = layer.weight.detach().clone().requires_grad_()
        dy = normal(*weight.shape, dtype=torch.float32)
        expected, = torch.autograd.grad(weight / torch.linalg.matrix_norm(weight.flatten(1), 2), weight, dy)
        got, = torch.autograd.grad(layer.normalized_weight(), layer.weight, dy)
        assert_close(got, expected, tolerance=1e-4)

    def test_moves_in_training_and_stands_still_in_evaluation(self, layer, kind):
        layer, x = layer
        u0, sv0 = layer.u0.clone(), layer.sv0.clone()
        layer.eval()
        assert torch.equal(layer(x), layer(x))
        assert torch.equal(layer.u0, u0) and torch.equal(layer.sv0, sv0)
        layer.train()(x)
        assert not torch.equal(layer.u0, u0) and not torch.equal(layer.sv0, sv0)
        assert not layer.u0.requires_grad and not layer.sv0.requires_grad

    def test_two_passes_may_precede_one_backward(self, layer, kind):
        layer, x = layer
        (layer(x).sum() + layer(x).sum()).backward()
        assert layer.weight.grad.isfinite().all()


def test_evaluation_moves_no_buffer_of_either_network():
    G, D = Generator(**SMALL).eval(), Discriminator(**SMALL_D).eval()
    before = {name: buffer.clone() for network in (G, D) for name, buffer in network.named_buffers(prefix=type(network).__name__)}
    D(G(latents(3), classes(3)), classes(3)).sum().backward()
    for network in (G, D):
        for name, buffer in network.named_buffers(prefix=type(network).__name__):
            assert torch.equal(buffer, before[name]), name


def norm_of(kind):
    """A batch norm, what it takes besides x, and its gain and bias `[N or 1, C, 1, 1]`."""
    torch.manual_seed(0)
    if kind == "plain":
        norm = BatchNormReLU(5, sync=False)
        torch.nn.init.normal_(norm.gain)
        torch.nn.init.normal_(norm.bias)
        return norm, (), norm.gain[None, :, None, None], norm.bias[None, :, None, None]
    norm = ConditionalBatchNormReLU(5, 3, kind == "shared", 1e-8, sync=False)
    y = classes(4)
    # the norm is in training mode, its linear layers stand still
    norm.gain.eval(), norm.bias.eval()
    return norm, (y,), 1 + norm.gain(y)[:, :, None, None], norm.bias(y)[:, :, None, None]


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("kind", ["plain", "shared", "by-class"])
def test_batch_norm_is_pytorchs_scaled_and_shifted(kind, training):
    norm, condition, gain, bias = norm_of(kind)
    mean, var = norm.stored_mean.normal_().clone(), norm.stored_var.uniform_(0.5, 2).clone()
    norm.training = training
    x = normal(4, 5, 3, 3, dtype=torch.float32) * 2 + 1
    expected = F.relu(F.batch_norm(x, mean, var, training=training, momentum=0.1, eps=1e-5) * gain + bias)
    torch.testing.assert_close(norm(x, *condition), expected)
    torch.testing.assert_close(norm.stored_mean, mean)
    torch.testing.assert_close(norm.stored_var, var)


def test_conditional_batch_norm_repeats_pixels_on_request():
    norm, condition, _, _ = norm_of("shared")
    x = normal(4, 5, 3, 3, dtype=torch.float32)
    assert torch.equal(norm(x, *condition, up=2), F.interpolate(norm(x, *condition), scale_factor=2))


def test_adding_the_upsampled_is_adding_what_interpolation_writes():
    x, small = normal(2, 3, 6, 10).requires_grad_(), normal(2, 3, 3, 5, seed=1).requires_grad_()
    assert torch.equal(add_upsampled(x, small), x + F.interpolate(small, scale_factor=2))
    assert torch.autograd.gradgradcheck(add_upsampled, [x, small])


def test_features_keep_their_memory_format():
    x, small = (normal(2, 3, R, R).to(memory_format=torch.channels_last) for R in (6, 3))
    assert add_upsampled(x, small).is_contiguous(memory_format=torch.channels_last)
    attention = attentive(SelfAttention(8, 1e-6))
    assert attention(torch.randn(2, 8, 6, 6).to(memory_format=torch.channels_last)).is_contiguous(memory_format=torch.channels_last)


def frozen_weights(block):
    """In training mode but for spectral norm, which would make another function of every call."""
    for layer in block.modules():
        if isinstance(layer, SpectralNorm):
            layer.eval()
    return block.double().requires_grad_(False)


BLOCKS = {
    "generator": (lambda: GeneratorBlock(2, 3, 2, True, 1e-6, sync=False), [(2, 2, 2, 2), (2, 2)]),
    "discriminator": (lambda: DiscriminatorBlock(2, 3, first=False, down=True, eps=1e-6), [(1, 2, 4, 4)]),
    "attention": (lambda: attentive(SelfAttention(8, 1e-6)), [(1, 8, 2, 2)]),
}


@pytest.mark.parametrize("kind", BLOCKS)
def test_first_and_second_derivatives_of_the_blocks(kind):
    torch.manual_seed(0)
    make, shapes = BLOCKS[kind]
    block = frozen_weights(make())
    inputs = [normal(*shape, seed=seed).requires_grad_() for seed, shape in enumerate(shapes)]
    assert torch.autograd.gradcheck(block, inputs)
    assert torch.autograd.gradgradcheck(block, inputs)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_no_value_is_asked_for_while_computing(training):
    """Where there are no values, asking for one is an error; on a GPU it would be a wait."""
    with torch.device("meta"):
        G, D = Generator(**SMALL).train(training), Discriminator(**SMALL_D).train(training)
        logits = D(G(torch.empty(2, 20), torch.empty(2, 3)), torch.empty(2, 3))
        logits.sum().backward()
    assert all(p.grad.is_meta for p in [*G.parameters(), *D.parameters()])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
class TestLowPrecision:
    def test_image_and_logits_are_those_of_fp32(self, dtype):
        """A sum of many products, each rounded at random, errs by some of the format's steps: below 16 of them."""
        torch.manual_seed(0)
        G, D = attentive(Generator(**SMALL)), attentive(Discriminator(**SMALL_D))
        # what both start from, or parameters differ by rounding too
        for network in (G, D):
            for parameter in network.parameters():
                parameter.data = parameter.data.to(dtype).float()
        z, c = latents(4), classes(4)
        G16, D16 = Generator(**SMALL), Discriminator(**SMALL_D)
        G16.load_state_dict(G.state_dict())
        D16.load_state_dict(D.state_dict())
        image = G(z, c)
        got = G16.to(dtype)(z, c)
        assert got.dtype == torch.float32
        assert_close(got, image, "image", tolerance=16 * torch.finfo(dtype).eps)
        logits = D16.to(dtype)(image, c)
        assert logits.dtype == torch.float32
        assert_close(logits, D(image, c), "logits", tolerance=16 * torch.finfo(dtype).eps)
        for name, buffer in G16.named_buffers():
            assert_close(buffer, G.get_buffer(name), name, tolerance=16 * torch.finfo(dtype).eps)

    def test_buffers_stay_fp32_and_features_do_not(self, dtype):
        G, D = Generator(**SMALL), Discriminator(**SMALL_D)
        before = [buffer.clone() for buffer in G.buffers()]
        G.to(dtype), D.to(dtype)
        assert all(torch.equal(buffer, kept) and buffer.dtype == torch.float32 for buffer, kept in zip(G.buffers(), before))
        features = []
        for network in (G, D):
            for block in network.blocks:
                block[0].register_forward_hook(lambda module, inputs, output: features.append(output.dtype))
        D(G(latents(2), classes(2)), classes(2))
        assert set(features) == {dtype} and len(features) == 9

    def test_gradients_are_finite_and_reach_every_parameter(self, dtype):
        G, D = attentive(Generator(**SMALL)).to(dtype), attentive(Discriminator(**SMALL_D)).to(dtype)
        D(G(latents(4), classes(4)), classes(4)).sum().backward()
        for network in (G, D):
            for name, parameter in network.named_parameters():
                assert parameter.grad.dtype == dtype and parameter.grad.isfinite().all(), name
                assert parameter.grad.ne(0).any(), name


def draws(batches, N=4):
    return [(latents(N, seed=seed), classes(N)) for seed in range(batches)]


class TestStandingStatistics:
    @pytest.fixture
    def G(self):
        torch.manual_seed(0)
        return Generator(**SMALL).eval()

    def test_are_the_mean_of_those_of_each_batch(self, G):
        norm, seen = batch_norms(G)[0], []
        norm.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
        standing_statistics(G, draws(3))
        torch.testing.assert_close(norm.stored_mean, torch.stack([x.mean(dim=(0, 2, 3)) for x in seen]).mean(dim=0))
        torch.testing.assert_close(norm.stored_var, torch.stack([x.var(dim=(0, 2, 3)) for x in seen]).mean(dim=0))

    def test_forget_what_was_stored_and_depend_on_the_latents_alone(self, G):
        standing_statistics(G, draws(2))
        first = [statistic.clone() for statistic in running_statistics(G)]
        for statistic in running_statistics(G):
            statistic.fill_(float("nan"))
        standing_statistics(G, iter(draws(2)))
        assert all(torch.equal(a, b) for a, b in zip(first, running_statistics(G)))

    def test_change_nothing_else(self, G):
        G.blocks[0].train()
        modes = [module.training for module in G.modules()]
        others = {key: value.clone() for key, value in G.state_dict().items() if "stored" not in key}
        standing_statistics(G, draws(2))
        assert [module.training for module in G.modules()] == modes
        assert {norm.momentum for norm in batch_norms(G)} == {0.1}
        assert all(torch.equal(G.state_dict()[key], value) for key, value in others.items())
        assert all(parameter.grad is None for parameter in G.parameters()) and not any(s.requires_grad for s in running_statistics(G))

    def test_ask_no_other_rank(self, monkeypatch):
        G = Generator(**SMALL, sync_batchnorm=True)
        monkeypatch.setattr(dist, "is_initialized", lambda: True)
        monkeypatch.setattr(dist, "get_world_size", lambda: 2)
        standing_statistics(G, draws(1))
        assert all(norm.sync for norm in batch_norms(G))

    def test_need_a_batch(self, G):
        with pytest.raises(ValueError, match="there are none: expected at least one batch"):
            standing_statistics(G, [])


def generator_gradients(G, z, c):
    """Images, gradients of a loss with a gradient of the images in it, and the statistics stored on the way."""
    z = z.clone().requires_grad_()
    images = G(z, c)
    slope, = torch.autograd.grad(images.square().sum(), z, create_graph=True)
    loss = (images * normal(*images.shape[1:], seed=5, dtype=torch.float32)).flatten(1).sum(dim=1) + slope.square().sum(dim=1)
    loss.mean().backward()
    gradients = {name: parameter.grad for name, parameter in G.named_parameters()}
    return {"images": images.detach(), "gradients": gradients, "statistics": [s.clone() for s in running_statistics(G)]}


def tiny_generator(**arguments):
    torch.manual_seed(0)
    return Generator(z_dim=8, c_dim=3, img_resolution=32, ch=2, shared_dim=4, attention=16, **arguments)


def paint_on_two_ranks(run, folder):
    z, c = latents(6, 8)[run.rank::2], classes(6)[run.rank::2]
    together = generator_gradients(tiny_generator(sync_batchnorm=True), z, c)
    average_over_ranks(together["gradients"].values())
    G = tiny_generator()
    apart = generator_gradients(G, z, c)
    average_over_ranks(running_statistics(G))
    torch.save({"together": together, "apart": apart, "averaged": list(running_statistics(G))}, folder / f"{run.rank}.pt")
    end_run()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    on_ranks(2, paint_on_two_ranks, folder)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def test_synchronised_batch_norm_is_that_of_the_whole_batch(two_ranks):
    """In images, stored statistics, gradients, and the gradients of gradients that are in them."""
    def whole(seed=None):
        G = tiny_generator()
        if seed is not None:
            nudge(G.parameters(), seed)
        return generator_gradients(G, latents(6, 8), classes(6))

    truth, nudged = whole(), [whole(seed) for seed in (0, 1)]
    for rank, results in enumerate(two_ranks):
        got = results["together"]
        assert_same_to_rounding([got["images"]], [truth["images"][rank::2]], [[other["images"][rank::2]] for other in nudged])
        for kind in ("statistics", "gradients"):
            assert_same_to_rounding(got[kind], truth[kind], [other[kind] for other in nudged], remainders=kind == "gradients")


def test_without_it_each_rank_has_its_own_statistics_until_they_are_averaged(two_ranks):
    first, second = two_ranks
    for mine, theirs, a, b in zip(first["apart"]["statistics"], second["apart"]["statistics"], first["averaged"], second["averaged"], strict=True):
        assert not torch.equal(mine, theirs)
        assert torch.equal(a, b)
        torch.testing.assert_close(a, (mine + theirs) / 2)


@pytest.mark.parametrize(("changes", "sentence"), [
    ({"c_dim": 0}, r"c_dim=0: BigGAN is conditional on a class; expected at least 1"),
    ({"img_resolution": 48}, r"img_resolution=48: expected one of 32, 64, 128, 256"),
    ({"img_channels": 4}, r"img_channels=4: expected 1 or 3"),
    ({"ch": 0}, r"ch=0: expected at least 1"),
    ({"init": "xavier"}, r"init='xavier': expected one of 'orthogonal', 'normal'"),
    ({"sn_eps": 0}, r"sn_eps=0: expected a number above 0"),
    ({"attention": 48}, r"attention=48: the blocks put out features of resolution .*; expected one of these, or 0"),
    ({"attention": 32, "ch": 1}, r"compares pixels by an eighth of the [24] channels there; use a larger ch"),
    ({"z_dim": 22}, r"z_dim=22: with hier=True at 64x64 z is cut into 5 equal chunks; expected a multiple of 5, such as 20 \(BigGAN-PyTorch rounds"),
    ({"z_dim": 3}, r"expected a multiple of 5, such as 5"),
    ({"z_dim": 0}, r"z_dim=0, shared_dim=6: expected at least 1"),
    ({"shared_dim": 0}, r"hier=True with shared_dim=0: .*expected shared_dim of at least 1"),
], ids=lambda value: ",".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else "")
def test_refuses_arguments_in_a_sentence(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        Generator(**SMALL | changes)
    if not changes.keys() - SMALL_D.keys() - {"img_channels", "init", "sn_eps"} and changes.get("ch") != 1:
        with pytest.raises(ValueError, match=sentence):
            Discriminator(**SMALL_D | changes)


@pytest.mark.parametrize(("shape", "classes_shape", "sentence"), [
    ((2, 19), (2, 3), r"z must be \[N, 20\], got \[2, 19\]"),
    ((20,), (1, 3), r"z must be \[N, 20\], got \[20\]"),
    ((2, 20), (2, 4), r"c must be one-hot classes \[2, 3\], one per sample, got \[2, 4\]"),
    ((2, 20), (2,), r"c must be one-hot classes \[2, 3\], one per sample, got \[2\]"),
    ((2, 20), (1, 3), r"c must be one-hot classes \[2, 3\], one per sample, got \[1, 3\]"),
], ids=str)
def test_the_generator_refuses_other_shapes(shape, classes_shape, sentence):
    with pytest.raises(ValueError, match=sentence):
        Generator(**SMALL)(torch.zeros(shape), torch.zeros(classes_shape))


def test_says_that_classes_are_missing():
    with pytest.raises(ValueError, match=r"c must be one-hot classes \[2, 3\], one per sample, got None"):
        Generator(**SMALL)(torch.zeros(2, 20), None)


@pytest.mark.parametrize(("shape", "classes_shape", "sentence"), [
    ((2, 3, 32, 64), (2, 3), r"image must be \[N, 3, 64, 64\], got \[2, 3, 32, 64\]"),
    ((2, 1, 64, 64), (2, 3), r"image must be \[N, 3, 64, 64\], got \[2, 1, 64, 64\]"),
    ((2, 3, 64, 64), (2, 4), r"c must be one-hot classes \[2, 3\], one per sample, got \[2, 4\]"),
], ids=str)
def test_the_discriminator_refuses_other_shapes(shape, classes_shape, sentence):
    with pytest.raises(ValueError, match=sentence):
        Discriminator(**SMALL_D)(torch.zeros(shape), torch.zeros(classes_shape))
