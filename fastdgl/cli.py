"""The commands around training, gathered: `fastdgl dataset`, `generate`, `convert`, `evaluate`, `export`, `report`, `doctor`. Training itself is train.py."""

import click

from . import __version__
from .conversion import convert_command
from .doctor import doctor_command
from .drawing import generate_command
from .evaluation import evaluate_command
from .exporting import export_command
from .packing import dataset_command
from .reporting.command import report_command


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Prepare images for a GAN, and use one that was trained."""


main.add_command(dataset_command)
main.add_command(generate_command)
main.add_command(convert_command)
main.add_command(evaluate_command)
main.add_command(export_command)
main.add_command(report_command)
main.add_command(doctor_command)
