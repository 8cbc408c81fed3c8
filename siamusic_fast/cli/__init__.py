"""The commands: each parses, calls the library and renders what comes back."""

import errno
import importlib
import os
import sys
import warnings
from typing import Any

import rich_click as click

from siamusic_fast import __version__
from siamusic_fast.cli.console import escape_what_cannot_be_printed, note, show_error
from siamusic_fast.errors import SiamusicError
from siamusic_fast.processes.failures import WorkerError, is_repeated, os_error_message
from siamusic_fast.processes.signals import StopSignals

# On the CPU, torch's threads share the cores with DALI's. By default a thread that waits for others spins,
# and takes from those that it waits for. Read when torch is first imported; a user's own setting counts.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

COMMANDS = {
    "shard": "Pack audio into WebDataset shards.",
    "inspect": "Show what a shard set holds.",
    "verify": "Check every byte of a shard set.",
    "preview": "Draw what the augmentations do.",
    "pretrain": "Pre-train an encoder without labels.",
    "finetune": "Train a genre classifier on a pre-trained encoder.",
    "evaluate": "Score a classifier on the test tracks.",
    "probe": "Measure what pre-training added to an encoder.",
    "embed": "Write the features of tracks into a file.",
    "predict": "Say which genres tracks have.",
    "similar": "Find the tracks that sound most like one.",
    "export": "Write a network to a file for other programs.",
    "report": "Write a page about runs, with sound.",
    "reproduce": "Train the grid of the paper, and write its table.",
    "ablate": "Say what each augmentation of a recipe adds.",
    "bench": "Measure how fast it is.",
    "demo": "Run everything on a small synthetic corpus.",
}
_MODULES = dict.fromkeys(("shard", "inspect", "verify"), "shards") | dict.fromkeys(
    ("evaluate", "probe"), "scores"
)
"""Where a command is that has no module of its own."""
_HELP = {
    "text_paragraph_linebreaks": "\n\n",
    "padding_helptext_first_line": (0, 0, 1, 0),
    "options_table_column_types": ["opt_primary", "metavar_short", "help"],
}


def load_command(name: str) -> click.Command:
    """Import the module of a command and return the command."""
    command = getattr(importlib.import_module(f"siamusic_fast.cli.{_MODULES.get(name, name)}"), name)
    assert isinstance(command, click.Command)
    return command


class LazyGroup(click.RichGroup):
    """Imports a command's module when the command is asked for, so that `--help` answers at once.

    Turns the errors of a command into one line and an exit code.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        return name, command and load_command(command.name or ""), rest

    def invoke(self, ctx: click.Context) -> Any:
        escape_what_cannot_be_printed()
        try:
            # SIGTERM and SIGHUP end a command as Ctrl-C does, so that it removes what is temporary.
            with warnings.catch_warnings(), StopSignals() as signals, signals.at_once():
                warnings.showwarning = lambda message, *_, **__: note(f"note: {message}")
                return super().invoke(ctx)
        except click.UsageError as error:
            show_error(error.format_message())
            note(f"`{error.ctx.command_path if error.ctx else ctx.command_path} --help` says how it is used.")
            sys.exit(error.exit_code)
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


@click.group(
    cls=LazyGroup,
    commands=[click.Command(name, help=words) for name, words in COMMANDS.items()],
    context_settings={"help_option_names": ["-h", "--help"], "rich_help_config": _HELP},
)
@click.version_option(__version__, prog_name="siamusic-fast")
def main() -> None:
    """Self-supervised pre-training of music encoders.

    \b
    siamusic-fast shard fma_medium
    siamusic-fast pretrain --gpus 2 --aug image
    siamusic-fast bench loader
    """
