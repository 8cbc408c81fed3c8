"""Writes the sections Sizing and What breaks first of docs/scaling.md, of the figures in `results`.

python -m benchmarks.sizing.page            writes the sections
python -m benchmarks.sizing.page --check    says whether they are what the results say
"""

import re
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.page import RESULTS, ROOT, row
from benchmarks.result import Result, read
from benchmarks.sizing.run import (
    HOURS,
    LIMITS,
    MOST,
    PROCESSES,
    SHARD_SIZES,
    SHARDS,
    SIMULATED,
    WORKERS,
    simulated,
)
from siamusic_fast.bench.report import Measurement, number
from siamusic_fast.bench.shard import PACKING
from siamusic_fast.config import CODECS
from siamusic_fast.files import MANIFEST_LIMIT, TABLE_LIMIT

PAGE = ROOT / "docs" / "scaling.md"
PACKED_BY = RESULTS / "amd-epyc-2-cores" / "shard.json"
"""Rate of packing, by a machine that nobody else used meanwhile."""
SECTIONS = ("Sizing", "What breaks first")
TRACKS = {25_000: "25 thousand tracks", 1_000_000: "1 million", 100_000_000: "100 million"}
SECONDS = 30
"""Length of a track in the tables."""
CROP_BYTES = 220_500
"""Bytes of 5 s of 16-bit audio at 22,050 Hz."""
TIMES = "\N{MULTIPLICATION SIGN}"
RATES = (100, 1_000, 10_000)
"""Pairs/s of a GPU in the table of the network."""
GPUS = 8
"""GPUs of a machine."""
WINDOW = " in windows of 64 shards"


class Figures:
    """What was measured, by name."""

    def __init__(self, sizing: Result, shard: Result) -> None:
        self.settings = sizing.report.settings
        self.machine, self.packed_by = sizing.report.machine, shard.report.machine
        self.rows: Mapping[str, Measurement] = {one.name: one for one in sizing.report.measurements}
        packing = {one.name: one for one in shard.report.measurements}[PACKING]
        self.per_hour = 3600 * packing.median / shard.report.settings["procs"]
        """Tracks that a core packs in an hour."""
        self.per_shard: int = self.settings["tracks_per_shard"]

    def __getitem__(self, name: str) -> float:
        return self.rows[name].median

    def at(self, what: str, tracks: int) -> tuple[float, bool]:
        """Return `what`, such as "plan of {} tracks, time", for so many tracks, and whether it was measured.

        Otherwise it lies on the straight line through 0 and the largest size that was measured. Of a time, it
        is the seconds of one core, which depend less on what else the machine does.
        """
        sizes = measured_sizes(self.rows, what)
        size = tracks if tracks in sizes else max(sizes)
        one = self.rows[what.format(f"{size:,}")]
        return (
            one.median if one.cpu_ms is None else one.cpu_ms * size / 1000
        ) * tracks / size, size == tracks

    def shards(self, tracks: int) -> int:
        return -(-tracks // self.per_shard)


def measured_sizes(rows: Mapping[str, Measurement], what: str) -> list[int]:
    """Return the numbers of tracks for which `what` is in `rows`."""
    pattern = re.compile(re.escape(what).replace(re.escape("{}"), r"([\d,]+)"))
    return [int(found[1].replace(",", "")) for name in rows if (found := pattern.fullmatch(name))]


def sections(figures: Figures) -> str:
    """Return both sections."""
    parts = [
        f"## {SECTIONS[0]}",
        _head(figures),
        _sizes(figures),
        _network(figures),
        f"## {SECTIONS[1]}",
        _limits(figures),
        _breaking(figures),
        _order(figures),
        _cluster(figures),
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _head(figures: Figures) -> str:
    clips, hours = figures.settings["clips"], figures.settings["clip_hours"]
    return _wrapped(
        f"Tracks of {SECONDS} s at 22,050 Hz, in shards of {figures.per_shard}. What has a `~` lies on the "
        f"straight line through the largest size that was measured. Packing is that of an "
        f"{figures.packed_by['cpu']}, from MP3 to wav. Bytes by codec are those of {clips:,} excerpts of "
        f"music, {hours:.2g} hours of four genres. All else is of an {figures.machine['cpu']}, in seconds of "
        f"one core. Plans and openings had it to themselves; all else was measured beside other programs, "
        f"and takes fewer seconds without. `python -m benchmarks.sizing.run` measures yours, and "
        f"`python -m benchmarks.sizing.page` "
        f"makes this section and the next one of what is in `benchmarks/results`."
    )


def _sizes(figures: Figures) -> str:
    """Return the table of what each number of tracks needs."""

    def hours(tracks: int) -> float:
        return tracks * SECONDS / 3600

    def near(what: str, tracks: int, unit: float, form: str) -> str:
        value, measured = figures.at(what, tracks)
        return ("" if measured else "~") + form.format(number(value / unit))

    lines = [("", "arithmetic", *TRACKS.values()), ("---", "---", *["---:"] * len(TRACKS))]

    def add(what: str, arithmetic: str, cells: Sequence[str]) -> None:
        lines.append((what, arithmetic, *cells))

    add("audio", f"tracks {TIMES} {SECONDS} s / 3,600", [f"{hours(one):,.0f} h" for one in TRACKS])
    add("shards", f"tracks / {figures.per_shard}", [f"{figures.shards(one):,}" for one in TRACKS])
    for codec in CODECS:
        gigabytes = figures[f"1,000 hours in {codec}"]
        cells = [_bytes(gigabytes * 1e9 * hours(one) / 1000) for one in TRACKS]
        add(f"size in {codec}", f"hours {TIMES} {number(gigabytes)} GB per 1,000 h", cells)
    cells = [f"{number(one / figures.per_hour)} h" for one in TRACKS]
    add("packing on one core", f"tracks / {figures.per_hour:,.0f} tracks per hour and core", cells)
    for cores in (16, 1_000):
        cells = [_time(3600 * one / figures.per_hour / cores) for one in TRACKS]
        add(f"packing on {cores:,} cores", f"the same / {cores:,}, if nothing else holds it", cells)
    add(
        "plan: time",
        "measured, of one core, before the first shard is packed",
        [near("plan of {} tracks, time", one, 1, "{} s") for one in TRACKS],
    )
    add(
        "plan: memory",
        "measured, of the one process that plans",
        [near("plan of {} tracks, memory", one, 1024, "{} GiB") for one in TRACKS],
    )
    row_bytes, shard_bytes = figures["row of tracks.csv"], figures["shard in manifest.json"]
    cells = [_bytes(row_bytes * one) for one in TRACKS]
    add("tracks.csv", f"tracks {TIMES} {row_bytes:.0f} bytes", cells)
    cells = [_bytes(shard_bytes * figures.shards(one)) for one in TRACKS]
    add("manifest.json", f"shards {TIMES} {shard_bytes:.0f} bytes", cells)
    add(
        "opening: time",
        "measured, of one core, in each process of a training",
        [near("opening {} tracks, time", one, 1, "{} s") for one in TRACKS],
    )
    add(
        "opening: memory",
        "measured, each process of a training, beside its libraries",
        [near("opening {} tracks, memory", one, 1024, "{} GiB") for one in TRACKS],
    )
    return "\n".join(row(line) for line in lines)


def _network(figures: Figures) -> str:
    """Return the table of what a GPU asks of the network."""
    track = {codec: figures[f"1,000 hours in {codec}"] * 1e9 / 3.6e6 * SECONDS for codec in CODECS}
    lines = [
        _wrapped(
            f"Pairs/s per GPU: **not measured**, as no GPU has been available; `siamusic-fast bench train` "
            f"measures yours. A pair whose crops are from the same 5 s takes {CROP_BYTES:,} bytes of a wav "
            f"shard. Of flac and ogg shards, the whole track is read. Shards that are fetched whole cost a "
            f"whole track for each pair of an epoch, unless a cache keeps them for the next one."
        ),
        "",
        row(["network per GPU at", *(f"{rate:,} pairs/s" for rate in RATES)]),
        row(["---", *["---:"] * len(RATES)]),
    ]
    words = {"wav": "whole wav shards", "flac": "flac", "ogg": "ogg"}
    crops = [f"{CROP_BYTES * rate / 1e9:.3g} GB/s" for rate in RATES]
    lines.append(row([f"crops from wav shards: {CROP_BYTES / 1e3:,.0f} kB {TIMES} rate", *crops]))
    for codec in CODECS:
        cells = [f"{track[codec] * rate / 1e9:.3g} GB/s" for rate in RATES]
        lines.append(row([f"{words[codec]}: {track[codec] / 1e3:,.0f} kB {TIMES} rate", *cells]))
    return "\n".join(lines)


def _limits(figures: Figures) -> str:
    """Return what the project asks of itself, and what was found."""
    lines = [
        row(["asked", "found, by the clock", "seconds of one core"]),
        row(["---", "---:", "---:"]),
    ]
    missed = []
    for name, limit in LIMITS.items():
        one = figures.rows[name]
        cpu = one.cpu_ms * MOST / 1000 if one.cpu_ms is not None else None
        asked = f"{name}: at most {number(limit)} {one.unit}"
        lines.append(row([asked, f"{number(one.median)} {one.unit}", "" if cpu is None else f"{cpu:.0f}"]))
        if one.median > limit:
            how = "" if cpu is None else " in seconds of one core as well"
            if cpu is not None and cpu <= limit:
                how = " by the clock only, as other programs had the machine"
            missed.append(f"Missed{how}: {name}.")
    return "\n".join(lines) + "\n\n" + _wrapped(" ".join(missed))


def _breaking(figures: Figures) -> str:
    """Return the list of what one process does for all, by the size at which it is felt."""
    million, most = 1_000_000, 100_000_000
    track = figures["1,000 hours in wav"] * 1e9 / 3.6e6 * SECONDS
    rate = figures["SHA-256 in one process"]
    tables = (figures.rows["tables of a track"].cpu_ms or 0) / 1000
    own, same = (
        figures[f"scanning a file {words}"] / 1e6
        for words in ("of its own size", "of a size that others have")
    )
    row_bytes, shard_bytes = figures["row of tracks.csv"], figures["shard in manifest.json"]
    plan, _ = figures.at("plan of {} tracks, memory", most)
    opening, _ = figures.at("opening {} tracks, memory", most)
    opening_time, _ = figures.at("opening {} tracks, time", most)
    shards = MANIFEST_LIMIT / shard_bytes
    items = [
        f"**25 thousand tracks: nothing.** 16 cores pack them in "
        f"{_time(3600 * 25_000 / figures.per_hour / 16)}.",
        f"**1 million: resuming.** A packing that goes on hashes the shards that are finished, one after the "
        f"other: {_bytes(million * track)} at {rate:,.0f} MB/s are up to "
        f"{_time(million * track / 1e6 / rate)}.",
        f"**10 million: what one process does before and after the workers.** It looks at every file: "
        f"{own * 1e6:.0f} µs if no other file has its size, and {same * 1e6:.0f} µs if 4 KiB have to "
        "be read, "
        f"from the memory of the system. That is {_time(10 * million * own)} to "
        f"{_time(10 * million * same)}. Where a request takes a millisecond, as it may over a network, it is "
        f"{_time(10 * million * 1e-3)} to {_time(10 * million * 2e-3)}. The tables at the end take "
        f"{tables * 1e6:.0f} µs of each track, {_time(10 * million * tables)}.",
        f"**100 million: the memory of the plan**, {plan / 1024:.0f} GiB in the one process that plans. "
        f"1,000 cores pack in {_time(3.6 * most / figures.per_hour)}, and the tables take "
        f"{_time(most * tables)} after that: more cores gain little.",
        f"**100 million: the memory of opening**, {opening / 1024:.1f} GiB in each process of a training, "
        f"{GPUS * opening / 1024:.0f} GiB on a machine with {GPUS} GPUs. It takes "
        f"{_time(opening_time)}, part of it for the SHA-256 of tracks.csv, {_bytes(most * row_bytes)}.",
        f"**Beyond: tracks.csv**, which may have {TABLE_LIMIT / 2**30:.0f} GiB, enough for "
        f"{TABLE_LIMIT / row_bytes / 1e6:,.0f} million tracks.",
        f"**Not the manifest.** It may have {MANIFEST_LIMIT / 2**20:.0f} MiB, which are {shards:,.0f} "
        "shards: "
        f"{shards * figures.per_shard / 1e6:,.0f} million tracks in shards of {figures.per_shard}, and "
        f"{shards * 128 / 1e6:,.0f} million in shards of 128. It need not be split.",
    ]
    lines = [_wrapped(f"- {item}", "  ") for item in items]
    return "\n".join(["In the order of the number of tracks at which it is felt:", "", *lines])


def _order(figures: Figures) -> str:
    """Return what the order of an epoch and its sharing among processes take."""
    lines = [
        _wrapped(
            "The order of an epoch is never in memory: a Feistel network computes the part that a batch "
            "needs. A few numbers for each shard are in memory:"
        ),
        "",
        row(["tracks", "MiB", "batches of 64 per second", "MiB, `window=64`", "batches of 64 per second"]),
        row(["---:"] * 5),
    ]
    for size in sorted(measured_sizes(figures.rows, "order of {} tracks, memory")):
        cells = [
            number(figures[f"order of {size:,} tracks{words}, {what}"])
            for words in ("", WINDOW)
            for what in ("memory", "batches")
        ]
        lines.append(row([f"{size:,}", *cells]))
    return "\n".join([*lines, "", _shared(figures)])


def _shared(figures: Figures) -> str:
    prefix = f"{SHARDS:,} shards over {PROCESSES} processes"
    fewest, most, tracks, taken, twice, shards = (
        figures[f"{prefix}, {what}"]
        for what in (
            "fewest batches",
            "most batches",
            "tracks",
            "tracks taken",
            "tracks taken twice",
            "fewest shards read from",
        )
    )
    equal = f"{fewest:,.0f} batches of 64 each" if fewest == most else f"{fewest:,.0f} to {most:,.0f} batches"
    return _wrapped(
        f"{prefix}, of {tracks:,.0f} tracks and unequal: {equal}, by the plan that a loader uses. They take "
        f"{taken:,.0f} tracks, {twice:,.0f} of them twice; what is left does not fill a batch in every "
        f"process. No process is idle. Each reads from {shards:,.0f} shards or more, since tracks and not "
        f"shards are shared out; with a `window=`, all read from the same few shards at a time."
    )


def _cluster(figures: Figures) -> str:
    """Return the table of the simulated cluster."""
    seconds = figures.settings["seconds_per_track"]
    lines = [
        _wrapped(
            f"A simulation of {WORKERS:,} workers of one core, which take {1000 * seconds:.3g} ms for "
            "a track "
            f"and differ by a tenth in speed. A worker that dies comes back after a minute, and "
            "another packs "
            f"its shard again. Shares are of the time of all workers until the last shard is packed:"
        ),
        "",
        row(["tracks", "each dies every", "tracks per shard", "time", "useful", "lost", "down", "idle"]),
        row(["---:"] * 8),
    ]
    for tracks in SIMULATED:
        for hours in HOURS:
            for size in SHARD_SIZES:
                name = simulated(tracks, hours, size)
                cells = [f"{figures[f'{name}, {of}']:.1f} %" for of in ("useful", "lost", "down", "idle")]
                time = _time(3600 * figures[f"{name}, time"])
                lines.append(row([f"{tracks:,}", f"{hours:g} h", f"{size:,}", time, *cells]))
    ended = sum(figures[name] for name in figures.rows if name.endswith(", ending"))
    met = f"{ended:,.0f} shards" if ended else "no shard"
    lines += [
        "",
        _wrapped(
            f"Little is lost at the deaths themselves with any of these sizes. What costs is the end, when a "
            f"shard that was begun late, or again, keeps the others waiting: let there be ten shards or more "
            f"for each worker. For a million tracks on "
            f"{WORKERS:,} cores that is `--tracks-per-shard 100`; otherwise leave the default of 512. In all "
            f"of these rows, {met} met four deaths, after which Dask ends a run, and the same command "
            "goes on. "
            f"The simulation leaves out the time of the scheduler, the file system, and machines that "
            "fail with "
            f"many workers at once."
        ),
    ]
    return "\n".join(lines)


def _wrapped(text: str, indent: str = "") -> str:
    """Return `text` in lines as long as those of other pages."""
    return textwrap.fill(text, 130, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _bytes(count: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{number(count / size)} {unit}"
    return f"{number(count / 1e3)} kB"


def _time(seconds: float) -> str:
    if seconds >= 5400:
        return f"{number(seconds / 3600)} h"
    return f"{number(seconds / 60)} min" if seconds >= 90 else f"{number(seconds)} s"


def figures_of(path: Path, packed_by: Path = PACKED_BY) -> Figures:
    """Return the figures that `benchmarks.sizing.run` kept in `path`."""
    return Figures(read(path), read(packed_by))


def page(text: str, figures: Figures) -> str:
    """Return the page `text` with its two sections, at its end if it has none, as the figures say."""
    heading = "|".join(map(re.escape, SECTIONS))
    found = re.compile(rf"(?ms)^## (?:{heading})$.*?(?=^## (?!(?:{heading})$)|\Z)").search(text)
    begin, end = found.span() if found else (len(text), len(text))
    before, after = text[:begin].rstrip("\n"), text[end:]
    return f"{before}\n\n{sections(figures)}" + (f"\n{after}" if after else "")


def main() -> None:
    text = PAGE.read_text(encoding="utf-8")
    (path,) = RESULTS.glob("*/sizing.json")
    made = page(text, figures_of(path))
    if sys.argv[1:] == ["--check"]:
        if text != made:
            sys.exit(f"{PAGE.name} is not what {path} says: run python -m benchmarks.sizing.page.")
        return
    PAGE.write_text(made, encoding="utf-8")


if __name__ == "__main__":
    main()
