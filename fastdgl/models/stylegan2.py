"""StyleGAN2, config F: mapping, skip generator, residual discriminator; in the order of the paper.

Source: Karras et al. 2020, "Analyzing and Improving the Image Quality of StyleGAN". Names and layout of parameters
and buffers are those of NVIDIA's PyTorch networks. A narrow student differs from its teacher by `fraction` alone.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from fastdgl_kernels import modulated_conv2d_bias_act, setup_filter, upsample2d

from ..latents import Latents, RepeatedNoise, seeded_z
from ..precision import Fp32Buffers, at_precision
from .conditioning import as_labels, check_z
from .layers import RESAMPLE_TAPS, Conv2dLayer, FullyConnectedLayer, MinibatchStdLayer, normalize_2nd_moment
from .pretrained import Pretrained

NOISE_MODES = ("random", "const", "none")

# draws standard normal numbers: called as torch.randn is, `normal([N, 1, H, W], device=...)`
Normal = Callable[..., Tensor]


def resolutions(img_resolution: int) -> list[int]:
    """4, 8, ... up to `img_resolution`.

    Raises:
        ValueError: There is no network of that resolution.
    """
    if img_resolution < 8 or img_resolution & (img_resolution - 1):
        raise ValueError(f"img_resolution={img_resolution}: expected a power of two of at least 8")
    return [2**i for i in range(2, int(math.log2(img_resolution)) + 1)]


def full_widths(img_resolution: int, channel_base: int, channel_max: int, channels: Sequence[int] | None) -> dict[int, int]:
    """Channels of the feature maps of the full network, by resolution: those listed, or min(channel_base / R, channel_max).

    Raises:
        ValueError: There is no network of that resolution, or `channels` has not one width for each of its resolutions.
    """
    listed = resolutions(img_resolution)
    if channels is None:
        return {R: min(channel_base // R, channel_max) for R in listed}
    if len(channels) != len(listed) or not all(type(width) is int and 1 <= width <= MAX_CHANNELS for width in channels):
        raise ValueError(f"channels={list(channels)!r:.60}: expected {len(listed)} whole numbers of at least 1, the widths at {', '.join(map(str, listed))}")
    return dict(zip(listed, channels))


def narrowed(widths: Mapping[int, int], fraction: float) -> dict[int, int]:
    """`widths` times `fraction`, by resolution.

    Raises:
        ValueError: `fraction` does not divide a width evenly.
    """
    for R, full in widths.items():
        width = full * fraction
        if width < 1 or width != int(width):
            raise ValueError(f"fraction {fraction} of {full} channels at {R}x{R} is {width:g}: expected a whole number of at least 1")
    return {R: int(full * fraction) for R, full in widths.items()}


# far more than any has: a file may ask for as many as it likes
MAX_MAPPING_LAYERS = 100
MAX_FP16_RES = 30
MAX_CHANNELS = 2**20


def check_arguments(c_dim: int, img_channels: int, num_fp16_res: int, conv_clamp: float | None) -> None:
    """Refuse numbers of which no network can be made.

    Raises:
        ValueError: One is such.
    """
    if c_dim < 0 or img_channels < 1:
        raise ValueError(f"c_dim={c_dim}, img_channels={img_channels}: expected at least 0 and at least 1")
    if not 0 <= num_fp16_res <= MAX_FP16_RES:
        raise ValueError(f"num_fp16_res={num_fp16_res}: expected 0 to {MAX_FP16_RES}")
    if conv_clamp is not None and not conv_clamp > 0:
        raise ValueError(f"conv_clamp={conv_clamp}: expected None, or a number above 0")


class MappingNetwork(Fp32Buffers):
    """z, and a class, to w: fully connected layers on the unit hypersphere, and the running mean of w.

    Args:
        z_dim: 0 for a network of the class alone, as the conditional discriminator has.
        num_ws: How often w is repeated for the layers of synthesis; None returns `[N, w_dim]`.
        w_avg_beta: Decay of the running mean of w; None tracks none.
    """

    def __init__(self, z_dim: int, c_dim: int, w_dim: int, num_ws: int | None, num_layers: int = 8,
                 lr_multiplier: float = 0.01, w_avg_beta: float | None = 0.995):
        super().__init__()
        if not 0 <= num_layers <= MAX_MAPPING_LAYERS or min(z_dim, c_dim) < 0 or w_dim < 1:
            raise ValueError(f"mapping_layers={num_layers}, z_dim={z_dim}, c_dim={c_dim}, w_dim={w_dim}: expected 0 to {MAX_MAPPING_LAYERS} layers, "
                             f"and no negative number of features")
        self.z_dim, self.c_dim, self.num_ws, self.num_layers, self.w_avg_beta = z_dim, c_dim, num_ws, num_layers, w_avg_beta
        # what its labels are, where the one who loads it knows
        self.label_kind: str | None = None
        if c_dim > 0:
            self.embed = FullyConnectedLayer(c_dim, w_dim)
        features = [z_dim + (w_dim if c_dim > 0 else 0)] + [w_dim] * num_layers
        for i in range(num_layers):
            layer = FullyConnectedLayer(features[i], features[i + 1], activation="lrelu", lr_multiplier=lr_multiplier)
            setattr(self, f"fc{i}", layer)
        if w_avg_beta is not None:
            self.register_buffer("w_avg", torch.zeros(w_dim))

    def forward(self, z: Tensor | None, c: Tensor | None = None, truncation_psi: float = 1.0,
                truncation_cutoff: int | None = None, update_w_avg: bool = False) -> Tensor:
        """w for each layer of synthesis.

            w' = w_avg + psi * (w - w_avg)      for the first `truncation_cutoff` layers

        Args:
            z: `[N, z_dim]`, standard normal.
            c: `[N, c_dim]`, one-hot classes or vectors; or class numbers, integers `[N]`; ignored by an unconditional network.
            truncation_psi: 1 leaves w alone, 0 is the mean image.
            truncation_cutoff: None truncates all layers.
            update_w_avg: Move the running mean of w towards this batch.

        Returns:
            `[N, num_ws, w_dim]`, or `[N, w_dim]` where num_ws is None.

        Raises:
            ValueError: z or c is of another shape.
        """
        inputs = []
        if self.z_dim > 0:
            check_z(z, self.z_dim)
            inputs.append(normalize_2nd_moment(z.float()))
        if self.c_dim > 0:
            # a discriminator's mapping network has no z, and is handed labels [N, c_dim]
            N, device = (z.shape[0], z.device) if self.z_dim > 0 else (c.shape[0], c.device)
            inputs.append(normalize_2nd_moment(self.embed(as_labels(c, N, self.c_dim, device, self.label_kind))))
        w = torch.cat(inputs, dim=1)
        for i in range(self.num_layers):
            w = getattr(self, f"fc{i}")(w)

        if update_w_avg:
            self.w_avg.copy_(w.detach().mean(dim=0).lerp(self.w_avg, self.w_avg_beta))
        if self.num_ws is None:
            return w
        ws = w.unsqueeze(1).repeat(1, self.num_ws, 1)
        if truncation_psi != 1:
            cutoff = self.num_ws if truncation_cutoff is None else truncation_cutoff
            truncated = self.w_avg.lerp(ws[:, :cutoff], truncation_psi)
            ws = torch.cat([truncated, ws[:, cutoff:]], dim=1)
        return ws


class SynthesisLayer(nn.Module):
    """Modulated convolution, noise, bias and leaky ReLU (figure 2c)."""

    def __init__(self, in_channels: int, out_channels: int, w_dim: int, resolution: int, up: int = 1,
                 conv_clamp: float | None = None):
        super().__init__()
        self.resolution = resolution
        self.up = up
        self.conv_clamp = conv_clamp
        self.affine = FullyConnectedLayer(w_dim, in_channels, bias_init=1)
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, 3, 3))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.noise_strength = nn.Parameter(torch.zeros([]))
        self.register_buffer("resample_filter", setup_filter(RESAMPLE_TAPS))
        self.register_buffer("noise_const", torch.randn(resolution, resolution))

    def forward(self, x: Tensor, w: Tensor, noise_mode: str = "random", normal: Normal = torch.randn) -> Tensor:
        """`[N, I, H, W]`, `[N, w_dim]` -> `[N, O, H * up, W * up]`."""
        styles = self.affine(w)                                           # [N, I]
        noise = None
        if noise_mode == "random":
            noise = normal([len(x), 1, self.resolution, self.resolution], device=x.device) * self.noise_strength
        elif noise_mode == "const":
            noise = self.noise_const * self.noise_strength
        return modulated_conv2d_bias_act(x, self.weight, styles, noise, self.bias, up=self.up, padding=1,
                                         resample_filter=self.resample_filter, flip_weight=self.up == 1,
                                         act="lrelu", clamp=self.conv_clamp)


class ToRGBLayer(nn.Module):
    """Features to an image: modulated 1x1 convolution without demodulation."""

    def __init__(self, in_channels: int, out_channels: int, w_dim: int, conv_clamp: float | None = None):
        super().__init__()
        self.conv_clamp = conv_clamp
        self.affine = FullyConnectedLayer(w_dim, in_channels, bias_init=1)
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.weight_gain = 1 / math.sqrt(in_channels)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:                    # [N, I, H, W], [N, w_dim] -> [N, O, H, W]
        styles = self.affine(w) * self.weight_gain
        return modulated_conv2d_bias_act(x, self.weight, styles, bias=self.bias, demodulate=False, act="linear",
                                         clamp=self.conv_clamp)


class SynthesisBlock(nn.Module):
    """One resolution: upsample, convolve twice, add to the image (figure 7, 'skip' generator)."""

    def __init__(self, in_channels: int, out_channels: int, w_dim: int, resolution: int, img_channels: int,
                 dtype: torch.dtype, conv_clamp: float | None):
        super().__init__()
        self.dtype = dtype
        self.first = resolution == 4
        # (convolutions, ToRGB): both take a w each, and the ToRGB's w is the next block's first
        self.num_conv, self.num_torgb = (1 if self.first else 2), 1
        self.register_buffer("resample_filter", setup_filter(RESAMPLE_TAPS))
        if self.first:
            self.const = nn.Parameter(torch.randn(in_channels, 4, 4))
        else:
            self.conv0 = SynthesisLayer(in_channels, out_channels, w_dim, resolution, up=2, conv_clamp=conv_clamp)
        width = in_channels if self.first else out_channels
        self.conv1 = SynthesisLayer(width, out_channels, w_dim, resolution, conv_clamp=conv_clamp)
        self.torgb = ToRGBLayer(out_channels, img_channels, w_dim, conv_clamp=conv_clamp)

    def forward(self, x: Tensor | None, image: Tensor | None, ws: Tensor, noise_mode: str,
                normal: Normal) -> tuple[Tensor, Tensor]:
        w = iter(ws.unbind(dim=1))
        if self.first:
            x = self.const.unsqueeze(0).repeat(ws.shape[0], 1, 1, 1)
        x = at_precision(x, self.dtype)
        if not self.first:
            x = self.conv0(x, next(w), noise_mode, normal)
        x = self.conv1(x, next(w), noise_mode, normal)
        rgb = self.torgb(x, next(w)).float()
        return x, rgb if image is None else upsample2d(image, self.resample_filter) + rgb


def block_dtype(resolution: int, img_resolution: int, num_fp16_res: int, low_precision: torch.dtype) -> torch.dtype:
    """The `num_fp16_res` highest resolutions above 4x4 compute in `low_precision`, the others in fp32."""
    lowest = max(img_resolution * 2 // 2**num_fp16_res, 8)
    return low_precision if num_fp16_res > 0 and resolution >= lowest else torch.float32


class SynthesisNetwork(nn.Module):
    """w to an image, from a learned 4x4 constant upwards."""

    def __init__(self, w_dim: int, img_resolution: int, img_channels: int, channel_base: int, channel_max: int,
                 channels: Sequence[int] | None, fraction: float, narrow_const: bool, num_fp16_res: int, low_precision: torch.dtype,
                 conv_clamp: float | None):
        super().__init__()
        self.w_dim, self.img_resolution, self.img_channels = w_dim, img_resolution, img_channels
        full = full_widths(img_resolution, channel_base, channel_max, channels)
        channels = narrowed(full, fraction)
        in_channels = channels[4] if narrow_const else full[4]
        for R in channels:
            block = SynthesisBlock(in_channels, channels[R], w_dim, R, img_channels,
                                   block_dtype(R, img_resolution, num_fp16_res, low_precision), conv_clamp)
            setattr(self, f"b{R}", block)
            in_channels = channels[R]

    @property
    def blocks(self) -> list[SynthesisBlock]:
        return [getattr(self, f"b{R}") for R in resolutions(self.img_resolution)]

    @property
    def num_ws(self) -> int:
        """Latents taken: one per convolution, and one for the last ToRGB."""
        return sum(block.num_conv for block in self.blocks) + self.blocks[-1].num_torgb

    def forward(self, ws: Tensor, noise_mode: str = "random", normal: Normal = torch.randn) -> Tensor:
        """The image of `ws`.

        Args:
            ws: `[N, num_ws, w_dim]`.
            noise_mode: "random" draws per-pixel noise from `normal`, "const" uses the stored noise, "none" adds none.
            normal: Draws the noise.

        Returns:
            `[N, img_channels, R, R]`, fp32, about [-1, 1].
        """
        if noise_mode not in NOISE_MODES:
            raise ValueError(f"noise_mode={noise_mode!r}: expected one of {', '.join(NOISE_MODES)}")
        if ws.shape[1:] != (self.num_ws, self.w_dim):
            raise ValueError(f"ws must be [N, {self.num_ws}, {self.w_dim}], got {list(ws.shape)}")
        x = image = None
        ws, position = ws.float(), 0
        for block in self.blocks:
            x, image = block(x, image, ws[:, position:position + block.num_conv + block.num_torgb], noise_mode, normal)
            position += block.num_conv
        return image


class Generator(Pretrained):
    """z, and a class, to an image.

    Args:
        c_dim: Number of classes; 0 for an unconditional generator.
        channel_base, channel_max: Width at resolution R is min(channel_base / R, channel_max) * fraction.
        channels: Widths at 4, 8, ..., img_resolution instead, before `fraction`: of a pruned network, which follow no rule.
        fraction: Width of every convolution relative to the full network. Mapping, z and w keep their size.
        narrow_const: Narrow the learned 4x4 constant too. The authors of DGL keep it at full width.
        num_fp16_res: How many of the highest resolutions compute in `low_precision`; parameters stay fp32.
        conv_clamp: Bound on activations; 256 keeps 16-bit training finite, None for no bound.
    """

    family = "stylegan2"
    vector_labels = True
    # of the average generator, which copies all; see `ema.update`
    averaged_buffers = ()
    # training never changes them
    constant_buffers = ("resample_filter", "noise_const")

    def __init__(self, *, z_dim: int = 512, c_dim: int = 0, w_dim: int = 512, img_resolution: int, img_channels: int = 3,
                 mapping_layers: int = 8, channel_base: int = 32768, channel_max: int = 512, channels: list | tuple | None = None,
                 fraction: float = 1, narrow_const: bool = False, num_fp16_res: int = 0, low_precision: torch.dtype = torch.float16,
                 conv_clamp: float | None = None):
        super().__init__()
        check_arguments(c_dim, img_channels, num_fp16_res, conv_clamp)
        self.z_dim, self.c_dim, self.w_dim = z_dim, c_dim, w_dim
        self.img_resolution, self.img_channels = img_resolution, img_channels
        self.synthesis = SynthesisNetwork(w_dim, img_resolution, img_channels, channel_base, channel_max, channels, fraction,
                                          narrow_const, num_fp16_res, low_precision, conv_clamp)
        self.num_ws = self.synthesis.num_ws
        self.mapping = MappingNetwork(z_dim, c_dim, w_dim, self.num_ws, mapping_layers)

    def forward(self, z: Tensor, c: Tensor | None = None, truncation_psi: float = 1.0,
                truncation_cutoff: int | None = None, noise_mode: str = "random", normal: Normal = torch.randn) -> Tensor:
        """`[N, z_dim]`, `[N, c_dim]` or class numbers `[N]` -> `[N, img_channels, R, R]`; see the two networks for the arguments."""
        ws = self.mapping(z, c, truncation_psi, truncation_cutoff)
        return self.synthesis(ws, noise_mode, normal)

    @property
    def label_kind(self) -> str | None:
        """What its labels are: "classes" or "vectors"; None where nobody said."""
        return self.mapping.label_kind

    @label_kind.setter
    def label_kind(self, kind: str | None) -> None:
        self.mapping.label_kind = kind

    def sample_z(self, seed: int, truncation: float | None = None) -> Tensor:
        """The z of a seed, `[1, z_dim]`; truncation is of w, and does not change it."""
        return seeded_z(seed, self.z_dim)

    def sample_images(self, z: Tensor, c: Tensor, truncation: float | None = None, noise_mode: str = "const",
                      normal: Normal = torch.randn) -> Tensor:
        """Images as they are looked at, `[N, img_channels, R, R]`: with constant noise.

        Args:
            truncation: psi: 1 or None leaves w alone, 0 is the mean image.
            normal: Draws the noise if it is random.
        """
        return self(z, c, truncation_psi=1.0 if truncation is None else truncation, noise_mode=noise_mode, normal=normal)

    def training_ws(self, latents: Latents, c: Tensor, style_mixing: float, track: bool = False) -> Tensor:
        """Latents `[N, num_ws, w_dim]` of classes `c`, of which the later layers may take those of a second z."""
        N = len(c)
        ws = self.mapping(latents.normal([N, self.z_dim]), c, update_w_avg=track)
        cutoff = latents.mixing_cutoff(self.num_ws, style_mixing)
        if cutoff < self.num_ws:
            second = self.mapping(latents.normal([N, self.z_dim]), c)
            ws = torch.cat([ws[:, :cutoff], second[:, cutoff:]], dim=1)
        return ws

    def training_images(self, latents: Latents, c: Tensor, *, track: bool, style_mixing: float) -> Tensor:
        """Images `[N, C, H, W]` of classes `c` as training draws them: random noise, and styles mixed now and then.

        Args:
            track: Move the running mean of w.
            style_mixing: Probability that the batch takes its later styles from a second z.
        """
        return self.synthesis(self.training_ws(latents, c, style_mixing, track), normal=latents.normal)

    def paired_images(self, teacher: "Generator", latents: Latents, c: Tensor) -> tuple[Tensor, Tensor]:
        """Images `[N, C, H, W]` of this network and of a frozen teacher, of the same w and the same noise, without style mixing.

        w is what the teacher's mapping network makes of z, for both: the teacher knows no other, and of w of two mapping
        networks the images would differ however alike the two synthesis networks are. So this network's mapping network
        takes no part.

        Args:
            teacher: Of the same z_dim, w_dim, resolution and classes; no gradient reaches it.
        """
        noise = RepeatedNoise(latents.normal)
        with torch.no_grad():
            ws = teacher.mapping(latents.normal([len(c), self.z_dim]), c)
            theirs = teacher.synthesis(ws, normal=noise.draw)
        return self.synthesis(ws, normal=noise.repeat), theirs

    @property
    def features(self) -> dict[int, tuple[str, int]]:
        """By resolution, the module that puts out the features of that resolution, and their channels."""
        return {R: (f"synthesis.b{R}.conv1", block.conv1.weight.shape[0])
                for R, block in zip(resolutions(self.img_resolution), self.synthesis.blocks)}

    def running_statistics(self) -> list[Tensor]:
        """What each rank has moved by its own samples: the mean of w."""
        return [self.mapping.w_avg]


class DiscriminatorBlock(nn.Module):
    """One resolution: two convolutions and a skip, halving the resolution (figure 7, 'residual' discriminator)."""

    def __init__(self, img_channels: int | None, channels: int, out_channels: int, dtype: torch.dtype,
                 conv_clamp: float | None):
        super().__init__()
        self.dtype = dtype
        # NVIDIA's blocks carry the filter too, and their state dicts are to load strictly
        self.register_buffer("resample_filter", setup_filter(RESAMPLE_TAPS))
        self.fromrgb = None if img_channels is None else Conv2dLayer(img_channels, channels, 1, activation="lrelu",
                                                                     conv_clamp=conv_clamp)
        self.conv0 = Conv2dLayer(channels, channels, 3, activation="lrelu", conv_clamp=conv_clamp)
        self.conv1 = Conv2dLayer(channels, out_channels, 3, activation="lrelu", down=2, conv_clamp=conv_clamp)
        self.skip = Conv2dLayer(channels, out_channels, 1, bias=False, down=2)

    def forward(self, x: Tensor) -> Tensor:
        """An image or features `[N, C, R, R]` -> features `[N, O, R/2, R/2]`."""
        x = at_precision(x, self.dtype)
        if self.fromrgb is not None:
            x = self.fromrgb(x)
        skip = self.skip(x, gain=math.sqrt(0.5))
        return skip + self.conv1(self.conv0(x), gain=math.sqrt(0.5))


class DiscriminatorEpilogue(nn.Module):
    """Features at 4x4 to a logit, or to a vector to project the class on."""

    def __init__(self, in_channels: int, cmap_dim: int, mbstd_group_size: int, conv_clamp: float | None):
        super().__init__()
        self.mbstd = MinibatchStdLayer(mbstd_group_size)
        self.conv = Conv2dLayer(in_channels + 1, in_channels, 3, activation="lrelu", conv_clamp=conv_clamp)
        self.fc = FullyConnectedLayer(in_channels * 4 * 4, in_channels, activation="lrelu")
        self.out = FullyConnectedLayer(in_channels, cmap_dim or 1)

    def forward(self, x: Tensor, cmap: Tensor | None) -> Tensor:          # [N, C, 4, 4] -> [N, 1]
        x = self.conv(self.mbstd(at_precision(x, torch.float32)))
        x = self.out(self.fc(x.flatten(1)))
        if cmap is not None:
            x = (x * cmap).sum(dim=1, keepdim=True) / math.sqrt(cmap.shape[1])
        return x


class Discriminator(nn.Module):
    """An image, and a class, to a logit: positive for real.

    Args:
        fraction: Width of every layer relative to the full network.
        mbstd_group_size: Group of the minibatch standard deviation; the batch of a rank must be a multiple of it.
        Others as in `Generator`.
    """

    # the minibatch standard deviation compares the samples of a batch: real and fake ones go in batches of their own
    independent_samples = False

    def __init__(self, *, c_dim: int = 0, img_resolution: int, img_channels: int = 3, channel_base: int = 32768,
                 channel_max: int = 512, channels: list | tuple | None = None, fraction: float = 1, mbstd_group_size: int = 4,
                 num_fp16_res: int = 0, low_precision: torch.dtype = torch.float16, conv_clamp: float | None = None):
        super().__init__()
        check_arguments(c_dim, img_channels, num_fp16_res, conv_clamp)
        if mbstd_group_size < 1:
            raise ValueError(f"mbstd_group_size={mbstd_group_size}: expected at least 1")
        self.c_dim, self.img_resolution, self.img_channels = c_dim, img_resolution, img_channels
        self.mbstd_group_size = mbstd_group_size
        channels = narrowed(full_widths(img_resolution, channel_base, channel_max, channels), fraction)
        for R in self.block_resolutions:
            block = DiscriminatorBlock(img_channels if R == img_resolution else None, channels[R], channels[R // 2],
                                       block_dtype(R, img_resolution, num_fp16_res, low_precision), conv_clamp)
            setattr(self, f"b{R}", block)
        cmap_dim = channels[4] if c_dim > 0 else 0
        if c_dim > 0:
            self.mapping = MappingNetwork(0, c_dim, cmap_dim, num_ws=None, w_avg_beta=None)
        self.b4 = DiscriminatorEpilogue(channels[4], cmap_dim, mbstd_group_size, conv_clamp)

    @property
    def block_resolutions(self) -> Sequence[int]:
        return resolutions(self.img_resolution)[:0:-1]

    @property
    def feature_modules(self) -> list[str]:
        """The modules that put out the features of each block, from the image downwards."""
        return [f"b{R}" for R in self.block_resolutions]

    def forward(self, image: Tensor, c: Tensor | None = None) -> Tensor:
        """`[N, img_channels, R, R]`, `[N, c_dim]` -> logits `[N, 1]`, fp32."""
        x = image
        for R in self.block_resolutions:
            x = getattr(self, f"b{R}")(x)
        cmap = self.mapping(None, as_labels(c, image.shape[0], self.c_dim, image.device)) if self.c_dim > 0 else None
        return self.b4(x, cmap)
