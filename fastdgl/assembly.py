"""From a config to the networks, teachers and engines of a run, new or resumed."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from . import checkpoints, ema, models
from .checkpoints import CheckpointError, Snapshot
from .config import STAGE_PREFIX, Config, ConfigError
from .engines import Engine, Run, make_engine, scatter_frozen
from .guidance import Adaptors, FeatureBank, FeatureTeacher, FeatureTerm, Guide, freeze
from .images import VECTORS, ImageDataset
from .steps import Adversaries


@dataclass
class Student:
    """All that a run trains, and what it must keep to go on.

    average: The averaged G.
    start_images: Images that D had been shown before this run.
    taken: What of the networks that the run starts from is taken over and what not, a line for each; empty where all is.
    kernels: What its operators go by, which a checkpoint keeps.
    average_D: The averaged D; None where the config has none.
    """

    gan: Adversaries
    average: nn.Module
    start_images: int
    taken: Sequence[str] = ()
    kernels: Any = None
    average_D: nn.Module | None = None

    @property
    def engines(self) -> dict[str, Engine]:
        """By the names that a checkpoint stores them under."""
        teachers = {f"teacher{i}": engine for i, engine in enumerate(self.gan.updated_teachers)}
        adaptors = {} if self.gan.adaptors is None else {"adaptors": self.gan.adaptors}
        return {"G": self.gan.G, "D": self.gan.D} | teachers | adaptors

    @property
    def networks(self) -> dict[str, nn.Module]:
        """By the names that a snapshot stores them under."""
        averages = {"G_ema": self.average} if self.average_D is None else {"G_ema": self.average, "D_ema": self.average_D}
        return {"G": self.gan.G.module, "D": self.gan.D.module} | averages

    @contextmanager
    def whole(self) -> Iterator[None]:
        """All parameters of the networks at once inside; see `Engine.whole`."""
        with ExitStack() as stack:
            for engine in (self.gan.G, self.gan.D):
                stack.enter_context(engine.whole())
            yield

    def state_dict(self) -> dict[str, Any]:
        averages = {"G_ema": self.average.state_dict()} | ({} if self.average_D is None else {"D_ema": self.average_D.state_dict()})
        return averages | {"path_length_mean": self.gan.path_length_mean, "start_images": self.start_images}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned, after the engines have been loaded: a run that kept no averaged D goes on with a copy of D."""
        if type(state["start_images"]) is not int or state["start_images"] < 0:
            raise ValueError(f"its start_images is {state['start_images']!r:.50}")
        self.average.load_state_dict(state["G_ema"])
        if self.average_D is not None:
            if "D_ema" in state:
                self.average_D.load_state_dict(state["D_ema"])
            else:
                with self.gan.D.whole():
                    self.average_D.load_state_dict(self.gan.D.module.state_dict())
        self.gan.path_length_mean.copy_(state["path_length_mean"])
        self.start_images = state["start_images"]


def check_images(config: Config, dataset: ImageDataset) -> None:
    """Refuse, before anything is built, images that do not fit the networks.

    Raises:
        ConfigError: They are of another kind.
    """
    if dataset.channels != config.model.channels:
        raise ConfigError(f"model.channels: {config.model.channels}, but the images in {config.images.path} have {dataset.channels}")
    if config.model.classes_only and dataset.label_kind == VECTORS:
        raise ConfigError(f"images.path: the labels of the images in {config.images.path} are vectors of {dataset.label_dim} numbers; "
                          f"a {config.model.family} takes one class an image, an integer in dataset.json")


def check_references(config: Config, dataset: ImageDataset) -> None:
    """Refuse, before anything is built, snapshots that do not fit the networks and the images.

    Raises:
        CheckpointError: The start or a teacher is missing or of other images; a `stage:` is not looked for.
    """
    for key, reference in config.references.items():
        if not reference.startswith(STAGE_PREFIX):
            (open_start if key == "start" else open_matching)(reference, config, dataset)


def open_matching(path: str, config: Config, dataset: ImageDataset) -> Snapshot:
    """A snapshot with all its networks, of the same family and kind of images as the run's.

    Raises:
        CheckpointError: It is missing, has no D, or is of another family or resolution, or of other channels or classes.
    """
    snapshot = checkpoints.open_snapshot(path)
    checkpoints.check_has_discriminator(snapshot)
    # the logits of another family's loss mean something else
    if snapshot.family != config.model.family:
        raise CheckpointError(f"{path}: holds networks of family {snapshot.family}, this run trains {config.model.family}; they must agree")
    checkpoints.check_same_images(snapshot, dataset)
    return snapshot


def open_start(path: str, config: Config, dataset: ImageDataset) -> Snapshot:
    """The snapshot that a run starts from: as of `open_matching`, unless layers that fit are enough; see `starts_partly`.

    Raises:
        CheckpointError: As of `open_matching`; or it is of another family.
    """
    snapshot = checkpoints.open_snapshot(path)
    if not starts_partly(snapshot, config, dataset):
        return open_matching(path, config, dataset)
    if snapshot.family != config.model.family:
        raise CheckpointError(f"{path}: holds networks of family {snapshot.family}, this run trains {config.model.family}; they must agree")
    return snapshot


def starts_partly(snapshot: Snapshot, config: Config, dataset: ImageDataset) -> bool:
    """Return whether a run may start from the layers of its snapshot that fit."""
    if config.start_partly is None:
        return snapshot.arguments["G"]["c_dim"] == 0 < dataset.label_dim and not config.keep_optimizer
    return config.start_partly


def take_over(start: Snapshot, networks: Mapping[str, nn.Module], partly: bool) -> list[str]:
    """Load the networks of a snapshot into those of a run.

    Args:
        networks: By their names in a snapshot.
        partly: Take over what fits.

    Returns:
        Where not all is taken over, a line for each network.

    Raises:
        CheckpointError: They do not fit; where they may in part, nothing does.
    """
    lines = []
    for name, network in networks.items():
        what = f"start: {name} in {start.path}"
        if not partly:
            checkpoints.load_strictly(network, start.state_dict(name), what)
        elif name not in start.names:
            lines.append(f"{name} is new: {start.path.name} has none")
        else:
            new, left = checkpoints.load_fitting(network, start.state_dict(name), what)
            count = len(network.state_dict())
            lines.append(f"{name}: {count - len(new)} of {count} tensors; new: {', '.join(new) or 'none'}; not taken: {', '.join(left) or 'none'}")
    return lines


def assemble(config: Config, dataset: ImageDataset, run: Run, resumed: bool) -> Student:
    """Networks, teachers and engines as `config` says; a resumed run's are filled from its checkpoint afterwards.

    Raises:
        CheckpointError: The start or a teacher is missing, or does not fit.
        ConfigError: There are no such networks, or a teacher needs another batch.
    """
    c_dim = dataset.label_dim
    torch.manual_seed(config.seed)
    model = config.model
    try:
        G = models.generator(model.family, model.generator_arguments(c_dim)).to(run.device)
        D = models.discriminator(model.family, model.discriminator_arguments(c_dim)).to(run.device)
    # RuntimeError: more memory than there is
    except (ValueError, RuntimeError) as error:
        raise ConfigError(f"model: {error}") from None
    average, average_D = ema.averaged_copy(G), ema.averaged_copy(D) if config.train.ema_discriminator else None

    # every file is opened and checked before the first engine is made
    teachers = [open_teacher(teacher.checkpoint, config, dataset, run.world_size) for teacher in config.guidance.teachers]
    feature_teacher = open_feature_teacher(G, config, dataset, run)
    start = None if config.start is None or resumed else open_start(config.start, config, dataset)
    taken = [] if start is None else take_over(start, {"G": G, "D": D, "G_ema": average}, starts_partly(start, config, dataset))
    if start is not None and average_D is not None:
        if start.averaged_D:
            taken += take_over(start, {"D_ema": average_D}, starts_partly(start, config, dataset))
        else:
            average_D.load_state_dict(D.state_dict())

    discriminators, updated = [], []
    for snapshot, teacher in zip(teachers, config.guidance.teachers):
        discriminator = snapshot.network(snapshot.teacher_name(teacher.average)).to(run.device)
        if teacher.mode == "updated":
            updated.append(discriminator.train())
        discriminators.append(scatter_frozen(freeze(discriminator), config, run) if teacher.mode == "frozen" else discriminator)

    guide = Guide(discriminators, config.guidance.weight, config.guidance.ramp_kimg * 1000, config.guidance.combine == "dynamic")
    adam, loss = config.optimizer, config.loss
    adaptors = None
    if feature_teacher is not None and feature_teacher.generators is not None:
        mine, theirs = G.features, feature_teacher.G.features
        adaptors = Adaptors([(mine[R][1], theirs[R][1]) for R in feature_teacher.generators.places]).to(run.device)
    gan = Adversaries(
        G=make_engine(G, adam.generator, loss.path_length_interval, config, run),
        D=make_engine(D, adam.discriminator, loss.r1_interval, config, run),
        guide=guide,
        updated_teachers=[make_engine(network, adam.discriminator, loss.r1_interval, config, run) for network in updated],
        path_length_mean=torch.zeros([], device=run.device),
        feature_teacher=feature_teacher,
        # no regularization step of G's moves them
        adaptors=None if adaptors is None else make_engine(adaptors, adam.generator, 0, config, run),
    )
    student = Student(gan, average, start.seen if start else 0, taken, average_D=average_D)
    # DeepSpeed wants gradients on when an engine is made; from here on each step turns on its own
    for engine in student.engines.values():
        engine.module.requires_grad_(False)
    if start is not None and config.keep_optimizer:
        keep_optimizer(student, start)
    return student


def open_teacher(path: str, config: Config, dataset: ImageDataset, world_size: int) -> Snapshot:
    """A teacher's snapshot, of the same family and kind of images, whose minibatch standard deviation a rank's batch can form."""
    snapshot = open_matching(path, config, dataset)
    group = snapshot.minibatch_group
    config.check_group(world_size, group, f"{group}, the group of the teacher's minibatch standard deviation")
    return snapshot


def open_feature_teacher(G: nn.Module, config: Config, dataset: ImageDataset, run: Run) -> FeatureTeacher | None:
    """The teacher of features, frozen; None where the config has none.

    Raises:
        CheckpointError: It is missing, does not fit, or takes other latents than the student, G.
        ConfigError: A module named is none of its discriminator's, or puts out no features; or it needs another batch.
    """
    settings = config.guidance.features
    if settings is None:
        return None
    snapshot = open_teacher(settings.checkpoint, config, dataset, run.world_size)
    teacher, D = snapshot.averaged_generator(run.device), snapshot.network(snapshot.teacher_name(settings.average)).to(run.device)
    for dim in ("z_dim", "w_dim"):
        theirs, ours = getattr(teacher, dim, None), getattr(G, dim, None)
        if theirs != ours:
            raise CheckpointError(f"{snapshot.path}: has {dim} {theirs}, this run has {ours}; features are compared on the same latents: they must agree")

    images = generators = None
    if settings.images is not None:
        middle = max(len(D.feature_modules) // 2, 1)
        modules = settings.images.modules or D.feature_modules[middle - 1:middle + 1]
        shape = [snapshot.minibatch_group, dataset.channels, dataset.resolution, dataset.resolution]
        try:
            with FeatureBank(D, modules), torch.no_grad():
                D(torch.zeros(shape, device=run.device), torch.zeros([shape[0], dataset.label_dim], device=run.device))
        except ValueError as error:
            raise ConfigError(f"guidance.features.images.modules: {error}") from None
        images = FeatureTerm("image_features", settings.images.weight, modules, settings.images.distances)
    if settings.generators is not None:
        resolutions = settings.generators.resolutions or [R for R in (8, 32, 128) if R in G.features]
        generators = FeatureTerm("generator_features", settings.generators.weight, resolutions, settings.generators.distances)
    return FeatureTeacher(freeze(teacher), freeze(D), images, generators)


def keep_optimizer(student: Student, start: Snapshot) -> None:
    """Take over the optimizers and the path length mean of the run that wrote `start`.

    Raises:
        CheckpointError: That run left no checkpoint of the same moment.
    """
    folder = checkpoints.checkpoint_at(start.path.parent, start.seen)
    if not folder.is_dir():
        raise CheckpointError(f"keep_optimizer: {start.path} has no training checkpoint beside it; expected {folder}")
    checkpoints.load_engines(folder, {name: student.engines[name] for name in ("G", "D")}, others_allowed=True)
    student.gan.path_length_mean.copy_(checkpoints.load_state(folder)["student"]["path_length_mean"])
