"""Run by test_compat.py in a process of its own: patch first, import other people's modules afterwards."""

import pickle
import subprocess
import sys
from functools import partial
from pathlib import Path

import fastdgl_kernels
import numpy as np
import pytest
import torch
from numerics import assert_close, assert_same_derivatives, normal
from torch.serialization import get_safe_globals, safe_globals
from torch.utils.data import DataLoader

HOSTS = Path(__file__).parent
sys.path[:0] = [str(HOSTS), *(str(HOSTS / name) for name in ("nvidia", "rosinality", "basicsr_tree", "unknown", "loops"))]

# as in an environment of today
sys.modules["pkg_resources"] = None
names = set(sys.modules)
report = fastdgl_kernels.patch()
added_by_patch = set(sys.modules) - names
before = str(report)

import agreement as a
import basicsr.archs.stylegan2_arch
import basicsr.archs.stylegan2_clean_arch
import bias_act as unknown
import loop
import model
from basicsr.ops.fused_act import FusedLeakyReLU, fused_leaky_relu
from torch_utils import custom_ops, persistence
from torch_utils.ops import (
    bias_act,
    conv2d_gradfix,
    conv2d_resample,
    filtered_lrelu,
    fma,
    grid_sample_gradfix,
    upfirdn2d,
)
from training import networks_stylegan2, networks_stylegan3


def assert_same(function, theirs, inputs, **arguments):
    assert_same_derivatives(lambda *t: function(*t, **arguments), lambda *t: theirs(*t, **arguments), inputs)


def reference(function):
    return lambda *arguments, **keywords: function.__wrapped__(*arguments, **keywords, impl="ref")


@pytest.mark.parametrize("inputs, arguments", a.BIAS_ACT)
def test_bias_act(inputs, arguments):
    assert_same(bias_act.bias_act, reference(bias_act.bias_act), inputs, **arguments)


@pytest.mark.parametrize("arguments", a.UPFIRDN2D)
def test_upfirdn2d(arguments):
    assert_same(upfirdn2d.upfirdn2d, reference(upfirdn2d.upfirdn2d), [a.X], **arguments)


def test_the_hosts_shorter_forms_call_ours():
    # theirs would compile
    assert_close(upfirdn2d.upsample2d(a.X, a.F4), fastdgl_kernels.upsample2d(a.X, a.F4))


@pytest.mark.parametrize("arguments", a.FILTERED_LRELU)
def test_filtered_lrelu(arguments):
    def call(function):
        return lambda x, b, **keywords: function(x, b=b, **keywords)

    f = filtered_lrelu.filtered_lrelu
    assert_same(call(f), call(reference(f)), [a.X, a.B], **arguments)


@pytest.mark.parametrize("arguments", a.CONV2D_RESAMPLE)
def test_conv2d_resample(arguments):
    f = conv2d_resample.conv2d_resample
    assert_same(f, f.__wrapped__, [a.X, a.WEIGHT], **arguments)


@pytest.mark.parametrize("arguments", a.MODULATED_CONV2D)
def test_modulated_conv2d(arguments):
    f = networks_stylegan2.modulated_conv2d
    noise = [a.NOISE] if "up" in arguments else []
    assert_same(f, f.__wrapped__, [a.X, a.WEIGHT, a.STYLES, *noise], **arguments)


@pytest.mark.parametrize("arguments", a.STYLEGAN3)
def test_modulated_conv2d_of_stylegan3(arguments):
    f = networks_stylegan3.modulated_conv2d
    assert_same(f, f.__wrapped__, [a.X, a.WEIGHT, a.STYLES], **arguments)


def test_fma():
    assert_same(fma.fma, fma.fma.__wrapped__, [a.X, normal(2, 3, 1, 1), normal(6, 5)])


def test_gradfix_modules_run_though_enabled():
    conv2d_gradfix.enabled = grid_sample_gradfix.enabled = True
    with conv2d_gradfix.no_weight_gradients():
        assert_same(conv2d_gradfix.conv2d, torch.nn.functional.conv2d, [a.X, a.WEIGHT], padding=1)
        transposed = a.WEIGHT.transpose(0, 1)
        assert_same(conv2d_gradfix.conv_transpose2d, torch.nn.functional.conv_transpose2d, [a.X, transposed], stride=2)
    grid = normal(2, 4, 4, 2, seed=7).tanh()
    expected = partial(torch.nn.functional.grid_sample, align_corners=False)
    assert_same_derivatives(grid_sample_gradfix.grid_sample, expected, [a.X, grid])


def test_an_autograd_function_around_grid_sample_runs():
    expected = partial(torch.nn.functional.grid_sample, align_corners=False)
    for seed, shape in enumerate([(2, 4, 4, 2), (2, 7, 3, 2), (2, 1, 1, 2)]):
        grid = normal(*shape, seed=seed).tanh()
        assert_same_derivatives(lambda x: loop.grid_sample(x, grid), lambda x: expected(x, grid), [a.X])
        grid.requires_grad_()
        assert_close(*(torch.autograd.grad(f(a.X, grid).sum(), grid)[0] for f in (loop.grid_sample, expected)))


def test_what_pickles_bring_along_is_replaced_too():
    G = networks_stylegan2.Generator().double()
    stored = pickle.dumps(G)
    loaded = pickle.loads(stored)
    module = sys.modules[type(loaded).__module__]
    assert module.__name__.startswith("_imported_module_")
    assert module.modulated_conv2d.__wrapped__ is not module.modulated_conv2d
    x, w = normal(2, 3, 4, 4), normal(2, 4)
    assert_close(loaded(x, w), G(x, w))


def test_pickles_hold_nothing_of_ours():
    G = networks_stylegan2.Generator()
    once = pickle.loads(pickle.dumps(G))
    for held in (G, once, model.Generator(), FusedLeakyReLU(3), bias_act.bias_act):
        assert b"fastdgl" not in pickle.dumps(held)
    (_, (meta,)) = once.__reduce__()
    assert meta["module_src"] == (HOSTS / "nvidia/training/networks_stylegan2.py").read_text()


def theirs(layer):
    """forward as it was."""
    (forward,) = (value for owner, name, value in report._undo if owner is type(layer) and name == "forward")
    return lambda *inputs: forward(layer, *inputs)


@pytest.mark.parametrize("keywords", [{}, {"upsample": True}, {"downsample": True}, {"demodulate": False}], ids=str)
@pytest.mark.parametrize("kernel_size", [1, 3])
def test_rosinalitys_layer(keywords, kernel_size):
    layer = model.ModulatedConv2d(3, 5, kernel_size, 4, **keywords).double()
    assert_same_derivatives(layer, theirs(layer), [a.X, normal(2, 4)])


@pytest.mark.parametrize("mode", [None, "upsample", "downsample"])
def test_basicsrs_layer(mode):
    layer = basicsr.archs.stylegan2_arch.ModulatedConv2d(3, 5, 3, 4, sample_mode=mode).double()
    assert_same_derivatives(layer, theirs(layer), [a.X, normal(2, 4)])


def test_rosinalitys_operators():
    kernel = a.F4.flip([0]) + torch.arange(4)
    for up, down, pad in [(2, 1, (2, 1)), (1, 2, (1, 3)), (1, 1, (2, -1))]:
        numbers = kernel, up, down, pad
        native = model.upfirdn2d_native
        assert_same_derivatives(lambda x: model.upfirdn2d(x, *numbers), lambda x: native(x, *numbers), [a.X])
    activate = model.FusedLeakyReLU(3, negative_slope=0.5, scale=0.7).double()
    assert_same_derivatives(activate, lambda x: torch.nn.functional.leaky_relu(x, 0.5) * 0.7, [a.X])


def test_basicsrs_operators():
    expected = torch.nn.functional.leaky_relu(a.X + a.B[:, None, None], 0.2) * 2**0.5
    assert_close(fused_leaky_relu(a.X, a.B), expected)
    assert_close(fused_leaky_relu(a.X, None), torch.nn.functional.leaky_relu(a.X, 0.2) * 2**0.5)
    f = basicsr.ops.upfirdn2d.upfirdn2d
    assert_same(f, f.__wrapped__, [a.X], kernel=a.F4.double(), up=2, pad=(2, 1))


def test_extensions_are_answered_for():
    assert custom_ops.get_plugin("bias_act_plugin", sources=[]).bias_act
    with pytest.raises(RuntimeError, match="no compiler"):
        custom_ops.get_plugin(module_name="another_plugin", sources=[])
    import op.fused_act

    y = op.fused_act.FusedLeakyReLUFunction.apply(a.X, a.B, 0.2, 1.5)
    assert_close(y, torch.nn.functional.leaky_relu(a.X + a.B[:, None, None], 0.2) * 1.5)


@pytest.mark.parametrize("sampler", [loop.Infinite, loop.Shuffled, loop.Nameless, loop.Current])
def test_samplers_that_pass_their_data_on(sampler):
    assert [batch.tolist() for batch in DataLoader(range(3), 2, sampler=sampler(range(3)))] == [[0, 1], [2]]


def test_a_sampler_passes_arguments_on_to_the_class_after_it():
    sampler = loop.Inherits(range(3), power=2)
    assert (sampler.weights, sampler.power, list(sampler)) == ([1, 1, 1], 2, [0, 1, 2])
    with pytest.raises(TypeError, match="object.__init__"):
        loop.Mistaken(range(3))


@pytest.mark.parametrize("keywords", [{}, {"foreach": True}, {"fused": True}, {"kind": "AdamW"}], ids=str)
@pytest.mark.parametrize("betas", [[0, 0.99], (0, 0), [False, np.float32(0.5)]], ids=str)
def test_betas_of_any_real_numbers(betas, keywords):
    optimizer, p = loop.adam(betas, **keywords)
    _, expected = loop.adam([float(beta) for beta in betas], **keywords)
    assert torch.equal(p, expected) and optimizer.defaults["betas"] == tuple(map(float, betas))


def test_betas_that_are_wrong_stay_wrong():
    for betas in [(0, 1), ("0", 0.9), (0, torch.tensor(0.9))]:
        with pytest.raises((TypeError, ValueError)):
            loop.adam(betas)


def test_grids_by_the_old_name_of_their_range(tmp_path):
    x = normal(3, 1, 2, 2) * 2
    expected, *others = loop.grids(x, tmp_path / "grid.pt")
    assert expected.shape == (1, 2, 6) and all(torch.equal(expected, grid) for grid in others)


def test_checkpoints_with_the_options_of_their_run(tmp_path):
    options, allowed = loop.save(tmp_path / "000001.pt"), set(get_safe_globals())
    for keywords in [{}, {"map_location": lambda storage, _: storage}, {"weights_only": True}, {"mmap": True}]:
        assert torch.load(tmp_path / "000001.pt", **keywords)["args"] == options
    assert set(get_safe_globals()) == allowed
    with safe_globals([type(options)]):
        assert torch.load(str(tmp_path / "000001.pt"))["args"] == options
        assert set(get_safe_globals()) == allowed | {type(options)}, "the user's own stays"
    torch.save(subprocess.Popen, tmp_path / "harmful.pt")
    with pytest.raises(pickle.UnpicklingError, match="Popen"):
        torch.load(tmp_path / "harmful.pt")


@pytest.mark.parametrize("spelled", [["--local-rank=2"], ["--local-rank", "2"], ["--local_rank=2"]], ids=str)
def test_the_rank_that_the_launcher_passes(spelled, monkeypatch):
    parser = loop.options("--local_rank")
    assert vars(parser.parse_args([*spelled, "--batch", "4"])) == {"local_rank": 2, "batch": 4}
    assert parser.parse_known_args(["--other", *spelled])[1] == ["--other"]
    monkeypatch.setattr(sys, "argv", ["train.py", *spelled])
    assert parser.parse_args().local_rank == 2
    # who knows today's name, or no rank, gets what was passed
    assert loop.options("--local-rank", "--local_rank").parse_args(spelled).local_rank == 2
    assert loop.options("--rank").parse_known_args(spelled)[1] == spelled


def test_objects_that_must_not_be_looked_at_are_not():
    assert type(loop.flags) is loop.Lazy
    with pytest.raises(ValueError, match="not yet"):
        isinstance(loop.flags, type)


def test_patch_alone_imports_nothing_others_could_take_for_theirs():
    assert added_by_patch == set() and "nothing yet" in before


def test_what_was_lent_is_gone():
    assert sys.modules["pkg_resources"] is None
    assert ("torch_utils.ops.conv2d_gradfix", "pkg_resources") in report.lent


def test_the_report_says_what_was_done_and_what_not():
    text = str(report)
    assert "torch_utils.ops.bias_act.bias_act: fastdgl_kernels's bias_act (function)" in text
    assert "model.ModulatedConv2d.forward: fastdgl_kernels's modulated_conv2d (layer)" in text
    left = {(left.owner, left.name): left.why for left in report.left}
    assert "(x, bias, activation='relu')" in left["bias_act", "bias_act"]
    assert "eps" in left["basicsr.archs.stylegan2_clean_arch.ModulatedConv2d", "forward"]
    assert unknown.bias_act(1, 2) == 1


def test_loaders_are_left_as_they_were():
    assert "exec_module" not in vars(persistence.__spec__.loader)


def test_unpatch_leaves_nothing_of_ours():
    fastdgl_kernels.unpatch()
    assert not any(type(finder).__module__.startswith("fastdgl_kernels") for finder in sys.meta_path)
    for function in (bias_act.bias_act, upfirdn2d.upfirdn2d, model.upfirdn2d, networks_stylegan3.modulated_conv2d):
        assert not hasattr(function, "__wrapped__")
