"""Compiling the kernels of a run before its first step, once on each machine."""

import os

import torch
import torch.distributed as dist
from torch import Tensor, nn

import fastdgl_kernels

from . import config as configs
from .engines import Run
from .losses import path_lengths, r1_penalty
from .steps import Adversaries, discriminators, learning


def compile_kernels(gan: Adversaries, config: configs.Config, run: Run, c_dim: int) -> None:
    """Leave the kernels that the steps will launch in Triton's cache; nothing where none will be. Called by all ranks together.

    The first rank of each machine compiles, the others wait and load. Where a pass talks to the other ranks, the kernels are
    compiled as they are met: in BigGAN's batch norms, and in every layer whose parameters ZeRO 3 gathers.
    """
    if config.model.family != "stylegan2" or config.engine.shards_parameters or run.device.type != "cuda":
        return
    if not fastdgl_kernels.kernels_in_force(run.device):
        return
    if int(os.environ["LOCAL_RANK"]) == 0:
        with fastdgl_kernels.warm_up():
            N = config.train.generator_images // config.train.accumulate_generator // run.world_size
            N_real = config.train.batch // config.train.accumulate_discriminator // run.world_size
            rehearse(gan, config.loss, N, N_real, c_dim, run.device)
    dist.barrier()


def rehearse(gan: Adversaries, loss: configs.StyleGAN2Loss, N: int, N_real: int, c_dim: int, device: torch.device) -> None:
    """The passes of all steps over the networks, forwards, backwards, and backwards again; nothing is learnt.

    Args:
        N, N_real: Images of this rank in a pass of G's steps, and of D's.
    """
    G, learners = gan.G.module, [engine.module for engine, _ in discriminators(gan)]
    # a teacher that learns is one of the guide's as well
    judges = [gan.D.module, *gan.guide.discriminators]

    def inputs(N: int) -> tuple[Tensor, Tensor]:
        return torch.randn([N, G.z_dim], device=device), torch.zeros([N, c_dim], device=device)

    with learning(G):
        z, c = inputs(N)
        images = G(z, c)
        if gan.feature_teacher is not None:
            judges.append(gan.feature_teacher.D)
            with torch.no_grad():
                gan.feature_teacher.G(z, c)
        differentiate(sum(judge(images, c).sum() for judge in judges), G)
        if loss.path_length_interval:
            z, c = inputs(N // loss.path_length_batch_shrink)
            ws = G.mapping(z, c)
            differentiate(path_lengths(G.synthesis(ws), ws).sum(), G)

    _, c = inputs(N_real)
    real = images.new_empty([N_real, *images.shape[1:]])
    for D in learners:
        with learning(D):
            differentiate(D(real, c).sum(), D)
            if loss.r1_interval:
                images = real.clone().requires_grad_(True)
                differentiate(r1_penalty(D(images, c), images).sum(), D)


def differentiate(objective: Tensor, network: nn.Module) -> None:
    """The gradients of `objective`, which are left nowhere."""
    torch.autograd.grad(objective, list(network.parameters()), allow_unused=True)
