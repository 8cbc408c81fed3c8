"""Encoders and classifiers hear audio of any kind as evaluation hears packed tracks."""

import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from siamusic_fast.audio.decode import decode
from siamusic_fast.embedding.sources import FileSource, ShardSource, open_sources
from siamusic_fast.errors import ConfigError, DataError
from siamusic_fast.evaluation.features import extract_features
from siamusic_fast.models.networks import Encoder
from siamusic_fast.models.pretrained import load_classifier, load_encoder
from siamusic_fast.pipelines.loaders import TrackLoader
from siamusic_fast.shards.manifest import ShardSet
from siamusic_fast.shards.tables import read_tracks
from tests.conftest import tone
from tests.runs import FRONTEND, MEL, save_classifier, save_run

RATE = MEL.sample_rate
assert_close = partial(torch.testing.assert_close, rtol=1e-3, atol=1e-4)


@pytest.fixture(scope="module")
def encoder(pretrained: Path) -> Encoder:
    return load_encoder(pretrained)


def test_files_have_the_features_that_evaluation_computes_of_the_packed_tracks(
    encoder: Encoder, fma_corpus: Path, shard_set: ShardSet
) -> None:
    paths = {row.track_id: row.path for row in read_tracks(shard_set.folder)}
    names, expected, *_ = extract_features(encoder, shard_set, "test", FRONTEND, crops=4, backend="torch")
    files = [fma_corpus / "fma_medium" / paths[name] for name in names]
    found = encoder.embed(files, crops=4)
    assert found.paths == [str(file) for file in files]
    assert_close(found.vectors, expected)


@pytest.mark.parametrize("packed", ["shard_set", "segments"])
def test_a_shard_set_has_the_features_that_evaluation_computes(
    encoder: Encoder, packed: str, request: pytest.FixtureRequest
) -> None:
    shard_set: ShardSet = request.getfixturevalue(packed)
    names, expected, labels, *_ = extract_features(
        encoder, shard_set, "test", FRONTEND, crops=4, backend="torch"
    )
    found = encoder.embed(shard_set, splits=["test"], crops=4)
    classes = shard_set.classes
    labelled = [row for row, label in enumerate(found.labels) if label]
    assert [found.keys[row] for row in labelled] == names
    assert [classes.index(found.labels[row]) for row in labelled] == labels.tolist()
    assert set(found.splits) == {"test"}
    assert_close(found.vectors[labelled], expected)


def test_an_existing_path_with_a_slash_is_not_taken_for_the_name_of_shards(
    shard_set: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine").mkdir()
    Path("mine/song.mp3").touch()
    Path("data/shards").mkdir(parents=True)
    Path("data/shards/mine").symlink_to(shard_set.folder)
    for word, kind in (("mine", ShardSource), ("mine/", FileSource), ("./mine", FileSource)):
        assert [type(source) for source in open_sources(word).sources] == [kind], word


def test_a_track_is_covered_by_its_crops_or_has_one_every_hop(encoder: Encoder, tmp_path: Path) -> None:
    path = tmp_path / "song.wav"
    soundfile.write(path, tone(1.6, 440, RATE, np.random.default_rng(0)), RATE)
    covering = encoder.embed(path, per_crop=True)
    assert covering.starts == pytest.approx([0, 1.1 / 3, 2.2 / 3, 1.1], abs=1 / RATE)
    assert covering.seconds == [1.6] * 4
    assert_close(encoder.embed(path).vectors[0], covering.vectors.mean(dim=0))
    hops = encoder.embed(path, hop_seconds=0.4, per_crop=True)
    assert hops.starts == pytest.approx([0, 0.4, 0.8], abs=1 / RATE)
    assert_close(hops.vectors[0], covering.vectors[0])
    with pytest.raises(ConfigError, match=r"crops = 2 and hop_seconds = 0\.4 exclude each other"):
        encoder.embed(path, crops=2, hop_seconds=0.4)


def test_waveforms_have_the_features_of_the_files_that_they_are_read_from(
    encoder: Encoder, tmp_path: Path
) -> None:
    audio = np.stack([tone(1.0, pitch, 44_100, np.random.default_rng(0)) for pitch in (220, 440)])
    for row, wave in enumerate(audio):
        soundfile.write(tmp_path / f"{row}.wav", wave, 44_100, subtype="FLOAT")
    expected = encoder.embed(tmp_path)
    found = encoder.embed(torch.from_numpy(audio), sample_rate=44_100)
    assert found.keys == ["0", "1"]
    assert_close(found.vectors, expected.vectors)
    alone = encoder.embed(audio[1], sample_rate=44_100)
    assert_close(alone.vectors, expected.vectors[1:])
    resampled = torch.from_numpy(decode(tmp_path / "1.wav", RATE))
    assert_close(encoder.embed(resampled, sample_rate=RATE).vectors, expected.vectors[1:])


def test_mels_go_through_the_network_as_they_are_and_gradients_flow(
    encoder: Encoder, shard_set: ShardSet
) -> None:
    with TrackLoader(shard_set, splits=["test"], crops=1, frontend=FRONTEND, batch_size=3) as loader:
        mels, _ = next(iter(loader))
    expected = encoder(mels[:, 0])
    assert expected.requires_grad
    assert_close(encoder.embed(mels[:, 0]).vectors, expected.detach())
    with pytest.raises(ConfigError, match=r"\(3, 1, 9, 22\) do not fit: \[B, 1, 16, frames\]"):
        encoder.embed(torch.zeros(3, 1, 9, 22))


@pytest.mark.parametrize("rule", ["repeat", "pad"])
def test_a_track_shorter_than_a_crop_is_lengthened_as_in_training(rule: str, tmp_path: Path) -> None:
    encoder = load_encoder(save_run(tmp_path / "run", short_tracks=rule))
    short = tone(0.2, 440, RATE, np.random.default_rng(0))
    longer = np.tile(short, 3) if rule == "repeat" else np.pad(short, (0, MEL.samples - len(short)))
    found = encoder.embed(short, sample_rate=RATE, crops=1)
    assert found.seconds == [0.2]
    assert_close(found.vectors, encoder.embed(longer, sample_rate=RATE, crops=1).vectors)


def test_an_encoder_in_training_embeds_in_evaluation_mode_and_goes_on_training(
    encoder: Encoder, shard_set: ShardSet
) -> None:
    expected = encoder.embed(shard_set, splits=["test"], crops=1).vectors
    encoder.train()
    try:
        assert_close(encoder.embed(shard_set, splits=["test"], crops=1).vectors, expected)
        assert all(part.training for part in encoder.modules())
    finally:
        encoder.eval()


def test_files_that_cannot_be_used_are_listed_and_others_go_on(encoder: Encoder, fma_corpus: Path) -> None:
    found = encoder.embed(fma_corpus / "fma_medium", crops=1)
    assert len(found) == len(found.vectors) == 37  # one of 1.6 s, which shards do not take, among them
    reasons = {Path(reject.path).stem: reject.reason for reject in found.rejects}
    assert reasons == {
        "900002": "empty",
        "900003": "not-audio",
        "900005": "silent",
        "900006": "non-finite",
    }


def test_a_list_names_sources_and_what_it_misses_is_listed(encoder: Encoder, tmp_path: Path) -> None:
    for name in ("a", "b"):
        soundfile.write(tmp_path / f"{name}.wav", tone(1.0, 440, RATE, np.random.default_rng(0)), RATE)
    listed = tmp_path / "files.txt"
    listed.write_text(f"{tmp_path / 'a.wav'}\n\n{tmp_path / 'gone.wav'}\n{tmp_path}\n")
    found = encoder.embed(f"@{listed}")
    assert [Path(path).name for path in found.paths] == ["a.wav", "b.wav"]
    assert [(Path(reject.path).name, reject.reason) for reject in found.rejects] == [("gone.wav", "missing")]


def test_what_is_no_source_is_one_error(encoder: Encoder, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'nothing' is no source: there is no such file or folder"):
        encoder.embed("nothing")
    with pytest.raises(DataError, match="has no audio and is no shard set"):
        encoder.embed(tmp_path)
    (tmp_path / "notes.txt").write_text("no audio")
    with pytest.raises(DataError, match=r"notes\.txt cannot be used \(not-audio\)"):
        encoder.embed(tmp_path / "notes.txt")
    with pytest.raises(DataError, match=r"the list .*gone\.txt cannot be read: No such file"):
        encoder.embed(f"@{tmp_path / 'gone.txt'}")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match=r"the list .*pipe cannot be read: it is no regular file"):
        encoder.embed(f"@{tmp_path / 'pipe'}")
    with pytest.raises(ConfigError, match=r"splits = \['test'\] are for shard sets"):
        encoder.embed(tmp_path / "notes.txt", splits=["test"])
    with pytest.raises(ConfigError, match="sample_rate = None must be that of the waveforms"):
        encoder.embed(torch.zeros(2, 100))
    with pytest.raises(DataError, match="NaN or infinity"):
        encoder.embed(torch.full((1, 100), torch.nan), sample_rate=RATE)
    with pytest.raises(ConfigError, match="is no batch of waveforms"):
        encoder.embed(torch.zeros(2, 2, 100), sample_rate=RATE)


def test_a_classifier_predicts_what_evaluation_scores(shard_set: ShardSet, tmp_path: Path) -> None:
    classifier = load_classifier(save_classifier(tmp_path))
    assert classifier.classes == shard_set.classes
    names, expected, *_ = extract_features(
        lambda mels: classifier(mels).softmax(dim=1), shard_set, "test", FRONTEND, crops=4, backend="torch"
    )
    found = classifier.predict(shard_set, splits=["test"], crops=4)
    rows = [found.keys.index(name) for name in names]
    assert_close(found.probabilities[rows], expected)
    best = found.top(2)[0]
    values, indices = found.probabilities[0].sort(descending=True)
    assert best == [(classifier.classes[int(i)], float(v)) for i, v in zip(indices[:2], values, strict=False)]
