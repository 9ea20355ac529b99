"""The layers of StyleGAN2, config F, at 256 and 1024, and the batch norms of BigGAN at 128: one list for everything that
predicts, checks or measures."""

from dataclasses import dataclass

# resolution of the network: its batch
NETWORKS = {256: 32, 1024: 8}

# the highest resolutions that compute in 16 bits
HALF = 4

# of the activation that ends a layer
GAIN, CLAMP, ALPHA = 2**0.5, 256.0, 0.2


def channels(resolution: int) -> int:
    """Of config F."""
    return min(32768 // resolution, 512)


def layers(*, half: bool = True) -> list[tuple[int, int, int]]:
    """(batch, resolution, channels) of the layers that compute in 16 bits, or of those in fp32, network by network."""
    every = []
    for largest, N in NETWORKS.items():
        resolutions = [2**i for i in range(2, largest.bit_length())]
        every += [(N, R, channels(R)) for R in (resolutions[-HALF:] if half else resolutions[:-HALF])]
    return every


def conv_flops(N: int, pixels: int, I: int, O: int, taps: int = 9) -> int:
    """Of a convolution of N images, and of either of its gradients; a product and a sum count as two."""
    return 2 * taps * I * O * pixels * N


# of BigGAN at 128: the batch, and `ch` of a student and of its teacher
BIGGAN_BATCH, BIGGAN_WIDTHS = 32, (48, 96)


def batch_norms(ch: int = 96) -> list[tuple[int, int, int, int]]:
    """(batch, resolution, channels, up) of those of BigGAN's generator at 128: two in each block but the first."""
    blocks = ((8, 16 * ch), (16, 8 * ch), (32, 4 * ch), (64, 2 * ch))
    return [(BIGGAN_BATCH, *norm) for R, C in blocks for norm in ((R, C, 2), (2 * R, C // 2, 1))]


@dataclass(frozen=True)
class Filter:
    """A separable filter of a network and what it changes, along either axis.

    Args:
        name: Where it stands.
        size: Of its input.
        padding: Before and after, of the upsampled input.
    """

    name: str
    size: int
    up: int
    down: int
    taps: int
    padding: tuple[int, int]

    @property
    def output(self) -> int:
        """Size of what comes of it."""
        return (self.size * self.up + sum(self.padding) - self.taps) // self.down + 1


def filters(R: int) -> tuple[Filter, ...]:
    """What surrounds the changes of resolution of a layer of R x R; [1, 3, 3, 1]."""
    return (
        Filter("after up-convolution", R + 1, 1, 1, 4, (1, 1)),
        Filter("gradient", R, 1, 1, 4, (2, 2)),
        Filter("down", R, 1, 2, 4, (1, 1)),
        Filter("up", R // 2, 2, 1, 4, (2, 1)),
    )


def long_filters(R: int) -> tuple[Filter, ...]:
    """Of 12 taps, as augmentation and later generators have them."""
    return (
        Filter("", R, 1, 1, 12, (6, 5)),
        Filter("up", R // 2, 2, 1, 12, (6, 5)),
        Filter("down", R, 1, 2, 12, (5, 5)),
    )
