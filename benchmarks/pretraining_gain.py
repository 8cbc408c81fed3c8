"""Measures what pre-training adds on the synthetic corpus, from several seeds, and writes docs/results.md.

python -m benchmarks.pretraining_gain [FOLDER]    audio, shards and runs go to FOLDER, by default demo
"""

import dataclasses
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from siamusic_fast.analysis import demo
from siamusic_fast.bench.report import describe_machine
from siamusic_fast.cli.console import output, progress
from siamusic_fast.config import MelConfig, PretrainConfig, ProbeConfig, dump
from siamusic_fast.evaluation.baselines import INITIAL, PRETRAINED, RANDOM
from siamusic_fast.evaluation.probe import ProbeResult, probe
from siamusic_fast.models import checkpoint
from siamusic_fast.models.run_files import Checkpoints
from siamusic_fast.processes.pool import cores
from siamusic_fast.processes.world import World
from siamusic_fast.progress import SILENT, Progress
from siamusic_fast.shards.manifest import ShardSet
from siamusic_fast.synthetic.corpus import SyntheticCorpus
from siamusic_fast.training.pretrain import pretrain

PAGE = Path(__file__).parents[1] / "docs" / "results.md"


@dataclass(frozen=True, kw_only=True)
class GainConfig:
    """What is made, how it is learnt from, and how often."""

    corpus: SyntheticCorpus
    pretrain: PretrainConfig
    """Its seed is replaced by each of `seeds`."""
    seeds: tuple[int, ...]


DEFAULT = GainConfig(
    corpus=SyntheticCorpus(),
    pretrain=PretrainConfig(
        mel=MelConfig(seconds=2.0, n_fft=2048, hop_length=1024),
        aug="gain,rrc,mask",
        crops="independent",
        backend="torch",
        backbone="resnet18",
        epochs=150,
        schedule="cosine",
        knn_every=0,
    ),
    seeds=(0, 1, 2),
)
"""Half as many frames as the demo's, and twenty times as many epochs: half an hour on two CPU cores."""


@dataclass(frozen=True, kw_only=True)
class Gain:
    """What came of each seed, in their order."""

    config: GainConfig
    shard_set: ShardSet
    probed: tuple[ProbeResult, ...]

    @property
    def mean(self) -> float:
        """Mean over seeds of what pre-training added to the linear probe of a random encoder, -1 to 1."""
        return statistics.mean(gain_over(RANDOM, result) for result in self.probed)

    @property
    def mean_over_initial(self) -> float:
        """The same over the encoder that pre-training started from."""
        return statistics.mean(gain_over(INITIAL, result) for result in self.probed)


def gain_over(baseline: str, result: ProbeResult) -> float:
    """Return the accuracy of the linear probe of the pre-trained encoder less that of `baseline`."""
    accuracies = result.measure("linear").values
    return accuracies[PRETRAINED] - accuracies[baseline]


def measure(
    root: Path,
    config: GainConfig = DEFAULT,
    *,
    procs: int = 1,
    world: World | None = None,
    progress: Progress = SILENT,
) -> Gain:
    """Synthesize and pack the corpus in `root`, if it is not there; from each seed, pre-train and probe.

    The runs go to the folders gain/seed-0 and so on of `root`. One that is there, whole and of this
    configuration, is not trained again; others are replaced.
    """
    shard_set = demo.shards(root / "data", config.corpus, procs, progress)
    probed = []
    for seed in config.seeds:
        run = root / "gain" / f"seed-{seed}"
        settings = dataclasses.replace(config.pretrain, seed=seed)
        if not _is_finished(run, settings, shard_set):
            pretrain(settings, shard_set, run, force=True, world=world, progress=progress)
        probing = ProbeConfig(seed=seed, backend=settings.backend)
        probed.append(probe(run, shard_set, config=probing, world=world, progress=progress))
    return Gain(config=config, shard_set=shard_set, probed=tuple(probed))


def _is_finished(run: Path, config: PretrainConfig, shard_set: ShardSet) -> bool:
    """Whether `run` has done all epochs of `config` on these very shards."""
    checkpoints = Checkpoints(run)
    if not checkpoints.exist():
        return False
    saved = checkpoint.load(checkpoints.newest_whole(), "pretraining")
    shards = [shard.sha256 for shard in shard_set.shards(config.splits)]
    found = saved["epoch"], saved["config"], saved["shards"]
    return found == (config.epochs, dump(config), shards)


def table(gain: Gain) -> str:
    """Return the accuracies by seed and their means, in Markdown."""
    columns = {"pre-trained": PRETRAINED, "random": RANDOM, "initial": INITIAL}
    names = [f"{encoder}, {kind}" for kind in ("linear", "kNN") for encoder in columns]
    lines = [_row(["seed", *names, "gain"]), _row(["---", *["---:"] * (len(names) + 1)])]
    shown = [(kind, name) for kind in ("linear", "knn") for name in columns.values()]
    found = [[result.measure(kind).values[name] for kind, name in shown] for result in gain.probed]
    for seed, result, values in zip(gain.config.seeds, gain.probed, found, strict=True):
        cells = [f"{value:.1%}" for value in values]
        lines.append(_row([str(seed), *cells, f"{100 * gain_over(RANDOM, result):+.1f}"]))
    means = [f"**{statistics.mean(values):.1%}**" for values in zip(*found, strict=True)]
    lines.append(_row(["**mean**", *means, f"**{100 * gain.mean:+.1f}**"]))
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def page(gain: Gain, machine: Mapping[str, Any]) -> str:
    """Return docs/results.md: the settings, the figures, and what they do and do not say."""
    config, corpus, seeds = gain.config.pretrain, gain.config.corpus, gain.config.seeds
    splits = {split: gain.shard_set.tracks([split]) for split in gain.shard_set.splits}
    counts = ", ".join(f"{count} for {split}" for split, count in splits.items())
    first = gain.probed[0]
    linear = first.measure("linear")
    accuracy, (low, high) = linear.values[PRETRAINED], linear.intervals[PRETRAINED]
    over_random, over_initial = f"{100 * gain.mean:+.1f}", f"{100 * gain.mean_over_initial:+.1f}"
    return f"""# Results

## What pre-training adds: a linear probe on the synthetic corpus

Made by

    .venv/bin/python -m benchmarks.pretraining_gain

which wrote this page. Averaged over {len(seeds)} seeds, the linear probe of the pre-trained encoder is at
**{over_random} points** of accuracy from that of a random encoder, and at {over_initial} points from that of
the encoder that pre-training started from.

{table(gain)}

Accuracy on {first.tracks} test tracks; chance is {first.chance:.1%}. With so few tracks one accuracy is
uncertain: {accuracy:.1%}, the first in the table, has a 95% interval of {low:.1%} to {high:.1%}.

- **Corpus**: that of `siamusic-fast demo`: {len(gain.shard_set.classes)} genres, {counts}, of
  {corpus.seconds:g} s. All seeds share it. It is synthetic: the figures say whether the code learns, and
  nothing about music.
- **Features**: {config.mel.n_mels} x {config.mel.frames}, crops of {config.mel.seconds:g} s, hop length
  {config.mel.hop_length}, FFT of {config.mel.n_fft}.
- **Pre-training**: SimSiam, {config.backbone}, `--aug {config.aug} --crops {config.crops}`, {config.epochs}
  epochs of batches of {config.batch_size}, {config.optimizer} with lr {config.lr:g}, {config.schedule}, and
  weight decay {config.weight_decay:g}, `--backend {config.backend}`; the last epoch. It sees the training
  split alone, and no labels.
- **Probes**: those of `siamusic-fast probe`, on features of whole tracks. The penalty of the linear probe is
  chosen by cross-validation on the training split.
- **random** has torchvision's own initial weights. **initial** is what SimSiam starts from: residual branches
  begin at zero, which leaves a shallower network. "gain" is over the random one.
- **Seeds** are those of weights, order, crops and augmentations.
- **Settings** were chosen on other tracks: a corpus synthesized from another seed.
- **Machine**: {machine["cpu"]}, {machine["cores"]} cores, torch {machine["torch"]}.
"""


def main() -> None:
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path("demo")
    found = measure(root, procs=cores(), progress=progress(quiet=False))
    PAGE.write_text(page(found, describe_machine()), encoding="utf-8")
    output.print(str(PAGE))


if __name__ == "__main__":
    main()
