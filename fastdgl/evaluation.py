"""Metrics of a trained generator: `fastdgl evaluate`."""

from pathlib import Path

import click

from .checkpoints import CheckpointError, check_same_images, open_snapshot
from .config import ConfigError
from .engines import allow_tf32, end_run, start_run
from .fidelity.cache import CacheError, check_writable
from .fidelity.detectors import NAMES, DetectorError, open_detector
from .fidelity.download import cache_folder
from .fidelity.metrics import METRICS, NUM, append_line, check_computable, evaluated, grouped
from .fidelity.moments import FeatureError
from .images import DatasetError, ImageDataset


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
@click.option("--network", required=True, help="A snapshot, a run folder for its newest, or what `convert` reads.")
@click.option("--data", required=True, help="The real images: a dataset as training takes it.")
@click.option("--metrics", type=MetricNames(), default="fid50k_full", show_default=True, help=f"Some of {','.join(METRICS)}.")
@click.option("--detector", "detector_name", help=f"What sees the features: a TorchScript file, or one of {', '.join(NAMES)}.  "
              "[default: inception, and vgg16 for pr, dc and ppl]")
@click.option("--sha256", help="Refuse the --detector if its file has another SHA-256.")
# not --num, which torchrun takes for a beginning of its own --numa-binding
@click.option("--fakes", "num", type=click.IntRange(min=1), default=NUM, show_default=True,
              help="How many are drawn; the names of the metrics change with it: of 1000, fid50k_full is fid1k_full.")
@click.option("--batch", type=click.IntRange(min=1), default=64, show_default=True, help="Images at once on each rank.")
@click.option("--workers", type=click.IntRange(min=0), default=2, show_default=True, help="Processes that decode real images, on each rank.")
@click.option("--cache", type=click.Path(path_type=Path), default=cache_folder,
              help="Where features of real images, and detectors, are kept.  [default: ~/.cache/fastdgl]")
@click.option("--outdir", type=click.Path(path_type=Path), help="Where metric-<name>.jsonl get their lines.  [default: beside the network]")
def evaluate_command(network: str, data: str, metrics: list[str], detector_name: str | None, sha256: str | None, num: int, batch: int,
                     workers: int, cache: Path, outdir: Path | None) -> None:
    """Metrics of the averaged generator against all real images, without truncation. Under torchrun, its ranks share the work."""
    if sha256 is not None and detector_name is None:
        raise click.UsageError("--sha256 is the checksum of one file: name it by --detector")
    try:
        run = start_run()
        allow_tf32(False)
        snapshot = open_snapshot(network)
        dataset = ImageDataset(data, labels=snapshot.arguments["G"]["c_dim"] > 0)
        check_same_images(snapshot, dataset)
        if outdir is None:
            outdir = snapshot.folder
        check_writable(outdir, "--outdir")
        check_writable(cache, "--cache")
        G = snapshot.averaged_generator(run.device)
        check_computable(metrics, type(G), num, len(dataset))
        # all detectors before hours go into the first metric
        groups = [(open_detector(name, run.device, sha256, cache), group) for name, group in grouped(metrics, detector_name).items()]
        for line in evaluated(groups, G, dataset, run, snapshot=snapshot.path.name, seen=snapshot.seen, data=data, num=num, cache=cache, batch=batch, workers=workers):
            if run.rank == 0:
                append_line(outdir, line)
                click.echo("\n".join(f"{key} {value:.6g}" for key, value in line["results"].items()))
    except (ConfigError, CheckpointError, DatasetError, DetectorError, FeatureError, CacheError) as error:
        raise click.ClickException(str(error)) from None
    finally:
        end_run()
