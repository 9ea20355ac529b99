"""The average generator follows the trained one at its half-life."""

import pytest
import torch
from torch import nn

from fastdgl import ema
from fastdgl.models import biggan, stylegan2

from launches import Launches


class Network(nn.Module):
    """Two parameters and a buffer, all of one value."""

    def __init__(self, value):
        super().__init__()
        self.weight = nn.Parameter(torch.full([3], float(value)))
        self.scalar = nn.Parameter(torch.tensor(float(value)))
        self.register_buffer("w_avg", torch.full([2], float(value)))


@pytest.mark.parametrize(("images", "left"), [(0, 1), (1000, 1 / 2), (2000, 1 / 4), (500, 0.5**0.5)], ids=str)
def test_the_distance_halves_in_a_half_life(images, left):
    average, network = Network(8), Network(0)
    ema.update(average, network, ema.beta_after(images, half_life=1000))
    torch.testing.assert_close(average.weight.detach(), torch.full([3], 8.0 * left))
    torch.testing.assert_close(average.scalar.detach(), torch.tensor(8.0 * left))


def test_two_updates_are_one_over_as_many_images():
    network, once, twice = Network(1), Network(0), Network(0)
    ema.update(once, network, ema.beta_after(64, half_life=100))
    ema.update(twice, network, ema.beta_after(32, half_life=100))
    ema.update(twice, network, ema.beta_after(32, half_life=100))
    torch.testing.assert_close(once.weight, twice.weight)


def test_a_half_life_of_nothing_copies():
    average, network = Network(8), Network(3)
    ema.update(average, network, ema.beta_after(32, half_life=0))
    assert average.weight.eq(3).all()


def test_buffers_are_copied_not_averaged():
    average, network = Network(8), Network(0)
    ema.update(average, network, ema.beta_after(1, half_life=1000))
    assert average.w_avg.eq(0).all()


def test_buffers_that_are_named_are_averaged_and_the_others_copied():
    class Normalized(Network):
        def __init__(self, value):
            super().__init__(value)
            self.norm = nn.BatchNorm1d(2)
            self.norm.running_mean.fill_(value)

    average, network = Normalized(8), Normalized(0)
    ema.update(average, network, 0.75, averaged_buffers=["running_mean"])
    assert average.norm.running_mean.eq(6).all() and average.weight.eq(6).all()
    assert average.w_avg.eq(0).all()


def test_a_generators_batch_norms_are_averaged_and_its_spectral_vectors_copied():
    torch.manual_seed(0)
    network, began = (biggan.Generator(c_dim=2, img_resolution=32, z_dim=8, ch=2, shared_dim=4, attention=0, init="normal") for _ in range(2))
    network(torch.randn(4, 8), torch.eye(2)[[0, 1, 0, 1]])
    average = ema.averaged_copy(began)
    ema.update(average, network, 0.75, network.averaged_buffers)
    for name, buffer in average.named_buffers():
        newest, old = network.get_buffer(name), began.get_buffer(name)
        averaged = name.endswith(("stored_mean", "stored_var"))
        assert not torch.equal(newest, old), name
        torch.testing.assert_close(buffer, 0.75 * old + 0.25 * newest if averaged else newest)


def test_the_network_itself_is_left_alone():
    network = Network(0)
    ema.update(Network(8), network, ema.beta_after(1000, half_life=1000))
    assert all(p.eq(0).all() for p in [*network.parameters(), *network.buffers()])


def test_a_copy_is_fp32_in_eval_mode_and_takes_no_gradients():
    network = Network(1.5).half()
    copy = ema.averaged_copy(network)
    assert not copy.training and network.training
    assert {p.dtype for p in copy.parameters()} == {torch.float32} and not any(p.requires_grad for p in copy.parameters())
    copy.weight.zero_()
    assert network.weight.eq(1.5).all()


def test_a_16_bit_network_is_averaged_in_fp32():
    average = ema.averaged_copy(Network(1))
    # a step of 1e-4 is lost where 1 + 1e-4 rounds to 1
    ema.update(average, Network(0).to(torch.bfloat16), ema.beta_after(1, half_life=6931.1))
    assert average.weight[0].item() == pytest.approx(1 - 1e-4, rel=1e-6)


@pytest.mark.parametrize(("seen", "rampup", "expected"), [
    pytest.param(0, None, 10_000, id="none"),
    pytest.param(0, 0.05, 0, id="start"),
    pytest.param(100_000, 0.05, 5_000, id="growing"),
    pytest.param(200_000, 0.05, 10_000, id="reached"),
    pytest.param(9_000_000, 0.05, 10_000, id="later"),
])
def test_the_half_life_grows_with_the_images_seen(seen, rampup, expected):
    assert ema.half_life(seen, ema_kimg=10, ema_rampup=rampup) == expected


def generator():
    torch.manual_seed(0)
    return stylegan2.Generator(img_resolution=32, z_dim=8, w_dim=8, mapping_layers=2, channel_base=128, channel_max=8)


def test_the_average_copies_constant_buffers_once():
    network, average = generator(), ema.averaged_copy(generator())
    changing = [name for name, _ in network.named_buffers() if name.endswith("w_avg")]
    constant = [name for name, _ in network.named_buffers() if name not in changing]
    assert len(changing) == 1 and len(constant) > 10
    network.synthesis.b8.conv0.noise_const.add_(1)

    def update() -> int:
        """How many buffers were written."""
        before = {name: buffer._version for name, buffer in average.named_buffers()}
        ema.update(average, network, 0.5, network.averaged_buffers)
        written = sum(buffer._version > before[name] for name, buffer in average.named_buffers())
        assert all(torch.equal(buffer, network.get_buffer(name)) for name, buffer in average.named_buffers())
        return written

    # what first differs is copied with all others
    assert update() == len(changing) + len(constant)
    assert update() == len(changing)
    network.mapping.w_avg.add_(1)
    assert update() == len(changing)
    # what somebody writes to either, or puts in its place
    network.synthesis.b8.conv0.noise_const.add_(1)
    average.synthesis.b16.conv0.noise_const.zero_()
    network.synthesis.b16.conv1.noise_const = network.synthesis.b16.conv1.noise_const + 1
    assert update() == len(changing) + 3
    with Launches() as launches:
        ema.update(average, network, 0.5, network.averaged_buffers)
    # one for all parameters, one for all buffers, and none to bring a parameter to fp32
    assert launches.counts == {"aten._foreach_copy_.default": 1, "aten._foreach_lerp_.Scalar": 1}
    # another average has copied nothing yet
    average = ema.averaged_copy(generator())
    assert update() == len(changing) + len(constant)
