from pathlib import Path

import pytest

from siamusic_fast.bench.corpus import make_corpus
from siamusic_fast.bench.shard import PACKING, RUNNING, VERIFYING, measure
from siamusic_fast.errors import ConfigError


def test_packing_and_verifying_are_measured_in_turns_with_what_is_beside_them(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "audio", 2, "mp3", seconds=6)
    found = measure(corpus, procs=1, windows=1, beside={"limit": lambda: 7.0})
    of = {one.name: one for one in found.measurements}
    assert list(of) == ["limit", PACKING, RUNNING, VERIFYING]
    assert {one.unit for one in of.values()} == {"tracks/s", "MB/s"}
    assert all(one.median > 0 for one in of.values())
    assert (of["limit"].windows, of["limit"].ours, of[PACKING].ours) == ((7.0,), False, True)
    assert found.settings["tracks"] == 2


def test_no_window_is_refused() -> None:
    with pytest.raises(ConfigError, match="windows = 0"):
        measure(windows=0)
