"""The page of a study: one HTML file that needs no network."""

import base64
from pathlib import Path

from siamusic_fast import __version__
from siamusic_fast.analysis.report.page import style, templates
from siamusic_fast.files import atomic_write
from siamusic_fast.studies import figures, tables
from siamusic_fast.studies.results import StudyResult

PAGE = "report.html"


def write(result: StudyResult) -> None:
    """Write the page of `result`, whose pictures have been drawn, into the folder of the study."""
    study, config = result.study, result.study.cells[0].config
    shared = {
        "pre-training": f"{config.method}, {config.epochs} epochs, batches of {config.batch_size} in each of "
        f"{study.processes} process{'' if study.processes == 1 else 'es'}, {config.optimizer} with a "
        f"learning rate of {config.lr:g} ({config.schedule}) and a weight decay of {config.weight_decay:g}",
        "features": f"{config.mel.n_mels} x {config.mel.frames} of {config.mel.seconds:g} s at "
        f"{config.mel.sample_rate:,} Hz",
        "seeds": ", ".join(str(seed) for seed in sorted({cell.config.seed for cell in study.cells})),
        "pre-trained on": ", ".join(dict.fromkeys(cell.data.place for cell in study.cells)),
        "fine-tuned and tested on": str(study.test.folder),
        **{f"fine-tuning, {name}": f"{one.epochs} epochs" for name, one in study.finetuning.items()},
    }
    html = (
        templates(Path(__file__).parent)
        .get_template("page.html")
        .render(
            result=result,
            study=study,
            style=style(),
            version=__version__,
            about=list(tables.about(result)),
            side_by_side=tables.side_by_side(result) if study.kind == "reproduce" else None,
            side_by_side_title=tables.SIDE_BY_SIDE,
            head=tables.score_head(result),
            columns=len(study.columns) + 1,
            rows=[(one, tables.score_cells(result, one)) for one in result.rows],
            explained=tables.explained(result),
            answers=[tables.answer_cells(one) for one in result.answers],
            pictures={name: _data_uri(result.folder / name) for name in (figures.SCORES, figures.VIEWS)},
            shared=shared,
        )
    )
    with atomic_write(result.folder / PAGE) as file:
        file.write(html.encode())


def _data_uri(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
