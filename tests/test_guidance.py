"""What teachers add to the generator's loss, by hand; what a step makes of it is in test_steps.py."""

import math

import pytest
import torch
from numerics import normal
from torch import nn

from fastdgl.guidance import Guide, freeze, guidance_loss
from fastdgl.losses import hinge_generator_loss, nonsaturating_generator_loss
from fastdgl.models.stylegan2 import Discriminator


def softplus(t):
    return math.log1p(math.exp(t))


def column(*values):
    return torch.tensor([[float(value)] for value in values], dtype=torch.float64, requires_grad=True)


def test_one_teacher_adds_its_non_saturating_loss():
    loss = guidance_loss([column(-2, 0, 3)], dynamic=False, generator_loss=nonsaturating_generator_loss)
    torch.testing.assert_close(loss, column(softplus(2), softplus(0), softplus(-3)))


def test_uniform_sums_the_teachers():
    loss = guidance_loss([column(-2, 0, 3), column(1, -1, -4)], dynamic=False, generator_loss=nonsaturating_generator_loss)
    torch.testing.assert_close(loss, column(softplus(2) + softplus(-1), softplus(0) + softplus(1), softplus(-3) + softplus(4)))


def test_dynamic_weights_each_teacher_by_its_dislike_of_the_sample():
    loss = guidance_loss([column(-2, 0, 3), column(1, -1, -4)], dynamic=True, generator_loss=nonsaturating_generator_loss)
    torch.testing.assert_close(loss, column(2 * softplus(2), 1 * softplus(1), 4 * softplus(4)))


@pytest.mark.parametrize("dynamic", [False, True], ids=["uniform", "dynamic"])
def test_the_weight_takes_no_part_in_the_gradient(dynamic):
    score = column(-2, 0, 3)
    gradient, = torch.autograd.grad(guidance_loss([score], dynamic, nonsaturating_generator_loss).sum(), score)
    # softplus(-t)' = -sigmoid(-t), times the weight as a constant
    slope = -torch.sigmoid(-score.detach())
    torch.testing.assert_close(gradient, slope * column(2, 0, 0).detach() if dynamic else slope)


def test_a_hinge_takes_the_teachers_scores_as_they_are():
    scores = [column(-2, 0, 3), column(1, -1, -4)]
    torch.testing.assert_close(guidance_loss(scores, dynamic=False, generator_loss=hinge_generator_loss), column(1, 1, 1))
    dynamic = guidance_loss(scores, dynamic=True, generator_loss=hinge_generator_loss)
    torch.testing.assert_close(dynamic, column(4, 1, 16))
    # the weight takes no part: -1 times max(-D, 0)
    gradient, = torch.autograd.grad(dynamic.sum(), scores[1])
    torch.testing.assert_close(gradient, column(0, -1, -4).detach())


@pytest.mark.parametrize(("images", "weight"), [(0, 0), (1_000, 0.025), (2_000, 0.05), (4_000, 0.1), (9_000, 0.1)], ids=str)
def test_the_weight_grows_over_the_ramp(images, weight):
    assert Guide([nn.Identity()], weight=0.1, ramp_images=4_000).weight_at(images) == pytest.approx(weight)


@pytest.mark.parametrize("images", [0, 1, 10**9])
def test_without_a_ramp_the_weight_is_there_from_the_start(images):
    assert Guide([nn.Identity()], weight=0.1).weight_at(images) == 0.1


@pytest.mark.parametrize("weight", [0, 0.1])
def test_there_is_no_guidance_without_teachers(weight):
    guide = Guide([], weight)
    assert guide.weight_at(1000) == 0 and guide.scores(torch.zeros(1), torch.zeros(1)) == []


def test_all_teachers_score_the_same_images():
    class Recorder(nn.Module):
        def forward(self, images, c):
            self.given = images, c
            return images.mean(dim=[1, 2, 3]).unsqueeze(1)

    teachers, images, c = [Recorder(), Recorder()], normal(4, 3, 8, 8), normal(4, 2)
    assert len(Guide(teachers, weight=1).scores(images, c)) == 2
    assert all(teacher.given[0] is images and teacher.given[1] is c for teacher in teachers)


def test_a_frozen_teacher_takes_no_gradients_and_passes_them_on():
    teacher = freeze(Discriminator(img_resolution=8, channel_base=64, channel_max=8).train())
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    images = normal(4, 3, 8, 8, dtype=torch.float32).requires_grad_()
    guidance_loss(Guide([teacher], 0.1).scores(images, None), dynamic=False, generator_loss=nonsaturating_generator_loss).sum().backward()
    assert images.grad.flatten(1).ne(0).any(dim=1).all()
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_the_buffers_of_a_frozen_teacher_do_not_move():
    """Such as the statistics of batch normalization and the vectors of spectral normalization."""
    torch.manual_seed(0)
    layers = [nn.utils.spectral_norm(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 6 * 6, 1)]

    class Teacher(nn.Sequential):
        def forward(self, images, c):
            return super().forward(images)

    teacher = freeze(Teacher(*layers))
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    Guide([teacher], 0.1).scores(normal(4, 3, 8, 8, dtype=torch.float32), None)
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
