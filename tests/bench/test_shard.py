from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from siamusic_fast.bench import shard
from siamusic_fast.bench.corpus import make_corpus
from siamusic_fast.bench.shard import DECODING, PACKING, RUNNING, decoding_limit, measure
from siamusic_fast.errors import ConfigError


def test_packing_and_verifying_are_measured_beside_the_limit(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "audio", 2, "mp3", seconds=6)
    found = measure(corpus, procs=1, windows=1)
    of = {one.name: one for one in found.measurements}
    assert list(of) == [DECODING, PACKING, RUNNING, "verifying"]
    assert {one.unit for one in of.values()} == {"tracks/s", "MB/s"}
    assert all(one.median > 0 for one in of.values())
    ratios = {one.name: one.median for one in found.ratios}
    assert ratios[f"{PACKING} / {DECODING}"] == of[PACKING].median / of[DECODING].median
    assert of[PACKING].limit == of[RUNNING].limit == of[DECODING].median
    assert found.settings["tracks"] == 2


def test_more_processes_than_cores_raise_no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard, "_cpu_seconds", lambda paths: 0.5)
    monkeypatch.setattr(shard, "cores", lambda: 2)
    with ThreadPoolExecutor(8) as decoders:
        assert [decoding_limit(decoders, procs, []) for procs in (1, 2, 8)] == [2, 4, 4]


def test_no_window_is_refused() -> None:
    with pytest.raises(ConfigError, match="windows = 0"):
        measure(windows=0)
