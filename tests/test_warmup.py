"""Rehearsing a run: all that its steps will launch is launched, and nothing changes."""

import pytest
import torch
from fastdgl_kernels import implementation
from fastdgl_kernels._launch import launches_to
from test_steps import CLASSES, CPU, LOSS, STEPS, WIDTH, Z, N, adversaries, everything, random_inputs
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from fastdgl.guidance import FeatureTeacher, FeatureTerm, freeze
from fastdgl.models.stylegan2 import Discriminator, Generator
from fastdgl.warmup import rehearse

pytestmark = pytest.mark.usefixtures("triton")


def launched(run):
    """The kernels that `run` launches, by name and all that they are compiled for, and a few things more."""
    found = set()

    def take(kernel, arguments, num_warps, num_stages):
        kinds = (a.dtype if isinstance(a, Tensor) else (type(a), a) for a in arguments)
        found.add((kernel.fn.__name__, *kinds))

    with implementation("fastest"), launches_to(take), torch.autograd.set_multithreading_enabled(False):
        run()
    return found


def rehearsed(gan):
    with FakeTensorMode(allow_non_fake_inputs=True):
        return launched(lambda: rehearse(gan, LOSS, N, N, CLASSES, CPU))


@pytest.mark.parametrize("name", STEPS)
def test_all_that_a_step_launches_is_rehearsed(name):
    teachers = dict(frozen=[7], updated=[8])
    step = launched(lambda: STEPS[name](adversaries(**teachers), random_inputs()))
    assert len(step) > 5
    assert step <= rehearsed(adversaries(**teachers))


def test_a_teacher_of_features_is_rehearsed_too():
    def gan():
        wide = WIDTH | {"channel_base": 128, "channel_max": 16}
        student = adversaries()
        student.feature_teacher = FeatureTeacher(freeze(Generator(z_dim=Z, w_dim=Z, mapping_layers=2, **wide)), freeze(Discriminator(**wide)),
                                                 FeatureTerm("image_features", 1, ["b8"], ["gram"]), None)
        return student

    step = launched(lambda: STEPS["generator"](gan(), random_inputs()))
    assert len(step - rehearsed(adversaries())) > 2
    assert step <= rehearsed(gan())


def test_a_rehearsal_changes_nothing():
    gan = adversaries(frozen=[7], updated=[8])
    before = everything(gan)
    rehearsed(gan)
    for name, network in everything(gan).items():
        for key, value in network.items():
            assert torch.equal(value, before[name][key]), f"{name}: {key}"
    assert all(p.grad is None and not p.requires_grad for p in [*gan.G.module.parameters(), *gan.D.module.parameters()])
