"""`siamusic-fast embed`: features of tracks, in a file."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import rich_click as click
from click import get_current_context
from click.core import ParameterSource

from siamusic_fast.audio.store import local_name
from siamusic_fast.cli import config_file, options
from siamusic_fast.cli.console import count, duration, progress, show_facts, stopping
from siamusic_fast.cli.launching import cluster_of, launch, show_result, this_command
from siamusic_fast.cli.options import CommonOptions
from siamusic_fast.config import EmbedConfig
from siamusic_fast.errors import ConfigError
from siamusic_fast.processes.failures import OF_EMBEDDING

_MAX_REJECTS = 10
"""Files that are named in the summary; the table beside the result has all."""


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("sources", metavar="SOURCE...", nargs=-1, required=True)
@options.splits
@options.data_dir
@options.cache
@config_file.option
@options.settings(EmbedConfig)
@options.gpus
@options.procs
@options.scheduler
@options.timeout
@options.out("embeddings.parquet")
@options.force
@options.quiet
@options.as_json
def embed(
    run: Path,
    sources: tuple[str, ...],
    splits: str | None,
    data_dir: Path,
    gpus: int | None,
    procs: int | None,
    scheduler: str | None,
    timeout: float,
    out: Path | None,
    force: bool,
    quiet: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Write the features of tracks, as the encoder of RUN hears them, into a file.

    A SOURCE is a shard set (its folder or name), an audio file of any format, a folder or zip of audio, or
    @FILE, a text file with a source on each line. The ending of --out says the format: .parquet (pyarrow) or
    .npz. The columns are key, path, label, split, seconds and vector. Files that cannot be used are listed
    with the reason, and the others go on. Stopped at any moment, the same command goes on.

    \b
    siamusic-fast embed runs/first fma_small
    siamusic-fast embed runs/first song.mp3 folder/ --out mine.npz
    siamusic-fast embed runs/first @files.txt --per-crop --dtype float16
    siamusic-fast embed runs/first fma_full --scheduler tcp://node1:8786
    """
    from siamusic_fast.inference import embed as embedding

    common = CommonOptions(
        data=None,
        data_dir=data_dir,
        gpus=gpus,
        procs=procs,
        timeout=timeout,
        out=out,
        force=force,
        quiet=quiet,
        as_json=as_json,
    )
    call = functools.partial(
        embedding.embed,
        run,
        sources,
        out or Path("embeddings.parquet"),
        EmbedConfig(**options.given(settings)),
        data_dir=data_dir,
        **options.given({"splits": splits}),
    )
    stopped = ("Stopped. Go on with:", this_command())
    if scheduler is None:
        result = launch(call, common=common, remedy=OF_EMBEDDING, if_stopped=lambda: stopped)
    else:
        if gpus is not None:
            raise ConfigError(
                f"--gpus {gpus} does not go with --scheduler {scheduler}: each worker uses the GPU that it "
                f"sees, and none if it was started with CUDA_VISIBLE_DEVICES= before its command."
            )
        if get_current_context().get_parameter_source("timeout") is ParameterSource.COMMANDLINE:
            raise ConfigError(
                f"--timeout {timeout:g} does not go with --scheduler {scheduler}: workers do not wait for "
                f"each other."
            )
        with stopping(lambda: stopped), cluster_of(scheduler, procs, quiet) as cluster:
            result = call(cluster=cluster, force=force, progress=progress(quiet))
    values = {**dataclasses.asdict(result), "path": str(result.path), "rejected": _text(result.rejected)}
    show_result(values, lambda: _render(result), result.path, common)


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _render(result: Any) -> None:
    """Print what was written, and what was left out."""
    rate = f"{result.tracks / result.seconds:,.1f} tracks/s"
    facts = [
        ("embedded", f"{count(result.tracks, 'track')} in {duration(result.seconds)}, {rate}"),
        ("vectors", f"{count(result.rows, 'row')} of {result.dim} numbers"),
        ("file", str(result.path)),
    ]
    facts += [
        ("left out", f"{local_name(reject.path)}: {reject.reason}: {reject.detail}")
        for reject in result.rejects[:_MAX_REJECTS]
    ]
    if len(result.rejects) > _MAX_REJECTS:
        facts.append(("", f"and {count(len(result.rejects) - _MAX_REJECTS, 'file')} more"))
    if result.rejected:
        facts.append(("", f"listed in {result.rejected}"))
    show_facts(facts)
