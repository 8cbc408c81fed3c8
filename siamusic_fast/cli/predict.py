"""`siamusic-fast predict`: the genres or tags of any audio."""

import json
from pathlib import Path
from typing import Any

import rich_click as click

from siamusic_fast.audio.rejects import Reject
from siamusic_fast.cli import options
from siamusic_fast.cli.console import link, note_reject, output, progress, stopping
from siamusic_fast.config import CropConfig
from siamusic_fast.errors import DataError

_BAR = 30
"""Characters of a bar of 100%."""
_KINDS = {"class": ("genre", "genres"), "tags": ("tag", "tags")}
"""What one and several outputs are called, by what the classifier says."""


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("sources", metavar="SOURCE...", nargs=-1, required=True)
@options.splits
@options.data_dir
@options.cache
@options.settings(CropConfig)
@click.option(
    "--top",
    type=click.IntRange(min=1),
    metavar="N",
    default=3,
    show_default=True,
    help="Genres or tags per track.",
)
@click.option(
    "--threshold",
    type=click.FloatRange(0, 1),
    metavar="P",
    help="Say all genres or tags with at least this probability, in place of the --top.",
)
@click.option(
    "--over-time", is_flag=True, help="Say when the genre changes, and draw it into the folder --out."
)
@click.option("--csv", "table", type=click.Path(path_type=Path), help="Write a table with all probabilities.")
@options.device
@options.out("genres, with --over-time")
@options.force
@options.quiet
@options.as_json
def predict(
    run: Path,
    sources: tuple[str, ...],
    splits: str | None,
    data_dir: Path,
    top: int,
    threshold: float | None,
    over_time: bool,
    table: Path | None,
    device: Any,
    out: Path | None,
    force: bool,
    quiet: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Say which genres or tags tracks have, by the classifier of RUN.

    The probabilities of genres add up to 1. Each tag has a probability of its own.

    A SOURCE is an audio file of any format, a folder or zip of audio, a shard set (its folder or name), or
    @FILE, a text file with a source on each line. Probabilities are averaged over crops that cover a track,
    up to 128, as in `evaluate`. With --json, each track is a line.

    \b
    siamusic-fast predict runs/first song.mp3
    siamusic-fast predict runs/first folder/ --csv genres.csv
    siamusic-fast predict runs/first song.mp3 --over-time --hop-seconds 1
    """
    from siamusic_fast.inference import predict as inference
    from siamusic_fast.shards.tables import write_table

    if table is not None and table.exists() and not force:
        raise DataError(f"{table} exists: choose another file with --csv, or replace it with --force.")
    config = CropConfig(**options.given(settings))
    folder = out or Path("genres")
    rows: list[tuple[object, ...]] = []
    classes: tuple[str, ...] = ()
    kind = "genre"
    with stopping(lambda: ("Stopped.",)):
        for found in inference.predict(
            run,
            sources,
            config,
            data_dir=data_dir,
            device=device,
            progress=progress(quiet or not as_json),
            **options.given({"splits": splits}),
        ):
            if isinstance(found, Reject):
                note_reject(found)
                continue
            picture = _drawn(found, folder, force) if over_time else None
            said = found.top(top) if threshold is None else found.above(threshold)
            if as_json:
                output.print_json(json.dumps(_as_json(found, said, over_time, picture)), indent=None)
            else:
                _render(found, said, over_time, picture)
            if table is not None:
                classes, kind = found.classes, _KINDS[found.target][0]
                (best,) = found.top(1)
                rows.append((found.path, found.key, *best, *found.probabilities.tolist()))
    if table is not None:
        write_table(table, ("path", "key", kind, "probability", *classes), rows)


def _drawn(found: Any, folder: Path, force: bool) -> Path:
    """Draw the genres of a track along its time and return the file."""
    from siamusic_fast.analysis import plots

    path = folder / f"{found.key}.png"
    if path.exists() and not force:
        raise DataError(f"{path} exists: choose another folder with --out, or replace it with --force.")
    plots.genres_over_time(found, path)
    return path


def _as_json(
    found: Any, said: list[tuple[str, float]], over_time: bool, picture: Path | None
) -> dict[str, Any]:
    one, several = _KINDS[found.target]
    values = {
        "path": found.path,
        "key": found.key,
        "seconds": round(found.seconds, 3),
        several: dict(said),
    }
    if over_time:
        values["over_time"] = [{"start": round(start, 3), one: name} for start, name in found.spells()]
        values["picture"] = str(picture)
    return values


def _render(found: Any, said: list[tuple[str, float]], over_time: bool, picture: Path | None) -> None:
    """Print a track and a bar for each of its genres or tags."""
    output.print(link(found.path or found.key, found.path))
    width = max(len(name) for name in found.classes)
    for name, probability in said:
        bar = "█" * max(1, round(_BAR * probability))
        output.print(f"  {name:{width}}  {probability:6.1%}  {bar}", markup=False)
    if over_time:
        output.print(
            "  " + "  ".join(f"{_clock(start)} {name}" for start, name in found.spells()), markup=False
        )
        output.print(f"  {picture}", markup=False)


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
