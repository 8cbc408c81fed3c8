"""The page of promises: each has a test and is made where it says, and the page has a row for each."""

import ast
import json
from collections import Counter
from pathlib import Path

import pytest

from tests.faults import page, run
from tests.faults.promises import PEERS, PROMISES, TOPICS, Promise
from tests.faults.run import Recorder, Row, keep, plan, read, table

ROOT = Path(__file__).parent.parent.parent
ODD = Row("pack killed", tried=50, survived=49, seconds=90.0, date="2026-11-26")
SOAK = Row("soak", tried=1000, survived=1000, seconds=30.0, date="2026-11-27")


def functions(path: Path) -> set[str]:
    return {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("promise", PROMISES, ids=lambda promise: promise.name)
def test_a_promise_has_a_test_and_is_made_in_the_docs(promise: Promise) -> None:
    path, name = promise.test.split("::")
    assert name in functions(ROOT / path)
    assert promise.topic in TOPICS.keys() & PEERS.keys()
    for said in promise.said:
        document, _, words = said.partition(": ")
        assert words in (ROOT / document).read_text(), said


def test_every_test_of_the_suite_is_behind_one_promise() -> None:
    counts = Counter(promise.test for promise in PROMISES)
    assert set(counts.values()) == {1}
    found = {
        f"tests/faults/{path.name}::{name}"
        for path in Path(__file__).parent.glob("test_*.py")
        for name in functions(path)
        if name.startswith("test_") and path.name != Path(__file__).name
    }
    assert found <= counts.keys()


def test_rows_are_kept_beside_those_of_other_promises(tmp_path: Path) -> None:
    path = tmp_path / "new" / "faults.json"
    keep([SOAK, Row("pack killed", tried=1)], path)
    keep([ODD], path)
    assert read(path).rows == (ODD, SOAK)
    path.write_text(json.dumps({"format": 0}))
    with pytest.raises(SystemExit, match="has format 0, not 1: run `make faults`"):
        read(path)


def test_the_page_has_a_row_for_each_promise_with_what_was_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep([ODD, SOAK], tmp_path / "abacus" / "faults.json")
    monkeypatch.setattr(page, "RESULTS", tmp_path)
    lines = page.page().splitlines()
    for promise in PROMISES:
        [line] = [line for line in lines if promise.words in line]
        figures = {"pack killed": "| 50 | 49 | 90 |", "soak": "| 1,000 | 1,000 | 30 |"}
        assert figures.get(promise.name, "| not tried | |  |") in line
    assert (
        "In all: 1,049 of 1,050 tries, in 2 minutes (tried in several runs, 2026-11-26 to 2026-11-27)."
        in lines
    )


def test_the_table_says_which_promise_is_broken() -> None:
    _, first, second, third = table([ODD, SOAK, Row("restarts")]).splitlines()
    assert first.split()[:4] == ["50", "49", "90.0", "BROKEN:"]
    assert "BROKEN" not in second
    assert third.split()[3:5] == ["not", "tried:"]


def test_the_plan_has_totals_and_expected_minutes() -> None:
    [killed] = [promise for promise in PROMISES if promise.name == "pack killed"]
    lines = plan(Counter({"pack killed": 1, "restarts": 2}), share=0.5).splitlines()
    assert lines[1].split()[:2] == ["25", f"{25 * killed.seconds / 60:.1f}"]
    assert lines[-1].split()[0] == "27"


PROGRAM = """
import pytest
from tests.faults.tries import Tries
@pytest.fixture
def tries(request):
    found = Tries(4)
    request.node.user_properties.append(("tries", found.counts))
    return found
def test_memory_files_and_threads_stay_as_they_are(tries):
    for number in tries:
        with tries.attempt(number):
            assert number != 2
"""


def test_a_test_goes_on_after_a_failed_try_and_all_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "test_one.py").write_text(PROGRAM)
    [soak] = run.chosen([run.SOAK])
    monkeypatch.setattr(run, "promise_of", lambda node: soak)
    recorder = Recorder(1.0)
    options = ["-c", "/dev/null", "--rootdir", str(tmp_path), "-p", "no:cacheprovider"]
    assert pytest.main([*options, str(tmp_path / "test_one.py")], plugins=[recorder]) == 1
    row = recorder.rows[run.SOAK]
    assert (row.tried, row.survived) == (4, 3)
    assert "1 of 4 tries failed" in capsys.readouterr().out
