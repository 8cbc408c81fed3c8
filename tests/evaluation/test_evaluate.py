import json
from pathlib import Path

import pytest

from siamusic_fast.errors import DataError
from siamusic_fast.evaluation.evaluate import evaluate, overlap_warning
from siamusic_fast.models.run_files import save_json
from siamusic_fast.shards.manifest import ShardSet
from tests.runs import save_classifier


@pytest.mark.parametrize(
    ("splits", "warned"), [(["training"], False), (["training", "test"], True), ([], False)]
)
def test_results_say_what_the_encoder_was_pretrained_on(
    splits: list[str], warned: bool, shard_set: ShardSet, tmp_path: Path
) -> None:
    result = evaluate(save_classifier(tmp_path, pretrained_on=splits), shard_set)
    assert json.loads((result.folder / "results.json").read_text())["pretrained_on"] == splits
    assert bool(overlap_warning(result.pretrained_on)) == warned


def test_scores_are_those_on_the_shards_that_the_classifier_was_trained_on_unless_told_otherwise(
    shard_set: ShardSet, tmp_path: Path
) -> None:
    run = save_classifier(tmp_path / "run", pretrained_on=["training"])
    with pytest.raises(DataError, match=r"config\.json does not say what .* --data"):
        evaluate(run)
    expected = evaluate(run, shard_set, tmp_path / "out").scores
    save_json(run / "config.json", {"data": str(shard_set.folder)})
    assert evaluate(run).scores == evaluate(str(run), str(shard_set.folder)).scores == expected
