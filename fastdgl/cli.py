"""`fastdgl COMMAND`: the commands, each imported when it is run, and their summaries."""

import difflib
import importlib

import click

from . import __version__

# by command: the module it lives in, its name there, and its summary, which is the first sentence of its help
COMMANDS = {
    "train": ("train", "main", "Train a StyleGAN2 or BigGAN, or compress one (DGL)."),
    "dataset": ("packing", "dataset_command", "Make a dataset, DEST, of the images of SOURCE."),
    "generate": ("drawing", "generate_command", "Images of the averaged generator, one per seed; the z of a seed is that of NVIDIA's tools."),
    "evaluate": ("evaluation", "evaluate_command", "Metrics of the averaged generator, or of a folder of images, against all real images."),
    "convert": ("conversion", "convert_command", "Networks of another codebase to a snapshot, or a snapshot to those."),
    "export": ("exporting", "export_command", "The averaged generator at DESTINATION, for use without fastdgl, or from the Hugging Face Hub."),
    "report": ("reporting.command", "report_command", "Teacher and students side by side: size, arithmetic, speed and memory here, metrics, images, curves."),
    "doctor": ("doctor", "doctor_command", "Check GPU, memory, disk and shared memory, and list anything that would stop a run."),
}
# what other programs call them
OTHER_NAMES = {"gen": "generate", "gen_images": "generate", "sample": "generate", "draw": "generate", "calc_metrics": "evaluate", "eval": "evaluate",
               "metrics": "evaluate", "dataset_tool": "dataset", "prepare": "dataset", "prepare_data": "dataset", "onnx": "export", "fit": "train"}


class LazyCommands(click.Group):
    """A group whose commands are imported when one of them is run: torch takes seconds, and --help needs none of it."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, name, _ = COMMANDS[cmd_name]
        return getattr(importlib.import_module(f".{module}", __package__), name)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            meant = OTHER_NAMES.get(args[0]) or next(iter(difflib.get_close_matches(args[0], COMMANDS)), None)
            raise click.UsageError(f"there is no command {args[0]!r}; " + (f"did you mean {meant}?" if meant else f"expected one of {', '.join(COMMANDS)}"), ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            # not shortened, as click does to one line
            formatter.write_dl([(name, summary) for name, (_, _, summary) in COMMANDS.items()])


@click.group(cls=LazyCommands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
@click.option("--local_rank", hidden=True, help="Passed by the deepspeed launcher; the environment says the same.")
def main(local_rank: str | None) -> None:
    """Prepare images for a GAN, train one, and use it."""


if __name__ == "__main__":
    main(prog_name="fastdgl")
