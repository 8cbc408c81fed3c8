import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from siamusic_fast.audio.fma import load_fma
from siamusic_fast.audio.scan import scan
from siamusic_fast.audio.store import open_store
from siamusic_fast.bench.corpus import make_corpus, make_shards
from siamusic_fast.bench.disk import READING_DISK, read_disk
from siamusic_fast.bench.loader import measure
from siamusic_fast.bench.network import FETCH
from siamusic_fast.bench.report import named
from siamusic_fast.bench.stages import HAND_OVER, Setup, _HandingOver, plan_stage, prepare
from siamusic_fast.bench.timing import Timing
from siamusic_fast.config import MelConfig
from siamusic_fast.pipelines.loaders import TrackLoader
from siamusic_fast.pipelines.prefetch import Prefetcher
from siamusic_fast.pipelines.reader import Reader
from siamusic_fast.processes.pool import cores
from siamusic_fast.shards.manifest import ShardSet, find_shards
from siamusic_fast.shards.pack import PackConfig, pack
from siamusic_fast.shards.verify import verify
from siamusic_fast.storage.cache import ShardCache

CPU = torch.device("cpu")
MEL = MelConfig(seconds=1.0)
QUICK = Timing(windows=1, seconds=0.05)


def small(shard_set: ShardSet, batch_size: int = 8, loader_threads: int | None = None) -> Setup:
    """Return loaders of short crops."""
    return prepare(shard_set, batch_size=batch_size, device=CPU, mel=MEL, loader_threads=loader_threads)


def test_a_batch_larger_than_the_set_is_all_of_it_and_a_warning_says_so(shard_set: ShardSet) -> None:
    with pytest.warns(UserWarning, match="batch_size = 64 is more than the 24 tracks: a batch has 24"):
        setup = small(shard_set, batch_size=64)
    assert setup.batch_size == setup.plan.batch_size == 24


def test_every_stage_and_both_engines_are_measured(shard_set: ShardSet) -> None:
    found = measure(small(shard_set, batch_size=4), ["image"], QUICK)
    assert [one.name for one in found.measurements] == [
        *("DALI: plan", "DALI: read", "DALI: read and hand over", "DALI: features"),
        *("DALI: image", "torch: image", READING_DISK),
    ]
    assert all(one.median > 0 for one in found.measurements)
    assert all(one.cpu_ms is not None for one in found.measurements[:-1])
    disk = found.measurements[-1]
    assert (disk.unit, len(disk.windows)) == ("GB/s", 3)
    of_a_crop = 1e9 * disk.median / (2 * 22_050)
    assert (
        f"44,100 bytes are read of a wav track, so the disk allows {of_a_crop:,.0f} tracks/s"
        in found.notes[0].replace("memory, which held the files, allows", "disk allows")
    )
    torch_engine = named(found.measurements, "torch: image")
    assert torch_engine.setting == f"{cores()} threads, on the CPU"
    (ratio,) = found.ratios
    assert ratio.name == "DALI: image / torch: image"
    assert ratio.median == named(found.measurements, "DALI: image").median / torch_engine.median
    assert named(found.measurements, "DALI: features").extends == HAND_OVER
    assert named(found.measurements, "DALI: image").extends == "DALI: features"


def test_of_a_url_the_wait_for_the_network_is_a_stage(shard_set: ShardSet, tmp_path: Path) -> None:
    cache = ShardCache(folder=tmp_path, size=10**9)
    remote = find_shards(f"file://{shard_set.folder}", cache=cache)
    found = measure(small(remote, batch_size=4), [], QUICK)
    assert found.measurements[0].name == FETCH
    assert found.measurements[0].median > 0
    assert found.measurements[-1].name == READING_DISK
    first = 24 / found.measurements[0].median
    assert f"so the first epoch of 24 tracks takes at least {first:,.1f} s" in found.notes[-1]
    tars = {path.stem for path in (tmp_path / "tars").glob("*.tar")}
    assert tars == {shard.sha256 for shard in shard_set.splits["training"]}
    assert not list(tmp_path.glob("bench-*"))


def test_engines_that_have_not_the_same_cores_have_no_ratio(
    shard_set: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("siamusic_fast.bench.loader.cores", lambda: 2)
    fair, unfair = (measure(small(shard_set, 4, threads), ["none"], QUICK) for threads in (2, 1))
    assert [one.name for one in fair.ratios] == ["DALI: features / torch: features"]
    assert unfair.ratios == ()


def test_shards_made_to_measure_with_are_read_like_any_others(tmp_path: Path) -> None:
    made = make_shards(tmp_path, tracks=3)
    assert verify(made.folder, procs=1).problems == ()
    with TrackLoader(made, crops=2) as tracks:
        ((mels, labels),) = list(tracks)
    assert mels.shape == (3, 2, 1, 48, 431)
    assert sorted(labels.tolist()) == [0, 0, 1]


@pytest.mark.parametrize(("kind", "rate"), [("mp3", 44_100), ("wav", 22_050)])
def test_a_corpus_of_our_own_has_whole_clips_and_no_duplicates(tmp_path: Path, kind: str, rate: int) -> None:
    corpus = make_corpus(tmp_path / "audio", 9, kind, seconds=3)
    assert len(scan(corpus, open_store(corpus.folder)).tracks) == 9
    for track in corpus.tracks:
        information = soundfile.info(Path(corpus.folder, track.path))
        assert (information.samplerate, information.channels) == (rate, 2)
        assert information.duration == pytest.approx(3, abs=0.1)


def test_the_disk_is_of_this_machine(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(4 * 2**20))
    assert read_disk([path]).median > 1e-3


def test_the_plan_of_a_stage_has_a_row_for_each_pair(shard_set: ShardSet) -> None:
    with plan_stage(small(shard_set), "image").open() as batches:
        begun = next(iter(batches))
    assert isinstance(begun, list)
    assert {len(array) for arrays in begun for array in arrays} == {8}


def test_what_is_handed_over_is_what_was_read(shard_set: ShardSet) -> None:
    setup = small(shard_set)
    reader = Reader(setup.plan.tracks, setup.frontend)
    engine = _HandingOver(setup.plan, CPU, threads=1)
    places = [(0, 0), (0, 1), (0, 2)]
    prefetcher = Prefetcher(setup.plan, reader, engine, iter(places), threads=1, depth=2)
    seen = []
    for computed in engine.run(prefetcher):
        (spans,) = computed.ready.batch.spans
        expected = np.empty((8, 22_050), dtype=np.int16)
        reader.read(spans, slice(0, 8), expected)
        assert np.array_equal(computed.views[0].numpy(), expected)
        seen.append(computed.ready.batch.place)
        prefetcher.release(computed)
    prefetcher.close()
    assert seen == places


def test_one_crop_is_read_of_a_wav_track_and_all_of_one_that_is_decoded(
    shard_set: ShardSet, fma_corpus: Path, tmp_path: Path
) -> None:
    assert prepare(shard_set, batch_size=2, device=CPU).bytes_read == 2 * 5 * 22_050
    flac = pack(load_fma(fma_corpus), tmp_path / "flac", PackConfig(codec="flac"), procs=2)
    sizes = []
    for shard in flac.splits["training"]:
        with tarfile.open(flac.path(shard.file)) as tar:
            sizes += [member.size for member in tar if member.name.endswith(".flac")]
    assert prepare(flac, batch_size=2, device=CPU).bytes_read == sum(sizes) / len(sizes)
