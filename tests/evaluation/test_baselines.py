import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.fft
import torch
import torchaudio
import torchvision

from siamusic_fast.config import Architecture, MelConfig
from siamusic_fast.evaluation.baselines import (
    BASELINES,
    MFCC,
    N_MFCC,
    PRETRAINED,
    Competitors,
    activate_branches,
    log_mel_statistics,
    random_encoder,
)
from siamusic_fast.evaluation.features import extract_features
from siamusic_fast.frontend import Frontend
from siamusic_fast.models.pretrained import load_encoder, load_pretrained
from siamusic_fast.shards.kept_features import kept_path
from siamusic_fast.shards.manifest import ShardSet
from siamusic_fast.shards.verify import verify
from tests.runs import FRONTEND, MEL, save_run

CPU = torch.device("cpu")


def test_a_random_encoder_is_torchvisions_but_for_the_first_and_last_layer() -> None:
    random = torch.get_rng_state()
    ours = activate_branches(random_encoder(Architecture("resnet18"), 7, CPU)).state_dict()
    assert torch.equal(torch.get_rng_state(), random)
    torch.manual_seed(7)
    theirs = torchvision.models.resnet18(weights=None).state_dict()
    for name in ours.keys() - {"conv1.weight"}:
        assert torch.equal(ours[name], theirs[name]), name


def test_log_mels_are_their_means_and_deviations_over_time() -> None:
    mels = np.random.default_rng(0).normal(2, 3, (4, 1, 16, 22)).astype(np.float32)
    expected = np.concatenate([mels[:, 0].mean(axis=2), mels[:, 0].std(axis=2)], axis=1)
    assert log_mel_statistics(torch.tensor(mels)).numpy() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("per_band", [False, True])
def test_mfccs_are_the_cosine_transform_of_decibels(per_band: bool) -> None:
    rng = np.random.default_rng(0)
    mel = MelConfig(seconds=0.5, n_mels=24, hop_length=512)
    decibels = rng.normal(-40, 12, (3, 24, 22)).astype(np.float32)
    bands = tuple(rng.normal(-40, 5, 24).tolist()), tuple(rng.uniform(5, 20, 24).tolist())
    mean, std = bands if per_band else (-35.0, 15.0)
    frontend = Frontend(mel=mel, mean=mean, std=std)
    mels = (decibels - np.reshape(mean, (-1, 1))) / np.reshape(std, (-1, 1))
    coefficients = scipy.fft.dct(decibels, axis=1, norm="ortho")[:, :N_MFCC]
    # Regression over 5 frames, the ends repeated: sum of n (c[t + n] - c[t - n]) over 2 sum of n^2.
    padded = np.pad(coefficients, ((0, 0), (0, 0), (2, 2)), mode="edge")
    first = (padded[:, :, 3:-1] - padded[:, :, 1:-3] + 2 * (padded[:, :, 4:] - padded[:, :, :-4])) / 10
    found = MFCC(frontend)(torch.tensor(mels[:, None], dtype=torch.float32)).numpy()
    assert found.shape == (3, 120)
    assert found[:, :20] == pytest.approx(coefficients.mean(axis=2), abs=1e-3)
    assert found[:, 20:40] == pytest.approx(first.mean(axis=2), abs=1e-3)
    assert found[:, 60:80] == pytest.approx(coefficients.std(axis=2), abs=1e-3)
    assert found[:, 80:100] == pytest.approx(first.std(axis=2), abs=1e-3)


def test_mfccs_are_those_of_torchaudio() -> None:
    # Its own floor, 80 dB below the loudest, is not reached by noise.
    wave = torch.randn(1, MEL.samples, generator=torch.Generator().manual_seed(0))
    options: dict[str, Any] = {"n_fft": MEL.n_fft, "hop_length": MEL.hop_length, "n_mels": MEL.n_mels}
    options |= {"f_max": MEL.f_max}
    power = torchaudio.transforms.MelSpectrogram(MEL.sample_rate, **options)(wave)
    mels = (10 * power.log10() - FRONTEND.mean) / FRONTEND.std
    theirs = torchaudio.transforms.MFCC(MEL.sample_rate, n_mfcc=16, melkwargs=options)(wave)
    found = MFCC(FRONTEND)(mels[:, None])
    torch.testing.assert_close(found[:, :16], theirs.mean(dim=2), atol=2e-3, rtol=1e-4)


@pytest.fixture
def kept(shard_set: ShardSet, tmp_path: Path) -> ShardSet:
    """The shards with nothing kept beside them, in links to their files."""
    (tmp_path / "shards").mkdir()
    for file in shard_set.folder.iterdir():
        if not file.name.startswith("baselines-"):
            (tmp_path / "shards" / file.name).hardlink_to(file)
    return replace(shard_set, folder=tmp_path / "shards")


def competitors(run: Path, shard_set: ShardSet, **options: Any) -> Competitors:
    return Competitors(
        pretrained=load_pretrained(run), shard_set=shard_set, **{"backend": "torch", **options}
    )


def same(found: dict[str, Any], expected: dict[str, Any]) -> bool:
    return list(found) == [PRETRAINED, *BASELINES] and all(
        torch.equal(found[name].features, expected[name].features) for name in expected
    )


def test_baselines_are_computed_once_for_all_runs(
    pretrained: Path, kept: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = competitors(pretrained, kept).tracks("test")
    encoder = load_encoder(pretrained)
    alone = extract_features(encoder, kept, "test", FRONTEND, backend="torch")
    torch.testing.assert_close(first[PRETRAINED].features, alone.features)
    mels = extract_features(log_mel_statistics, kept, "test", FRONTEND, backend="torch")
    torch.testing.assert_close(first["log-mels"].features, mels.features)
    assert first["MFCCs"].names == alone.names
    [file] = kept.folder.glob("baselines-*")
    with monkeypatch.context() as patch:
        patch.setattr("siamusic_fast.evaluation.baselines.baselines", None)  # not asked again
        assert same(competitors(pretrained, kept).tracks("test"), first)
    other_seed = competitors(save_run(tmp_path / "other", seed=5), kept).tracks("test")
    assert torch.equal(other_seed["initial"].features, other_seed[PRETRAINED].features)  # it learnt nothing
    assert not torch.equal(other_seed["random"].features, first["random"].features)
    assert torch.equal(other_seed["log-mels"].features, first["log-mels"].features)
    assert len(list(kept.folder.glob("baselines-*"))) == 2
    assert file.exists()
    assert not verify(kept.folder, procs=1).problems
    assert not verify(kept.folder, procs=1).unknown


@pytest.mark.parametrize("place", [3, 0.5, -3])
def test_damaged_features_are_computed_again_with_a_warning(
    pretrained: Path, kept: ShardSet, place: float
) -> None:
    first = competitors(pretrained, kept).tracks("test")
    [file] = kept.folder.glob("baselines-*")
    content = bytearray(file.read_bytes())
    whole = bytes(content)
    content[math.floor(place * len(content)) if isinstance(place, float) else place] ^= 1
    file.write_bytes(content)
    [problem] = verify(kept.folder, procs=1).problems
    assert problem.file == file.name
    assert "remove it, and it is made again" in problem.what
    with pytest.warns(UserWarning, match=r"baselines-.* cannot be used .*computed again"):
        assert same(competitors(pretrained, kept).tracks("test"), first)
    assert file.read_bytes() == whole


def test_features_of_other_settings_are_not_taken_for_these(
    pretrained: Path, kept: ShardSet, tmp_path: Path
) -> None:
    of_these = competitors(pretrained, kept)
    key = of_these._key("test", None)
    assert competitors(pretrained, kept, backend="dali")._key("test", None) != key
    first = of_these.tracks("test")
    other = key | {"seed": 1}
    kept_path(kept.folder, other).write_bytes(kept_path(kept.folder, key).read_bytes())
    with pytest.warns(UserWarning, match="it has the key of another file"):
        found = competitors(save_run(tmp_path / "other", seed=1), kept).tracks("test")
    assert not torch.equal(found["random"].features, first["random"].features)
