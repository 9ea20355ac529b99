"""BigGAN: class-conditional residual generator and projection discriminator, with self-attention.

Source: Brock et al., "Large Scale GAN Training for High Fidelity Natural Image Synthesis", ICLR 2019. Names and layout of
parameters and buffers are those of BigGAN-PyTorch. A narrow student differs from its teacher by `ch` alone.
"""

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..latents import Latents, seeded_z
from ..precision import at_precision
from .batch_norm import BatchNormReLU, ConditionalBatchNormReLU, running_statistics, untracked
from .conditioning import as_labels, check_z
from .pretrained import Pretrained
from .spectral_norm import Conv2d, Embedding, Linear, NormalizedEmbedding, SpectralNorm

# channels before the first block and after each, in multiples of ch (tables 4 to 9 of the paper)
GENERATOR_WIDTHS = {
    32: (4, 4, 4, 4),
    64: (16, 16, 8, 4, 2),
    128: (16, 16, 8, 4, 2, 1),
    256: (16, 16, 8, 8, 4, 2, 1),
}
# after each block; all but the last halve the resolution, at 32 the first two
DISCRIMINATOR_WIDTHS = {
    32: (4, 4, 4, 4),
    64: (1, 2, 4, 8, 16),
    128: (1, 2, 4, 8, 16, 16),
    256: (1, 2, 4, 8, 8, 16, 16),
}
INITS = {"orthogonal": nn.init.orthogonal_, "normal": partial(nn.init.normal_, std=0.02)}


def initialize(network: nn.Module, init: str) -> None:
    """Draw every weight anew, those of embeddings too; biases stay."""
    for layer in network.modules():
        # a skeleton has no numbers to draw
        if isinstance(layer, SpectralNorm | Embedding) and not layer.weight.is_meta:
            INITS[init](layer.weight)


def add_upsampled(x: Tensor, small: Tensor) -> Tensor:
    """x plus `small` at twice its resolution, which is never written: `[N, C, 2H, 2W]`, `[N, C, H, W]`."""
    H, W = small.shape[2:]
    quads = x.unflatten(3, (W, 2)).unflatten(2, (H, 2))                   # [N, C, H, 2, W, 2]
    return (quads + small[:, :, :, None, :, None]).flatten(4, 5).flatten(2, 3)


class SelfAttention(nn.Module):
    """Each pixel adds what it takes from all others, at half the resolution; nothing at first, while gamma is 0.

        x + gamma * o(softmax(theta(x)^T pool(phi(x))) pool(g(x))^T)

    Source: Zhang et al., "Self-Attention Generative Adversarial Networks", ICML 2019, as in the code of BigGAN.
    """

    def __init__(self, channels: int, eps: float):
        super().__init__()
        self.theta = Conv2d(channels, channels // 8, 1, eps, bias=False)
        self.phi = Conv2d(channels, channels // 8, 1, eps, bias=False)
        self.g = Conv2d(channels, channels // 2, 1, eps, bias=False)
        self.o = Conv2d(channels // 2, channels, 1, eps, bias=False)
        self.gamma = nn.Parameter(torch.zeros([]))

    def forward(self, x: Tensor) -> Tensor:                               # [N, C, H, W] -> [N, C, H, W]
        theta = self.theta(x).flatten(2)                                  # [N, C/8, HW]
        phi = F.max_pool2d(self.phi(x), 2).flatten(2)                     # [N, C/8, HW/4]
        g = F.max_pool2d(self.g(x), 2).flatten(2)                         # [N, C/2, HW/4]
        attention = (theta.transpose(1, 2) @ phi).softmax(dim=-1)         # [N, HW, HW/4]
        taken = attention @ g.transpose(1, 2)                             # [N, HW, C/2]
        taken = taken.transpose(1, 2).unflatten(2, x.shape[2:])
        return x + self.gamma * self.o(taken)

    def product_macs(self, height: int, width: int) -> int:
        """Multiply-accumulates of its two matrix products, which have no weight."""
        positions = height * width
        return positions * (positions // 4) * (self.phi.weight.shape[0] + self.g.weight.shape[0])


class GeneratorBlock(nn.Module):
    """Twice the resolution: batch norm, ReLU, convolution, twice, and a shortcut (figure 15b)."""

    def __init__(self, in_channels: int, out_channels: int, features: int, shared: bool, eps: float, sync: bool):
        super().__init__()
        self.bn1 = ConditionalBatchNormReLU(in_channels, features, shared, eps, sync)
        self.conv1 = Conv2d(in_channels, out_channels, 3, eps)
        self.bn2 = ConditionalBatchNormReLU(out_channels, features, shared, eps, sync)
        self.conv2 = Conv2d(out_channels, out_channels, 3, eps)
        self.conv_sc = Conv2d(in_channels, out_channels, 1, eps)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """`[N, I, H, W]`, condition `[N, features]` -> `[N, O, 2H, 2W]`."""
        h = self.conv1(self.bn1(x, y, up=2))
        h = self.conv2(self.bn2(h, y))
        # a 1x1 convolution before repeating pixels is the one after it, at a quarter of the cost
        return add_upsampled(h, self.conv_sc(x))


class Generator(Pretrained):
    """z and a class to an image.

    The dtype of the parameters is that of the convolutions: `bfloat16()` makes it a generator in 16 bits.

    Args:
        z_dim: With `hier`, a multiple of the number of blocks and one.
        c_dim: Number of classes, at least 1.
        img_resolution: 32, 64, 128 or 256.
        img_channels: 1 or 3.
        ch: Width: the last convolution has `ch` channels in, at 32 pixels 4 * ch.
        hier: Cut z into equal chunks, the first for the first layer, each other for the batch norms of one block.
        shared_dim: Size of the class embedding that all batch norms share; 0 gives each its own.
        attention: The resolution of features after which self-attention stands; 0 for none.
        init: "orthogonal", or "normal" for N(0, 0.02).
        sn_eps: Of spectral norm.
        sync_batchnorm: In training mode, normalize over the batches of all ranks.

    Raises:
        ValueError: An argument is none of these.
    """

    family = "biggan"
    vector_labels = False
    # of the average generator, which copies the others; see `ema.update`
    averaged_buffers = ("stored_mean", "stored_var")

    def __init__(self, *, z_dim: int = 120, c_dim: int, img_resolution: int, img_channels: int = 3, ch: int = 96,
                 hier: bool = True, shared_dim: int = 128, attention: int = 64, init: str = "orthogonal",
                 sn_eps: float = 1e-6, sync_batchnorm: bool = False):
        super().__init__()
        check_arguments(c_dim, img_resolution, img_channels, ch, init, sn_eps)
        if z_dim < 1 or shared_dim < 0:
            raise ValueError(f"z_dim={z_dim}, shared_dim={shared_dim}: expected at least 1 and at least 0")
        if hier and not shared_dim:
            raise ValueError("hier=True with shared_dim=0: chunks of z are joined to the shared embedding; expected shared_dim of at least 1")
        self.z_dim, self.c_dim, self.img_resolution, self.img_channels = z_dim, c_dim, img_resolution, img_channels
        self.hier, self.sync_batchnorm = hier, sync_batchnorm
        widths = [ch * width for width in GENERATOR_WIDTHS[img_resolution]]
        resolutions = [4 * 2**(i + 1) for i in range(len(widths) - 1)]
        chunks = len(widths) if hier else 1
        if z_dim % chunks:
            raise ValueError(f"z_dim={z_dim}: with hier=True at {img_resolution}x{img_resolution} z is cut into {chunks} equal chunks; expected "
                             f"a multiple of {chunks}, such as {z_dim // chunks * chunks or chunks} (BigGAN-PyTorch rounds down without a word)")
        self.chunk = z_dim // chunks
        features = (shared_dim or c_dim) + (self.chunk if hier else 0)

        self.shared = Embedding(c_dim, shared_dim) if shared_dim else nn.Identity()
        self.linear = Linear(self.chunk, widths[0] * 4 * 4, sn_eps)
        blocks = [GeneratorBlock(i, o, features, shared_dim > 0, sn_eps, sync_batchnorm) for i, o in zip(widths, widths[1:])]
        self.blocks = with_attention(blocks, widths[1:], resolutions, attention, sn_eps)
        # the ReLU that stands between them is the norm's
        self.output_layer = nn.Sequential(BatchNormReLU(widths[-1], sync_batchnorm), nn.Identity(),
                                          Conv2d(widths[-1], img_channels, 3, sn_eps))
        initialize(self, init)

    def forward(self, z: Tensor, c: Tensor) -> Tensor:
        """The image.

        Args:
            z: `[N, z_dim]`, standard normal.
            c: `[N, c_dim]`, one-hot classes; or class numbers, integers `[N]`.

        Returns:
            `[N, img_channels, R, R]`, fp32, in [-1, 1].

        Raises:
            ValueError: A shape is another.
        """
        check_z(z, self.z_dim)
        c = as_labels(c, z.shape[0], self.c_dim, z.device)
        z, y = z.float(), self.shared(c)
        ys = [y] * len(self.blocks)
        if self.hier:
            z, *chunks = z.split(self.chunk, dim=1)
            ys = [torch.cat([y, chunk], dim=1) for chunk in chunks]
        x = at_precision(self.linear(z).unflatten(1, (-1, 4, 4)), self.linear.weight.dtype)
        for (block, *attention), y in zip(self.blocks, ys):
            x = block(x, y)
            for layer in attention:
                x = layer(x)
        return torch.tanh(self.output_layer(x).float())

    def sample_z(self, seed: int, truncation: float | None = None) -> Tensor:
        """The z of a seed, `[1, z_dim]`, no number of which is beyond `truncation`; see `seeded_z`."""
        return seeded_z(seed, self.z_dim, truncation)

    def sample_images(self, z: Tensor, c: Tensor, truncation: float | None = None) -> Tensor:
        """Images as they are looked at, `[N, img_channels, R, R]`; truncation is of z, by `sample_z`."""
        return self(z, c)

    def training_images(self, latents: Latents, c: Tensor, *, track: bool) -> Tensor:
        """Images `[N, C, H, W]` of classes `c` as training draws them.

        Args:
            track: Move the stored statistics of the batch norms. BigGAN-PyTorch moves them in D's steps as well; here a
                step of D leaves them as they were, and so do the ranks' different batches. The vectors of spectral norm,
                which follow the weights alone, turn with every call.
        """
        z = latents.normal([len(c), self.z_dim])
        if track:
            return self(z, c)
        with untracked(self):
            return self(z, c)

    def paired_images(self, teacher: "Generator", latents: Latents, c: Tensor) -> tuple[Tensor, Tensor]:
        """Images `[N, C, H, W]` of this network and of a frozen teacher, of the same z and the same classes.

        The stored statistics of neither move; this network normalizes by those of its batch, a teacher in evaluation mode by
        its stored ones.

        Args:
            teacher: Of the same z_dim, resolution and classes; no gradient reaches it.
        """
        z = latents.normal([len(c), self.z_dim])
        with torch.no_grad():
            theirs = teacher(z, c)
        with untracked(self):
            return self(z, c), theirs

    @property
    def features(self) -> dict[int, tuple[str, int]]:
        """By resolution, the module that puts out the features of that resolution, and their channels."""
        return {8 * 2**i: (module, block[0].conv2.weight.shape[0]) for i, (module, block) in enumerate(zip(feature_modules(self.blocks), self.blocks))}

    def running_statistics(self) -> list[Tensor]:
        """What each rank has moved by its own samples: the stored statistics of the batch norms, unless these are synchronised."""
        return [] if self.sync_batchnorm else list(running_statistics(self))

    def orthogonal_weights(self) -> list[Tensor]:
        """What orthogonal regularization takes hold of: every weight but the class embedding that the batch norms share."""
        return [weight for name, weight in self.named_parameters() if weight.ndim > 1 and not name.startswith("shared.")]


class DiscriminatorBlock(nn.Module):
    """ReLU, convolution, twice, and a shortcut, optionally halving the resolution (figure 15c)."""

    def __init__(self, in_channels: int, out_channels: int, first: bool, down: bool, eps: float):
        super().__init__()
        self.first, self.down = first, down
        self.conv1 = Conv2d(in_channels, out_channels, 3, eps, activation="relu")
        self.conv2 = Conv2d(out_channels, out_channels, 3, eps)
        self.conv_sc = Conv2d(in_channels, out_channels, 1, eps) if down or in_channels != out_channels else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:                               # [N, I, H, W] -> [N, O, H/2, W/2] or [N, O, H, W]
        # the first block sees an image, whose darker half a ReLU would cut off
        h = self.conv2(self.conv1(x if self.first else F.relu(x)))
        if self.down:
            # a 1x1 convolution after the mean of pixels is the one before it, at a quarter of the cost
            h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)
        return h + self.conv_sc(x)


class Discriminator(nn.Module):
    """An image and a class to a logit: positive for real.

        linear(h) + <embed(c), h>,   h the sum of the features over all pixels

    Args:
        ch: Width: the first block has `ch` channels, at 32 pixels 4 * ch.
        Others as in `Generator`.

    Raises:
        ValueError: An argument is none of these.

    Source: Miyato and Koyama, "cGANs with Projection Discriminator", ICLR 2018.
    """

    # no logit depends on the other samples of a batch: real and fake ones may share it
    independent_samples = True

    def __init__(self, *, c_dim: int, img_resolution: int, img_channels: int = 3, ch: int = 96, attention: int = 64,
                 init: str = "orthogonal", sn_eps: float = 1e-6):
        super().__init__()
        check_arguments(c_dim, img_resolution, img_channels, ch, init, sn_eps)
        self.c_dim, self.img_resolution, self.img_channels = c_dim, img_resolution, img_channels
        widths = [ch * width for width in DISCRIMINATOR_WIDTHS[img_resolution]]
        halvings = 2 if img_resolution == 32 else len(widths) - 1
        resolutions = [img_resolution // 2**min(i + 1, halvings) for i in range(len(widths))]
        blocks = [DiscriminatorBlock(i, o, first=n == 0, down=n < halvings, eps=sn_eps)
                  for n, (i, o) in enumerate(zip([img_channels, *widths], widths))]
        self.blocks = with_attention(blocks, widths, resolutions, attention, sn_eps)
        self.linear = Linear(widths[-1], 1, sn_eps)
        self.embed = NormalizedEmbedding(c_dim, widths[-1], sn_eps)
        initialize(self, init)

    @property
    def feature_modules(self) -> list[str]:
        """The modules that put out the features of each block, from the image downwards."""
        return feature_modules(self.blocks)

    def forward(self, image: Tensor, c: Tensor) -> Tensor:
        """`[N, img_channels, R, R]`, one-hot classes `[N, c_dim]` or class numbers `[N]` -> logits `[N, 1]`, fp32.

        Raises:
            ValueError: A shape is another.
        """
        shape = [self.img_channels, self.img_resolution, self.img_resolution]
        if list(image.shape[1:]) != shape:
            raise ValueError(f"image must be [N, {', '.join(map(str, shape))}], got {list(image.shape)}")
        c = as_labels(c, len(image), self.c_dim, image.device)
        x = at_precision(image, self.linear.weight.dtype)
        for layer in (layer for block in self.blocks for layer in block):
            x = layer(x)
        h = F.relu(x).float().sum(dim=(2, 3))                             # [N, C]
        return self.linear(h) + (self.embed(c) * h).sum(dim=1, keepdim=True)


def with_attention(blocks: Sequence[nn.Module], widths: Sequence[int], resolutions: Sequence[int], attention: int, eps: float) -> nn.ModuleList:
    """Each block in a list of its own, where self-attention follows it if its output is of resolution `attention`."""
    if attention and attention not in resolutions:
        raise ValueError(f"attention={attention}: the blocks put out features of resolution {', '.join(map(str, resolutions))}; "
                         "expected one of these, or 0 for none")
    layers = [nn.ModuleList([block]) for block in blocks]
    for layer, width, resolution in zip(layers, widths, resolutions):
        if resolution == attention:
            if width < 8:
                raise ValueError(f"attention={attention}: compares pixels by an eighth of the {width} channels there; use a larger ch")
            layer.append(SelfAttention(width, eps))
    return nn.ModuleList(layers)


def feature_modules(blocks: nn.ModuleList) -> list[str]:
    """The name of the last module of each block, which may be its self-attention."""
    return [f"blocks.{i}.{len(block) - 1}" for i, block in enumerate(blocks)]


def check_arguments(c_dim: int, img_resolution: int, img_channels: int, ch: int, init: str, sn_eps: float) -> None:
    if c_dim < 1:
        raise ValueError(f"c_dim={c_dim}: BigGAN is conditional on a class; expected at least 1, which 1 is for images of a single kind")
    if img_resolution not in GENERATOR_WIDTHS:
        raise ValueError(f"img_resolution={img_resolution}: expected one of {', '.join(map(str, GENERATOR_WIDTHS))}")
    if img_channels not in (1, 3):
        raise ValueError(f"img_channels={img_channels}: expected 1 or 3")
    if ch < 1:
        raise ValueError(f"ch={ch}: expected at least 1")
    if init not in INITS:
        raise ValueError(f"init={init!r}: expected one of {', '.join(map(repr, INITS))}")
    if not sn_eps > 0:
        raise ValueError(f"sn_eps={sn_eps}: expected a number above 0")
