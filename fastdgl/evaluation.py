"""Metrics of a trained generator: `fastdgl evaluate`."""

from pathlib import Path

import click

from . import interop
from .checkpoints import CheckpointError, check_same_images, local, open_snapshot, saved_snapshots
from .config import ConfigError
from .download import cache_folder, is_address
from .drawing import check_options, stand
from .engines import allow_tf32, end_run, first_rank_decides, start_run
from .fidelity.cache import CacheError, check_writable
from .fidelity.detectors import NAMES, DetectorError, open_detector
from .fidelity.metrics import METRICS, NUM, append_line, check_computable, evaluated, grouped
from .fidelity.moments import FeatureError
from .images import DatasetError, ImageDataset, dataset_path, open_source
from .models.pretrained import is_pretrained
from .paths import UserPath


class MetricNames(click.ParamType):
    """Metrics with commas between."""

    name = "metrics"

    def convert(self, value, param, ctx) -> list[str]:
        names = [name.strip() for name in value.split(",")]
        for name in names:
            if name not in METRICS:
                self.fail(f"there is no metric {name!r}; expected some of {', '.join(METRICS)}", param, ctx)
        return list(dict.fromkeys(names))


@click.command("evaluate")
@click.option("--network", required=True, help="A snapshot, a run folder for its newest, or what `convert` reads; or a folder or zip of images that "
              "were drawn elsewhere.")
@click.option("--data", required=True, help="The real images: a dataset as training takes it.")
@click.option("--metrics", type=MetricNames(), default="fid50k_full", show_default=True, help=f"Some of {','.join(METRICS)}.")
@click.option("--detector", "detector_name", help=f"What sees the features: a TorchScript file, or one of {', '.join(NAMES)}.  "
              "[default: inception, and vgg16 for pr, dc and ppl]")
@click.option("--sha256", help="Refuse the --detector if its file has another SHA-256.")
# not --num, which torchrun takes for a beginning of its own --numa-binding
@click.option("--fakes", "num", type=click.IntRange(min=1), default=NUM, show_default=True,
              help="How many are drawn, or taken of a folder of images (by default all); the names of the metrics change with it: of 1000, "
              "fid50k_full is fid1k_full.")
@click.option("--trunc", "truncation", type=float, help="As for `generate`: psi of a StyleGAN2, the threshold of z of a BigGAN. The names of the metrics say "
              "so: fid50k_full_trunc0.7.")
@click.option("--standing", type=click.IntRange(min=1), help="As for `generate`, of a BigGAN: batch norm by the statistics of so many batches. The names of the "
              "metrics say so: fid50k_full_standing16.")
@click.option("--batch", type=click.IntRange(min=1), default=64, show_default=True, help="Images at once on each rank.")
@click.option("--workers", type=click.IntRange(min=0), default=2, show_default=True, help="Processes that decode real images, on each rank.")
@click.option("--cache", type=UserPath(), default=cache_folder,
              help="Where features of real images, and detectors, are kept.  [default: ~/.cache/fastdgl]")
@click.option("--outdir", type=UserPath(), help="Where metric-<name>.jsonl get their lines.  [default: beside the network]")
@click.pass_context
def evaluate_command(ctx: click.Context, network: str, data: str, metrics: list[str], detector_name: str | None, sha256: str | None, num: int,
                     truncation: float | None, standing: int | None, batch: int, workers: int, cache: Path, outdir: Path | None) -> None:
    """Metrics of the averaged generator, or of a folder of images, against all real images.

    Under torchrun, its ranks share the work. A network draws without truncation, unless --trunc says otherwise.
    """
    if sha256 is not None and detector_name is None:
        raise click.UsageError("--sha256 is the checksum of one file: name it by --detector")
    try:
        run = start_run()
        allow_tf32(False)
        if is_address(network):
            network = first_rank_decides(lambda: str(local(network)))
        if holds_images(network):
            dataset, fakes = ImageDataset(data), ImageDataset(network)
            check_fakes(fakes, dataset, truncation, standing)
            if ctx.get_parameter_source("num") != click.core.ParameterSource.COMMANDLINE:
                num = len(fakes)
            if num > len(fakes):
                raise DatasetError(f"--fakes {num}: {network} holds {len(fakes)} images; expected at most so many, or leave --fakes out for all")
            # not into the folder of images itself
            name, seen, folder = fakes.source.path.name, 0, fakes.source.path.absolute().parent
        else:
            snapshot = open_snapshot(network)
            dataset = ImageDataset(data, labels=snapshot.arguments["G"]["c_dim"] > 0)
            check_same_images(snapshot, dataset)
            fakes = snapshot.averaged_generator(run.device)
            check_options(fakes, snapshot.family, 0, truncation, None, standing)
            if truncation is not None and "ppl2_wend" in metrics:
                raise click.UsageError(f"--trunc {truncation:g}: paths in w are not truncated; leave ppl2_wend out, or evaluate it without --trunc")
            name, seen, folder = snapshot.path.name, snapshot.seen, snapshot.folder
        for note in dataset.notes if run.rank == 0 else ():
            click.echo(f"note: {note}", err=True)
        outdir = folder if outdir is None else outdir
        check_writable(outdir, "--outdir")
        check_writable(cache, "--cache")
        check_computable(metrics, type(fakes), num, len(dataset))
        if standing is not None:
            stand(fakes, standing, truncation)
        # all detectors before hours go into the first metric
        groups = [(open_detector(name, run.device, sha256, cache), group) for name, group in grouped(metrics, detector_name).items()]
        for line in evaluated(groups, fakes, dataset, run, snapshot=name, seen=seen, data=data, num=num, cache=cache, batch=batch, workers=workers,
                              truncation=truncation, standing=standing):
            if run.rank == 0:
                append_line(outdir, line)
                click.echo("\n".join(f"{key} {value:.6g}" for key, value in line["results"].items()))
    except (ConfigError, CheckpointError, DatasetError, DetectorError, FeatureError, CacheError) as error:
        raise click.ClickException(str(error)) from None
    finally:
        end_run()


# files by which a folder of a run is known before it has a snapshot
OF_RUNS = ("training_options.json", "config.yaml", "checkpoints")


def holds_images(path: str) -> bool:
    """Whether a path is of images to be evaluated, and of no network.

    Raises:
        DatasetError: It is a zip that does not open.
    """
    found = dataset_path(path)
    if not found.is_dir():
        # .pt files are zips too, and go by another name
        return found.is_file() and found.suffix.lower() in (".zip", ".h5", ".hdf5")
    if is_pretrained(found) or saved_snapshots(found) or interop.is_foreign(found) or any((found / name).exists() for name in OF_RUNS):
        return False
    return len(open_source(found)) > 0


def check_fakes(fakes: ImageDataset, dataset: ImageDataset, truncation: float | None, standing: int | None) -> None:
    """Reject images that cannot be compared with the real ones, and options for networks.

    Raises:
        click.UsageError: --trunc or --standing is given.
        DatasetError: They are of another resolution or colour.
    """
    for option, value in (("--trunc", truncation), ("--standing", standing)):
        if value is not None:
            raise click.UsageError(f"{option} {value:g}: images have been drawn already; leave it out")
    for what, theirs, ours in (("resolution", fakes.resolution, dataset.resolution), ("channels", fakes.channels, dataset.channels)):
        if theirs != ours:
            raise DatasetError(f"{fakes.source.path}: holds images of {what} {theirs}, and the real ones have {ours}; they must agree")
