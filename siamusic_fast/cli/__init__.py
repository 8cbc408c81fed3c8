"""The commands: each parses, calls the library and renders what comes back."""

import errno
import importlib
import os
import sys
from typing import Any

import click

from siamusic_fast import __version__
from siamusic_fast.cli.console import note, show_error
from siamusic_fast.errors import SiamusicError
from siamusic_fast.processes.failures import WorkerError, is_repeated, os_error_message

# On the CPU, torch's threads share the cores with DALI's. By default a thread that waits for others spins,
# and takes from those that it waits for. Read when torch is first imported; a user's own setting counts.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

COMMANDS = {
    "shard": "Pack audio into WebDataset shards.",
    "inspect": "Show what a shard set holds.",
    "verify": "Check every byte of a shard set.",
    "preview": "Draw what the augmentations do.",
    "pretrain": "Pre-train an encoder with SimSiam.",
    "finetune": "Train a genre classifier on a pre-trained encoder.",
    "evaluate": "Score a classifier on the test tracks.",
    "probe": "Measure what pre-training added to an encoder.",
    "bench": "Measure how fast it is.",
    "demo": "Run everything on a small synthetic corpus.",
}


class LazyGroup(click.Group):
    """Imports a command's module when the command is asked for, so that `--help` answers at once."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command = getattr(importlib.import_module(f"siamusic_fast.cli.{name}"), name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except SiamusicError as error:
            if not is_repeated(error):
                show_error(str(error))
            sys.exit(1)
        except WorkerError as error:
            show_error("a process failed, and with it the job.")
            note(str(error))
            sys.exit(1)
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise  # click ends quietly when whoever reads the output has gone
            if not is_repeated(error):
                show_error(os_error_message(error))
            sys.exit(1)
        except KeyboardInterrupt as stop:
            note("Stopped.")
            sys.exit(getattr(stop, "exit_code", 130))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="siamusic-fast")
def main() -> None:
    """Self-supervised pre-training of music encoders.

    \b
    siamusic-fast shard fma_medium
    siamusic-fast pretrain --gpus 2 --aug image
    siamusic-fast bench loader
    """
