"""Writes docs/results.md of the figures in `results`.

python -m benchmarks.learning.page            writes the page
python -m benchmarks.learning.page --check    says whether it is up to date
"""

import json
import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.learning import settings
from benchmarks.learning.study import RESULTS
from siamusic_fast.cli.console import note
from siamusic_fast.evaluation.intervals import NOT_SHOWN, Difference, paired_difference
from siamusic_fast.files import atomic_write

PAGE = Path(__file__).parents[2] / "docs" / "results.md"
MEASURES = {
    "same_artist": "artist mAP",
    "same_track": "track R@1",
    "linear": "linear probe",
    "knn": "kNN",
}
TRIED = {"map": "artist mAP", "r1": "track R@1", "cv": "linear probe", "rank": "rank"}

Row = dict[str, Any]


def read(stage: str) -> dict[str, Any]:
    """Return the results of a stage; without rows if it has not been run."""
    path = RESULTS / f"{stage}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"machine": {}, "rows": []}


def by_name(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Return the rows of each configuration."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["name"], []).append(row)
    return found


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown whose first column is text and whose others are figures."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def mean_value(rows: Sequence[Row], measure: str, features: str) -> float:
    """Return the mean over seeds of a measure of these features."""
    return float(statistics.mean(row["measures"][measure]["values"][features] for row in rows))


def rank(rows: Sequence[Row], features: str) -> str:
    """Return the mean over seeds of an effective rank."""
    return f"{statistics.mean(row['ranks'][features] for row in rows):.0f}"


def scores_table(rows: Sequence[Row], *, baselines_of: str) -> str:
    """Return all measures of the baselines of one configuration, and of every configuration."""
    named = by_name(rows)
    first = named[baselines_of]
    baselines = [name for name in first[0]["ranks"] if name != "pretrained"]
    lines = [
        [name, *(f"{mean_value(first, one, name):.1%}" for one in MEASURES), rank(first, name), ""]
        for name in baselines
    ]
    for name, of_name in named.items():
        values = [f"{mean_value(of_name, one, 'pretrained'):.1%}" for one in MEASURES]
        lines.append([f"**{name}**", *values, rank(of_name, "pretrained"), str(len(of_name))])
    return table(["features", *MEASURES.values(), "rank", "seeds"], lines)


def difference_of(row: Row, measure: str) -> Difference:
    """Return the difference to the strongest baseline that a row has."""
    return Difference(**row["measures"][measure]["difference"])


def differences_table(rows: Sequence[Row]) -> str:
    """Return each configuration and seed less its strongest baseline, with paired intervals."""
    lines = []
    for row in rows:
        cells = []
        for measure in MEASURES:
            found = row["measures"][measure]
            cells.append(f"{difference_of(row, measure).words} (over {found['strongest']})")
        lines.append([row["name"], str(row["seed"]), *cells])
    return table(["configuration", "seed", *MEASURES.values()], lines)


def verdict(rows: Sequence[Row], name: str) -> str:
    """Say of each measure from how many seeds `name` is shown to be above or below its strongest baseline."""
    own = by_name(rows)[name]
    words = []
    for measure, title in MEASURES.items():
        found = [difference_of(row, measure) for row in own]
        above = sum(one.shown and one.difference > 0 for one in found)
        below = sum(one.shown and one.difference < 0 for one in found)
        words.append(
            f"{title} above the strongest baseline from {above} of {len(own)} seeds, below from {below}"
        )
    return "; ".join(words) + "."


def compared(rows: Iterable[Row]) -> list[Row]:
    """Return the rows that are compared with the baselines, without those of the curves."""
    encoders = [asdict(one) for one in settings.ENCODERS]
    return [row for row in rows if any(one.items() <= row.items() for one in encoders)]


def curve_table(rows: Iterable[Row]) -> str:
    """Return what each configuration comes to by tracks and steps, from seed 0."""
    curves = {one.name for one in settings.CURVES}
    chosen = [row for row in rows if row["name"] in curves and row["seed"] == 0]
    lines = []
    for row in sorted(chosen, key=lambda row: (row["name"], *_size(row))):
        values = [f"{row['measures'][one]['values']['pretrained']:.1%}" for one in MEASURES]
        counts = map(str, _size(row))
        shown = difference_of(row, "same_artist").words
        lines.append([row["name"], *counts, *values, rank([row], "pretrained"), shown])
    above = "artist mAP above the strongest baseline"
    return table(["configuration", "tracks", "steps", *MEASURES.values(), "rank", above], lines)


def gains(rows: Iterable[Row], one: tuple[int, int], other: tuple[int, int]) -> str:
    """Return how artist mAP differs between two sizes, tracks and steps each, for the curves of both."""
    values = {
        (row["name"], *_size(row)): row["measures"]["same_artist"]["values"]["pretrained"]
        for row in rows
        if row["seed"] == 0
    }
    names = dict.fromkeys(curve.name for curve in settings.CURVES)
    found = {name: [values.get((name, *size)) for size in (one, other)] for name in names}
    return ", ".join(
        f"{100 * (after - before):+.1f} points ({name})"
        for name, (before, after) in found.items()
        if before is not None and after is not None
    )


def _size(row: Row) -> tuple[int, int]:
    """Return of how many tracks an encoder learnt, and in how many steps."""
    return row["training"]["tracks"], row["training"]["steps"]


def finetuning_table(rows: Sequence[Row]) -> str:
    """Return the accuracies fine-tuned and from scratch by share of the labels, and paired differences."""
    lines = []
    for fraction in sorted({row["fraction"] for row in rows}):
        kinds = by_name(row for row in rows if row["fraction"] == fraction)
        ours, theirs = kinds["fine-tuned"], kinds["from scratch"]
        right = [statistics.mean(cells) for cells in zip(*(row["right"] for row in ours), strict=True)]
        other = [statistics.mean(cells) for cells in zip(*(row["right"] for row in theirs), strict=True)]
        found = paired_difference(right, other, ours[0]["groups"])
        means = (f"{statistics.mean(row['accuracy'] for row in one):.1%}" for one in (ours, theirs))
        lines.append([f"{fraction:.0%}", *means, found.words])
    return table(["labels", "fine-tuned", "from scratch", "difference"], lines)


def tried_table(rows: Sequence[Row]) -> str:
    """Return the settings that were tried while the preset was made, and what came of each."""
    lines = [
        [row["name"], str(row["steps"]), *(_tried_cell(name, row["measures"][name]) for name in TRIED)]
        for row in rows
    ]
    return table(["settings", "steps", *TRIED.values()], lines)


def _tried_cell(name: str, value: float) -> str:
    return f"{value:.0f}" if name == "rank" else f"{value:.1%}"


def page() -> str:
    """Return docs/results.md."""
    tried, scored, tuned = (read(stage)["rows"] for stage in ("tried", "encoders", "classifiers"))
    rows = compared(scored)
    machine = read("encoders")["machine"]
    settings_tried = len({row["name"] for row in tried if row["steps"]})
    mel, first = settings.MEL, by_name(rows)["music"][0]
    crops = first["measures"]["same_track"]["items"]
    labelled, artists = first["measures"]["linear"]["items"], first["measures"]["linear"]["groups"]
    tracks, steps = _size(first)
    return f"""# Results

Written by `python -m benchmarks.learning.page` of the figures in `benchmarks/learning/results`.

## What was run, and on what

- **Music**: 200 excerpts of about 60 s in four genres, of the Emotify collection (Aljanaki, Wiering, Veltkamp
  2016; recordings of Magnatune, CC BY-NC-SA). No artist is in two splits. It is not part of this project: any
  folder with a `labels.csv` of path, label, split and group takes its place.
- **Encoders**: resnet18 on crops of {mel.seconds:g} s as {mel.n_mels} x {mel.frames} log-mels, {steps} steps
  of {settings.BATCH_SIZE} pairs, without labels, on the training and validation tracks. No artist that is
  scored in retrieval was met in training.
- **Scores**: retrieval among {crops} crops of the test tracks (the nearest crop is of the same track: R@1; of
  the crops of other tracks, those of the same artist come first: mean average precision), and kNN and
  logistic regression for the genre of all {labelled} tracks, by 5-fold cross-validation that leaves out whole
  artists, {settings.PROBE.cv} times. Both are what `siamusic-fast probe RUN --cv {settings.PROBE.cv}
  --retrieval-crops {settings.PROBE.retrieval_crops}` measures.
- **Baselines**: a random encoder, the encoder that training starts from, and mean and standard deviation over
  time of log-mels and of MFCCs.
- **Commands**, with the audio in `AUDIO`:

      python -m benchmarks.learning.study encoders AUDIO WORK
      python -m benchmarks.learning.study classifiers AUDIO WORK
      python -m benchmarks.learning.page

- **Machine**: {machine["cpu"]}, {machine["cores"]} cores, torch {machine["torch"]}.

## What came out

Means over seeds. "rank" is the effective rank of the features of the {crops} test crops.

{scores_table(rows, baselines_of="music")}

{chr(10).join(f"- **{name}**: {verdict(rows, name)}" for name in by_name(rows))}

## How sure

Difference to the strongest baseline, in points, with 95% intervals: paired, and resampled by artist
({artists} artists). "{NOT_SHOWN}" stands where the interval covers 0.

{differences_table(rows)}

## More tracks, more steps

From seed 0. With fewer tracks, drawn at random, there are as many steps, each of as many pairs.

{curve_table(scored)}

## Fine-tuning

A classifier of all layers on the encoder of `music`, and the same from random weights, scored on the test
tracks; intervals are paired and resampled by artist.

{finetuning_table(tuned)}

## What was tried

{settings_tried} settings were tried to find the preset `music`, one seed each:
trained on the training tracks and scored on these and the validation tracks, by a prototype of the measures
(10 crops of a track, MFCCs without differences, C = 0.02 in scikit-learn's logistic regression). No test
track was used. `frequency` is the stem frequency-channel; `gain` and `light` are `--aug gain` and
`--aug "gain,rrc(min_mels=0.9,min_frames=0.6),mask(p=0.3)"`; `full` is
`gain,noise,tilt,rrc,freqmask,timemask`.

{tried_table(tried)}

The test tracks were scored once for each encoder of the tables above; no setting was changed afterwards.

## What it means

- A few hundred steps are little, and 200 tracks show large differences only.
- Steps: from 100 to {steps}, artist mAP changes by {gains(scored, (tracks, 100), (tracks, steps))}.
- Tracks: from 60 to {tracks} in {steps} steps, it changes by {gains(scored, (60, steps), (tracks, steps))}.
- So with so few steps, more steps help and more tracks hardly do. Each point is of one seed, and its interval
  reaches four points to either side. What 25,000 tracks and tens of thousands of steps come to cannot be read
  off these curves.
- "track R@1" is easy for whatever hears the recording: log-mel statistics find another place of a track by
  its loudness and equalization. "artist mAP" asks for more, and has few artists here.
- The paper's tables have not been reproduced: that takes FMA and GPUs, and
  `siamusic-fast reproduce` ([studies.md](studies.md)).
"""


def main() -> None:
    if "--check" in sys.argv[1:]:
        if PAGE.read_text(encoding="utf-8") != page():
            sys.exit(f"{PAGE.name} is not what the results say: run python -m benchmarks.learning.page")
        return
    with atomic_write(PAGE) as file:
        file.write(page().encode())
    note(str(PAGE))


if __name__ == "__main__":
    main()
