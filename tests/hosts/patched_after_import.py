"""Run by test_compat.py in a process of its own: other people's modules are there first, then patched."""

import argparse
import importlib
import pickle
import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import fastdgl_kernels
import pytest
import torch
import torch.utils.cpp_extension
from numerics import assert_close, assert_same_derivatives
from torch.torch_version import TorchVersion

HOSTS = Path(__file__).parent
sys.path[:0] = [str(HOSTS), *(str(HOSTS / name) for name in ("nvidia", "rosinality", "basicsr_tree", "loops"))]


def compiled(name, sources, **_):
    """An extension that would need a GPU."""
    return SimpleNamespace()


# as in an environment in which they can be imported at all
sys.modules["pkg_resources"] = SimpleNamespace(parse_version=TorchVersion)
torch.utils.cpp_extension.load = compiled

import agreement as a
import basicsr.archs.stylegan2_arch
import loop
import model
import op
from torch_utils.ops import bias_act, filtered_lrelu, upfirdn2d
from training import networks_stylegan2, networks_stylegan3

kept = upfirdn2d.upfirdn2d


@pytest.fixture(autouse=True)
def unpatched():
    yield
    fastdgl_kernels.unpatch()


def attributes():
    """All there is to replace, as it is."""
    roots = {"torch_utils", "training", "op", "model", "basicsr", "loop", "torchvision", __name__}
    modules = [m for name, m in sys.modules.items() if isinstance(m, ModuleType) and name.partition(".")[0] in roots]
    libraries = [torch, torch.serialization, torch.utils.cpp_extension]
    libraries += [torch.utils.data.Sampler, torch.optim.Adam, argparse.ArgumentParser]
    owners = [*modules, *libraries, model.ModulatedConv2d, basicsr.archs.stylegan2_arch.ModulatedConv2d]
    owners += [loop.GridSampleBackward]
    found = {(str(owner), name): value for owner in owners for name, value in vars(owner).items()}
    return found | {("sys", "meta_path"): tuple(sys.meta_path)}


def test_before_the_patch_they_do_not_run():
    with pytest.raises(RuntimeError, match="no compiler"):
        bias_act.bias_act(a.X)
    with pytest.raises(AttributeError, match="fused_bias_act"):
        op.fused_leaky_relu(a.X)
    bias_act._inited = False


@pytest.mark.parametrize("level", ["plugin", "function", "layer"])
def test_what_pytorch_and_torchvision_no_longer_take_is_taken_while_patched(level, tmp_path):
    refusals = (TypeError, ValueError, pickle.UnpicklingError, SystemExit)

    def says():
        loop.save(tmp_path / "000001.pt")
        x = torch.ones(1, 1, 3, 3, requires_grad=True)
        yield lambda: loop.Infinite([1])
        yield lambda: loop.adam([0, 0.99])
        yield lambda: list(loop.grids(a.X, tmp_path / "grid.pt"))
        yield lambda: torch.load(tmp_path / "000001.pt")
        yield lambda: torch.autograd.grad(loop.grid_sample(x, torch.zeros(1, 2, 2, 2)).sum(), x)
        yield lambda: loop.options("--local_rank").parse_args(["--local-rank=0"])

    for say in says():
        with pytest.raises(refusals):
            say()
        with fastdgl_kernels.patch(level) as report:
            say()
            assert "nothing yet" not in str(report)
        with pytest.raises(refusals):
            say()


@pytest.mark.parametrize("level", ["plugin", "function", "layer"])
def test_unpatch_restores_everything(level):
    before = attributes()
    with fastdgl_kernels.patch(level) as report:
        networks_stylegan2.Generator().double()(a.X, torch.ones(2, 4).double())
        model.Generator().double()(a.X, torch.ones(2, 4).double())
        assert len(report.replaced) > 10
    after = attributes()
    assert before.keys() == after.keys()
    assert [name for name in before if before[name] is not after[name] and name != ("sys", "meta_path")] == []
    assert before["sys", "meta_path"] == after["sys", "meta_path"]


def test_names_taken_by_import_are_replaced_too():
    fastdgl_kernels.patch()
    assert kept is upfirdn2d.upfirdn2d and hasattr(kept, "__wrapped__")
    assert model.upfirdn2d is op.upfirdn2d and hasattr(model.upfirdn2d, "__wrapped__")
    assert_close(op.fused_leaky_relu(a.X, a.B), fastdgl_kernels.fused_leaky_relu(a.X, a.B))
    f = networks_stylegan3.modulated_conv2d
    assert_same_derivatives(f, f.__wrapped__, [a.X, a.WEIGHT, a.STYLES])


def test_a_second_patch_changes_nothing():
    first = fastdgl_kernels.patch()
    replaced, function = list(first.replaced), bias_act.bias_act
    with fastdgl_kernels.patch() as second:
        assert second is first and first.replaced == replaced and bias_act.bias_act is function
    assert bias_act.bias_act is function, "the first one is still in force"
    with pytest.raises(ValueError, match="'layer' is in force"):
        fastdgl_kernels.patch("plugin")
    fastdgl_kernels.unpatch()
    fastdgl_kernels.unpatch()
    assert bias_act.bias_act is not function


def test_a_second_patch_sees_what_has_come_other_than_by_import():
    fastdgl_kernels.patch()
    module = ModuleType("made_by_hand")
    sys.modules["made_by_hand"] = module
    source = "def modulated_conv2d(x, w, s, demodulate=True, padding=0, input_gain=None): return 'theirs'"
    exec(source, vars(module))
    fastdgl_kernels.patch()
    assert module.modulated_conv2d(a.X, a.WEIGHT, a.STYLES, padding=1).shape == (2, 4, 6, 5)
    fastdgl_kernels.unpatch()
    assert sys.modules.pop("made_by_hand").modulated_conv2d(1, 2, 3) == "theirs"


def test_a_copy_of_the_package_patches_on_top_and_makes_way_again(tmp_path, monkeypatch):
    shutil.copytree(Path(fastdgl_kernels.__file__).parent, tmp_path / "gan_ops")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    copy = importlib.import_module("gan_ops")
    original = bias_act.bias_act
    fastdgl_kernels.patch()
    ours = bias_act.bias_act
    with copy.patch() as report:
        assert bias_act.bias_act.__wrapped__ is ours and "gan_ops's bias_act" in str(report)
        assert not any(r.owner.startswith(("fastdgl_kernels", "gan_ops")) for r in report.replaced)
        # both look for it, and each through the other
        importlib.import_module("unknown.bias_act")
        assert {left.owner for left in report.left} >= {"unknown.bias_act"}
    assert bias_act.bias_act is ours
    fastdgl_kernels.unpatch()
    assert bias_act.bias_act is original


def test_levels_end_where_they_say():
    fastdgl_kernels.patch("plugin")
    assert not hasattr(bias_act.bias_act, "__wrapped__")
    fastdgl_kernels.unpatch()
    report = fastdgl_kernels.patch("function")
    assert hasattr(bias_act.bias_act, "__wrapped__") and not hasattr(networks_stylegan2.modulated_conv2d, "__wrapped__")
    assert "layer" not in {r.level for r in report.replaced}


def test_an_unknown_level_is_refused():
    with pytest.raises(ValueError, match="'plugin', 'function', 'layer'"):
        fastdgl_kernels.patch("everything")


def assert_plugin(function, inputs, **arguments):
    """The host's own autograd over our plugin agrees with the host's reference."""
    fastdgl_kernels.patch("plugin")
    reference = {**arguments, "impl": "ref"}
    assert_same_derivatives(lambda *t: function(*t, **arguments), lambda *t: function(*t, **reference), inputs)


@pytest.mark.parametrize("inputs, arguments", a.BIAS_ACT)
def test_plugin_of_bias_act(inputs, arguments):
    assert_plugin(bias_act.bias_act, inputs, **arguments)


def test_plugin_of_bias_act_has_the_compiled_ones_gradient_of_a_clamped_linear_output():
    fastdgl_kernels.patch("plugin")
    x = a.X.clone().requires_grad_()
    bias_act.bias_act(x, clamp=0.1).sum().backward()
    assert (x.grad == 1).all()


@pytest.mark.parametrize("arguments", a.UPFIRDN2D)
def test_plugin_of_upfirdn2d(arguments):
    assert_plugin(upfirdn2d.upfirdn2d, [a.X], **arguments)


@pytest.mark.parametrize("arguments", a.FILTERED_LRELU)
def test_plugin_of_filtered_lrelu(arguments):
    def f(x, b, **keywords):
        return filtered_lrelu.filtered_lrelu(x, b=b, **keywords)

    assert_plugin(f, [a.X, a.B], **arguments)


def test_plugins_of_rosinality():
    fastdgl_kernels.patch("plugin")

    def expected(x, b):
        return torch.nn.functional.leaky_relu(x + b[:, None, None], 0.3) * 0.7

    assert_same_derivatives(lambda x, b: op.fused_leaky_relu(x, b, 0.3, 0.7), expected, [a.X, a.B])
    native = sys.modules["op.upfirdn2d"].upfirdn2d_native
    for up, down, pad in [(2, 1, (2, 1)), (1, 2, (1, 3))]:
        numbers = a.F4, up, down, pad
        assert_same_derivatives(lambda x: op.upfirdn2d(x, *numbers), lambda x: native(x, *numbers), [a.X])
