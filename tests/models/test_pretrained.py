import copy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from siamusic_fast.config import Architecture
from siamusic_fast.errors import ConfigError, DataError
from siamusic_fast.models.networks import Classifier, Encoder
from siamusic_fast.models.pretrained import load_classifier, load_encoder, load_pretrained
from siamusic_fast.models.run_checks import find_classifier
from tests.runs import FRONTEND, MEL, save_classifier, save_run

MELS = torch.randn(3, 1, MEL.n_mels, MEL.frames, generator=torch.Generator().manual_seed(0))


def test_the_encoder_has_the_weights_of_the_run_and_carries_its_frontend(tmp_path: Path) -> None:
    run = save_run(tmp_path / "run")
    random_state = torch.get_rng_state()
    encoder = load_encoder(str(run))
    assert torch.equal(torch.get_rng_state(), random_state)
    assert isinstance(encoder, Encoder)
    assert not encoder.training
    assert (encoder.architecture, encoder.dim, encoder.epoch) == (Architecture("resnet18"), 512, 3)
    assert encoder.frontend == FRONTEND
    weights = load_pretrained(run).encoder
    state = encoder.state_dict()
    assert state.keys() == weights.keys()
    assert all(torch.equal(state[name], weights[name]) for name in weights)


def test_torchvisions_resnet_takes_the_state_dict_and_gives_the_same_features(tmp_path: Path) -> None:
    encoder = load_encoder(save_run(tmp_path / "run"))
    resnet = torchvision.models.resnet18()
    resnet.conv1 = nn.Conv2d(1, 64, kernel_size=7, stride=2, padding=3, bias=False)
    differing = resnet.load_state_dict(encoder.state_dict(), strict=False)
    assert sorted(differing.missing_keys) == ["fc.bias", "fc.weight"]
    assert differing.unexpected_keys == []
    resnet.fc = nn.Identity()
    features = encoder(MELS)
    assert features.shape == (3, 512)
    torch.testing.assert_close(features, resnet.eval()(MELS), rtol=1e-4, atol=1e-4)


def test_encoder_and_classifier_are_built_as_they_were_trained(tmp_path: Path) -> None:
    ours = Architecture("resnet18", stem="keep-frequency", pooling="mean-max")
    run = save_run(tmp_path / "run", **asdict(ours))
    encoder, plain = load_encoder(run), load_encoder(save_run(tmp_path / "plain"))
    rows = torch.cat([MELS, MELS.flip(0)], dim=2)  # 32 mels, of which the standard stem leaves one row
    for name, value in plain.state_dict().items():
        assert torch.equal(value, encoder.state_dict()[name]), name
    assert not torch.allclose(encoder(rows), plain(rows))
    layers: Any = plain
    layers.conv1.stride = layers.maxpool.stride = (1, 2)
    layers.avgpool = encoder.avgpool
    torch.testing.assert_close(encoder(rows), plain(rows))
    trained = Classifier(ours, 3)
    path = save_classifier(run, architecture=asdict(ours), model=trained.state_dict())
    torch.testing.assert_close(load_classifier(path)(rows), trained.eval()(rows), rtol=1e-4, atol=1e-5)


def test_the_encoder_is_a_part_of_other_modules_as_torchvisions_is(tmp_path: Path) -> None:
    encoder = load_encoder(save_run(tmp_path / "run"))
    assert "encoder.layer4.1.conv2.weight" in nn.ModuleDict({"encoder": encoder}).state_dict()
    copied = copy.deepcopy(encoder)
    copied.fc = nn.Linear(copied.dim, 5)
    assert copied(MELS).shape == (3, 5)
    assert encoder(MELS).shape == (3, 512)


def test_swin_is_loaded_too(tmp_path: Path) -> None:
    encoder = load_encoder(save_run(tmp_path / "run", backbone="swin_t"))
    assert isinstance(encoder, torchvision.models.SwinTransformer)
    assert encoder(MELS).shape == (3, encoder.dim) == (3, 768)


def test_best_and_last_are_different_checkpoints(tmp_path: Path) -> None:
    run = save_run(tmp_path / "run", seed=0)
    with pytest.raises(DataError, match=r"best\.pt does not exist: the run never measured kNN accuracy"):
        load_encoder(run, "best")
    save_run(run, seed=1, file="best.pt")
    last, best = (load_encoder(run, name).state_dict()["conv1.weight"] for name in ("last", "best"))
    assert not torch.equal(last, best)
    with pytest.raises(ConfigError, match="checkpoint = 'latest' is unknown: choose last or best"):
        load_encoder(run, "latest")


def test_a_run_without_a_classifier_is_told_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no classifier: `siamusic-fast finetune"):
        find_classifier(save_run(tmp_path))
