"""What a run is: the schema of the YAML files in configs/, and the one reader of them.

A file describes one run, or several `stages` of which each names only what it changes. Every value can be overridden
on the command line as `train.batch=16`, or `stages.guided.train.kimg=5` for one stage alone.
"""

import difflib
import math
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from .paths import expanded
from .sentences import printable

# what C counts in
LARGEST_INT = 2**31 - 1
PositiveInt = Annotated[int, Field(gt=0, le=LARGEST_INT)]
# that of models.stylegan2.MAX_CHANNELS
Channels = Annotated[int, Field(gt=0, le=2**20)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(gt=0, le=1)]
# part of a folder's name, and of a pattern that finds it again
Name = Annotated[str, Field(pattern=r"^[\w.-]+$", max_length=100)]
NameOrNone = Annotated[str, Field(pattern=r"^[\w.-]*$", max_length=100)]
# `~` is the home folder, as in a shell
PathText = Annotated[str, AfterValidator(expanded)]
# True equals 1 in Python, and would pass for it in a choice of numbers
NotBoolean = BeforeValidator(lambda value: str(value).lower() if isinstance(value, bool) else value)
# YAML reads off and on as truth values
OffAsText = BeforeValidator(lambda value: "off" if value is False else value)



def _is_plain_list(annotation: Any) -> bool:
    """Return whether a key may hold a list of numbers or texts."""
    if get_origin(annotation) in (Union, types.UnionType):
        return any(map(_is_plain_list, get_args(annotation)))
    item = get_args(annotation)[0] if get_origin(annotation) is list else None
    return item is not None and not (isinstance(item, type) and issubclass(item, BaseModel))


def _entries(value: str | int) -> list[str | int]:
    """Return the entries of a list that is written as one value: `8,32` or `fid50k_full, is50k`."""
    parts = [part.strip() for part in str(value).split(",")]
    return [int(part) if part.isascii() and part.isdecimal() and len(part) < 19 else part for part in parts if part]


def _all_or_a_number(value: Any) -> Any:
    if value == "all" or (type(value) is int and 0 < value <= LARGEST_INT):
        return value
    # what a choice of two types says by itself names neither
    raise PydanticCustomError("all_or_a_number", "'all' or a whole number of at least 1")


AllOrANumber = Annotated[Literal["all"] | PositiveInt, BeforeValidator(_all_or_a_number)]
# those of fidelity.metrics.METRICS, and of their numbers those of which lower or higher is better
MetricName = Literal["fid50k_full", "kid50k_full", "pr50k3_full", "dc50k5_full", "is50k", "ppl2_wend"]
BestBy = Literal["fid50k_full", "kid50k_full", "pr50k3_full_precision", "pr50k3_full_recall", "dc50k5_full_density", "dc50k5_full_coverage",
                 "is50k_mean", "ppl2_wend"]

# a run started from, or taught by, the last snapshot of another stage of the same file
STAGE_PREFIX = "stage:"

# a config has some dozen values; a few lines in which `*name` repeats what repeats can stand for more than any memory holds
MAX_CHARACTERS = 100_000
MAX_VALUES = 100_000
MAX_KEYS = 1_000
MAX_DEPTH = 10


class ConfigError(ValueError):
    """A config that cannot be run, in one sentence: file, key, what was found, what was expected."""

    def __init__(self, message: str):
        super().__init__(printable(message))


class Section(BaseModel):
    """A part of a config: strict types, no unknown keys, never changed once read."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def read_lists(cls, data: Any) -> Any:
        """Accept one entry in place of a list of them, and text with commas between: `metrics.names=fid50k_full,is50k`."""
        if not isinstance(data, dict):
            return data
        single = {name: data[name] for name, field in cls.model_fields.items()
                  if isinstance(data.get(name), (str, int)) and not isinstance(data[name], bool) and _is_plain_list(field.annotation)}
        return data | {name: _entries(value) for name, value in single.items()}


class Images(Section):
    """The training set.

    path: A folder or zip in the format of `fastdgl dataset` or with a folder for each class, CIFAR-10's binary files, BigGAN-PyTorch's
        HDF5, or `digits` for the 5,000 digits that come with fastdgl.
    mirror: Also show every image flipped left to right.
    workers: Processes that read and decode, per rank; 0 reads in the training process.
    corrupt: What becomes of an image that cannot be used: `stop` names the file and ends the run; `skip` takes the next image in its
        place, names the file once in log.txt, and stops at more than one file in a hundred.
    timeout: Seconds to wait for the workers before the run ends and names the files they are at; 0 waits for ever. Needs workers.
    """

    path: PathText
    mirror: bool = False
    workers: Annotated[int, Field(ge=0)] = 2
    corrupt: Literal["stop", "skip"] = "stop"
    timeout: NonNegative = 600


class StyleGAN2(Section):
    """Generator and discriminator of StyleGAN2, config F by default.

    family: Of the networks.
    resolution: Side of the images in pixels: a power of two, at least 8.
    channels: Of the images: 1 for grey ones, 3 for RGB.
    conditional: Whether the networks are told each image's label.
    z_dim, w_dim: Numbers in a latent, and in what the mapping network makes of it.
    mapping_layers: Depth of the mapping network.
    channel_base, channel_max: The full network has channel_base / R channels at resolution R, and at most channel_max.
    generator_channels, discriminator_channels: Widths of the full network at 4, 8, ..., resolution instead, such as those of a pruned
        network; null for none.
    generator_fraction, discriminator_fraction: Width of the convolutions relative to the full network: DGL's students.
    narrow_const: Narrow the learned 4x4 constant with the generator; the authors of DGL keep it at full width.
    num_fp16_res: How many of the highest resolutions compute in `low_precision`; parameters stay fp32.
    low_precision: The 16-bit format of these resolutions.
    conv_clamp: Bound on activations, which keeps 16-bit training finite; null for none.
    mbstd_group: Group of the minibatch standard deviation.
    """

    family: Literal["stylegan2"] = "stylegan2"
    resolution: int
    channels: Annotated[Literal[1, 3], NotBoolean] = 3
    conditional: bool = False
    z_dim: PositiveInt = 512
    w_dim: PositiveInt = 512
    mapping_layers: Annotated[int, Field(gt=0, le=100)] = 8
    channel_base: PositiveInt = 32768
    channel_max: PositiveInt = 512
    generator_channels: list[Channels] | None = None
    discriminator_channels: list[Channels] | None = None
    generator_fraction: Fraction = 1
    discriminator_fraction: Fraction = 1
    narrow_const: bool = False
    num_fp16_res: Annotated[int, Field(ge=0)] = 4
    low_precision: Literal["float16", "bfloat16"] = "float16"
    conv_clamp: Positive | None = 256
    mbstd_group: PositiveInt = 4

    # labels may be vectors
    classes_only: ClassVar[bool] = False
    # of the features that a generator can be compared by
    lowest_features: ClassVar[int] = 4

    @model_validator(mode="after")
    def check_widths(self) -> "StyleGAN2":
        if self.resolution < 8 or self.resolution & (self.resolution - 1):
            raise ValueError(f"resolution: {self.resolution} is not a power of two of at least 8")
        if self.num_fp16_res and self.low_precision == "float16" and self.conv_clamp is None:
            raise ValueError("conv_clamp: null lets float16 overflow; expected a bound such as 256, or num_fp16_res: 0")
        resolutions = [2**i for i in range(2, self.resolution.bit_length())]
        for network in ("generator", "discriminator"):
            listed, fraction = getattr(self, f"{network}_channels"), getattr(self, f"{network}_fraction")
            if listed is not None and len(listed) != len(resolutions):
                raise ValueError(f"{network}_channels: {_said(listed)} has {len(listed)} widths; "
                                 f"expected {len(resolutions)}, for {', '.join(map(str, resolutions))}")
            for R, full in zip(resolutions, listed or [min(self.channel_base // R, self.channel_max) for R in resolutions]):
                if full < 1:
                    raise ValueError(f"channel_base: {self.channel_base} leaves no channel at {R}x{R}; expected at least {self.resolution}")
                if full * fraction < 1 or full * fraction != int(full * fraction):
                    raise ValueError(f"{network}_fraction: {fraction} of the {full} channels at {R}x{R} is {full * fraction:g}; "
                                     f"expected a whole number of at least 1")
        return self

    def generator_arguments(self, c_dim: int) -> dict[str, Any]:
        """What `models.generator` takes, for `c_dim` classes."""
        return {"z_dim": self.z_dim, "w_dim": self.w_dim, "mapping_layers": self.mapping_layers,
                "fraction": self.generator_fraction, "narrow_const": self.narrow_const} | self._shared(c_dim, self.generator_channels)

    def discriminator_arguments(self, c_dim: int) -> dict[str, Any]:
        """What `models.discriminator` takes, for `c_dim` classes."""
        return {"fraction": self.discriminator_fraction, "mbstd_group_size": self.mbstd_group} | self._shared(c_dim, self.discriminator_channels)

    def _shared(self, c_dim: int, channels: list[int] | None) -> dict[str, Any]:
        # only where they are listed: what builds other networks says the same as ever
        listed = {} if channels is None else {"channels": channels}
        return {"c_dim": c_dim, "img_resolution": self.resolution, "img_channels": self.channels,
                "channel_base": self.channel_base, "channel_max": self.channel_max,
                "num_fp16_res": self.num_fp16_res, "low_precision": self.low_precision, "conv_clamp": self.conv_clamp} | listed


class BigGAN(Section):
    """Generator and discriminator of BigGAN, always conditional; by default those of ImageNet at 128x128.

    family: Of the networks.
    resolution: Side of the images in pixels: 32, 64, 128 or 256.
    channels: Of the images: 1 for grey ones, 3 for RGB.
    z_dim: Numbers in a latent; with `hier`, a multiple of the chunks that it is cut into.
    generator_ch, discriminator_ch: Width: the multiple of which every layer's channels are made.
    hier: Hand each block a chunk of z beside the class.
    shared_dim: Width of the class embedding that all blocks share; 0 for an embedding of each block's own.
    attention: Resolution of the features that attend to each other; 0 for none.
    init: How every weight begins; `normal` is N(0, 0.02).
    sn_eps: What keeps spectral normalization from dividing by zero.
    sync_batchnorm: Statistics of the batches of all ranks, not of each rank's own.
    """

    family: Literal["biggan"]
    resolution: int
    channels: Annotated[Literal[1, 3], NotBoolean] = 3
    z_dim: PositiveInt = 120
    generator_ch: PositiveInt = 96
    discriminator_ch: PositiveInt = 96
    hier: bool = True
    shared_dim: Annotated[int, Field(ge=0)] = 128
    attention: Annotated[int, Field(ge=0)] = 64
    init: Literal["orthogonal", "normal"] = "orthogonal"
    sn_eps: Positive = 1e-6
    sync_batchnorm: bool = True

    conditional: ClassVar[bool] = True
    # of a vector there is no embedding
    classes_only: ClassVar[bool] = True
    resolutions: ClassVar[tuple[int, ...]] = (32, 64, 128, 256)
    # no logit depends on another sample of the batch, and all blocks compute in fp32
    mbstd_group: ClassVar[int] = 1
    num_fp16_res: ClassVar[int] = 0
    # what the first block puts out
    lowest_features: ClassVar[int] = 8

    @model_validator(mode="after")
    def check_blocks(self) -> "BigGAN":
        R = self.resolution
        if R not in self.resolutions:
            raise ValueError(f"resolution: expected one of {', '.join(map(str, self.resolutions))}, got {R}")
        if self.hier and not self.shared_dim:
            raise ValueError("shared_dim: 0 leaves hier nothing to join the chunks of z to; expected at least 1, or hier: false")
        chunks = R.bit_length() - 2
        if self.hier and self.z_dim % chunks:
            raise ValueError(f"z_dim: {self.z_dim} cannot be cut into {chunks} equal chunks, which hier hands out at {R}x{R}; use a multiple of {chunks}")
        features = [2**i for i in range(3, R.bit_length() - 1)]
        if self.attention and self.attention not in features:
            raise ValueError(f"attention: expected 0 for none, or one of {', '.join(map(str, features))}, which both networks have, got {self.attention}")
        return self

    def generator_arguments(self, c_dim: int) -> dict[str, Any]:
        """What `models.generator` takes, for `c_dim` classes."""
        return {"z_dim": self.z_dim, "ch": self.generator_ch, "hier": self.hier, "shared_dim": self.shared_dim,
                "sync_batchnorm": self.sync_batchnorm} | self._shared(c_dim)

    def discriminator_arguments(self, c_dim: int) -> dict[str, Any]:
        """What `models.discriminator` takes, for `c_dim` classes."""
        return {"ch": self.discriminator_ch} | self._shared(c_dim)

    def _shared(self, c_dim: int) -> dict[str, Any]:
        return {"c_dim": c_dim, "img_resolution": self.resolution, "img_channels": self.channels, "attention": self.attention,
                "init": self.init, "sn_eps": self.sn_eps}


class Teacher(Section):
    """A pre-trained discriminator that scores the student's images: D-bar.

    checkpoint: A snapshot (.safetensors), a file of another codebase (docs/checkpoints.md), or `stage:NAME` for the last
        snapshot of another stage.
    mode: `frozen` never changes it; `updated` trains it against the student with D's own loss.
    average: Take the teacher's averaged discriminator, where the file holds one (`train.ema_discriminator`), instead of its last one.
    check: What happens where a frozen teacher scores real images no higher than its own fakes: `reject` ends the run, `warn` goes on. An
        updated teacher, which learns, is only warned of.
    """

    checkpoint: PathText
    mode: Literal["frozen", "updated"] = "frozen"
    average: bool = True
    check: Literal["reject", "warn"] = "reject"


class FeatureTerm(Section):
    """How far the student's features are from a teacher's, a term of G's loss.

    weight: Of the term; it has no default, since a paper's fits only the networks of that paper.
    distances: Summed; `losses.DISTANCES` has their formulas.
    """

    weight: Positive
    distances: list[Literal["l1", "rmse", "gram"]]

    @model_validator(mode="after")
    def check_lists(self) -> "FeatureTerm":
        for key in type(self).model_fields:
            values = getattr(self, key)
            if isinstance(values, list) and len(set(values)) != max(len(values), 1):
                raise ValueError(f"{key}: expected at least one entry, and none twice, got {_said(values)}")
        return self


class ImageFeatures(FeatureTerm):
    """GCC (arXiv 2110.14439): the student's and the teacher's images are compared in the features of the teacher's discriminator.

    modules: Of that discriminator, by their names in it, such as `b32` of StyleGAN2 and `blocks.1.0` of BigGAN; null for the
        two blocks in its middle.
    """

    distances: list[Literal["l1", "rmse", "gram"]] = ["rmse", "gram"]
    modules: list[str] | None = None


class GeneratorFeatures(FeatureTerm):
    """The two generators' features are compared, the student's through a 1x1 convolution to as many channels as the teacher's.

    resolutions: Of the features; null for those of 8, 32 and 128 that G has.
    """

    distances: list[Literal["l1", "rmse", "gram"]] = ["l1"]
    resolutions: list[PositiveInt] | None = None


class Features(Section):
    """Neighbours of DGL: a frozen teacher, on latents that it shares with the student, to whose features G is drawn too.

    checkpoint: The teacher, as of `Teacher`, of the same z_dim and w_dim as the student; its averaged generator counts.
    average: As of `Teacher`.
    images, generators: The terms, of which at least one is given.
    """

    checkpoint: PathText
    average: bool = True
    images: ImageFeatures | None = None
    generators: GeneratorFeatures | None = None

    @model_validator(mode="after")
    def check_terms(self) -> "Features":
        if self.images is None and self.generators is None:
            raise ValueError("images: is missing, and so is generators; expected at least one of the two")
        return self


class Guidance(Section):
    """DGL: G minimises its own adversarial loss plus `weight` times the teachers'.

    weight: lambda; 0 is plain training.
    ramp_kimg: lambda grows linearly from 0 over this many thousand images of the stage.
    combine: Several teachers: `uniform` sums their losses, `dynamic` weights each by how much it dislikes the image.
    features: Terms that compare features with a teacher's, beside or without `teachers`; null for none, as in DGL.
    """

    weight: NonNegative = 0.1
    ramp_kimg: NonNegative = 0
    combine: Literal["uniform", "dynamic"] = "uniform"
    teachers: list[Teacher] = []
    features: Features | None = None


class StyleGAN2Loss(Section):
    """Non-saturating loss with lazy regularization.

    adversarial: Of G and D; `losses.ADVERSARIAL` has its formulas.
    r1_gamma: gamma; null for the heuristic 0.0002 * resolution^2 / batch.
    r1_interval: D's steps between two of its R1 steps; 0 for no R1.
    path_length_interval: G's steps between two of its path length steps; 0 for none.
    path_length_weight, path_length_decay: w_pl, and how fast the running mean of path lengths follows.
    path_length_batch_shrink: The path length step uses a batch this many times smaller.
    style_mixing: Probability that a batch takes its later styles from a second z.
    """

    adversarial: Literal["nonsaturating"] = "nonsaturating"
    r1_gamma: NonNegative | None = None
    r1_interval: Annotated[int, Field(ge=0)] = 16
    path_length_weight: NonNegative = 2
    path_length_decay: Annotated[float, Field(ge=0, le=1)] = 0.01
    path_length_interval: Annotated[int, Field(ge=0)] = 4
    path_length_batch_shrink: PositiveInt = 2
    style_mixing: Annotated[float, Field(ge=0, le=1)] = 0.9

    orthogonal_weight: ClassVar[float] = 0

    @property
    def sampling(self) -> dict[str, Any]:
        """What `Generator.training_images` takes besides latents and classes."""
        return {"style_mixing": self.style_mixing}


class BigGANLoss(Section):
    """Hinge loss.

    adversarial: Of G and D; `losses.ADVERSARIAL` has its formulas.
    orthogonal_weight: Of orthogonal regularization in G's steps; 1e-4 in the paper, whose authors' code leaves it at 0.
    """

    adversarial: Literal["hinge"] = "hinge"
    orthogonal_weight: NonNegative = 0

    r1_interval: ClassVar[int] = 0
    path_length_interval: ClassVar[int] = 0

    @property
    def sampling(self) -> dict[str, Any]:
        """What `Generator.training_images` takes besides latents and classes."""
        return {}


class Adam(Section):
    """Adam of one network, before the correction for lazy regularization.

    lr: Learning rate.
    beta1, beta2: How much of the running means of gradients and of their squares a step keeps.
    eps: Added to the root of the mean square.
    """

    lr: Annotated[float, Field(gt=0, le=1)] = 0.002
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.0
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.99
    eps: Positive = 1e-8


class Optimizer(Section):
    """Adam of G, and of D and the updated teachers.

    implementation: Of Adam. `foreach` and `fused` are torch's: a launch for each operation on many parameters, or for all of Adam. `apex` is
        `apex.optimizers.FusedAdam`, which you install from NVIDIA. `auto` is `fused` on a GPU, and torch's loop over the parameters on a
        CPU. They round differently; a checkpoint of one resumes under any other.
    decay: How the learning rates fall to 0 at the end of the run: `linear`, along a `cosine`, or `none`.
    decay_fraction: The last part of `train.kimg` in which they fall. A run that you resume with another `train.kimg` follows the new one.
    """

    implementation: Literal["auto", "foreach", "fused", "apex"] = "auto"
    decay: Literal["none", "linear", "cosine"] = "none"
    decay_fraction: Fraction = 0.5
    generator: Adam = Adam()
    discriminator: Adam = Adam()

    def lr_factor(self, done: float) -> float:
        """Return what the learning rates are multiplied by once this fraction of the run is done: 1, and then down to 0 at 1."""
        left = min((1 - done) / self.decay_fraction, 1)
        if self.decay == "cosine":
            return (1 - math.cos(math.pi * left)) / 2
        return left if self.decay == "linear" else 1.0


class BigGANAdam(Adam):
    """Adam of BigGAN's generator."""

    lr: Annotated[float, Field(gt=0, le=1)] = 1e-4
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    eps: Positive = 1e-6


class BigGANDiscriminatorAdam(BigGANAdam):
    """Adam of BigGAN's discriminator."""

    lr: Annotated[float, Field(gt=0, le=1)] = 4e-4


class BigGANOptimizer(Optimizer):
    """Adam of BigGAN's G, and of its D and the updated teachers."""

    generator: BigGANAdam = BigGANAdam()
    discriminator: BigGANDiscriminatorAdam = BigGANDiscriminatorAdam()


class Train(Section):
    """How long, how much at once, and what is written when. kimg are thousands of real images shown to D.

    batch: Images per optimizer step over all ranks.
    generator_batch: The same of G's steps; null for `batch`.
    discriminator_steps: D's steps after each step of G, each on images of its own.
    accumulate_generator, accumulate_discriminator: Passes that an optimizer step's images are cut into, whose gradients
        are averaged: less memory for the same step.
    kimg: Length of this run; a run started from a snapshot counts on from it.
    ema_kimg: Half-life of the averaged generator; null where `ema_decay` says how it is averaged.
    ema_rampup: Shortens that half-life to this fraction of the images shown so far; null for none.
    ema_decay: What one step of G leaves of the averaged generator; null where `ema_kimg` says how it is averaged.
    ema_start: With `ema_decay`, steps of G before which the average is a copy of G; a run started from a snapshot goes on averaging at once.
    ema_discriminator: Also average D, in the same way, for snapshots that teach. It costs the memory of one more fp32 copy of D.
    tick_kimg: A tick, the unit of reporting.
    image_ticks, snapshot_ticks, checkpoint_ticks: Ticks between two sample grids, network snapshots, training
        checkpoints. Each is also written at the end; 0 writes it at the end only. There is also a checkpoint before metrics are computed.
    keep_checkpoints: How many of the newest training checkpoints stay.
    keep_snapshots: How many of the newest network snapshots stay, or `all`. A stage that starts from this run, or is taught by it, takes
        the last, which always stays.
    rollbacks: How often a run that diverges goes back to its newest checkpoint by itself, and on with other random inputs; then it stops.
    """

    batch: PositiveInt = 32
    generator_batch: PositiveInt | None = None
    discriminator_steps: PositiveInt = 1
    accumulate_generator: PositiveInt = 1
    accumulate_discriminator: PositiveInt = 1
    kimg: Annotated[float, Field(gt=0, le=1e9)] = 25000
    ema_kimg: Positive | None = 10
    ema_rampup: Positive | None = None
    ema_decay: Annotated[float, Field(ge=0, lt=1)] | None = None
    ema_start: Annotated[int, Field(ge=0)] = 0
    ema_discriminator: bool = True
    tick_kimg: Positive = 4
    image_ticks: Annotated[int, Field(ge=0)] = 50
    snapshot_ticks: Annotated[int, Field(ge=0)] = 50
    checkpoint_ticks: Annotated[int, Field(ge=0)] = 50
    keep_checkpoints: PositiveInt = 2
    keep_snapshots: AllOrANumber = "all"
    rollbacks: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def check_average(self) -> "Train":
        if (self.ema_kimg is None) == (self.ema_decay is None):
            raise ValueError(f"ema_decay: {_said(self.ema_decay)} beside ema_kimg: {_said(self.ema_kimg)}; expected one of the two, and null for the other")
        if self.ema_decay is None and self.ema_start:
            raise ValueError(f"ema_start: {self.ema_start} needs ema_decay; ema_kimg averages from the start: set ema_start to 0")
        if self.ema_kimg is None and self.ema_rampup is not None:
            raise ValueError(f"ema_rampup: {self.ema_rampup} needs ema_kimg; with ema_decay, ema_start says when averaging starts")
        return self

    @property
    def generator_images(self) -> int:
        """Images per step of G over all ranks."""
        return self.batch if self.generator_batch is None else self.generator_batch


class BigGANTrain(Train):
    """Of BigGAN, whose average counts steps of G."""

    ema_kimg: Positive | None = None
    ema_decay: Annotated[float, Field(ge=0, lt=1)] | None = 0.9999
    ema_start: Annotated[int, Field(ge=0)] = 20000


class Metrics(Section):
    """Metrics of the averaged generator while it trains, as `fastdgl evaluate` computes them of its snapshots.

    names: Of the metrics; none by default.
    detector: What sees the features, as `fastdgl evaluate` takes it: a TorchScript file, or a name; null for each metric's own.
    sha256: What the checksum of `detector` must be; null for the one known of a name, or for any.
    every: Snapshots between two that are evaluated; that at the end always is.
    fakes: How many images are drawn. Of 1,000, fid50k_full becomes fid1k_full.
    batch: Images at once on each rank, where training has no fewer at once; else as many as training.
    cache: Folder where features of real images, and detectors, are kept; null for ~/.cache/fastdgl.
    keep_best: Number by which the best network evaluated so far is chosen and kept as network-snapshot-best.safetensors; null for
        none. It is for those who use the network: the best of many evaluations is better by luck too, and no result to report.
    """

    names: list[MetricName] = []
    detector: PathText | None = None
    sha256: str | None = None
    every: PositiveInt = 1
    fakes: PositiveInt = 50000
    batch: PositiveInt = 64
    cache: PathText | None = None
    keep_best: BestBy | None = None

    @model_validator(mode="after")
    def check_names(self) -> "Metrics":
        if len(set(self.names)) < len(self.names):
            raise ValueError(f"names: {', '.join(self.names)} names a metric twice; expected each once")
        if self.sha256 is not None and self.detector is None:
            raise ValueError("sha256: is the checksum of one file; name it by metrics.detector")
        # a number is called as its metric, and perhaps a word more
        if self.keep_best is not None and not self.keep_best.startswith(tuple(self.names)):
            raise ValueError(f"keep_best: {self.keep_best} is not computed; add its metric to metrics.names")
        return self


class Engine(Section):
    """What carries the optimizer steps over the ranks.

    kind: `deepspeed`, or `torch` for plain PyTorch with averaged gradients in fp32. On one rank `torch` makes the numbers of ZeRO 0, 1 and 2, and
        starts seconds earlier.
    zero_stage: DeepSpeed ZeRO: 0 replicates all, 1 shards the optimizer state, 2 the gradients too, 3 the parameters too, those of
        frozen teachers among them (docs/reliability.md).
    zero_options: Handed to DeepSpeed's `zero_optimization` as they stand.
    precision: Of the parameters and gradients. The recommended 16-bit training is fp32 here with
        `model.num_fp16_res`; `fp16` and `bf16` keep whole networks in 16 bits with fp32 masters.
    initial_scale_power: fp16's loss scale starts at 2 to this power.
    allow_tf32: fp32 convolutions on a GPU may use TF32: faster, and no longer the numbers of the paper.
    kernels: `auto` runs our kernels where they are certified right on every GPU of the run, and certifies them before the first step where
        they are not (about a minute, once for a machine). `off` runs PyTorch's own operators. `required` stops where no kernel may run.
        A resumed run keeps to the kernels it began with; `required` takes those of this machine.
    timeout: Seconds for which a rank may be silent, or the others may wait for it in a collective, before the run ends with a
        message that names it. What rank 0 does alone, such as writing a snapshot, must fit. The largest of a file's stages counts.
    """

    kind: Literal["deepspeed", "torch"] = "deepspeed"
    zero_stage: Annotated[Literal[0, 1, 2, 3], NotBoolean] = 1
    zero_options: dict[str, JsonValue] = {}
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    initial_scale_power: Annotated[int, Field(ge=0, le=24)] = 8
    allow_tf32: bool = False
    kernels: Annotated[Literal["auto", "off", "required"], OffAsText] = "auto"
    timeout: Annotated[float, Field(ge=5, le=604800)] = 1800

    @model_validator(mode="after")
    def check_precision(self) -> "Engine":
        if self.kind == "torch" and self.precision != "fp32":
            raise ValueError(f"precision: {self.precision} needs kind: deepspeed; plain torch trains in fp32")
        if self.kind == "torch" and self.zero_stage == 3:
            raise ValueError("zero_stage: 3 needs kind: deepspeed; plain torch keeps all parameters on every rank")
        if "stage" in self.zero_options:
            raise ValueError("zero_options: `stage` is set by zero_stage")
        offload = self.zero_options.get("offload_optimizer")
        if self.zero_options.get("cpu_offload") or isinstance(offload, dict) and offload.get("device", "none") != "none":
            raise ValueError("zero_options: offload_optimizer works with DeepSpeed's own Adam alone, which no optimizer.implementation is; "
                             "leave it out, and shard the optimizer over more ranks instead")
        return self

    @property
    def shards_parameters(self) -> bool:
        """Whether a rank keeps a part of each parameter only."""
        return self.zero_stage == 3


class Config(Section):
    """One run; each family has its own model, loss, and defaults.

    name: Names the run folder, with the stage.
    stage: The name that `stages` gives this run; not to be written.
    seed: Of the first weights, the order of the images, and all random inputs.
    outdir: Where run folders are made.
    start: A snapshot whose G, D and averaged G the run starts from, or as for a teacher: stage II of DGL.
    start_partly: Whether `start` may be of other networks, of which the layers that fit are taken over and the others are new: true
        for any, false for none; null for a network without classes that starts a run with classes. What is taken and what not is said.
    keep_optimizer: Also take over the optimizers and the path length mean of the run that `start` names.
    """

    name: Name = "run"
    stage: NameOrNone = ""
    # numpy takes no larger one
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    outdir: PathText = "runs"
    images: Images
    model: StyleGAN2 | BigGAN
    start: PathText | None = None
    start_partly: bool | None = None
    keep_optimizer: bool = False
    guidance: Guidance = Guidance()
    loss: StyleGAN2Loss | BigGANLoss
    optimizer: Optimizer
    train: Train
    metrics: Metrics = Metrics()
    engine: Engine = Engine()

    # gamma of R1, None where there is no R1, and a line that says so
    effective_r1_gamma: ClassVar[float | None]
    r1_in_words: ClassVar[str]
    # what may help a run that has diverged, besides a lower learning rate
    remedies: ClassVar[str]
    # what may be done where the images have no labels, besides giving them some
    without_labels: ClassVar[str]

    @model_validator(mode="after")
    def check_together(self) -> "Config":
        if self.keep_optimizer and self.start is None:
            raise ValueError("keep_optimizer: true needs start, the run whose optimizers to keep")
        if self.keep_optimizer and self.start_partly:
            raise ValueError("keep_optimizer: true does not go with start_partly, since the optimizers are of all layers; leave one of the two out")
        # halves of a surrogate pair cannot be written
        if "\0" in self.outdir or any("\ud800" <= c <= "\udfff" for c in self.outdir):
            raise ValueError(f"outdir: {_said(self.outdir)} holds a character that no path can have")
        return self

    @model_validator(mode="after")
    def check_features(self) -> "Config":
        features, model = self.guidance.features, self.model
        if features is not None and self.engine.shards_parameters:
            raise ValueError("engine.zero_stage: 3 does not go with guidance.features, which has not been tried under it; "
                             "expected zero_stage 0, 1 or 2")
        if features is not None and features.generators is not None:
            there = [2**i for i in range(2, model.resolution.bit_length()) if 2**i >= model.lowest_features]
            for R in features.generators.resolutions or []:
                if R not in there:
                    raise ValueError(f"guidance.features.generators.resolutions: expected some of {', '.join(map(str, there))}, which are those of "
                                     f"{model.family}'s features at {model.resolution}x{model.resolution}, got {R}")
        return self

    @property
    def references(self) -> dict[str, str]:
        """The snapshots that the run asks for, by the keys that name them."""
        named = {"start": self.start} | {f"guidance.teachers.{i}.checkpoint": teacher.checkpoint for i, teacher in enumerate(self.guidance.teachers)}
        if self.guidance.features is not None:
            named["guidance.features.checkpoint"] = self.guidance.features.checkpoint
        return {key: reference for key, reference in named.items() if reference is not None}

    def with_references(self, changed: Mapping[str, str]) -> "Config":
        """This run with other snapshots in the place of some that it asks for, by the keys of `references`."""
        guidance = self.guidance
        teachers = [teacher.model_copy(update={"checkpoint": changed.get(f"guidance.teachers.{i}.checkpoint", teacher.checkpoint)})
                    for i, teacher in enumerate(guidance.teachers)]
        features = guidance.features and guidance.features.model_copy(
            update={"checkpoint": changed.get("guidance.features.checkpoint", guidance.features.checkpoint)})
        return self.model_copy(update={"start": changed.get("start", self.start),
                                       "guidance": guidance.model_copy(update={"teachers": teachers, "features": features})})

    @property
    def description(self) -> str:
        """The run folder's name behind its number."""
        return f"{self.name}-{self.stage}" if self.stage else self.name

    def images_at_once(self, world_size: int) -> int:
        """How many images a rank's G makes at once in training; to look at and to evaluate it makes no more."""
        return max(self.train.generator_images // (world_size * self.train.accumulate_generator), 1)

    def check_world_size(self, world_size: int) -> None:
        """Refuse a batch that the ranks cannot share.

        Raises:
            ConfigError: A batch is no multiple of the ranks and passes, or its parts no multiple of the minibatch
                standard deviation's group.
        """
        self.check_group(world_size, self.model.mbstd_group, f"model.mbstd_group, {self.model.mbstd_group}")

    def check_group(self, world_size: int, group: int, described: str) -> None:
        """Refuse a batch whose parts, one for each pass of each rank, are no multiple of `group`.

        Args:
            described: The group as it is called in the sentence.
        """
        of_generator = "batch" if self.train.generator_batch is None else "generator_batch"
        for key, batch, accumulate in (("batch", self.train.batch, "accumulate_discriminator"),
                                       (of_generator, self.train.generator_images, "accumulate_generator")):
            passes = getattr(self.train, accumulate)
            parts = world_size * passes
            in_passes = f" in {passes} passes (train.{accumulate})" if passes > 1 else ""
            if batch % parts:
                raise ConfigError(f"train.{key}: {batch} cannot be shared by {world_size} rank(s){in_passes}; use a multiple of {parts}")
            if batch // parts % group:
                raise ConfigError(f"train.{key}: {batch} on {world_size} rank(s){in_passes} is {batch // parts} each, which is no multiple "
                                  f"of {described}; use a multiple of {group * parts}")


class StyleGAN2Config(Config):
    """A run of StyleGAN2."""

    model: StyleGAN2
    loss: StyleGAN2Loss = StyleGAN2Loss()
    optimizer: Optimizer = Optimizer()
    train: Train = Train()

    remedies: ClassVar[str] = "a higher loss.r1_gamma, or model.num_fp16_res=0"
    without_labels: ClassVar[str] = "or train without labels, by model.conditional=false"

    @model_validator(mode="after")
    def check_path_length(self) -> "StyleGAN2Config":
        shrink, batch = self.loss.path_length_batch_shrink, self.train.generator_images
        if self.loss.path_length_interval and batch % shrink:
            key = "train.batch" if self.train.generator_batch is None else "train.generator_batch"
            raise ValueError(f"loss.path_length_batch_shrink: {shrink} does not divide {key}, which is {batch}")
        return self

    @property
    def r1_gamma(self) -> float:
        """gamma of R1: as given, or 0.0002 * resolution^2 / batch."""
        if self.loss.r1_gamma is not None:
            return self.loss.r1_gamma
        return 0.0002 * self.model.resolution**2 / self.train.batch

    @property
    def effective_r1_gamma(self) -> float | None:
        """Return gamma of the R1 steps, given or computed; None without R1."""
        return self.r1_gamma if self.loss.r1_interval else None

    @property
    def r1_in_words(self) -> str:
        """A line that says which gamma is in force, and where from."""
        if self.effective_r1_gamma is None:
            return "  R1        none (loss.r1_interval=0)\n"
        if self.loss.r1_gamma is not None:
            return f"  R1        gamma {self.r1_gamma:g} (loss.r1_gamma)\n"
        return (f"  R1        gamma {self.r1_gamma:.4g}, from 0.0002 * {self.model.resolution}^2 / batch {self.train.batch}: a smaller train.batch raises it; "
                f"loss.r1_gamma={self.r1_gamma:.4g} fixes it\n")

    def check_world_size(self, world_size: int) -> None:
        """As every family's, and path length's smaller batch too."""
        super().check_world_size(world_size)
        batch, shrink, passes = self.train.generator_images, self.loss.path_length_batch_shrink, self.train.accumulate_generator
        in_passes = f" in {passes} passes" if passes > 1 else ""
        if self.loss.path_length_interval and batch // shrink % (world_size * passes):
            raise ConfigError(f"loss.path_length_batch_shrink: {batch} / {shrink} images cannot be shared by {world_size} rank(s){in_passes}")


class BigGANConfig(Config):
    """A run of BigGAN."""

    effective_r1_gamma: ClassVar[None] = None
    r1_in_words: ClassVar[str] = ""

    model: BigGAN
    loss: BigGANLoss = BigGANLoss()
    optimizer: BigGANOptimizer = BigGANOptimizer()
    train: BigGANTrain = BigGANTrain()

    remedies: ClassVar[str] = "a larger train.batch, or more train.discriminator_steps"
    without_labels: ClassVar[str] = "a BigGAN has classes always, and a single one is enough"


FAMILIES: dict[str, type[Config]] = {"stylegan2": StyleGAN2Config, "biggan": BigGANConfig}


def read(path: str | Path, overrides: Sequence[str] = ()) -> list[Config]:
    """The runs that a YAML file describes, in order: one, or one per stage.

    Args:
        path: The file.
        overrides: `key.path=value`, the value as in YAML; applied to every stage unless it names one.

    Raises:
        ConfigError: The file cannot be read, or says something that cannot be run.
    """
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(MAX_CHARACTERS + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not valid YAML: {error}") from None
    data = _parsed(text, str(path))
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected keys and values, such as `train:`, got {_said(data)}")

    # a part of the file that YAML repeats by `*name` becomes a copy, to be changed on its own
    runs, changes = _stages(_copied(data), str(path)), [_parse_override(override) for override in overrides]
    # what names a stage has the last word
    for key, value in sorted(changes, key=lambda change: change[0][0] == "stages"):
        if key[0] != "stages":
            for run in runs.values():
                _set(run, key, value)
        elif len(key) < 3:
            raise ConfigError(f"{'.'.join(key)}: expected an override of the form stages.NAME.train.batch=16")
        elif key[1] not in runs or not key[1]:
            raise ConfigError(f"{'.'.join(key)}: {path} has no stage {key[1]}" + did_you_mean(key[1], list(filter(None, runs))))
        else:
            _set(runs[key[1]], key[2:], value)

    sources = [f"{path}: stages.{name}" if name else f"{path}" for name in runs]
    for name, run in runs.items():
        if name and run.setdefault("stage", name) != name:
            raise ConfigError(f"{path}: stage: is the name that `stages` gives; to run one stage alone, use --stage {name}")
    configs = [_validated(run, source) for run, source in zip(runs.values(), sources)]
    _check_references(configs, sources)
    return configs


def from_dict(data: Mapping[str, Any], source: str) -> Config:
    """The config in `data`, as `to_dict` wrote it.

    Raises:
        ConfigError: Naming `source` and the key.
    """
    return _validated(dict(data), source)


def to_dict(config: Config) -> dict[str, Any]:
    """Plain values that YAML and JSON can hold, defaults included."""
    return config.model_dump(mode="json")


def to_yaml(config: Config) -> str:
    """The resolved config as YAML, in the order of the schema."""
    return yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)


def _parsed(text: str, source: str) -> Any:
    """The values in YAML, of which there are not too many.

    Raises:
        ConfigError: It is no YAML, or more than a config.
    """
    if len(text) > MAX_CHARACTERS:
        raise ConfigError(f"{source}: is too long for a config; expected at most {MAX_CHARACTERS} characters")
    try:
        data = yaml.load(text, Loader=_Loader)
        values = _count(data, {})
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: is not valid YAML: {_fault(error)}") from None
    # what PyYAML makes of dates, numbers and truth values that are none
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        raise ConfigError(f"{source}: is not valid YAML: a value is not of the kind that it looks like or is tagged as ({error})") from None
    except RecursionError:
        raise ConfigError(f"{source}: is not valid YAML: it holds itself, or lists within lists, too deep to be a config") from None
    if values > MAX_VALUES:
        raise ConfigError(f"{source}: is too long for a config: with what `*name` repeats it has more than {MAX_VALUES} values")
    return data


def _count(data: Any, counted: dict[int, int]) -> int:
    """How many values there are in `data`, each as often as it is repeated; it takes no longer where they are many.

    Args:
        counted: The counts of parts by their `id`.
    """
    if not isinstance(data, (dict, list)):
        return 1
    if id(data) not in counted:
        counted[id(data)] = 1 + sum(_count(part, counted) for part in (data.values() if isinstance(data, dict) else data))
    return counted[id(data)]


class _Loader(yaml.SafeLoader):
    """YAML in which `1e-3` is a number, as YAML 1.2 has it; PyYAML's 1.1 reads it as a string. No key comes twice."""

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.composer.ComposerError(None, None, f"the key {key.value} comes twice", key.start_mark)
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else None)
        return node

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        value = super().construct_yaml_int(node)
        # of thousands of digits Python makes no text again
        if value.bit_length() > 1000:
            raise yaml.constructor.ConstructorError(None, None, "a number of hundreds of digits", node.start_mark)
        return value

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Take in what `<<` names, unless it is too much."""
        merged = [value for key, value in node.value if key.tag == "tag:yaml.org,2002:merge"]
        if any(len(value.value) > MAX_KEYS for value in merged):
            raise yaml.constructor.ConstructorError(None, None, f"`<<` takes in more than {MAX_KEYS} parts", node.start_mark)
        super().flatten_mapping(node)
        if len(node.value) > MAX_KEYS:
            raise yaml.constructor.ConstructorError(None, None, f"a section of more than {MAX_KEYS} keys", node.start_mark)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$"),
    list("-+0123456789."),
)


def _fault(error: Exception) -> str:
    """What is wrong with a YAML file, and where in it, in one line."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if mark is None or problem is None:
        return " ".join(str(error).split())
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}"


def _stages(data: dict[str, Any], source: str) -> dict[str, dict[str, Any]]:
    """The runs in `data` by their names, each with what it shares with the others; a single run is called ""."""
    if "stages" not in data:
        return {"": data}
    stages = data.pop("stages")
    if not isinstance(stages, dict) or not stages:
        raise ConfigError(f"{source}: stages: expected the name of each stage with what it changes, got {_said(stages)}")
    if len({str(name) for name in stages}) < len(stages):
        raise ConfigError(f"{source}: stages: two of them are written alike, as {_said(list(stages))}; expected a name for each")
    for name, changes in stages.items():
        if not isinstance(changes, dict):
            raise ConfigError(f"{source}: stages.{name}: expected what this stage changes, or {{}} for nothing, got {_said(changes)}")
    return {str(name): _merged(data, changes) for name, changes in stages.items()}


def _check_references(runs: Sequence[Config], sources: Sequence[str]) -> None:
    """`stage:NAME` must name an earlier stage of the same file."""
    earlier: list[str] = []
    for run, source in zip(runs, sources):
        for key, reference in run.references.items():
            if reference.startswith(STAGE_PREFIX):
                name = reference.removeprefix(STAGE_PREFIX)
                if name not in earlier:
                    raise ConfigError(f"{source}: {key}: {reference!r} names no earlier stage of the file" + did_you_mean(name, earlier))
        earlier.append(run.stage)


def _parse_override(override: str) -> tuple[list[str], Any]:
    key, equals, value = override.partition("=")
    parts = key.split(".")
    if not equals or len(parts) > MAX_DEPTH or not all(part.strip() == part != "" for part in parts):
        raise ConfigError(f"{_said(override)}: expected an override of the form train.batch=16")
    return parts, _parsed(value, _said(override))


def _set(data: dict[str, Any], key: Sequence[str], value: Any) -> None:
    """Set `data[key[0]][key[1]]... = value`, making sections on the way; digits index into lists."""
    *sections, last = key
    here: Any = data
    for i, name in enumerate(sections):
        if isinstance(here, list):
            index = _index(here, name, key)
            here[index:index + 1] = here[index:index + 1] or [{}]
            here = here[index]
        else:
            if here.get(name) is None:
                # a position in a list that the file does not have yet, as of the first teacher
                here[name] = [] if _is_position(key[i + 1]) else {}
            here = here[name]
        if not isinstance(here, (dict, list)):
            raise ConfigError(f"{'.'.join(key)}: {'.'.join(key[:i + 1])} is {_said(here)}, not a section")
    if isinstance(here, list):
        index = _index(here, last, key)
        here[index:index + 1] = [value]
    else:
        here[last] = value


def _is_position(name: str) -> bool:
    return name.isascii() and name.isdecimal() and len(name) < 5


def _index(items: list, name: str, key: Sequence[str]) -> int:
    """Return a position in a list, or the one behind its end, where an entry is added."""
    if not _is_position(name) or int(name) > len(items):
        raise ConfigError(f"{'.'.join(key)}: {name!r} is no position in a list of {len(items)}")
    return int(name)


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A deep copy of `base` with `changes` on top: sections merge, everything else is replaced."""
    result = _copied(base)
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(result.get(key), dict):
            result[key] = _merged(result[key], value)
        else:
            result[key] = _copied(value)
    return result


def _copied(value: Any) -> Any:
    """A deep copy in which no two places share one object."""
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, list) else value


def _validated(data: dict[str, Any], source: str) -> Config:
    model = data.get("model")
    family = model.get("family", "stylegan2") if isinstance(model, dict) else "stylegan2"
    if not isinstance(family, str) or family not in FAMILIES:
        raise ConfigError(f"{source}: model.family: expected {' or '.join(map(repr, FAMILIES))}, got {_said(family)}")
    try:
        return FAMILIES[family].model_validate(data)
    except ValidationError as error:
        raise ConfigError(f"{source}: {_sentence(error, family)}") from None


def _sentence(error: ValidationError, family: str) -> str:
    """The first thing wrong, with its key: an unknown key first, since a misspelt one explains a missing one."""
    unknown = ("extra_forbidden", "invalid_key")
    found = sorted(error.errors(), key=lambda e: e["type"] not in unknown)[0]
    path = [str(part) for part in found["loc"]]
    kind, given = found["type"], found["input"]
    if kind == "value_error":
        # raised by a model's own check, whose message begins with the key inside that model
        return ".".join(path + [str(found["ctx"]["error"])])
    key = ".".join(path)
    if kind in unknown:
        return f"{key}: there is no such key" + _nearest(path, family)
    if kind == "missing":
        return f"{key}: is missing"
    if kind == "literal_error":
        return f"{key}: expected {found['ctx']['expected']}, got {_said(given)}"
    if kind.startswith(("model_type", "dict_type")):
        return f"{key}: expected keys and values, got {_said(given)}"
    if kind == "string_pattern_mismatch":
        return f"{key}: expected letters, digits, '.', '_' and '-', which make a folder's name, got {_said(given)}"
    if kind == "string_too_long":
        return f"{key}: expected at most {found['ctx']['max_length']} characters, got {_said(given)}"
    what = found["msg"].removeprefix("Input should be ").removeprefix("a valid ")
    if what.startswith(("greater", "less")):
        what = f"a number {what}"
    remedy = f"; write {'true' if given else 'false'}" if kind == "bool_type" and type(given) is int and given in (0, 1) else ""
    return f"{key}: expected {WORDS.get(what, what)}, got {_said(given)}{remedy}"


# pydantic's words for what it expects, where plainer ones exist
WORDS = {"boolean": "true or false", "list": "a list", "string": "text"}


# what other programs call a key, in lower case with `_` between
OTHER_NAMES = {
    "gamma": ["loss.r1_gamma"], "r1": ["loss.r1_gamma"], "data": ["images.path"], "dataset": ["images.path"], "cond": ["model.conditional"],
    "snap": ["train.snapshot_ticks"], "tick": ["train.tick_kimg"], "resume": ["start"], "resume_pkl": ["start"], "ckpt": ["start"], "pretrained": ["start"],
    "batch_size": ["train.batch"], "batch_gpu": ["train.accumulate_generator", "train.accumulate_discriminator"], "epochs": ["train.kimg"],
    "num_epochs": ["train.kimg"], "iter": ["train.kimg"], "iterations": ["train.kimg"], "steps": ["train.kimg"], "size": ["model.resolution"],
    "cbase": ["model.channel_base"], "cmax": ["model.channel_max"], "channel_multiplier": ["model.channel_base"], "map_depth": ["model.mapping_layers"],
    "mbstd_group": ["model.mbstd_group"], "fp32": ["model.num_fp16_res=0"], "glr": ["optimizer.generator.lr"], "g_lr": ["optimizer.generator.lr"],
    "dlr": ["optimizer.discriminator.lr"], "d_lr": ["optimizer.discriminator.lr"], "learning_rate": ["optimizer.generator.lr", "optimizer.discriminator.lr"],
    "g_ch": ["model.generator_ch"], "d_ch": ["model.discriminator_ch"], "num_workers": ["images.workers"], "ema": ["train.ema_kimg"],
    "flip": ["images.mirror"], "hflip": ["images.mirror"], "xflip": ["images.mirror"], "teacher": ["guidance.teachers.0.checkpoint"],
    "lambda": ["guidance.weight"], "path_regularize": ["loss.path_length_weight"], "mixing": ["loss.style_mixing"],
}
# what other programs have and this one does not
NOT_HERE = {
    **dict.fromkeys(("augment", "aug", "augpipe", "augmentation", "ada", "ada_target", "diffaug", "diffaugment", "augment_p"),
                    "this fastdgl augments images by flips alone, with images.mirror"),
    **dict.fromkeys(("gpus", "num_gpus", "world_size", "nproc", "devices"), "the launcher says how many GPUs there are: deepspeed --num_gpus 8 fastdgl/train.py ..."),
    **dict.fromkeys(("cfg", "preset"), "each file in configs/ is a recipe: --config configs/ffhq256.yaml"),
}


def keys_like(word: str, family: str = "stylegan2") -> list[str]:
    """Return the keys that a wrong word may have been meant to be: the same in any section, or what other programs call them."""
    word = word.lstrip("-").replace("-", "_")
    keys = list(_all_keys(FAMILIES[family]))
    return [key for key in keys if key.rpartition(".")[2] == word] or OTHER_NAMES.get(word.lower(), [])


def _nearest(path: Sequence[str], family: str) -> str:
    """What a wrong key was meant to be: another family's, the same in another section, or one like it in this section."""
    for other, schema in FAMILIES.items():
        if ".".join(path) in _all_keys(schema):
            return f" in model.family {family}; it is one of {other}'s"
    elsewhere = keys_like(path[-1], family)
    if elsewhere:
        return f"; did you mean {' or '.join(elsewhere)}?"
    word = path[-1].lstrip("-").replace("-", "_").lower()
    if word in NOT_HERE:
        return f"; {NOT_HERE[word]}"
    return did_you_mean(path[-1], _keys_at(path[:-1], FAMILIES[family]))


def _all_keys(model: type[Section]) -> Iterator[str]:
    """Every key of the schema with its sections, such as `train.batch`."""
    for name, field in model.model_fields.items():
        yield name
        position = "0." if get_origin(field.annotation) is list else ""
        for section in _sections(field.annotation):
            yield from (f"{name}.{position}{key}" for key in _all_keys(section))


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """The end of a sentence that refuses `word`: the nearest that is known, or all of them."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; expected one of {', '.join(known)}" if known else ""


def _keys_at(path: Sequence[str], model: type[Section]) -> list[str]:
    """The keys of the section at `path` of the schema `model`."""
    for name in path:
        if not name.isdecimal():
            model = next(_sections(model.model_fields[name].annotation))
    return list(model.model_fields)


def _sections(annotation: Any) -> Iterator[type[Section]]:
    """The sections in a type such as `list[Teacher]` or `Section | None`."""
    if isinstance(annotation, type) and get_origin(annotation) is None:
        if issubclass(annotation, Section):
            yield annotation
    elif get_origin(annotation) in (list, Union, types.UnionType, Annotated):
        for argument in get_args(annotation):
            yield from _sections(argument)


def _said(value: Any) -> str:
    """A value as a person wrote it, cut short."""
    if value is None or isinstance(value, bool):
        return {None: "nothing", True: "true", False: "false"}[value]
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
