import contextlib
import csv
import dataclasses
import functools
import json
import math
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from siamusic_fast.config import Architecture, FinetuneConfig, PretrainConfig, ProbeConfig
from siamusic_fast.errors import ConfigError, DataError
from siamusic_fast.evaluation.evaluate import evaluate
from siamusic_fast.evaluation.features import TrackFeatures, extract_features
from siamusic_fast.evaluation.probe import probe
from siamusic_fast.evaluation.tag_scores import TagScores
from siamusic_fast.frontend import Frontend
from siamusic_fast.inference.predict import Prediction, predict
from siamusic_fast.models import checkpoint, networks
from siamusic_fast.models.networks import Classifier, place
from siamusic_fast.models.pretrained import load_classifier
from siamusic_fast.pipelines import base_loader
from siamusic_fast.pipelines.plan import Plan, TrackPlan
from siamusic_fast.pipelines.prefetch import Engine
from siamusic_fast.processes.launch import launch
from siamusic_fast.processes.signals import Stopped
from siamusic_fast.processes.world import World
from siamusic_fast.shards.frontends import read_frontends
from siamusic_fast.shards.manifest import ShardSet
from siamusic_fast.training import finetune as module
from siamusic_fast.training.finetune import FinetuneResult, finetune, learning_rates
from siamusic_fast.training.pretrain import pretrain
from siamusic_fast.training.run_log import read_log
from tests.runs import MEL, save_run
from tests.training.networks import TinyEncoder


def config(**options: Any) -> FinetuneConfig:
    return FinetuneConfig(**{"epochs": 1, "batch_size": 8, **options})


def weights(folder: Path) -> dict[str, Tensor]:
    model: dict[str, Tensor] = checkpoint.load(folder / "classifier.pt", "classifier")["model"]
    return model


def test_what_is_frozen_keeps_weights_and_statistics(
    pretrained: Path, shard_set: ShardSet, tmp_path: Path
) -> None:
    frozen = config(freeze=True, features="projector", head="mlp")
    finetune(frozen, pretrained, shard_set, tmp_path / "out")
    before = checkpoint.load(pretrained / "checkpoint.pt", "pretraining")
    after = weights(tmp_path / "out")
    for part in ("encoder", "projector"):
        for name, value in before[part].items():
            assert torch.equal(after[f"{part}.{name}"], value), name


def test_from_scratch_nothing_of_the_run_is_used_but_its_features(
    pretrained: Path, shard_set: ShardSet, tmp_path: Path
) -> None:
    other = save_run(tmp_path / "other", seed=1)
    finetune(config(from_scratch=True, seed=2), pretrained, shard_set, tmp_path / "a")
    finetune(config(from_scratch=True, seed=2), other, shard_set, tmp_path / "b")
    finetune(config(seed=2), pretrained, shard_set, tmp_path / "c")
    first, second, third = (weights(tmp_path / name) for name in "abc")
    assert [name for name, value in first.items() if not torch.equal(value, second[name])] == []
    assert not torch.equal(first["encoder.conv1.weight"], third["encoder.conv1.weight"])


def test_the_encoder_is_the_last_or_the_best_of_the_run(shard_set: ShardSet, tmp_path: Path) -> None:
    run = save_run(tmp_path / "run")
    with pytest.raises(DataError, match=r"best\.pt does not exist: the run never measured kNN accuracy"):
        finetune(config(checkpoint="best"), run, shard_set)
    save_run(run, seed=1, file="best.pt")
    finetune(config(checkpoint="best", freeze=True), run, shard_set)
    best = checkpoint.load(run / "best.pt", "pretraining")["encoder"]
    assert torch.equal(weights(run / "finetune")["encoder.conv1.weight"], best["conv1.weight"])


@pytest.mark.parametrize(("protocol", "kept"), [("clean", 2), ("paper", 3)])
def test_a_protocol_says_which_epoch_is_kept(
    protocol: str,
    kept: int,
    pretrained: Path,
    shard_set: ShardSet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    certainties = iter([0.4, 0.9, 0.1])  # of the right class, epoch by epoch

    def extract(*_: object) -> TrackFeatures:
        certainty = next(certainties)
        probabilities = torch.tensor([[certainty, 1 - certainty, 0.0]] * 4)
        labels, tags = torch.zeros(4, dtype=torch.long), torch.zeros(4, 0, dtype=torch.uint8)
        return TrackFeatures(list("abcd"), probabilities, labels, tags, [""] * 4)

    monkeypatch.setattr("siamusic_fast.evaluation.features.FeatureExtractor.extract", extract)
    result = finetune(
        config(protocol=protocol, epochs=3, freeze=True), pretrained, shard_set, tmp_path / "out"
    )
    certainty = {2: 0.9, 3: 0.1}[kept]
    assert result.kept_epoch == kept
    assert result.loss == pytest.approx(-math.log(certainty))
    assert result.accuracy == (certainty > 0.5)
    assert checkpoint.load(tmp_path / "out" / "classifier.pt", "classifier")["epoch"] == kept


def test_validation_counts_tracks_and_not_their_segments(
    pretrained: Path, segments: ShardSet, tmp_path: Path
) -> None:
    result = finetune(config(freeze=True), pretrained, segments, tmp_path / "out")
    assert result.tracks == 6
    assert segments.tracks(["validation"], labelled_only=True) > 6


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Frontend]]:
    """Backend and frontend of every engine that is made."""
    found: list[tuple[str, Frontend]] = []
    make = base_loader._engine

    def recorded(plan: Plan | TrackPlan, backend: str, *rest: Any) -> Engine:
        found.append((backend, plan.frontend))
        return make(plan, backend, *rest)

    monkeypatch.setattr(base_loader, "_engine", recorded)
    return found


def test_everything_after_pretraining_has_its_frontend(
    shard_set: ShardSet, tmp_path: Path, engines: list[tuple[str, Frontend]]
) -> None:
    run = tmp_path / "run"
    pretraining = PretrainConfig(
        mel=MEL, backbone="resnet18", short_tracks="pad", batch_size=12, epochs=1, knn_every=1
    )
    pretrain(pretraining, shard_set, run)
    assert len(engines) == 5  # for the views, and for kNN before the first step and at the end
    finetune(config(freeze=True), run, shard_set)
    evaluate(run, shard_set)
    probe(run, shard_set)
    frontend = Frontend.load(checkpoint.load(run / "checkpoint.pt", "pretraining")["frontend"])
    assert engines == [("dali", frontend)] * (5 + 2 + 1 + 3)
    assert (frontend.mel, frontend.short_tracks) == (MEL, "pad")
    kept = read_frontends(shard_set.folder)
    assert "pad" in [entry["key"]["short_tracks"] for entry in kept]


def test_one_backend_serves_all_that_a_call_reads(
    shard_set: ShardSet, tmp_path: Path, engines: list[tuple[str, Frontend]]
) -> None:
    run = tmp_path / "run"
    pretraining = PretrainConfig(mel=MEL, backbone="resnet18", backend="torch", batch_size=12, epochs=1)
    pretrain(pretraining, shard_set, run)
    finetune(config(freeze=True, backend="torch"), run, shard_set)
    evaluate(run, shard_set, backend="torch")
    probe(run, shard_set, config=ProbeConfig(backend="torch"))
    assert [backend for backend, _ in engines] == ["torch"] * (5 + 2 + 1 + 3)


def test_a_classifier_says_what_its_encoder_had_heard(shard_set: ShardSet, tmp_path: Path) -> None:
    run = save_run(tmp_path / "run", splits=("training", "test"))
    for from_scratch, heard in ((False, ["training", "test"]), (True, [])):
        out = tmp_path / str(from_scratch)
        finetune(config(freeze=True, from_scratch=from_scratch), run, shard_set, out)
        assert checkpoint.load(out / "classifier.pt", "classifier")["pretrained_on"] == heard
    assert probe(run, shard_set).pretrained_on == ("training", "test")


def test_a_batch_too_small_for_batch_norm_is_refused(
    pretrained: Path, shard_set: ShardSet, tmp_path: Path
) -> None:
    # One track of each of three classes is left, and one of them for each process.
    with pytest.raises(
        ConfigError, match=r"each of 2 processes gets a batch of 1 from these 3 crops, .* --label-fraction"
    ):
        finetune(
            config(label_fraction=0.01, crops_per_track=1),
            pretrained,
            shard_set,
            tmp_path,
            world=World(rank=0, world_size=2),
        )


def test_a_share_of_the_labels_makes_shorter_epochs(
    pretrained: Path, shard_set: ShardSet, tmp_path: Path
) -> None:
    labelled = shard_set.tracks(["training"], labelled_only=True)
    for share in (1.0, 0.5):
        finetune(
            config(batch_size=2, label_fraction=share, freeze=True, crops_per_track=1),
            pretrained,
            shard_set,
            tmp_path / str(share),
        )
    whole, half = (read_log(tmp_path / str(share))[-1]["step"] for share in (1.0, 0.5))
    assert whole == labelled // 2
    assert half == pytest.approx(whole / 2, abs=1)


def test_crops_are_augmented_if_asked_and_never_mixed(
    pretrained: Path, shard_set: ShardSet, tmp_path: Path
) -> None:
    for aug in ("none", "vflip(p=1)"):
        finetune(config(aug=aug, freeze=True), pretrained, shard_set, tmp_path / aug)
    plain, flipped = (read_log(tmp_path / aug)[0]["loss"] for aug in ("none", "vflip(p=1)"))
    assert plain != flipped
    with pytest.raises(ConfigError, match="mix"):
        finetune(config(aug="image"), pretrained, shard_set, tmp_path / "mixed")


def test_rates_fall_from_the_head_to_the_first_layer() -> None:
    with torch.device("meta"):
        classifier = Classifier(Architecture("resnet18"), 8, features="projector")
    groups = learning_rates(classifier, config(lr=1e-2, encoder_lr=1e-3, layer_decay=0.5))
    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    found = {name: rates[id(parameter)] for name, parameter in classifier.named_parameters()}
    assert len(rates) == len(found) == sum(len(group["params"]) for group in groups)
    assert found["head.weight"] == 1e-2
    assert found["projector.0.weight"] == 1e-3
    for name, rate in (
        ("layer4.1.conv2", 1e-3),
        ("layer3.0.conv1", 5e-4),
        ("layer2.0.conv1", 2.5e-4),
        ("layer1.0.conv1", 1.25e-4),
        ("conv1", 6.25e-5),
    ):
        assert found[f"encoder.{name}.weight"] == pytest.approx(rate), name


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"protocol": "mine"}, "'mine' is unknown: choose one of clean, paper"),
        ({"backend": "jax"}, "'jax' is unknown: choose one of dali, torch"),
        ({"head": "deep"}, "'deep' is unknown: choose one of linear, mlp"),
        ({"label_fraction": 10.0}, "label_fraction = 10 is a share"),
        ({"layer_decay": 0.0}, "layer_decay = 0 must be above 0 and at most 1"),
        ({"batch_size": 1}, "batch_size = 1 must be at least 2: batch norm needs two samples"),
        ({"batch_size": 0, "freeze": True}, "batch_size = 0 must be a number above 0"),
        ({"weight_decay": math.nan}, "weight_decay = nan must be a number that is not negative"),
        ({"freeze": True, "encoder_lr": 1e-4}, "A frozen encoder does not learn: leave out encoder_lr"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        config(**options)


def train_and_score(pretrained: Path, shard_set: ShardSet, out: Path, *, world: World) -> list[Any]:
    """Return of every rank its network, batch norm's statistics included, and the scores."""
    kept: list[Classifier] = []

    def keep(model: Classifier, device: torch.device) -> Classifier:
        kept.append(place(model, device))
        return model

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "place", keep)
        finetune(config(epochs=2, batch_size=8, protocol="paper"), pretrained, shard_set, out, world=world)
    evaluated = evaluate(out, shard_set, world=world)
    return world.gather((dict(kept[0].state_dict()), dataclasses.asdict(evaluated.scores)))


def test_processes_share_training_validation_and_test(
    pretrained: Path, shard_set: ShardSet, tmp_path: Path
) -> None:
    first, second = launch(
        functools.partial(train_and_score, pretrained, shard_set, tmp_path / "out"), gpus=0, procs=2
    )
    saved = weights(tmp_path / "out")
    assert saved.keys() == first[0].keys()
    for state, _ in (first, second):
        for name, value in saved.items():
            assert torch.equal(state[name], value), name
    labelled = shard_set.tracks(["training"], labelled_only=True)
    assert read_log(tmp_path / "out")[-1]["step"] == 2 * (labelled // 2 // 8)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["processes"] == 2
    # One process, with the same classifier, comes to the same predictions in the same order.
    rows = (tmp_path / "out" / "evaluate" / "predictions.csv").read_bytes()
    assert dataclasses.asdict(evaluate(tmp_path / "out", shard_set).scores) == first[-1]
    assert (tmp_path / "out" / "evaluate" / "predictions.csv").read_bytes() == rows
    assert read_log(tmp_path / "out")[-1]["validation_loss"] == pytest.approx(
        validation_loss(tmp_path / "out", shard_set), rel=1e-4
    )


def validation_loss(folder: Path, shard_set: ShardSet) -> float:
    """Return the cross-entropy of the classifier in `folder`, read from its file, by one process."""
    model = load_classifier(folder)
    _, probabilities, labels, *_ = extract_features(
        lambda mels: model(mels).softmax(dim=1), shard_set, "validation", model.frontend
    )
    return -float(probabilities.gather(1, labels[:, None]).log().mean())


def test_a_classifier_never_takes_the_place_of_a_pretraining_run(
    pretrained: Path, shard_set: ShardSet
) -> None:
    with pytest.raises(DataError, match=r"holds 'checkpoint\.pt', which no classifier has"):
        finetune(config(freeze=True), pretrained, shard_set, pretrained, force=True)
    assert (pretrained / "checkpoint.pt").is_file()


def test_results_in_the_way_are_found_before_the_work_and_replaced_by_force(
    pretrained: Path, shard_set: ShardSet, tmp_path: Path
) -> None:
    finetune(config(freeze=True), pretrained, shard_set, tmp_path / "run")
    out = tmp_path / "out"
    first = evaluate(tmp_path / "run", shard_set, out).scores
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("siamusic_fast.evaluation.evaluate.extract_features", None)
        with pytest.raises(DataError, match=r"already exists and is not empty: .* --force"):
            evaluate(tmp_path / "run", shard_set, out)
        with pytest.raises(DataError, match=r"already exists and is not empty: .* --force"):
            probe(pretrained, shard_set, out)
        with pytest.raises(DataError, match=r"holds 'classifier\.pt', which no results have"):
            evaluate(tmp_path / "run", shard_set, tmp_path / "run", force=True)
    assert evaluate(tmp_path / "run", shard_set, out, force=True).scores == first
    assert probe(pretrained, shard_set, out, force=True).folder == out
    assert {file.name for file in out.iterdir()} == {"results.json"}


class Stopping:
    """Progress that sends this process a signal after some steps of fine-tuning."""

    def __init__(self, after: int) -> None:
        self.left = after

    @contextmanager
    def task(self, description: str, total: int, unit: str = "") -> Iterator["Stopping"]:
        yield self

    def advance(self, steps: int = 1, note: str = "", values: Mapping[str, float] | None = None) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture
def tiny_run(
    shard_set: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., FinetuneResult]]:
    """A function that fine-tunes a run of an encoder of a few weights in three epochs."""
    with monkeypatch.context() as patch:
        patch.setattr(networks, "encoder", TinyEncoder)
        patch.setattr(module, "stage", lambda _: 4)
        run = save_run(tmp_path / "pretrained")
        tiny = config(epochs=3, batch_size=6, aug="mask", lr=0.01, encoder_lr=0.001, crops_per_track=1)

        def tune(out: str, **options: Any) -> FinetuneResult:
            return finetune(
                **{"config": tiny, "run": run, "data": shard_set, "out": tmp_path / out, **options}
            )

        yield tune


@pytest.mark.parametrize(
    "stopped_after", [1, 4, 6, 12]
)  # of the 3 steps and 6 validation tracks of each epoch; 12 is the last step of the second one
def test_a_fine_tuning_that_was_stopped_goes_on_to_the_same_bits(
    tiny_run: Callable[..., FinetuneResult], tmp_path: Path, stopped_after: int
) -> None:
    whole = tiny_run("whole")
    with pytest.raises(Stopped) as stopped:
        tiny_run("stopped", progress=Stopping(stopped_after))
    assert stopped.value.exit_code == 143
    if stopped_after == 12:
        saved = checkpoint.load(tmp_path / "stopped" / "finetune-checkpoint.pt", "finetuning")
        assert (saved["step"], saved["epoch"]) == (6, 1)
    torch.manual_seed(99)
    result = tiny_run("stopped", resume=True)
    for name in ("kept_epoch", "accuracy", "loss", "tracks", "epochs", "data"):
        assert getattr(result, name) == getattr(whole, name), name
    first, second = weights(tmp_path / "whole"), weights(tmp_path / "stopped")
    assert [name for name, value in first.items() if not torch.equal(value, second[name])] == []
    assert read_log(tmp_path / "whole") == read_log(tmp_path / "stopped")


def test_a_fine_tuning_that_died_goes_on_from_the_checkpoint_of_a_kept_classifier_or_a_later_one(
    tiny_run: Callable[..., FinetuneResult], tmp_path: Path
) -> None:
    class Crashing(Stopping):
        def advance(self, steps: int = 1, note: str = "", values: Mapping[str, float] | None = None) -> None:
            self.left -= 1
            if self.left == 0:
                raise MemoryError

    settings: dict[str, Any] = {"epochs": 3, "batch_size": 6, "aug": "mask", "lr": 0.01}
    settings |= {"encoder_lr": 0.001, "crops_per_track": 1}
    with pytest.raises(MemoryError):  # in the second epoch
        tiny_run("rarely", progress=Crashing(11))
    saved = checkpoint.load(tmp_path / "rarely" / "finetune-checkpoint.pt", "finetuning")
    kept = checkpoint.load(tmp_path / "rarely" / "classifier.pt", "classifier")
    assert (saved["step"], saved["epoch"], saved["figures"]["kept_epoch"]) == (3, 1, kept["epoch"])
    often = config(**settings, checkpoint_minutes=1e-9)
    with pytest.raises(MemoryError):
        tiny_run("died", config=often, progress=Crashing(11))
    assert checkpoint.load(tmp_path / "died" / "finetune-checkpoint.pt", "finetuning")["step"] == 4
    result, whole = tiny_run("died", config=often, resume=True), tiny_run("whole")
    assert (result.kept_epoch, result.accuracy, result.loss) == (whole.kept_epoch, whole.accuracy, whole.loss)
    first, second = weights(tmp_path / "whole"), weights(tmp_path / "died")
    assert [name for name, value in first.items() if not torch.equal(value, second[name])] == []
    assert read_log(tmp_path / "whole") == read_log(tmp_path / "died")


def tiny_finetune(
    run: Path, shard_set: ShardSet, out: Path, *, world: World, stopped_after: int = 0, **options: Any
) -> None:
    """Fine-tune an encoder of a few weights in three epochs; be told to stop after some steps, if any."""
    tiny = config(epochs=3, batch_size=2, aug="mask", lr=0.01)
    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(Stopped):
        patch.setattr(networks, "encoder", TinyEncoder)
        patch.setattr(module, "stage", lambda _: 4)
        finetune(tiny, run, shard_set, out, world=world, progress=Stopping(stopped_after), **options)
    world.gather(None)


@pytest.mark.slow
def test_three_processes_of_a_fine_tuning_that_was_stopped_end_with_the_same_bits(
    shard_set: ShardSet, tmp_path: Path
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(networks, "encoder", TinyEncoder)
        run = save_run(tmp_path / "pretrained")
    tune = functools.partial(tiny_finetune, run, shard_set)
    launch(functools.partial(tune, tmp_path / "whole"), gpus=0, procs=3)
    launch(functools.partial(tune, tmp_path / "stopped", stopped_after=2), gpus=0, procs=3)
    assert checkpoint.load(tmp_path / "stopped" / "finetune-checkpoint.pt", "finetuning")["step"] == 2
    launch(functools.partial(tune, tmp_path / "stopped", resume=True), gpus=0, procs=3)
    first, second = weights(tmp_path / "whole"), weights(tmp_path / "stopped")
    assert [name for name, value in first.items() if not torch.equal(value, second[name])] == []


def test_a_fine_tuning_goes_on_in_other_processes_that_have_the_same_batch_together(
    tiny_run: Callable[..., FinetuneResult], tmp_path: Path
) -> None:
    whole = tiny_run("whole")
    with pytest.raises(Stopped):
        tiny_run("out", progress=Stopping(2))
    path = tmp_path / "out" / "finetune-checkpoint.pt"
    saved = checkpoint.load(path, "finetuning")
    of_two = {**saved, "ranks": 2 * saved["ranks"], "config": {**saved["config"], "batch_size": 3}}
    checkpoint.save(path, "finetuning", of_two)
    other = config(epochs=3, batch_size=4, aug="mask", lr=0.01, encoder_lr=0.001, crops_per_track=1)
    with pytest.raises(ConfigError, match=r"of 2 x 3 = 6, not 1 x 4: use batch_size = 6 .* --batch-size 6\)"):
        tiny_run("out", config=other, resume=True)
    with pytest.warns(UserWarning, match=r"of 1 x 6 instead of 2 x 3: .* Batch norm sees 6 .* instead of 3"):
        result = tiny_run("out", resume=True)
    assert result.accuracy == whole.accuracy
    first, second = weights(tmp_path / "whole"), weights(tmp_path / "out")
    assert [name for name, value in first.items() if not torch.equal(value, second[name])] == []


def test_only_an_unfinished_fine_tuning_with_the_same_settings_is_resumed(
    tiny_run: Callable[..., FinetuneResult], shard_set: ShardSet, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"finetune-checkpoint\.pt does not exist"):
        tiny_run("out", resume=True)
    with pytest.raises(Stopped):
        tiny_run("out", progress=Stopping(2))
    with pytest.raises(DataError, match="already exists and is not empty"):
        tiny_run("out")
    other = config(epochs=3, batch_size=6, aug="mask", lr=0.02, encoder_lr=0.001, crops_per_track=1)
    with pytest.raises(ConfigError, match="was started with another lr: resume it with"):
        tiny_run("out", config=other, resume=True)
    other_run = save_run(tmp_path / "other", weight_decay=0.5)
    with pytest.raises(ConfigError, match=r"was started with another pretraining\.weight_decay"):
        tiny_run("out", run=other_run, resume=True)
    tiny_run("out", resume=True)
    with pytest.raises(DataError, match="has all of its 3 epochs: there is nothing to resume"):
        tiny_run("out", resume=True)
    longer = config(epochs=4, batch_size=6, aug="mask", lr=0.01, encoder_lr=0.001, crops_per_track=1)
    with pytest.warns(UserWarning, match="starts a new cosine"):
        extended = tiny_run("out", config=longer, resume=True)
    assert extended.epochs == 4


def test_a_classifier_learns_from_the_shards_of_its_run_unless_told_otherwise(
    shard_set: ShardSet, tmp_path: Path
) -> None:
    run = save_run(tmp_path / "run")
    with pytest.raises(DataError, match=r"does not say what .* --data"):
        finetune(config(freeze=True), run)
    (run / "config.json").write_text(json.dumps({"data": str(shard_set.folder)}))
    result = finetune(config(freeze=True), run)
    assert result.data == str(shard_set.folder)
    assert json.loads((run / "finetune" / "config.json").read_text())["data"] == result.data


def test_a_batch_of_more_crops_than_there_are_shrinks_with_a_warning_and_is_recorded(
    pretrained: Path, shard_set: ShardSet, tmp_path: Path
) -> None:
    crops = 2 * shard_set.tracks(["training"], labelled_only=True)
    settings = config(batch_size=64, freeze=True, crops_per_track=2)
    with pytest.warns(UserWarning, match=f"batch_size = 64 is more than the {crops} crops"):
        finetune(settings, pretrained, shard_set, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["batch_size"] == crops


def test_what_is_not_set_is_the_best_known_or_what_the_paper_says() -> None:
    names = ("target", "crops_per_track", "encoder_lr", "schedule", "warmup_epochs")

    def resolved(**options: Any) -> list[Any]:
        found = config(lr=0.01, **options).resolved("tags")
        return [getattr(found, name) for name in names]

    assert resolved() == ["tags", 4, 0.001, "cosine", 1.0]
    assert resolved(from_scratch=True) == ["tags", 4, 0.01, "cosine", 1.0]
    assert resolved(protocol="paper") == ["tags", 1, 0.01, "constant", 0.0]
    assert resolved(freeze=True, target="class", crops_per_track=2) == ["class", 2, None, "cosine", 1.0]
    with pytest.raises(ConfigError, match="warmup_epochs = 3 must lie between 0 and epochs = 2"):
        config(epochs=2, warmup_epochs=3)


def test_rates_rise_and_fall_along_the_schedule_and_an_extension_starts_a_new_one(
    tiny_run: Callable[..., FinetuneResult], shard_set: ShardSet, tmp_path: Path
) -> None:
    rates: list[list[float]] = []

    class Watched(torch.optim.Adam):
        def step(self, closure: Any = None) -> Any:
            rates.append([group["lr"] for group in self.param_groups])
            return super().step(closure)

    settings = {"batch_size": 8, "crops_per_track": 2, "lr": 0.01, "encoder_lr": 0.004, "warmup_epochs": 1}
    per_epoch = 2 * shard_set.tracks(["training"], labelled_only=True) // 8
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim, "Adam", Watched)
        tiny_run("out", config=config(epochs=2, **settings))
        whole = [*rates]
        with pytest.warns(
            UserWarning, match="after epoch 2 the learning rate starts a new cosine at lr = 0.01"
        ):
            tiny_run("out", config=config(epochs=3, **settings), resume=True)
    steps = torch.arange(per_epoch) / per_epoch
    warmed, fallen = steps + 1 / per_epoch, (1 + torch.cos(torch.pi * steps)) / 2
    for number, highest in enumerate((0.004, 0.01)):
        assert len(whole) == 2 * per_epoch
        assert [rate[number] for rate in whole] == pytest.approx(
            (highest * torch.cat([warmed, fallen])).tolist()
        )
        assert [rate[number] for rate in rates[2 * per_epoch :]] == pytest.approx((highest * fallen).tolist())
    logged = [line["lr"] for line in read_log(tmp_path / "out")]
    assert logged == pytest.approx([0.01, 0.01 * float(fallen[-1]), 0.01 * float(fallen[-1])])


@pytest.fixture(scope="module")
def tagger(pretrained: Path, tagged: ShardSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of tags that has learnt for a few epochs."""
    out = tmp_path_factory.mktemp("tagger") / "out"
    found = finetune(config(epochs=4, lr=1e-2, batch_size=16), pretrained, tagged, out)
    lines = read_log(out)
    best = max(lines, key=lambda line: (line["validation_roc_auc"], -line["validation_loss"]))
    kept = (found.roc_auc, found.pr_auc, found.loss)
    assert kept == tuple(best[f"validation_{name}"] for name in ("roc_auc", "pr_auc", "loss"))
    assert found.accuracy is None
    assert (found.tracks, found.kept_epoch) == (6, best["epoch"])
    return out


def test_a_classifier_of_tags_learns_them_and_is_scored_as_the_field_does(
    tagger: Path, tagged: ShardSet
) -> None:
    result = evaluate(tagger, tagged)
    assert isinstance(result.scores, TagScores)
    assert (result.target, result.scores.tracks) == ("tags", 5)  # a sixth test track has no tags
    assert result.scores.roc_auc > 0.7
    written = json.loads((result.folder / "results.json").read_text())
    assert written["target"] == "tags"
    with (result.folder / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    truths = np.array([[tag in row["truth"].split("|") for tag in tagged.tags] for row in rows])
    values = np.array([[float(row[tag]) for tag in tagged.tags] for row in rows])
    assert written["roc_auc"] == pytest.approx(roc_auc_score(truths, values, average="macro"), abs=0.01)
    model = load_classifier(tagger)
    found = extract_features(lambda mels: model(mels).sigmoid(), tagged, "test", model.frontend)
    assert found.features.numpy() == pytest.approx(values, abs=1e-4)


def test_a_classifier_of_tags_says_probabilities_that_need_not_add_up_to_one(
    tagger: Path, tagged: ShardSet
) -> None:
    classifier = load_classifier(tagger)
    assert (classifier.target, classifier.classes) == ("tags", tagged.tags)
    heard = classifier.predict(tagged, splits=["test"])
    mels = torch.randn(2, 1, MEL.n_mels, MEL.frames)
    with torch.no_grad():
        assert torch.equal(classifier.probabilities(mels), torch.sigmoid(classifier(mels)))
    assert heard.target == "tags"
    assert heard.probabilities.shape == (6, len(tagged.tags))
    one = next(iter(predict(tagger, tagged, splits=["test"])))
    assert isinstance(one, Prediction)
    assert one.above(0.0) == one.top(len(tagged.tags))
    lowest = one.above(0.0)[1][1]
    assert one.above(lowest) == one.top(2)


def test_tags_of_other_shards_are_refused_and_so_are_shards_without(
    tagger: Path, pretrained: Path, shard_set: ShardSet, tagged: ShardSet, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="has no tags, and an evaluation needs some"):
        evaluate(tagger, shard_set)
    with pytest.raises(DataError, match=r"has no tags, and a classifier needs some: .* --labels FILE --tags"):
        finetune(config(target="tags"), pretrained, shard_set, tmp_path / "out")
    with pytest.raises(DataError, match="too few classes"):
        finetune(config(target="class"), pretrained, tagged, tmp_path / "out")
    fewer = dataclasses.replace(tagged, tags=(*tagged.tags, "zither"))
    with pytest.raises(
        DataError, match=r"the classifier has the tags high, low, middle, voice and .* zither"
    ):
        evaluate(tagger, fewer)


def test_half_of_the_tagged_tracks_make_epochs_of_half_the_length(
    pretrained: Path, tagged: ShardSet, tmp_path: Path
) -> None:
    finetune(config(batch_size=11, label_fraction=0.5, freeze=True), pretrained, tagged, tmp_path / "out")
    assert [line["step"] for line in read_log(tmp_path / "out")] == [4]  # of 4 crops of 11 tracks
