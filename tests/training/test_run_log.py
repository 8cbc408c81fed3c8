import errno
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from time import sleep

import numpy as np
import pytest
import torch

from siamusic_fast.config import PROJECTION_DIMS
from siamusic_fast.training.run_log import (
    RunLog,
    Stopwatch,
    collapse_measure,
    healthy_collapse,
    read_log,
)

WIDTH = PROJECTION_DIMS["simsiam"]


class Full(io.StringIO):
    """A file on a disk that is full."""

    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_log_that_is_to_keep_going_has_a_gap_where_the_disk_was_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RunLog(tmp_path, (), keep_going=True) as log:
        log.write(1, loss=1.0)
        with monkeypatch.context() as full:
            full.setattr(log, "_lines", Full())
            with pytest.warns(UserWarning, match="log of the run has a gap: No space left on device"):
                log.write(2, loss=2.0)
        log.write(3, loss=3.0)
    with RunLog(tmp_path, ()) as log, monkeypatch.context() as full:
        full.setattr(log, "_lines", Full())
        with pytest.raises(OSError, match="No space"):
            log.write(4, loss=4.0)
    assert [line["step"] for line in read_log(tmp_path)] == [1, 3]


def test_collapse_of_outputs_all_the_same_is_zero() -> None:
    one = torch.randn(1, 64)
    lengths = torch.tensor([[1.0], [2.0], [3.0]])
    assert collapse_measure(lengths * one).item() == pytest.approx(0, abs=1e-7)


def test_collapse_of_gaussian_outputs_is_one_over_root_d() -> None:
    z = torch.randn(4096, 256, generator=torch.Generator().manual_seed(0))
    assert collapse_measure(z).item() == pytest.approx(1 / 16, rel=0.01)


def test_a_total_collapse_is_warned_of_behind_a_batch_norm() -> None:
    # All rows alike but one: batch norm makes that one sqrt(B - 1) and the others -1 / sqrt(B - 1).
    rows = torch.zeros(64, WIDTH)
    rows[0] = torch.randn(WIDTH, generator=torch.Generator().manual_seed(0))
    found = collapse_measure(torch.nn.BatchNorm1d(WIDTH, affine=False)(rows)).item()
    assert found == pytest.approx(healthy_collapse(WIDTH) * 2 / 64**0.5, rel=0.02)
    assert found < healthy_collapse(WIDTH) / 2
    healthy = torch.randn(64, WIDTH, generator=torch.Generator().manual_seed(0))
    assert collapse_measure(healthy).item() > healthy_collapse(WIDTH) / 2


def test_collapse_worked_by_numpy() -> None:
    z = np.random.default_rng(0).normal(2, 3, (7, 5)).astype(np.float32)
    expected = (z / np.linalg.norm(z, axis=1, keepdims=True)).std(axis=0, ddof=1).mean()
    assert collapse_measure(torch.from_numpy(z)).item() == pytest.approx(expected, rel=1e-5)


def test_waiting_is_the_time_that_batches_take_to_arrive() -> None:
    def slow_batches() -> Iterator[int]:
        for number in range(3):
            sleep(0.05)
            yield number

    stopwatch = Stopwatch(torch.device("cpu"))
    for _ in stopwatch.timed(slow_batches()):
        sleep(0.02)
    assert stopwatch.batches == 3
    seconds, waiting = stopwatch.read()
    assert waiting >= 0.15
    assert seconds - waiting >= 0.06
    assert stopwatch.total_waited == waiting
    assert (stopwatch.batches, stopwatch.read()[1]) == (0, 0)


def test_a_log_is_json_lines(tmp_path: Path) -> None:
    with RunLog(tmp_path, ()) as log:
        log.write(10, loss=-0.25)
        log.write(20, loss=-0.5)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [{"step": 10, "loss": -0.25}, {"step": 20, "loss": -0.5}]


def test_a_resumed_log_counts_each_step_once(tmp_path: Path) -> None:
    with RunLog(tmp_path, ()) as log:
        log.write(10, loss=1.0)
        log.write(20, loss=2.0)
    with RunLog(tmp_path, (), resume_at=10) as log:
        log.write(20, loss=3.0)
        log.write(30, loss=4.0)
    assert [(line["step"], line["loss"]) for line in read_log(tmp_path)] == [(10, 1.0), (20, 3.0), (30, 4.0)]


def test_a_line_that_a_crash_cut_off_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 10, "loss": 1.0}\n{"step": 20, "lo')
    assert read_log(tmp_path) == [{"step": 10, "loss": 1.0}]


def test_what_follows_a_line_that_was_cut_off_is_whole(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 10, "loss": 1.0}\n{"step": 20, "lo')
    for step in (20, 30):
        with RunLog(tmp_path, (), resume_at=10) as log:
            log.write(step, loss=2.0)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert lines[1:] == ['{"step": 20, "lo', '{"step": 20, "loss": 2.0}', '{"step": 30, "loss": 2.0}']
    assert [line["step"] for line in read_log(tmp_path)] == [10, 20, 30]


def test_other_ranks_leave_no_files(tmp_path: Path) -> None:
    with RunLog(tmp_path, ("tensorboard",), active=False) as log:
        log.write(10, loss=1.0)
    assert list(tmp_path.iterdir()) == []
