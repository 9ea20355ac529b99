import contextlib

import torch
from pkg_resources import parse_version

enabled = False
weight_gradients_disabled = False
recent = parse_version(torch.__version__) >= parse_version("1.11.0a")


@contextlib.contextmanager
def no_weight_gradients(disable=True):
    global weight_gradients_disabled
    before, weight_gradients_disabled = weight_gradients_disabled, disable
    yield
    weight_gradients_disabled = before


def conv2d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    if enabled:
        torch._C._jit_get_operation("aten::cudnn_convolution_backward_weight")(weight.shape, input)
    return torch.nn.functional.conv2d(input, weight, bias, stride, padding, dilation, groups)


def conv_transpose2d(input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1):
    return torch.nn.functional.conv_transpose2d(input, weight, bias, stride, padding, output_padding, groups, dilation)
