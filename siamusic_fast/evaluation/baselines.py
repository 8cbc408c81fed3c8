"""Features that need no pre-training, which those of an encoder have to beat, and where they are kept."""

import contextlib
import dataclasses
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import torch
import torchaudio
from torch import Tensor, nn

from siamusic_fast.config import BACKENDS, Architecture
from siamusic_fast.embedding.extract import Network
from siamusic_fast.evaluation.features import CropFeatures, FeatureExtractor, TrackFeatures
from siamusic_fast.frontend import Frontend
from siamusic_fast.models import networks
from siamusic_fast.models.pretrained import Pretrained
from siamusic_fast.processes.world import World
from siamusic_fast.progress import SILENT, Progress
from siamusic_fast.shards.kept_features import read_features, write_features
from siamusic_fast.shards.manifest import DamageError, ShardSet

PRETRAINED = "pretrained"
"""Name of the features of the pre-trained encoder."""
RANDOM = "random"
INITIAL = "initial"
LOG_MELS = "log-mels"
MFCCS = "MFCCs"
BASELINES = (RANDOM, INITIAL, LOG_MELS, MFCCS)
"""Names of the features that no pre-training made."""
_VERSION = 1
"""Version of the computation: a change of what it comes to needs another, or kept features stay in use."""
N_MFCC = 20
"""Number of MFCCs, as many as FMA's own features have (Defferrard et al. 2017, section 3.5; librosa)."""

F = TypeVar("F", TrackFeatures, CropFeatures)


class Baseline(NamedTuple):
    """A way to compute features, and how many there are."""

    network: Network
    dim: int


def baselines(
    architecture: Architecture, frontend: Frontend, seed: int, device: torch.device
) -> dict[str, Baseline]:
    """Return the baselines of encoders of `architecture` that hear spectrograms of `frontend`, by name.

    `random` is an encoder with torchvision's own random weights, `initial` the one that pre-training with
    `seed` starts from: the same weights, but the residual branches of a ResNet begin at zero. Both are in
    evaluation mode, where their batch norms have mean 0 and variance 1.
    """
    random, initial = (random_encoder(architecture, seed, device).eval() for _ in range(2))
    mfcc = MFCC(frontend).to(device)
    return {
        RANDOM: Baseline(activate_branches(random), random.dim),
        INITIAL: Baseline(initial, initial.dim),
        LOG_MELS: Baseline(log_mel_statistics, 2 * frontend.mel.n_mels),
        MFCCS: Baseline(mfcc, mfcc.dim),
    }


def random_encoder(architecture: Architecture, seed: int, device: torch.device) -> networks.Encoder:
    """Return the encoder that pre-training with `seed` starts from; no global random generator is changed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = networks.encoder(architecture)
    return networks.place(model, device)


def activate_branches(model: networks.Encoder) -> networks.Encoder:
    """Set the batch norm weights that `zero_init_residual` made 0 to 1, and return `model`."""
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d) and not part.weight.any():
            nn.init.ones_(part.weight)
    return model


def log_mel_statistics(mels: Tensor) -> Tensor:
    """Return mean and standard deviation over time of each band of `mels` [n, 1, n_mels, frames]."""
    return _over_time(mels.float().squeeze(1))


class MFCC(nn.Module):
    """Mean and standard deviation over time of MFCCs and of their first and second differences.

    They are the first `N_MFCC` coefficients of the discrete cosine transform, type 2 and orthonormal, of the
    log-mels in dB, as `torchaudio.transforms.MFCC` has them, and differences by regression over 5 frames
    (`torchaudio.functional.compute_deltas`). Maps [n, 1, n_mels, frames] to [n, dim].
    """

    _dct: Tensor
    _std: Tensor
    _mean: Tensor

    def __init__(self, frontend: Frontend) -> None:
        super().__init__()
        n_mfcc = min(N_MFCC, frontend.mel.n_mels)
        self.dim = 2 * 3 * n_mfcc
        dct = torchaudio.functional.create_dct(n_mfcc, frontend.mel.n_mels, "ortho")
        self.register_buffer("_dct", dct.T.contiguous())
        self.register_buffer("_std", torch.tensor(frontend.std).view(-1, 1))
        self.register_buffer("_mean", torch.tensor(frontend.mean).view(-1, 1))

    def forward(self, mels: Tensor) -> Tensor:
        """Return the statistics of normalized log-mels."""
        decibels = mels.float().squeeze(1) * self._std + self._mean
        with torch.autocast(mels.device.type, enabled=False):
            coefficients = self._dct @ decibels
        first = torchaudio.functional.compute_deltas(coefficients)
        second = torchaudio.functional.compute_deltas(first)
        return _over_time(torch.cat([coefficients, first, second], dim=1))


def _over_time(values: Tensor) -> Tensor:
    """Return mean and standard deviation of `values` [n, d, frames] over the frames, [n, 2 d]."""
    std, mean = torch.std_mean(values, dim=2, correction=0)
    return torch.cat([mean, std], dim=1)


@dataclass(frozen=True, kw_only=True)
class Competitors:
    """A pre-trained encoder and the baselines that it is compared with, on the tracks of a shard set.

    What the baselines say does not depend on what a run has learnt: it is kept beside the shards, with a
    checksum of every byte, and read from there for the next run of the same architecture, frontend and seed.
    That seed is the run's own: `initial` is what it started from, or with `init`, what it would have started
    from without. A warning says so if the file is damaged and computed again.
    """

    pretrained: Pretrained
    shard_set: ShardSet
    target: str | None = None
    """Which tracks count: those with a class, or those with tags. None: as the shard set has them."""
    backend: str = BACKENDS[0]
    world: World = dataclasses.field(default_factory=World)
    progress: Progress = SILENT

    @property
    def seed(self) -> int:
        """Seed of the random encoders."""
        return int(self.pretrained.pretraining["seed"])

    @cached_property
    def _encoder(self) -> Baseline:
        encoder = self.pretrained.build_encoder(self.world.device)
        return Baseline(encoder, encoder.dim)

    @cached_property
    def _baselines(self) -> dict[str, Baseline]:
        of_run = self.pretrained
        return baselines(of_run.architecture, of_run.frontend, self.seed, self.world.device)

    def tracks(self, split: str) -> dict[str, TrackFeatures]:
        """Return features of the tracks of `split`, averaged over crops that cover a track, by name."""
        return self._computed(split, None, FeatureExtractor.extract)

    def crops(self, split: str, crops: int) -> dict[str, CropFeatures]:
        """Return features of so many crops of each track of `split`, by name."""
        return self._computed(split, crops, FeatureExtractor.extract_crops)

    def _computed(self, split: str, crops: int | None, extract: Any) -> dict[str, Any]:
        key = self._key(split, crops)
        kept = self.world.once(lambda: self._kept(key))
        networks = {PRETRAINED: self._encoder, **(self._baselines if kept is None else {})}
        with (
            FeatureExtractor(
                self.shard_set,
                split,
                self.pretrained.frontend,
                target=self.target,
                crops=crops,
                backend=self.backend,
                world=self.world,
            ) as extractor,
            (self.progress if self.world.leads else SILENT).task(
                f"Reading {split}", extractor.samples, "tracks"
            ) as task,
        ):
            found = extract(
                extractor,
                lambda mels: torch.cat([network(mels).float() for network, _ in networks.values()], dim=1),
                task,
            )
        parts = torch.split(found.features, [one.dim for one in networks.values()], dim=1)
        features = dict(zip(networks, (part.contiguous() for part in parts), strict=True))
        if kept is None and self.world.leads:
            with contextlib.suppress(OSError):  # a shard set that cannot be written to serves as well
                of_baselines = {name: features[name].numpy() for name in BASELINES}
                write_features(self.shard_set.folder, key, of_baselines)
        features |= kept or {}
        return {name: found._replace(features=features[name]) for name in (PRETRAINED, *BASELINES)}

    def _key(self, split: str, crops: int | None) -> dict[str, Any]:
        """Return all that the features of the baselines depend on."""
        return {
            "shards": self.shard_set.digest,
            "split": split,
            "target": self.target or self.shard_set.target,
            "crops": "covering a track" if crops is None else f"{crops} alone",
            "frontend": self.pretrained.frontend.dump(),
            "architecture": dataclasses.asdict(self.pretrained.architecture),
            "seed": self.seed,
            "device": self.world.device.type,
            "torch": torch.__version__.split("+")[0],
            "backend": self.backend,
            "n_mfcc": N_MFCC,
            "version": _VERSION,
        }

    def _kept(self, key: Mapping[str, Any]) -> dict[str, Tensor] | None:
        """Return the kept features for `key`; None, with a warning, if they are damaged."""
        try:
            kept = read_features(self.shard_set.folder, key)
        except DamageError as error:
            warnings.warn(
                f"{error.path} cannot be used ({error.reason}): the features of the baselines are computed "
                f"again",
                stacklevel=4,
            )
            return None
        return None if kept is None else {name: torch.from_numpy(values) for name, values in kept.items()}
