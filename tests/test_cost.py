"""Parameters and multiply-accumulates of StyleGAN2 at each width, which DGL's tables are about."""

from functools import cache

import pytest
import torch

from fastdgl.models.cost import macs, parameter_count
from fastdgl.models.stylegan2 import Discriminator, Generator

# fraction, resolution, and of G and D: trainable parameters, multiply-accumulates in billions as printed
COSTS = [
    (1, 1024, 30_370_060, "74.267", 29_012_513, "76.67"),
    (1 / 2, 1024, 11_064_988, "18.628", 7_256_081, "19.19"),
    (1 / 4, 1024, 5_392_036, "4.689", 1_815_497, "4.81"),
    (1 / 8, 1024, 3_550_456, "1.189", 454_613, "1.21"),
    (1, 256, 30_034_338, "45.125", 28_864_129, None),
    (1 / 2, 256, 10_931_682, "11.305", 7_219_009, None),
    (1 / 4, 256, 5_334_018, "2.839", 1_806_241, None),
    (1 / 8, 256, 3_523_602, "0.717", 452_305, None),
]


@cache
def network(kind, fraction, resolution):
    return kind(img_resolution=resolution, fraction=fraction)


def as_printed(count, like):
    return f"{count / 1e9:.{len(like.partition('.')[2])}f}"


@pytest.mark.parametrize(("fraction", "resolution", "G_parameters", "G_macs", "D_parameters", "D_macs"), COSTS,
                         ids=[f"{fraction}-{resolution}" for fraction, resolution, *_ in COSTS])
class TestConfigF:
    def test_parameters(self, fraction, resolution, G_parameters, G_macs, D_parameters, D_macs):
        assert parameter_count(network(Generator, fraction, resolution)) == G_parameters
        assert parameter_count(network(Discriminator, fraction, resolution)) == D_parameters

    def test_macs(self, fraction, resolution, G_parameters, G_macs, D_parameters, D_macs):
        assert as_printed(macs(network(Generator, fraction, resolution), torch.empty(1, 512)), G_macs) == G_macs
        if D_macs is not None:
            image = torch.empty(1, 3, resolution, resolution)
            assert as_printed(macs(network(Discriminator, fraction, resolution), image), D_macs) == D_macs


def test_macs_are_those_of_one_sample():
    G = Generator(img_resolution=16, z_dim=8, w_dim=8, channel_base=64, mapping_layers=2)
    assert macs(G, torch.empty(5, 8)) == macs(G, torch.empty(1, 8))


def test_counting_leaves_the_network_as_it_was():
    G = Generator(img_resolution=16, z_dim=8, w_dim=8, channel_base=64, mapping_layers=2)
    before = {name: value.clone() for name, value in G.state_dict().items()}
    macs(G, torch.empty(1, 8))
    assert all(torch.equal(value, before[name]) for name, value in G.state_dict().items())
    assert not any(module._forward_hooks for module in G.modules())


def test_macs_of_a_conditional_discriminator_count_the_class():
    arguments = {"img_resolution": 16, "channel_base": 64, "channel_max": 8}
    plain, conditional = Discriminator(**arguments), Discriminator(**arguments, c_dim=3)
    image = torch.empty(1, 3, 16, 16)
    # an embedding of 3 classes in 8 numbers, 8 mapping layers of 8 x 8, and 8 outputs instead of one
    assert macs(conditional, image, torch.empty(1, 3)) - macs(plain, image, torch.empty(1, 0)) == 3 * 8 + 8 * 8 * 8 + 7 * 8
