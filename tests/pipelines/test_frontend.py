"""Mean and deviation of the features: what is estimated, and that it is kept."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest

from siamusic_fast.config import MelConfig
from siamusic_fast.errors import ConfigError, DataError
from siamusic_fast.frontend import Frontend
from siamusic_fast.pipelines import estimate as product
from siamusic_fast.pipelines.estimate import estimate_frontend
from siamusic_fast.pipelines.loaders import TwoViewLoader
from siamusic_fast.shards.frontends import read_frontends, write_frontends
from siamusic_fast.shards.manifest import FRONTENDS, ShardSet, find_shards
from tests.pipelines.conftest import PackAudio, chord
from tests.pipelines.helpers import MEL, RATE, Array
from tests.pipelines.reference import lengthened, pcm_of, torchaudio_log_mel


@pytest.fixture(scope="module")
def audio_set(pack_audio: PackAudio) -> ShardSet:
    """Nine tracks of 1.2 s to 2 s, and a validation track that has no say."""
    rng = np.random.default_rng(0)
    tracks = {f"{row:06d}": chord(round((1.2 + 0.1 * row) * RATE), rng) for row in range(9)}
    tracks["000009"] = 0.9 * rng.standard_normal(2 * RATE).clip(-1, 1)
    return pack_audio(tracks, splits={"000009": "validation"})


def statistics(images: list[Array]) -> tuple[float, float]:
    return float(np.mean(images)), float(np.std(images))


@pytest.fixture
def shard_set(audio_set: ShardSet) -> ShardSet:
    """The same, of which nothing has been estimated yet."""
    audio_set.path(FRONTENDS).unlink(missing_ok=True)
    return audio_set


@pytest.mark.parametrize("short_tracks", ["repeat", "pad"])
def test_constants_are_those_of_whole_tracks(shard_set: ShardSet, short_tracks: str) -> None:
    mel = MelConfig(seconds=0.5)
    # The median of 1.6 s takes three crops, from the first second to the last.
    long = [lengthened(audio, mel.samples, short_tracks) for audio in pcm_of(shard_set)]
    images = [
        torchaudio_log_mel(audio[start : start + mel.samples], mel)
        for audio in long
        for start in np.floor(np.linspace(0, 1, 3) * (len(audio) - mel.samples) + 0.5).astype(int)
    ]
    found = estimate_frontend(shard_set, mel, short_tracks=short_tracks)
    assert (found.mel, found.short_tracks) == (mel, short_tracks)
    np.testing.assert_allclose((found.mean, found.std), statistics(images), rtol=1e-5)


@pytest.mark.filterwarnings("ignore:At least one mel filterbank")
def test_each_band_has_a_mean_and_a_deviation_of_its_own(
    pack_audio: PackAudio, monkeypatch: pytest.MonkeyPatch
) -> None:
    mel = MelConfig(seconds=0.5, n_mels=128)  # some bands are narrower than a bin and stay empty
    rng = np.random.default_rng(1)
    shard_set = pack_audio({f"{row:06d}": chord(RATE // 2, rng) for row in range(4)})
    images = np.stack([torchaudio_log_mel(audio, mel) for audio in pcm_of(shard_set)])
    found = estimate_frontend(shard_set, mel, normalization="band")
    np.testing.assert_allclose(found.mean, images.mean(axis=(0, 2)), rtol=1e-5)
    stds = images.std(axis=(0, 2))
    assert stds.min() == 0
    np.testing.assert_allclose(found.std, np.maximum(stds, 1.0), rtol=1e-4)
    whole = estimate_frontend(shard_set, mel)
    np.testing.assert_allclose((whole.mean, whole.std), statistics(list(images)), rtol=1e-5)
    assert Frontend.load(json.loads(json.dumps(found.dump()))) == found
    monkeypatch.setattr(product, "open_tracks", None)  # nothing is read any more
    assert estimate_frontend(shard_set, mel, normalization="band") == found
    assert estimate_frontend(shard_set, mel) == whole
    with pytest.raises(ConfigError, match="normalization = 'bands' is unknown: choose one of global, band"):
        estimate_frontend(shard_set, mel, normalization="bands")


def test_short_tracks_count_as_they_are_lengthened(shard_set: ShardSet) -> None:
    mel = MelConfig(seconds=1.9)
    for short_tracks in ("repeat", "pad"):
        images = [
            torchaudio_log_mel(lengthened(audio, mel.samples, short_tracks)[start:][: mel.samples], mel)
            for audio in pcm_of(shard_set)
            for start in [(len(lengthened(audio, mel.samples, short_tracks)) - mel.samples + 1) // 2]
        ]
        found = estimate_frontend(shard_set, mel, short_tracks=short_tracks)
        np.testing.assert_allclose((found.mean, found.std), statistics(images), rtol=1e-5)


def test_a_loader_takes_the_paper_s_features_at_the_rate_of_the_shards(pack_audio: PackAudio) -> None:
    long = {f"{row:06d}": 0.1 * np.random.default_rng(row).standard_normal(6 * 16_000) for row in range(3)}
    shard_set = pack_audio(long, rate=16_000)
    with TwoViewLoader(shard_set, aug="none", batch_size=3) as loader:
        assert loader.frontend == estimate_frontend(shard_set)
        assert loader.frontend.mel == MelConfig(sample_rate=16_000)
        (view, _) = next(iter(loader))
    assert abs(float(view.mean())) < 0.05
    assert abs(float(view.std()) - 1) < 0.05


def test_what_was_estimated_is_kept_and_read_again(
    shard_set: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = estimate_frontend(shard_set, MEL)
    finer = estimate_frontend(shard_set, dataclasses.replace(MEL, n_mels=96))
    padded = estimate_frontend(shard_set, MEL, short_tracks="pad")
    assert finer.mean != first.mean
    kept = shard_set.path(FRONTENDS).read_bytes()
    assert len(json.loads(kept)["entries"]) == 3
    monkeypatch.setattr(product, "open_tracks", None)  # nothing is read any more
    assert estimate_frontend(shard_set, MEL) == first
    assert estimate_frontend(find_shards(shard_set.folder), MEL, short_tracks="pad") == padded
    assert shard_set.path(FRONTENDS).read_bytes() == kept


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null", '{"format_version": 1, "entries": []}'])
def test_a_damaged_file_is_named_and_measured_again(shard_set: ShardSet, text: str) -> None:
    first = estimate_frontend(shard_set, MEL)
    kept = shard_set.path(FRONTENDS).read_bytes()
    shard_set.path(FRONTENDS).write_text(text)
    with pytest.warns(UserWarning, match=r"frontends\.json cannot be used \(.*measured again"):
        assert estimate_frontend(shard_set, MEL) == first
    assert shard_set.path(FRONTENDS).read_bytes() == kept


def test_entries_of_other_shards_are_not_used(shard_set: ShardSet) -> None:
    first = estimate_frontend(shard_set, MEL)
    (entry,) = read_frontends(shard_set.folder)
    other = {"key": {**entry["key"], "shards": "other"}, "mean": 0.0, "std": 1.0}
    write_frontends(shard_set.folder, [other])
    assert estimate_frontend(shard_set, MEL) == first
    assert read_frontends(shard_set.folder) == [entry]


@pytest.mark.parametrize("name", ["mean", "std"])
@pytest.mark.parametrize("value", [None, "loud", True, [], [1.0, 2.0], 0, math.nan, -math.inf, -1e4])
def test_constants_that_cannot_be_are_measured_again(shard_set: ShardSet, name: str, value: object) -> None:
    first = estimate_frontend(shard_set, MEL)
    (entry,) = read_frontends(shard_set.folder)
    write_frontends(shard_set.folder, [{**entry, name: value}])
    with pytest.warns(UserWarning, match="measured again"):
        assert estimate_frontend(shard_set, MEL) == first


def test_a_folder_that_cannot_be_written_to_serves_as_well(
    shard_set: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(folder: Path, entries: object) -> None:
        raise PermissionError(13, "Permission denied", folder)  # root may write anywhere

    monkeypatch.setattr(product, "write_frontends", refuse)
    found = estimate_frontend(shard_set, MEL)
    assert not shard_set.path(FRONTENDS).exists()
    monkeypatch.undo()
    assert estimate_frontend(shard_set, MEL) == found


def test_crops_longer_than_every_track_are_refused(shard_set: ShardSet) -> None:
    with pytest.raises(
        ConfigError, match=r"seconds = 2.5 .*longest track in .*, 2 s: use 2 or less .*--seconds 2\)"
    ):
        estimate_frontend(shard_set, MelConfig(seconds=2.5))


def test_one_constant_sound_everywhere_is_refused(pack_audio: PackAudio) -> None:
    square = np.tile([0.25, -0.25], RATE)
    with pytest.raises(DataError, match="holds the same sound everywhere"):
        estimate_frontend(pack_audio({"000000": square}), MelConfig(seconds=0.5, n_mels=1, floor_db=-1.0))


def test_a_frontend_survives_json(tmp_path: Path) -> None:
    frontend = Frontend(
        mel=MelConfig(n_mels=64, win_length=400), mean=-31.25, std=0.1 + 0.2, short_tracks="pad"
    )
    assert Frontend.load(json.loads(json.dumps(frontend.dump()))) == frontend


@pytest.mark.parametrize(("mean", "std"), [(0.0, 0.0), (0.0, -1.0), (float("nan"), 1.0), (0.0, float("inf"))])
def test_constants_that_cannot_normalize_are_refused(mean: float, std: float) -> None:
    with pytest.raises(ConfigError, match=f"mean = {mean:g} dB and std = {std:g} dB must be finite"):
        Frontend(mel=MEL, mean=mean, std=std)
    with pytest.raises(ConfigError, match=f"mean = {mean:g} dB and std = {std:g} dB must be finite"):
        Frontend(mel=MEL, mean=(0.0,) * 47 + (mean,), std=(1.0,) * 47 + (std,))
    with pytest.raises(ConfigError, match=r"mean has 1 and std 48 values: give one number .* tuple of 48"):
        Frontend(mel=MEL, mean=mean, std=(1.0,) * 48)
    with pytest.raises(ConfigError, match="short_tracks = 'loop' is unknown: choose one of repeat, pad"):
        Frontend(mel=MEL, mean=0, std=1, short_tracks="loop")


def test_a_crop_of_the_shards_gives_a_whole_crop_of_the_features() -> None:
    # 0.98 s at 44,100 Hz are 43,218 samples; 21,608 of 22,050 Hz would give two less.
    odd = Frontend(mel=MelConfig(sample_rate=44_100, seconds=0.98), mean=0, std=1)
    assert odd.crop_samples(RATE) == 21_609
    assert odd.crop_samples(44_100) == 43_218
    assert (
        Frontend(mel=MelConfig(sample_rate=RATE, seconds=0.00002 + 0.5), mean=0, std=1).crop_samples(16_000)
        == 8_000
    )
