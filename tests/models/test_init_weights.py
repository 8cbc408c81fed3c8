import os
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor

from siamusic_fast.config import Architecture
from siamusic_fast.errors import ConfigError, DataError
from siamusic_fast.models.init_weights import load_init
from siamusic_fast.models.networks import encoder
from tests.runs import save_run


def saved(weights: object, path: Path) -> str:
    torch.save(weights, path)
    return str(path)


def resnet18() -> Mapping[str, Tensor]:
    """Return the state dict of torchvision's network, with batch norm statistics of its own."""
    model = torchvision.models.resnet18(weights=None)
    model(torch.randn(4, 3, 32, 32))
    state: Mapping[str, Tensor] = model.state_dict()
    return state


def test_an_encoder_with_torchvisions_weights_computes_what_torchvision_computes_of_a_gray_image(
    tmp_path: Path,
) -> None:
    weights = resnet18()
    ours = encoder(Architecture("resnet18"))
    load_init(ours, saved(weights, tmp_path / "weights.pth"))
    theirs = torchvision.models.resnet18(weights=None)
    theirs.load_state_dict(weights)
    theirs.fc = torch.nn.Identity()
    mels = torch.randn(2, 1, 48, 87)
    with torch.no_grad():
        found, expected = ours.eval()(mels), theirs.eval()(mels.expand(-1, 3, -1, -1))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    for name in ("bn1.running_mean", "layer4.1.bn2.running_var", "layer1.0.bn1.num_batches_tracked"):
        assert torch.equal(ours.state_dict()[name], weights[name]), name


def test_a_frequency_channel_begins_without_effect_on_weights_that_had_none(tmp_path: Path) -> None:
    plain, ours = encoder(Architecture("resnet18")), encoder(Architecture("resnet18", "frequency-channel"))
    weights = saved(resnet18(), tmp_path / "weights.pth")
    for model in (plain, ours):
        load_init(model, weights)
    mels = torch.randn(2, 1, 48, 87)
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(mels), plain.eval()(mels))
    assert ours.state_dict()["conv1.weight"].shape == (64, 2, 7, 7)
    back = encoder(Architecture("resnet18"))
    load_init(back, saved(dict(ours.state_dict()), tmp_path / "ours.pth"))
    assert back.state_dict()["conv1.weight"].shape == (64, 1, 7, 7)


def test_weights_that_do_not_fit_are_one_error_with_their_names(tmp_path: Path) -> None:
    weights = dict(resnet18())
    del weights["bn1.weight"]
    weights["module.bn1.weight"] = torch.zeros(64)
    weights["layer1.0.conv1.weight"] = torch.zeros(64, 64, 1, 1)
    ours = encoder(Architecture("resnet18"))
    with pytest.raises(ConfigError) as error:
        load_init(ours, saved(weights, tmp_path / "weights.pth"))
    for words in (
        "does not fit the backbone resnet18",
        'Missing key(s) in state_dict: "bn1.weight".',
        'Unexpected key(s) in state_dict: "module.bn1.weight".',
        "size mismatch for layer1.0.conv1.weight",
    ):
        assert words in str(error.value), words
    assert "\n" not in str(error.value)
    other = encoder(Architecture("resnet50"))
    with pytest.raises(ConfigError, match=r"does not fit the backbone resnet50 .*layer1\.0\.conv3\.weight"):
        load_init(other, saved(resnet18(), tmp_path / "weights.pth"))


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.mkdir, (self.path,)  # type: ignore[return-value]


def test_a_file_that_holds_no_weights_is_named_and_runs_no_code(tmp_path: Path) -> None:
    ours = encoder(Architecture("resnet18"))
    (tmp_path / "text").write_text("no weights")
    run = save_run(tmp_path / "run")
    os.mkfifo(tmp_path / "pipe")
    for init, words in (
        (tmp_path / "pipe", "cannot be read: it is no regular file"),
        (tmp_path / "nowhere", "is neither the folder of a run nor a file"),
        (tmp_path / "text", "holds no weights that can be loaded safely"),
        (saved({"x": Malicious(tmp_path / "made")}, tmp_path / "bad.pth"), "loaded safely"),
        (run / "checkpoint.pt", "is no state dict: .* give the folder of a run"),
    ):
        with pytest.raises(DataError, match=words):
            load_init(ours, str(init))
    assert not (tmp_path / "made").exists()
