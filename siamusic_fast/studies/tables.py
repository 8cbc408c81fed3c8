"""The tables of a study, as Markdown for people and as CSV for programs."""

from collections.abc import Iterator, Sequence

from siamusic_fast.files import atomic_write
from siamusic_fast.shards.tables import write_table
from siamusic_fast.studies.results import SCORES, Answer, RowScores, StudyResult, column_name

MARKDOWN = "table.md"
TABLE = "table.csv"
ANSWERS = "differences.csv"
TEMPLATE = "paper-template.csv"
"""A file for `--paper`, with the rows of the study and no scores."""
HEADINGS = ("accuracy", "recall", "precision", "F1")
"""Headings of `SCORES`, in their order."""
SIDE_BY_SIDE = "Audio and image augmentation side by side"
"""Heading of the table that is arranged as in the paper."""
NOT_GIVEN = "not given"
NOT_FINISHED = "not finished"


def write(result: StudyResult) -> None:
    """Write table.md, table.csv and differences.csv into the folder of the study.

    Where the paper has such a table, also paper-template.csv, unless there is one, which may be filled in.
    """
    with atomic_write(result.folder / MARKDOWN) as file:
        file.write(markdown(result).encode())
    columns = [column_name(heading) for heading in result.study.columns]
    with_intervals = [f"{name}{end}" for name in SCORES for end in ("", "_low", "_high")]
    paper = [f"paper_{name}" for name in SCORES]
    rows = (
        [
            *(*one.row, one.protocol, len(one.seeds), result.tracks),
            *(_number(value) for name in SCORES for value in _with_interval(one, name)),
            " ".join(_number(value) for value in one.by_seed),
            *(_number(one.paper.get(name)) for name in SCORES),
        ]
        for one in result.rows
    )
    head = (*columns, "protocol", "seeds", "test_tracks", *with_intervals, "accuracy_by_seed", *paper)
    write_table(result.folder / TABLE, head, rows)
    differences = (
        (one.words, one.protocol, *map(_number, (found.difference, found.low, found.high)), found.shown)
        if (found := one.found)
        else (one.words, one.protocol, "", "", "", "")
        for one in result.answers
    )
    write_table(
        result.folder / ANSWERS, ("what", "protocol", "difference", "low", "high", "shown"), differences
    )
    if result.study.kind == "reproduce" and not (result.folder / TEMPLATE).exists():
        empty = ((*row, *[""] * len(SCORES)) for row in result.study.rows)
        write_table(result.folder / TEMPLATE, (*columns, *SCORES), empty)


def markdown(result: StudyResult) -> str:
    """Return the tables and what they say."""
    lines = [f"# {result.study.title}", ""]
    if result.study.remark:
        lines += [f"> **{result.study.remark}**", ""]
    lines += [sentence for part in about(result) for sentence in (part, "")]
    if result.study.kind == "reproduce":
        lines += [f"## {SIDE_BY_SIDE}", "", *_table(*side_by_side(result)), ""]
    lines += [
        "## Scores",
        "",
        *_table(score_head(result), [score_cells(result, one) for one in result.rows]),
        "",
    ]
    lines += [*(f"- {sentence}" for sentence in explained(result)), ""]
    if result.answers:
        lines += [f"## {result.study.asked}", ""]
        lines += _table(
            ("what", "protocol", "difference of accuracy"), [answer_cells(one) for one in result.answers]
        )
        lines.append("")
    if result.failed:
        lines += [
            "## Cells that failed",
            "",
            *(f"- {name}: {words}" for name, words in result.failed.items()),
            "",
        ]
    return "\n".join(lines)


def about(result: StudyResult) -> Iterator[str]:
    """Yield sentences on what was run, and on what."""
    study = result.study
    epochs = _count(study.cells[0].config.epochs, "epoch")
    finetune_epochs = _count(next(iter(study.finetuning.values())).epochs, "epoch")
    runs, rows = len(study.cells), len(study.rows)
    each = f"{rows} rows with {_count(runs // rows, 'seed')} each"
    yield (
        f"Each of {runs} cells ({each}) is a pre-training of {epochs} by {study.cells[0].config.method}, "
        f"and from its encoder a classifier of {finetune_epochs} for each protocol "
        f"({', '.join(study.finetuning)}). It learns from the training tracks of {study.test.folder.name} "
        f"and is scored on its {result.tracks:,} test tracks, each once."
    )
    grouped = (
        f"{result.groups:,} groups of tracks, such as artists, are" if result.groups < result.tracks else ""
    )
    yield (
        f"Chance is {result.chance:.1%}. Intervals hold 95% of 1,000 bootstrap samples, in which "
        f"{grouped or 'the test tracks are'} drawn anew."
    )


def side_by_side(result: StudyResult) -> tuple[list[str], list[list[str]]]:
    """Return head and rows of a table with a row for each corpus, backbone and protocol.

    Its columns are each score with each recipe, in the manner of Tables 2 and 3 of Kim, Hong, Lee 2022; the
    paper's own have rows of their own where they are given.
    """
    augs = list(dict.fromkeys(row[-1] for row in result.study.rows))
    head = [*result.study.columns[:-1], "protocol"]
    head += [f"{heading}: {aug}" for heading in HEADINGS for aug in augs]
    found = {(one.row, one.protocol): one for one in result.rows}
    rows = []
    for place in dict.fromkeys(row[:-1] for row in result.study.rows):
        for protocol in result.study.finetuning:
            of_augs = [found[(*place, aug), protocol].scores for aug in augs]
            cells = [percent(one[name]) if one else NOT_FINISHED for name in SCORES for one in of_augs]
            rows.append([*place, protocol, *cells])
        of_paper = [found[(*place, aug), protocol].paper for aug in augs]
        if any(of_paper):
            cells = [percent(one[name]) if name in one else NOT_GIVEN for name in SCORES for one in of_paper]
            rows.append([*place, "in the paper", *cells])
    return head, rows


def score_head(result: StudyResult) -> tuple[str, ...]:
    """Return the headings of the table of scores."""
    paper = ("paper: accuracy", *(f"paper: {name}" for name in HEADINGS[1:])) if _has_paper(result) else ()
    return (
        *result.study.columns,
        "protocol",
        *paper,
        "accuracy",
        "95% interval",
        "over seeds",
        *HEADINGS[1:],
    )


def score_cells(result: StudyResult, one: RowScores) -> list[str]:
    """Return the cells of a row of the table of scores."""
    paper = [percent(one.paper[name]) if name in one.paper else NOT_GIVEN for name in SCORES]
    shown = paper if _has_paper(result) else []
    if not one.seeds:
        return [*one.row, one.protocol, *shown, NOT_FINISHED, *[""] * (1 + len(HEADINGS))]
    low, high = one.intervals["accuracy"]
    return [
        *(
            *one.row,
            one.protocol,
            *shown,
            percent(one.scores["accuracy"]),
            f"{percent(low)} to {percent(high)}",
        ),
        spread(one),
        *(percent(one.scores[name]) for name in SCORES[1:]),
    ]


def explained(result: StudyResult) -> list[str]:
    """Return sentences on how to read the table of scores."""
    found = [
        "accuracy is the mean over seeds, and its interval is over test tracks. Recall, precision and F1 "
        "are means over the classes.",
        "over seeds: the lowest and the highest accuracy of one seed; with one seed nothing is known of "
        "that.",
        "protocol clean: the classifier of the epoch that is best on the validation tracks, fine-tuned with "
        "our settings; paper: that of the last epoch, with the paper's settings.",
    ]
    if result.study.kind == "reproduce" and not _has_paper(result):
        found.append(
            "The paper's own figures are not in this table, as none was given: `--paper FILE.csv` puts them "
            f"beside ours, and {TEMPLATE} in the folder of the study has the rows to fill in."
        )
    return found


def answer_cells(one: Answer) -> list[str]:
    """Return the cells of a row of the table of differences."""
    return [one.words, one.protocol, one.found.words if one.found else NOT_FINISHED]


def spread(one: RowScores) -> str:
    """Return the range of accuracy over seeds in words."""
    if len(one.seeds) < 2:
        return "1 seed"
    return f"{percent(min(one.by_seed))} to {percent(max(one.by_seed))} ({len(one.seeds)} seeds)"


def percent(value: float) -> str:
    """Return a share as one reads it."""
    return f"{value:.1%}"


def _has_paper(result: StudyResult) -> bool:
    return any(one.paper for one in result.rows)


def _with_interval(one: RowScores, name: str) -> tuple[float | None, ...]:
    return (one.scores[name], *one.intervals[name]) if one.seeds else (None, None, None)


def _count(number: int, unit: str) -> str:
    return f"{number} {unit}{'' if number == 1 else 's'}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a Markdown table, its columns aligned."""
    cells = [[cell.replace("|", r"\|") for cell in row] for row in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in cells]
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]
