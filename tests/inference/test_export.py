"""Exported networks, each loaded with the library that it is for."""

import builtins
import dataclasses
import json
import math
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime  # type: ignore[import-untyped]
import pytest
import torch
import torchvision
from click.testing import CliRunner
from safetensors import safe_open
from torch import nn

import siamusic_fast as sf
from siamusic_fast.cli import main
from siamusic_fast.config import Architecture
from siamusic_fast.errors import ConfigError, DataError
from siamusic_fast.files import file_sha256
from siamusic_fast.inference import export as module
from siamusic_fast.inference.export import export
from siamusic_fast.models import networks
from siamusic_fast.models.heads import projector
from siamusic_fast.models.init_weights import load_init
from siamusic_fast.models.pretrained import load_classifier, load_encoder
from siamusic_fast.pipelines.torch.features import LogMel
from tests.runs import FRONTEND, MEL, save_classifier, save_run

MELS = torch.randn(5, 1, MEL.n_mels, MEL.frames, generator=torch.Generator().manual_seed(1))
WAVES = 0.2 * torch.randn(3, MEL.samples, generator=torch.Generator().manual_seed(2))


def one_channel(resnet: Any) -> Any:
    resnet.conv1 = nn.Conv2d(1, 64, kernel_size=7, stride=2, padding=3, bias=False)
    return resnet.eval()


def run_onnx(file: Path, given: torch.Tensor) -> torch.Tensor:
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: given.numpy()})
    return torch.from_numpy(np.asarray(found))


@pytest.mark.parametrize("backbone", ["resnet18", "resnet50"])
def test_torchvision_loads_a_state_dict_strictly_and_computes_the_same(tmp_path: Path, backbone: str) -> None:
    run = save_run(tmp_path / "run", backbone=backbone)
    result = export(run)
    assert result.file == run / "export" / "encoder.pt"
    resnet = one_channel(getattr(torchvision.models, backbone)())
    resnet.fc = nn.Identity()
    resnet.load_state_dict(torch.load(result.file, weights_only=True), strict=True)
    with torch.no_grad():
        torch.testing.assert_close(resnet(MELS), load_encoder(run)(MELS), rtol=1e-4, atol=1e-4)


def test_a_classifier_is_torchvisions_with_its_classes(tmp_path: Path) -> None:
    run = save_classifier(tmp_path / "run")
    state = torch.load(export(run, classifier=True).file, weights_only=True)
    resnet = one_channel(torchvision.models.resnet18(num_classes=3))
    resnet.load_state_dict(state, strict=True)
    assert state._metadata["siamusic_fast"]["classes"] == ["Electronic", "Folk", "Rock"]
    with torch.no_grad():
        torch.testing.assert_close(resnet(MELS), load_classifier(run)(MELS), rtol=1e-4, atol=1e-4)


def test_a_head_on_the_projector_is_one_last_layer(tmp_path: Path) -> None:
    run = save_classifier(tmp_path / "run", head="mlp", features="projector")
    classifier = load_classifier(run)
    resnet = one_channel(torchvision.models.resnet18())
    resnet.fc = nn.Sequential(projector("simsiam", 512, 2048), networks._mlp(2048, 3))
    resnet.load_state_dict(torch.load(export(run, classifier=True).file, weights_only=True), strict=True)
    with torch.no_grad():
        torch.testing.assert_close(resnet.eval()(MELS), classifier(MELS), rtol=1e-4, atol=1e-4)


def test_safetensors_has_the_weights_the_metadata_and_a_card(tmp_path: Path) -> None:
    run = save_run(tmp_path / "run", stem="keep-frequency", pooling="mean-max")
    (run / "config.json").write_text('{"data": "/somewhere/fma_small", "lr": 0.001}')
    (run / "probe").mkdir()
    scores = {"accuracy": 0.5, "chance": 0.2, "tracks": 90, "intervals": {"accuracy": [0.4, 0.6]}}
    values = {"probes": {"pretrained": {"knn": scores, "linear": scores}}, "target": "class"}
    values |= {"scored_on": "test", "warning": ""}
    (run / "probe" / "results.json").write_text(json.dumps(values))
    result = export(run, to="safetensors")
    weights = load_encoder(run).state_dict()
    with safe_open(result.file, "pt") as file:
        about = json.loads(file.metadata()["siamusic_fast"])
        assert set(file.keys()) == weights.keys()
        assert all(torch.equal(file.get_tensor(name), weights[name]) for name in weights)
    assert sf.Frontend.load(about["frontend"]) == FRONTEND
    assert (about["sample_rate"], about["crop_seconds"], about["version"]) == (22_050, 0.5, sf.__version__)
    assert about["checkpoint_sha256"] == file_sha256(run / "checkpoint.pt")
    assert (about["backbone"], about["stem"], about["pooling"]) == ("resnet18", "keep-frequency", "mean-max")
    card = result.card.read_text()
    assert "/somewhere" not in card
    for words in (
        "`fma_small`",
        "linear probe of the frozen encoder: accuracy 50.0% (40.0% to 60.0%); 90 test tracks, 20.0% by",
        '"lr": 0.001',
        "the stride of conv1 and maxpool is (1, 2). Pooling mean-max:",
        "CC BY 4.0",
        "Kim, Hong, Lee 2022",
        result.sha256,
    ):
        assert words in card, words


def test_a_card_says_of_probes_of_tags_what_they_are_and_how_they_were_scored(tmp_path: Path) -> None:
    run = save_run(tmp_path / "run")
    intervals = {"roc_auc": [0.7, 0.8], "pr_auc": [0.2, 0.3]}
    scores = {"roc_auc": 0.75, "pr_auc": 0.25, "chance": 0.12, "tracks": 90, "intervals": intervals}
    values = {"probes": {"pretrained": {"knn": scores, "linear": scores}}, "target": "tags"}
    values |= {"scored_on": "cross-validation", "warning": "The encoder was pre-trained on them."}
    (run / "probe").mkdir()
    (run / "probe" / "results.json").write_text(json.dumps(values))
    card = export(run).card.read_text()
    assert (
        "knn probe of the frozen encoder: macro ROC-AUC 0.750 (0.700 to 0.800), macro PR-AUC 0.250 (0.200 to "
        "0.300); 90 tracks by grouped cross-validation, ROC-AUC 0.5 and PR-AUC 0.120 by chance"
    ) in card
    assert "- The encoder was pre-trained on them." in card


@pytest.mark.parametrize(
    "content", ["no JSON", "[]", "{}", '{"probes": {"pretrained": {"knn": {"intervals": 1}}}}']
)
def test_damaged_scores_are_one_error_before_anything_is_written(tmp_path: Path, content: str) -> None:
    run = save_run(tmp_path / "run")
    (run / "probe").mkdir()
    (run / "probe" / "results.json").write_text(content)
    with pytest.raises(DataError, match=r"probe/results\.json is damaged \(.*\): put back a copy of it"):
        export(run)
    assert not list(run.glob("export/*"))


class Small(networks.Encoder, nn.Sequential):
    """A network that is exported in a second."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__(nn.Conv2d(1, 8, 5, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.architecture, self.dim = architecture, 8


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "encoder", Small)


@pytest.mark.usefixtures("small")
def test_an_encoder_from_mels_in_onnx_equals_torch_for_any_batch_and_length(tmp_path: Path) -> None:
    run = save_run(tmp_path / "run")
    result = export(run, to="onnx")
    assert result.difference is not None
    assert result.difference < 1e-4
    for mels in (MELS, MELS[:1], torch.cat([MELS, MELS], dim=3)):
        with torch.no_grad():
            expected = load_encoder(run)(mels)
        torch.testing.assert_close(run_onnx(result.file, mels), expected, rtol=0, atol=1e-4)
    session = onnxruntime.InferenceSession(str(result.file))
    about = json.loads(session.get_modelmeta().custom_metadata_map["siamusic_fast"])
    assert about["checkpoint_sha256"] == file_sha256(run / "checkpoint.pt")
    assert [one.name for one in (*session.get_inputs(), *session.get_outputs())] == ["mels", "features"]


def test_a_classifier_from_waveforms_in_onnx_equals_torch_for_any_batch_and_length(tmp_path: Path) -> None:
    of_bands = tuple(range(-48, -32)), tuple(range(8, 24))
    frontend = dataclasses.replace(FRONTEND, mean=of_bands[0], std=of_bands[1])
    run = save_classifier(tmp_path / "run", frontend=frontend.dump())
    result = export(run, tmp_path / "heard.onnx", to="onnx", source="waveform", classifier=True)
    classifier = load_classifier(run)
    log_mel = LogMel(frontend, MEL.sample_rate, torch.device("cpu"))
    for waves in (WAVES, WAVES[:1]):
        with torch.no_grad():
            expected = classifier(log_mel.plain(waves * 32_768)[:, None]).softmax(dim=1)
        torch.testing.assert_close(run_onnx(result.file, waves), expected, rtol=0, atol=1e-4)
    longer = run_onnx(result.file, torch.cat([WAVES, WAVES], dim=1))
    torch.testing.assert_close(longer.sum(dim=1), torch.ones(3))


@pytest.mark.slow
@pytest.mark.parametrize("source", ["mels", "waveform"])
@pytest.mark.parametrize("backbone", ["resnet50", "swin_t"])
@pytest.mark.parametrize(
    ("stem", "pooling"), [("standard", "mean"), ("keep-frequency", "mean-max"), ("frequency-channel", "mean")]
)
def test_every_kind_of_network_in_onnx_equals_torch(
    tmp_path: Path, backbone: str, stem: str, pooling: str, source: str
) -> None:
    run = save_run(tmp_path / "run", backbone=backbone, stem=stem, pooling=pooling)
    result = export(run, to="onnx", source=source)
    assert result.difference is not None
    assert result.difference < 1e-4


@pytest.mark.parametrize(("to", "classifier"), [("torch", False), ("safetensors", True)])
def test_pretraining_starts_from_an_exported_file_and_not_from_a_damaged_one(
    tmp_path: Path, to: str, classifier: bool
) -> None:
    run = save_classifier(save_run(tmp_path / "run"))
    file = export(run, to=to, classifier=classifier).file
    encoder = networks.encoder(Architecture("resnet18"))
    load_init(encoder, str(file))
    expected = (load_classifier(run).encoder if classifier else load_encoder(run)).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in encoder.state_dict().items())
    check = ["sha256sum", "-c", f"{file.name}.sha256"]
    assert subprocess.run(check, cwd=file.parent, check=False).returncode == 0
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"init: .* is damaged: it does not have the SHA-256 in .*\.sha256"):
        load_init(encoder, str(file))
    assert subprocess.run(check, cwd=file.parent, check=False).returncode == 1


def test_a_file_that_is_no_safetensors_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "bad.safetensors").write_text("no tensors")
    with pytest.raises(DataError, match=r"init: .*bad\.safetensors' is no file of safetensors"):
        load_init(networks.encoder(Architecture("resnet18")), str(tmp_path / "bad.safetensors"))


def test_a_backbone_that_cannot_be_exported_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no such\noperator")

    monkeypatch.setattr(torch.onnx, "export", fail)
    words = r"^resnet18 cannot be exported to ONNX by torch 2\S+ \(no such operator\): .*--to safetensors"
    with pytest.raises(DataError, match=words):
        export(save_run(tmp_path / "run"), to="onnx")
    assert list((tmp_path / "run" / "export").iterdir()) == []


@pytest.mark.parametrize("difference", [0.5, math.nan])
def test_an_export_that_differs_from_torch_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, difference: float
) -> None:
    monkeypatch.setattr(module, "_onnx", lambda *_: b"")
    monkeypatch.setattr(module, "_difference", lambda *_: difference)
    with pytest.raises(DataError, match=rf"as ONNX differs from torch by {difference}, not at most 0\.0001"):
        export(save_run(tmp_path / "run"), to="onnx")
    assert list((tmp_path / "run" / "export").iterdir()) == []


def test_wrong_arguments_are_one_line_each(tmp_path: Path) -> None:
    run = save_run(tmp_path / "run")
    for options, words in (
        ({"to": "tflite"}, "to = 'tflite' is unknown: choose one of torch, safetensors, onnx"),
        (
            {"source": "waveform"},
            r"source = 'waveform' is for to = 'onnx' only \(on the command line --to onnx",
        ),
        ({"out": tmp_path / "a.onnx"}, r"does not end in \.pt or \.pth, .* use '.*a\.pt'"),
    ):
        with pytest.raises(ConfigError, match=words):
            export(run, **options)
    with pytest.raises(DataError, match="has no classifier: `siamusic-fast finetune"):
        export(run, classifier=True)


@pytest.mark.parametrize(("to", "missing"), [("onnx", "onnx"), ("safetensors", "safetensors.torch")])
def test_a_library_that_is_not_installed_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str, missing: str
) -> None:
    found = builtins.__import__

    def without(name: str, *arguments: Any) -> Any:
        if name == missing:
            raise ModuleNotFoundError(name)
        return found(name, *arguments)

    run = save_run(tmp_path / "run")
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(
        ConfigError, match=rf"^{to} is not installed: run `pip install 'siamusic-fast\[export\]'`"
    ):
        export(run, to=to)


def test_the_command_replaces_nothing_without_force(tmp_path: Path) -> None:
    run = save_run(tmp_path / "run")
    first = CliRunner().invoke(main, ["export", str(run), "--to", "safetensors"])
    assert first.exit_code == 0, first.output
    assert f"file      {run / 'export' / 'encoder.safetensors'}" in first.stdout
    again = CliRunner().invoke(main, ["export", str(run), "--to", "safetensors"])
    assert again.exit_code == 1
    assert "encoder.safetensors exists: use another out" in " ".join(again.stderr.split())
    other = CliRunner().invoke(main, ["export", str(run)])  # another format has files of its own
    assert other.exit_code == 0, other.output
    forced = CliRunner().invoke(main, ["export", str(run), "--to", "safetensors", "--force", "--json"])
    assert json.loads(forced.stdout)["sha256"] == file_sha256(run / "export" / "encoder.safetensors")
