"""Gathers what there is to say of runs, and writes it as one HTML file."""

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from bokeh.resources import Resources
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from numpy.typing import NDArray

from siamusic_fast import __version__
from siamusic_fast.analysis import preview
from siamusic_fast.analysis.report.charts import curve_charts, map_chart, map_legend
from siamusic_fast.analysis.report.runs import Run, read_runs
from siamusic_fast.analysis.report.sound import opus, spectrogram
from siamusic_fast.analysis.report.track_map import MappedTrack, track_map
from siamusic_fast.config import BACKENDS, CHECKPOINTS
from siamusic_fast.config.fields import OneOf, check_value
from siamusic_fast.errors import ConfigError, DataError
from siamusic_fast.files import atomic_write
from siamusic_fast.models.pretrained import Pretrained, load_pretrained
from siamusic_fast.models.run_files import REPORT
from siamusic_fast.pipelines.recipes import parse_recipe
from siamusic_fast.processes.world import World
from siamusic_fast.progress import SILENT, Progress
from siamusic_fast.shards.manifest import ShardSet, find_shards

GALLERY_TRACKS = 4
_GALLERY_BIT_RATE = 32_000
_HERE = Path(__file__).parent

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class ReportResult:
    """A page that was written."""

    path: Path
    """The HTML file."""
    size: int
    """Its size in bytes."""
    tracks: int
    """Tracks on its map; 0 if it has none."""
    notes: tuple[str, ...]
    """Why parts are not on the page, and what puts them there."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One spectrogram of the gallery."""

    title: str
    uri: str
    sound: str
    """What it sounds like, as a data URI; empty if that is what the picture before it sounds like."""


@dataclass(frozen=True, kw_only=True)
class GalleryRow:
    """A track of the gallery, before and after augmentation."""

    name: str
    genre: str
    pictures: tuple[Picture, ...]


def report(
    runs: Sequence[Path | str],
    data: ShardSet | Path | str | None = None,
    out: Path | str | None = None,
    *,
    checkpoint: str = "last",
    backend: str = BACKENDS[0],
    world: World | None = None,
    force: bool = False,
    progress: Progress = SILENT,
) -> ReportResult:
    """Write a page about pre-training runs, one HTML file that needs no network.

    The page of one run has its settings, curves, scores, views that can be heard, and a map of the test
    tracks by the features of its encoder, `checkpoint` "last" or "best". `data` is a shard set, its folder,
    or its name; by default the shards that the run was made from. If there are none, or no encoder, the page
    says so in place of views and map. The page of several runs has what differs in their settings, their
    curves over one another, and their scores.

    The page goes to `out`, which is replaced with `force` only. The default is report.html in the folder of
    the run, which replaces an earlier page; of several runs it is report.html in the working directory.

    Raises DataError if a folder is no run or has logged nothing, if a file of it is damaged, or if `out`
    exists; ConfigError for a name of a checkpoint that is none.
    """
    check_value("checkpoint", checkpoint, OneOf(CHECKPOINTS))
    found = read_runs([Path(run) for run in runs])
    if len(found) == 1 and out is None:
        path = found[0].folder / REPORT
    else:
        path = Path(out or REPORT)
        if path.exists() and not (force and path.is_file()):
            raise DataError(
                f"{path} exists: choose another file with out, or replace it by force=True (on the command "
                f"line --out or --force)."
            )
    notes = [
        f"{what} are not there yet: run `{shlex.join(command)}`."
        for run in found
        for what, command in run.missing
    ]
    values: dict[str, Any] = {"runs": found, "charts": curve_charts(found), "gallery": [], "map": None}
    if len(found) == 1:
        (run,) = found
        values |= _heard(run, data, checkpoint, backend, world, progress)
        notes += values["problems"]
    html = _rendered(values | {"notes": notes})
    with atomic_write(path) as file:
        file.write(html)
    tracks = len(values["map"].tracks) if values["map"] else 0
    return ReportResult(path=path, size=len(html), tracks=tracks, notes=tuple(notes))


def _heard(
    run: Run,
    data: ShardSet | Path | str | None,
    checkpoint: str,
    backend: str,
    world: World | None,
    progress: Progress,
) -> dict[str, Any]:
    """Return the gallery and the map of `run`, or what is the matter with them."""
    problems: list[str] = []

    def tried(make: Callable[[], T]) -> T | None:
        try:
            return make()
        except (DataError, ConfigError) as error:
            problems.append(str(error))
            return None

    pretrained = tried(lambda: load_pretrained(run.folder, checkpoint))
    shard_set = tried(lambda: data if isinstance(data, ShardSet) else find_shards(data or run.data))
    if pretrained is None or shard_set is None:
        return {"problems": problems}
    gallery = tried(lambda: _gallery(run, pretrained, shard_set))
    found = tried(lambda: track_map(pretrained, shard_set, backend=backend, world=world, progress=progress))
    values: dict[str, Any] = {"problems": problems, "gallery": gallery or [], "map": found}
    if found:
        present = {track.genre for track in found.tracks}
        values["classes"] = [name for name in shard_set.names(shard_set.target) if name in present]
        values["map_item"] = map_chart(found, values["classes"])
        values["legend"] = map_legend(values["classes"])
    return values


def _gallery(run: Run, pretrained: Pretrained, shard_set: ShardSet) -> list[GalleryRow]:
    """Return the views of a few training tracks, as the pre-training of `run` makes them."""
    config, mel = run.config, pretrained.frontend.mel
    split = config.splits[0]
    found = preview.examples(
        shard_set,
        pretrained.frontend,
        recipe=parse_recipe(config.aug),
        count=min(GALLERY_TRACKS, shard_set.tracks([split])),
        split=split,
        crops=config.crops,
        max_distance=config.max_distance,
        seed=config.seed,
    )
    scale = preview.decibel_range(found)
    rows = []
    for example in found:
        pictures: list[Picture] = []
        heard = np.empty(0, np.float32)
        for number, view in enumerate((example.original, *example.views)):
            wave = preview.audible(view, mel)
            sound = "" if np.array_equal(wave, heard) else _sound(wave, mel.sample_rate)
            heard = wave
            title = f"View {number}: {view.done or 'unchanged'}" if number else "Original"
            pictures.append(Picture(title=title, uri=spectrogram(view.decibels, *scale), sound=sound))
        rows.append(GalleryRow(name=example.track.key, genre=example.track.genre, pictures=tuple(pictures)))
    return rows


def _sound(wave: NDArray[np.float32], sample_rate: int) -> str:
    return opus((wave * np.iinfo(np.int16).max).astype(np.int16), sample_rate, _GALLERY_BIT_RATE)


def _rendered(values: dict[str, Any]) -> bytes:
    """Return the page of `values`, with Bokeh's script and all else inlined."""
    environment = templates(_HERE)
    environment.policies["json.dumps_kwargs"] = {}  # no sorted keys: Bokeh defines a model before it names it
    environment.filters |= {"auc": "{:.3f}".format, "track_values": _track_values}
    defaults: dict[str, Any] = {"problems": [], "classes": [], "legend": [], "map_item": None}
    text = environment.get_template("page.html").render(
        defaults | values,
        bokeh=Resources(mode="inline", components=["bokeh"], log_level="warn").js_raw,
        style=style(),
        script=(_HERE / "page.js").read_text(encoding="utf-8"),
        differing=_differing(values["runs"]),
        scored=[(run.name, run.classifier) for run in values["runs"] if run.classifier],
        tagged=[run for run in values["runs"] if run.tagger],
        probed=[(run.name, one) for run in values["runs"] for one in run.probes],
        version=__version__,
    )
    return text.encode()


def templates(folder: Path) -> Environment:
    """Return what reads the templates of pages in `folder`."""
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = "{:.1%}".format
    return environment


def style() -> str:
    """Return the style sheet of pages."""
    return (_HERE / "page.css").read_text(encoding="utf-8")


def _track_values(track: MappedTrack) -> dict[str, Any]:
    """Return what the script of the page needs of a track; Bokeh has its place."""
    return {name: getattr(track, name) for name in ("name", "path", "genre", "neighbors", "clip")}


def _differing(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """Return the settings in which `runs` differ, each with its values in the order of the runs."""
    together = zip(*(run.settings for run in runs), strict=True)
    found = [(same[0].name, [one.value for one in same]) for same in together]
    return [(name, values) for name, values in found if len(set(values)) > 1]
