"""StyleGAN2 against NVIDIA's networks, and what narrow, conditional and 16-bit ones do."""

import json
from collections import Counter

import numpy as np
import pytest
import torch
from numerics import GOLDEN, assert_close, normal

from fastdgl.losses import nonsaturating_generator_loss, path_lengths, r1_penalty
from fastdgl.models.layers import MinibatchStdLayer
from fastdgl.models.stylegan2 import Discriminator, Generator, full_widths, narrowed, resolutions

SMALL = {"z_dim": 8, "w_dim": 12, "img_resolution": 32, "mapping_layers": 2, "channel_base": 256, "channel_max": 16}
SMALL_D = {"img_resolution": 32, "channel_base": 256, "channel_max": 16}


class Golden:
    """NVIDIA's two networks in ours, and what theirs computed."""

    def __init__(self, name):
        with np.load(GOLDEN / f"nvlabs_stylegan2_{name}.npz") as file:
            self.meta = json.loads(file["meta.json"].tobytes())
            self.data = {key: torch.from_numpy(file[key]) for key in file.files if key != "meta.json"}
        arguments = dict(self.meta["generator"])
        self.G = Generator(mapping_layers=arguments.pop("mapping_kwargs")["num_layers"], **arguments)
        arguments = dict(self.meta["discriminator"])
        self.D = Discriminator(mbstd_group_size=arguments.pop("epilogue_kwargs")["mbstd_group_size"], **arguments)
        for prefix, network in (("state/G.", self.G), ("state/D.", self.D)):
            state = {key.removeprefix(prefix): value for key, value in self.data.items() if key.startswith(prefix)}
            network.load_state_dict(state, strict=True)

    def __getitem__(self, name):
        return self.data[name]

    def assert_gradient_norms(self, recorded, loss, network):
        """Norms to 1e-3. Some are what is left of larger terms: theirs are as exact as float32 is for the largest."""
        norms = self.meta[recorded]
        names, parameters = zip(*network.named_parameters())
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        floor = torch.finfo(torch.float32).eps * max(norm for norm in norms.values() if norm is not None)
        assert set(names) == set(norms)
        for name, gradient in zip(names, gradients):
            if norms[name] is None:
                assert gradient is None, name
            else:
                assert abs(gradient.norm().item() - norms[name]) <= 1e-3 * norms[name] + floor, name


@pytest.fixture(scope="module", params=["cond", "uncond"])
def golden(request):
    return Golden(request.param)


def test_maps_as_nvidias(golden):
    assert_close(golden.G.mapping(golden["z"], golden["c"]), golden["ws"], tolerance=1e-4)


@pytest.mark.parametrize(("image", "psi", "noise_mode"), [
    pytest.param("img", 1, "const", id="constant-noise"),
    pytest.param("img_noise_none", 1, "none", id="no-noise"),
    pytest.param("img_psi06", 0.6, "const", id="truncated"),
])
@torch.no_grad()
def test_paints_as_nvidias(golden, image, psi, noise_mode):
    got = golden.G(golden["z"], golden["c"], truncation_psi=psi, noise_mode=noise_mode)
    assert_close(got, golden[image], tolerance=1e-4)


@pytest.mark.parametrize(("images", "logits"), [("real", "logits_real"), ("img", "logits_fake")], ids=["real", "fake"])
@torch.no_grad()
def test_judges_as_nvidias(golden, images, logits):
    assert_close(golden.D(golden[images], golden["c"]), golden[logits], tolerance=1e-4)


def test_r1_and_its_gradients_are_nvidias(golden):
    real = golden["real"].clone().requires_grad_()
    penalty = r1_penalty(golden.D(real, golden["c"]), real)
    assert_close(penalty, golden["r1_penalty"], tolerance=1e-4)
    golden.assert_gradient_norms("r1_grad_norms_D", (5 * penalty).mean(), golden.D)


def test_path_lengths_and_their_gradients_are_nvidias(golden):
    def recorded(size, device):
        # stored with its 1/sqrt(H W), which path_lengths applies itself
        assert size == list(golden["pl_noise"].shape)
        return golden["pl_noise"] * golden.G.img_resolution

    ws = golden["ws"].clone().requires_grad_()
    lengths = path_lengths(golden.G.synthesis(ws, noise_mode="const"), ws, recorded)
    assert_close(lengths, golden["path_lengths"], tolerance=1e-4)
    golden.assert_gradient_norms("path_length_grad_norms_synthesis", (lengths - 0.1).square().mean(), golden.G.synthesis)


def test_the_generator_loss_and_its_gradients_are_nvidias(golden):
    image = golden.G(golden["z"], golden["c"], noise_mode="const")
    loss = nonsaturating_generator_loss(golden.D(image, golden["c"])).mean()
    assert loss.item() == pytest.approx(golden.meta["lossG"], rel=1e-4)
    golden.assert_gradient_norms("lossG_grad_norms", loss, golden.G)


def test_a_fraction_narrows_convolutions_and_nothing_else():
    full, half = Generator(**SMALL), Generator(**SMALL, fraction=0.5)
    for R in resolutions(32):
        assert getattr(half.synthesis, f"b{R}").conv1.weight.shape[0] * 2 == getattr(full.synthesis, f"b{R}").conv1.weight.shape[0]
    assert half.synthesis.b4.const.shape == full.synthesis.b4.const.shape == (16, 4, 4)
    assert [p.shape for p in half.mapping.parameters()] == [p.shape for p in full.mapping.parameters()]
    assert half(normal(2, 8, dtype=torch.float32)).shape == (2, 3, 32, 32)


def test_a_fraction_narrows_the_discriminator():
    full, half = Discriminator(**SMALL_D), Discriminator(**SMALL_D, fraction=0.5)
    for R in (32, 16, 8):
        assert getattr(half, f"b{R}").conv1.weight.shape[0] * 2 == getattr(full, f"b{R}").conv1.weight.shape[0]
    assert half.b4.fc.weight.shape == (8, 8 * 16)
    assert half(normal(4, 3, 32, 32, dtype=torch.float32)).shape == (4, 1)


def test_the_constant_narrows_on_request():
    G = Generator(**SMALL, fraction=0.5, narrow_const=True)
    assert G.synthesis.b4.const.shape == (8, 4, 4)
    assert G.synthesis.b4.conv1.weight.shape == (8, 8, 3, 3)
    assert G(normal(1, 8, dtype=torch.float32)).shape == (1, 3, 32, 32)


@pytest.mark.parametrize("network", [Generator, Discriminator])
def test_refuses_a_fraction_that_leaves_part_of_a_channel(network):
    with pytest.raises(ValueError, match=r"fraction 0.3 of 8 channels at 4x4 is 2.4"):
        network(img_resolution=32, channel_base=256, channel_max=8, fraction=0.3)


@pytest.mark.parametrize(("resolution", "channels"), [(4, 512), (64, 512), (128, 256), (1024, 32)])
def test_width_is_the_papers(resolution, channels):
    widths = full_widths(1024, 32768, 512, None)
    assert widths[resolution] == channels and narrowed(widths, 0.125)[resolution] == channels // 8


@pytest.mark.parametrize(("resolution", "num_ws"), [(8, 4), (32, 8), (1024, 18)])
def test_takes_one_w_per_convolution_and_one_for_the_last_image(resolution, num_ws):
    assert Generator(img_resolution=resolution, channel_base=resolution, z_dim=4, w_dim=4, mapping_layers=1).num_ws == num_ws


def test_the_class_changes_the_image_and_the_logit():
    G, D = Generator(**SMALL, c_dim=3), Discriminator(**SMALL_D, c_dim=3)
    z, c = normal(1, 8, dtype=torch.float32).repeat(3, 1), torch.eye(3)
    images = G(z, c, noise_mode="none")
    assert not torch.equal(images[0], images[1]) and not torch.equal(images[1], images[2])
    logits = D(images[:1].repeat(3, 1, 1, 1), c)
    assert logits.shape == (3, 1) and len(logits.unique()) == 3


def test_psi_0_is_the_mean_image():
    G = Generator(**SMALL)
    G.mapping.w_avg.copy_(normal(12, dtype=torch.float32))
    mean = G.synthesis(G.mapping.w_avg.expand(3, G.num_ws, -1), noise_mode="const")
    assert torch.equal(G(normal(3, 8, dtype=torch.float32), truncation_psi=0, noise_mode="const"), mean)


def test_truncation_reaches_to_the_cutoff():
    G = Generator(**SMALL)
    G.mapping.w_avg.copy_(normal(12, dtype=torch.float32))
    z = normal(3, 8, dtype=torch.float32)
    full, half = G.mapping(z), G.mapping(z, truncation_psi=0.5, truncation_cutoff=3)
    assert torch.equal(half[:, 3:], full[:, 3:])
    torch.testing.assert_close(half[:, :3], (full[:, :3] + G.mapping.w_avg) / 2)


def test_mean_of_w_moves_on_request_only():
    mapping = Generator(**SMALL).mapping
    z = normal(5, 8, dtype=torch.float32)
    w = mapping(z)[:, 0]
    assert mapping.w_avg.eq(0).all()
    mapping(z, update_w_avg=True)
    torch.testing.assert_close(mapping.w_avg, 0.005 * w.mean(dim=0))
    mapping(z, update_w_avg=True)
    torch.testing.assert_close(mapping.w_avg, (1 - 0.995**2) * w.mean(dim=0))
    assert not mapping.w_avg.requires_grad


def noisy_generator():
    G = Generator(**SMALL)
    for name, parameter in G.named_parameters():
        if name.endswith("noise_strength"):
            torch.nn.init.constant_(parameter, 0.3)
    return G


def test_random_noise_is_new_each_time_and_its_own_for_each_image():
    G = noisy_generator()
    ws = G.mapping(normal(1, 8, dtype=torch.float32).repeat(2, 1))
    first, second = G.synthesis(ws), G.synthesis(ws)
    assert not torch.equal(first, second) and not torch.equal(first[0], first[1])


@pytest.mark.parametrize("noise_mode", ["const", "none"])
def test_other_noise_is_the_same_each_time_and_for_each_image(noise_mode):
    G = noisy_generator()
    ws = G.mapping(normal(1, 8, dtype=torch.float32).repeat(2, 1))
    first, second = G.synthesis(ws, noise_mode), G.synthesis(ws, noise_mode)
    assert torch.equal(first, second)
    torch.testing.assert_close(first[0], first[1])


def test_noise_modes_differ_and_noise_comes_from_where_it_is_told():
    G, drawn = noisy_generator(), []

    def zeros(size, device):
        drawn.append(tuple(size))
        return torch.zeros(size, device=device)

    ws = G.mapping(normal(2, 8, dtype=torch.float32))
    none, const = G.synthesis(ws, "none"), G.synthesis(ws, "const")
    assert torch.equal(G.synthesis(ws, "random", zeros), none) and not torch.equal(const, none)
    assert Counter(drawn) == {(2, 1, 4, 4): 1, (2, 1, 8, 8): 2, (2, 1, 16, 16): 2, (2, 1, 32, 32): 2}


def test_refuses_a_noise_mode_it_does_not_know():
    G = Generator(**SMALL)
    with pytest.raises(ValueError, match=r"noise_mode='constant': expected one of random, const, none"):
        G(normal(1, 8, dtype=torch.float32), noise_mode="constant")


@pytest.mark.parametrize("shape", [(2, 7, 12), (2, 9, 12), (2, 8, 11), (2, 12)], ids=str)
def test_refuses_ws_of_another_shape(shape):
    with pytest.raises(ValueError, match=r"ws must be \[N, 8, 12\], got "):
        Generator(**SMALL).synthesis(torch.zeros(shape))


def recorded_outputs(blocks):
    """Filled with the features that each block puts out, as they are computed."""
    outputs = []
    for block in blocks:
        block.register_forward_hook(lambda module, inputs, output: outputs.append(output[0] if isinstance(output, tuple) else output))
    return outputs


LOW = [(torch.float16, 1), (torch.float16, 2), (torch.bfloat16, 2), (torch.bfloat16, 9)]


@pytest.mark.parametrize(("dtype", "num"), LOW, ids=[f"{num}-{dtype}" for dtype, num in LOW])
class TestLowPrecision:
    # resolutions above 4x4, the highest first
    ABOVE_4 = [32, 16, 8]

    def test_highest_resolutions_of_the_generator_compute_in_it(self, dtype, num):
        G = Generator(**SMALL, num_fp16_res=num, low_precision=dtype, conv_clamp=256)
        outputs = recorded_outputs(G.synthesis.blocks)
        image = G(normal(2, 8, dtype=torch.float32))
        low = {R for R in self.ABOVE_4[:num]}
        assert [x.dtype for x in outputs] == [dtype if x.shape[-1] in low else torch.float32 for x in outputs]
        assert all(x.is_contiguous(memory_format=torch.channels_last) for x in outputs if x.dtype == dtype)
        assert image.dtype == torch.float32

    def test_highest_resolutions_of_the_discriminator_compute_in_it(self, dtype, num):
        D = Discriminator(**SMALL_D, num_fp16_res=num, low_precision=dtype, conv_clamp=256)
        outputs = recorded_outputs([getattr(D, f"b{R}") for R in self.ABOVE_4])
        logits = D(normal(4, 3, 32, 32, dtype=torch.float32))
        assert [x.dtype for x in outputs] == [dtype if i < num else torch.float32 for i in range(3)]
        assert all(x.is_contiguous(memory_format=torch.channels_last) for x in outputs if x.dtype == dtype)
        assert logits.dtype == torch.float32

    def test_parameters_stay_fp32_and_gradients_finite(self, dtype, num):
        low = {"num_fp16_res": num, "low_precision": dtype, "conv_clamp": 256}
        G, D = Generator(**SMALL, **low), Discriminator(**SMALL_D, **low)
        D(G(normal(4, 8, dtype=torch.float32))).sum().backward()
        for name, parameter in [*G.named_parameters(), *D.named_parameters()]:
            assert parameter.dtype == parameter.grad.dtype == torch.float32, name
            assert parameter.grad.isfinite().all(), name
        assert any(p.grad.ne(0).any() for p in D.b32.parameters())

    def test_r1_and_path_length_stay_finite(self, dtype, num):
        low = {"num_fp16_res": num, "low_precision": dtype, "conv_clamp": 256}
        G, D = Generator(**SMALL, **low), Discriminator(**SMALL_D, **low)
        real = normal(4, 3, 32, 32, dtype=torch.float32).requires_grad_()
        r1_penalty(D(real), real).mean().backward()
        ws = G.mapping(normal(2, 8, dtype=torch.float32))
        path_lengths(G.synthesis(ws), ws).square().mean().backward()
        gradients = [p.grad for p in [*G.parameters(), *D.parameters()] if p.grad is not None]
        assert all(g.isfinite().all() for g in gradients) and any(g.ne(0).any() for g in gradients)

    def test_image_and_logits_are_those_of_fp32(self, dtype, num):
        """A sum of many products, each rounded at random, errs by some of the format's steps: far below 16 of them."""
        torch.manual_seed(0)
        G, D = Generator(**SMALL, conv_clamp=256), Discriminator(**SMALL_D, conv_clamp=256)
        low = {"num_fp16_res": num, "low_precision": dtype, "conv_clamp": 256}
        G16, D16 = Generator(**SMALL, **low), Discriminator(**SMALL_D, **low)
        G16.load_state_dict(G.state_dict())
        D16.load_state_dict(D.state_dict())
        z = normal(4, 8, dtype=torch.float32)
        image = G(z, noise_mode="const")
        assert_close(G16(z, noise_mode="const"), image, "image", tolerance=16 * torch.finfo(dtype).eps)
        assert_close(D16(image), D(image), "logits", tolerance=16 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
class TestWholeNetworkInLowPrecision:
    """As DeepSpeed keeps it where engine.precision says so: parameters and buffers cast, fp32 masters elsewhere."""

    def test_mean_of_w_stays_fp32(self, dtype):
        G = Generator(**SMALL)
        G.mapping.w_avg.copy_(normal(12, dtype=torch.float32))
        before = G.mapping.w_avg.clone()
        G.to(dtype)
        assert G.mapping.fc0.weight.dtype == dtype and torch.equal(G.mapping.w_avg, before)
        w = G.mapping(normal(4, 8, dtype=torch.float32), update_w_avg=True)[:, 0]
        torch.testing.assert_close(G.mapping.w_avg, 0.995 * before + 0.005 * w.mean(dim=0).float())

    def test_truncates_and_trains(self, dtype):
        G, D = Generator(**SMALL, conv_clamp=256).to(dtype), Discriminator(**SMALL_D, conv_clamp=256).to(dtype)
        images = G(normal(4, 8, dtype=torch.float32), truncation_psi=0.7)
        D(images).sum().backward()
        assert images.dtype == torch.float32
        assert all(p.grad.dtype == dtype and p.grad.isfinite().all() for p in [*G.parameters(), *D.parameters()])


def test_mean_of_w_moves_to_other_devices_with_the_network():
    assert Generator(**SMALL).to("meta").mapping.w_avg.is_meta


def test_full_precision_is_the_default():
    outputs = recorded_outputs((G := Generator(**SMALL)).synthesis.blocks)
    G(normal(1, 8, dtype=torch.float32))
    assert {x.dtype for x in outputs} == {torch.float32}


def test_the_clamp_bounds_activations():
    G, D = Generator(**SMALL, conv_clamp=256), Discriminator(**SMALL_D, conv_clamp=256)
    for R in resolutions(32):
        torch.nn.init.constant_(getattr(G.synthesis, f"b{R}").conv1.bias, 1e6)
        torch.nn.init.constant_(getattr(G.synthesis, f"b{R}").torgb.bias, 1e6)
    features = recorded_outputs(G.synthesis.blocks)
    rgb = recorded_outputs([G.synthesis.b32.torgb])
    G(normal(1, 8, dtype=torch.float32))
    assert [x.abs().max() for x in features] == [256] * 4 and rgb[0].abs().max() == 256

    # its two branches: one clamped, scaled by sqrt(1/2), as is the other
    torch.nn.init.constant_(D.b32.conv1.bias, 1e6)
    conv1 = recorded_outputs([D.b32.conv1])
    D(normal(4, 3, 32, 32, dtype=torch.float32))
    assert conv1[0].abs().max().item() == pytest.approx(256 * 0.5**0.5)


@pytest.mark.parametrize(("N", "group"), [(8, 4), (8, 2), (4, 4), (6, 3), (12, 4), (5, 5), (3, 4), (1, 4)],
                         ids=lambda n: str(n))
def test_the_standard_deviation_is_over_interleaved_groups(N, group):
    x = normal(N, 5, 4, 4)
    y = MinibatchStdLayer(group)(x)
    assert y.shape == (N, 6, 4, 4) and torch.equal(y[:, :5], x)
    groups = N // min(group, N)
    for i in range(N):
        members = x[i % groups::groups].numpy()
        expected = np.sqrt(members.var(axis=0) + 1e-8).mean()
        np.testing.assert_allclose(y[i, 5].numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize(("N", "ranks"), [(8, 2), (16, 2), (16, 4)])
def test_the_standard_deviation_of_a_shared_batch_is_that_of_the_whole(N, ranks):
    layer, x = MinibatchStdLayer(4), normal(N, 5, 4, 4)
    whole = layer(x)
    for rank in range(ranks):
        assert torch.equal(layer(x[rank::ranks]), whole[rank::ranks])


@pytest.mark.parametrize("N", [5, 6, 9])
def test_refuses_a_batch_that_is_no_multiple_of_the_group(N):
    with pytest.raises(ValueError, match=f"a multiple of 4, got {N}"):
        Discriminator(**SMALL_D)(torch.zeros(N, 3, 32, 32))
