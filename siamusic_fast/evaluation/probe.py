"""Probes of an encoder's frozen features, beside those of features that learnt nothing."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from siamusic_fast.config import Architecture, ProbeConfig
from siamusic_fast.evaluation.baselines import BASELINES, PRETRAINED, Competitors
from siamusic_fast.evaluation.checks import check_probe
from siamusic_fast.evaluation.cross_validation import (
    Examples,
    classify_knn,
    classify_linear,
    repeated_folds,
)
from siamusic_fast.evaluation.effective_rank import effective_rank
from siamusic_fast.evaluation.evaluate import RESULTS, overlap_warning, results_folder
from siamusic_fast.evaluation.features import TrackFeatures
from siamusic_fast.evaluation.folds import Fold
from siamusic_fast.evaluation.measures import (
    LabelPoint,
    Measure,
    label_curve,
    probabilities,
    probe_measures,
    retrieval_measures,
    scored_rows,
)
from siamusic_fast.evaluation.scores import Scores, scores
from siamusic_fast.evaluation.tag_scores import TagScores, tag_scores
from siamusic_fast.models.pretrained import load_pretrained
from siamusic_fast.models.run_files import save_json
from siamusic_fast.processes.world import World
from siamusic_fast.progress import SILENT, Progress
from siamusic_fast.shards.manifest import ShardSet

_FEWEST_CROPS = 1_000
"""Crops of all tracks that retrieval aims at, from 2 to 20 of each."""


@dataclass(frozen=True, kw_only=True)
class EncoderProbes:
    """Scores of the probes of one kind of features."""

    knn: Scores | TagScores
    """Scores of the kNN probe."""
    linear: Scores | TagScores
    """Scores of the linear probe."""
    effective_rank: float
    """How many dimensions the features of the retrieved crops use (RankMe)."""


@dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """Probes of a pre-trained encoder, and of features that no pre-training made."""

    folder: Path
    """Folder of the results."""
    data: str
    """Name of the corpus that the tracks are from."""
    architecture: Architecture
    """What the encoders are built as."""
    checkpoint: str
    """Checkpoint of the run: `last` or `best`."""
    epoch: int
    """Epochs of pre-training behind the checkpoint."""
    pretrained_on: tuple[str, ...]
    """Splits that the encoder was pre-trained on."""
    init: str | None
    """Weights that the run began with in place of random ones. The baseline `initial` does not have them."""
    target: str
    """What the probes tell of a track: its class, or its tags."""
    scored_on: str
    """`test`: fits to the training split are scored on the test split. `cross-validation`: all labelled
    tracks are scored, each by a fit that has met none of its group."""
    scored_splits: tuple[str, ...]
    """Splits of the scored tracks."""
    tracks: int
    """Number of tracks that are scored."""
    chance: float
    """Accuracy of always saying the most frequent class; of tags, PR-AUC by chance."""
    probes: dict[str, EncoderProbes]
    """Scores by the name of the features: `pretrained`, and the baselines `random`, `initial`, `log-mels` and
    `MFCCs`."""
    measures: tuple[Measure, ...]
    """All measures: of classes, accuracy of `knn` and `linear`; of tags, ROC-AUC and PR-AUC of both; and the
    retrieval of crops, `same_track` (R@1) and `same_artist` (mean average precision, where groups are known).
    """
    label_curve: tuple[LabelPoint, ...]
    """The linear probe with fractions of the labels, if asked for."""

    def measure(self, name: str) -> Measure:
        """Return the measure `name`."""
        return next(one for one in self.measures if one.name == name)


def probe(
    run: Path | str,
    data: ShardSet | Path | str | None = None,
    out: Path | str | None = None,
    config: ProbeConfig | None = None,
    *,
    world: World | None = None,
    force: bool = False,
    progress: Progress = SILENT,
) -> ProbeResult:
    """Score the frozen features of the encoder of `run`, and those of baselines beside it.

    Called in every process of `world`, which share the tracks; default: one process on the CPU. `data` is a
    shard set, its folder, or its name; by default the shards that the run was trained on. The features of a
    track are the mean over crops that cover it, up to 128. What is told of a track is its class, or its tags
    if `config.target` says so or the shards have no two classes.

    - The kNN probe has the labelled training tracks as its bank (`knn_votes`). The linear probe is a logistic
      regression of them, whose penalty is chosen by grouped cross-validation among them (`choose_linear`).
      Both are scored on the labelled test tracks; with `config.cv`, on all labelled tracks by repeated
      grouped cross-validation.
    - Retrieval takes no labels: for each crop of the labelled test tracks, whether the nearest one is of the
      same track, and how well those of other tracks of its group are found (`retrieval`).
    - Baselines are described by `baselines`, and kept beside the shards (`Competitors`). Their seed is the
      run's.

    Intervals are resampled by group, such as artists, where the shards know them; `config.seed` is that of
    the intervals and the folds.

    Results go to `out`, which must be empty or with `force` may hold earlier results. The default is the
    folder probe in `run`, where they replace earlier results.

    Raises DataError if `run` holds no such encoder, if the shards do not have what is told of a track, or a
    split without labelled tracks; ConfigError if the features do not fit the shards.
    """
    world, run, config = world or World(), Path(run), config or ProbeConfig()
    shard_set, splits = check_probe(run, data, out, config, force=force)
    target = config.target or shard_set.target
    pretrained = load_pretrained(run, config.checkpoint)
    folder = results_folder(out, run / "probe", world, force=force)

    competitors = Competitors(
        pretrained=pretrained,
        shard_set=shard_set,
        target=target,
        backend=config.backend,
        world=world,
        progress=progress,
    )
    by_split = {split: competitors.tracks(split) for split in splits}
    names = (PRETRAINED, *BASELINES)
    labels = shard_set.names(target)
    examples = {
        name: _examples([by_split[split][name] for split in splits], target, labels) for name in names
    }
    sizes = {split: len(by_split[split][PRETRAINED].names) for split in splits}
    rounds = _rounds(examples[PRETRAINED], sizes, config)
    crops = competitors.crops(splits[-1], config.retrieval_crops or _crops(sizes[splits[-1]]))

    found = {
        name: {
            "knn": probabilities(classify_knn, one, rounds),
            "linear": probabilities(classify_linear, one, rounds),
        }
        for name, one in examples.items()
    }
    scored = examples[PRETRAINED].only(scored_rows(rounds))
    probes = {
        name: EncoderProbes(
            knn=_scores(of_probe["knn"], scored, labels, config.seed),
            linear=_scores(of_probe["linear"], scored, labels, config.seed),
            effective_rank=float(effective_rank(crops[name].features)),
        )
        for name, of_probe in found.items()
    }
    result = ProbeResult(
        folder=folder,
        data=shard_set.source,
        architecture=pretrained.architecture,
        checkpoint=config.checkpoint,
        epoch=pretrained.epoch,
        pretrained_on=pretrained.splits,
        init=pretrained.pretraining["init"],
        target=target,
        scored_on="test" if config.cv is None else "cross-validation",
        scored_splits=("test",) if config.cv is None else tuple(splits),
        tracks=len(scored),
        chance=probes[PRETRAINED].linear.chance,
        probes=probes,
        measures=(
            *probe_measures(found, scored, config.seed),
            *retrieval_measures(crops, config.seed),
        ),
        label_curve=label_curve(examples, rounds, config.seed) if config.label_curve else (),
    )
    if world.leads:
        save_json(folder / RESULTS, as_json(result))
    return result


def as_json(result: ProbeResult) -> dict[str, object]:
    """Return `result` as plain values, and the warning if the encoder has met scored tracks before."""
    return {
        **dataclasses.asdict(result),
        "folder": str(result.folder),
        "warning": overlap_warning(result.pretrained_on, result.scored_splits),
    }


def _crops(tracks: int) -> int:
    """Return how many crops of each of `tracks` retrieval takes unless it is told."""
    return min(max(-(-_FEWEST_CROPS // tracks), 2), 20)


def _examples(splits: Sequence[TrackFeatures], target: str, labels: Sequence[str]) -> Examples:
    """Return the tracks with a `target` of all `splits`, one split after the other."""
    of_tags = target == "tags"
    return Examples(
        features=torch.cat([split.features for split in splits]),
        targets=torch.cat([split.tags if of_tags else split.labels for split in splits]),
        groups=[group for split in splits for group in split.groups],
        outputs=len(labels),
    )


def _rounds(examples: Examples, sizes: Mapping[str, int], config: ProbeConfig) -> list[list[Fold]]:
    """Return the folds of each repeat; without cross-validation, the training and the test split."""
    if config.cv is not None:
        return repeated_folds(examples.targets, examples.groups, repeats=config.cv, seed=config.seed)
    training = sizes["training"]
    return [[(torch.arange(training), torch.arange(training, len(examples)))]]


def _scores(found: Tensor, scored: Examples, names: Sequence[str], seed: int) -> Scores | TagScores:
    """Return the scores of the probabilities [repeats, tracks, outputs], those of all repeats together."""
    if scored.targets.ndim > 1:
        return tag_scores(found, scored.targets, names, groups=scored.groups, seed=seed)
    return scores(found.argmax(dim=2), scored.targets, names, groups=scored.groups, seed=seed)
