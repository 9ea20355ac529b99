"""What training loops of hosts say to PyTorch and torchvision, in the ways that hosts say it."""

import argparse

import torch
from torch import optim
from torch.utils.data import Sampler
from torchvision import utils
from torchvision.utils import make_grid, save_image


class Infinite(Sampler):
    def __init__(self, dataset, seed=0):
        super().__init__(dataset)
        self.dataset, self.seed = dataset, seed

    def __iter__(self):
        return iter(range(len(self.dataset)))


class Shuffled(Infinite):
    def __init__(self, dataset):
        Sampler.__init__(self, data_source=dataset)
        self.dataset = dataset


class Nameless(Infinite):
    def __init__(self, dataset):
        super(Infinite, self).__init__(None)
        self.dataset = dataset


class Current(Infinite):
    def __init__(self, dataset):
        super(Infinite, self).__init__()
        self.dataset = dataset


class Weighted:
    def __init__(self, weights, *, power=1):
        self.weights, self.power = weights, power


class Inherits(Sampler, Weighted):
    """Passes arguments through Sampler to the class after it."""

    def __init__(self, dataset, power):
        super().__init__([1] * len(dataset), power=power)
        self.dataset = dataset

    def __iter__(self):
        return iter(range(len(self.dataset)))


class Mistaken(Infinite):
    def __init__(self, dataset):
        super(Infinite, self).__init__(dataset, 3)


def adam(betas, kind="Adam", **keywords):
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = getattr(optim, kind)([p], lr=0.5, betas=betas, **keywords)
    for i in range(3):
        p.grad = torch.full([3], 1.0 - i)
        optimizer.step()
    return optimizer, p.detach()


def grids(x, file):
    """The same grid four times."""
    utils.save_image(x, file, nrow=4, normalize=True, range=(-1, 1))
    yield torch.load(file)
    save_image(x, file, normalize=True, value_range=(-1, 1))
    yield torch.load(file)
    yield make_grid(x, 4, 2, True, range=(-1, 1))
    yield utils.make_grid(x, 4, 2, True, (-1, 1))


def save(file):
    options = argparse.Namespace(size=16, r1=10.0, path=None, nested=argparse.Namespace(lr=[0.002]))
    torch.save({"g": {"w": torch.ones(2)}, "args": options}, file)
    return options


def options(*names):
    parser = argparse.ArgumentParser()
    parser.add_argument(*names, type=int, default=0)
    parser.add_argument("--batch", type=int, default=16)
    return parser


class GridSampleForward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, input, grid):
        ctx.save_for_backward(input, grid)
        return torch.nn.functional.grid_sample(input, grid, align_corners=False)

    @staticmethod
    def backward(ctx, grad_output):
        return GridSampleBackward.apply(grad_output, *ctx.saved_tensors)


class GridSampleBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, grad_output, input, grid):
        operator = torch._C._jit_get_operation("aten::grid_sampler_2d_backward")
        ctx.save_for_backward(grid)
        return operator(grad_output, input, grid, 0, 0, False)

    @staticmethod
    def backward(ctx, grad_grad_input, grad_grad_grid):
        return GridSampleForward.apply(grad_grad_input, *ctx.saved_tensors), None, None


# taken by a name of its own, before anyone can look for it
grid_sample = GridSampleForward.apply


class Lazy:
    """Loads what it stands for when it is first looked at, and cannot now."""

    __class__ = property(lambda self: int("not yet"))

    def __getattr__(self, name):
        raise ValueError(name)


flags = Lazy()
