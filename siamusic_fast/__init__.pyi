"""The public names of the package, each imported from the module that defines it.

Type checkers and editors read this file, and `__init__.py` looks up in it what to import for a name.
"""

from siamusic_fast.audio.corpus import Corpus as Corpus
from siamusic_fast.audio.sources import open_corpus as open_corpus
from siamusic_fast.config import EmbedConfig as EmbedConfig
from siamusic_fast.config import FinetuneConfig as FinetuneConfig
from siamusic_fast.config import MelConfig as MelConfig
from siamusic_fast.config import PretrainConfig as PretrainConfig
from siamusic_fast.config import ProbeConfig as ProbeConfig
from siamusic_fast.embedding.results import Embeddings as Embeddings
from siamusic_fast.embedding.results import Predictions as Predictions
from siamusic_fast.errors import ConfigError as ConfigError
from siamusic_fast.errors import DataError as DataError
from siamusic_fast.errors import DeviceError as DeviceError
from siamusic_fast.errors import SiamusicError as SiamusicError
from siamusic_fast.evaluation.evaluate import EvaluateResult as EvaluateResult
from siamusic_fast.evaluation.evaluate import evaluate as evaluate
from siamusic_fast.evaluation.probe import ProbeResult as ProbeResult
from siamusic_fast.evaluation.probe import probe as probe
from siamusic_fast.frontend import Frontend as Frontend
from siamusic_fast.inference.embed import EmbedResult as EmbedResult
from siamusic_fast.inference.embed import embed as embed
from siamusic_fast.inference.export import ExportResult as ExportResult
from siamusic_fast.inference.export import export as export
from siamusic_fast.inference.similar import Neighbor as Neighbor
from siamusic_fast.inference.similar import similar as similar
from siamusic_fast.models.networks import Classifier as Classifier
from siamusic_fast.models.networks import Encoder as Encoder
from siamusic_fast.models.pretrained import load_classifier as load_classifier
from siamusic_fast.models.pretrained import load_encoder as load_encoder
from siamusic_fast.pipelines.augmentation import ImageAugmentation as ImageAugmentation
from siamusic_fast.pipelines.augmentation import WaveAugmentation as WaveAugmentation
from siamusic_fast.pipelines.image_augmentations import CutMix as CutMix
from siamusic_fast.pipelines.image_augmentations import CutOut as CutOut
from siamusic_fast.pipelines.image_augmentations import FrequencyMask as FrequencyMask
from siamusic_fast.pipelines.image_augmentations import GridDistortion as GridDistortion
from siamusic_fast.pipelines.image_augmentations import HorizontalFlip as HorizontalFlip
from siamusic_fast.pipelines.image_augmentations import Mask as Mask
from siamusic_fast.pipelines.image_augmentations import Mixup as Mixup
from siamusic_fast.pipelines.image_augmentations import RandomResizedCrop as RandomResizedCrop
from siamusic_fast.pipelines.image_augmentations import Tilt as Tilt
from siamusic_fast.pipelines.image_augmentations import TimeMask as TimeMask
from siamusic_fast.pipelines.image_augmentations import VerticalFlip as VerticalFlip
from siamusic_fast.pipelines.loaders import LabelledLoader as LabelledLoader
from siamusic_fast.pipelines.loaders import TrackLoader as TrackLoader
from siamusic_fast.pipelines.loaders import TwoViewLoader as TwoViewLoader
from siamusic_fast.pipelines.ops import ImageFunction as ImageFunction
from siamusic_fast.pipelines.ops import WaveFunction as WaveFunction
from siamusic_fast.pipelines.random_numbers import RandomNumbers as RandomNumbers
from siamusic_fast.pipelines.wave_augmentations import Gain as Gain
from siamusic_fast.pipelines.wave_augmentations import Noise as Noise
from siamusic_fast.pipelines.wave_augmentations import PitchShift as PitchShift
from siamusic_fast.pipelines.wave_augmentations import TimeStretch as TimeStretch
from siamusic_fast.pipelines.wave_augmentations import WaveMixup as WaveMixup
from siamusic_fast.processes.signals import Stopped as Stopped
from siamusic_fast.processes.world import World as World
from siamusic_fast.progress import Progress as Progress
from siamusic_fast.shards.manifest import ShardSet as ShardSet
from siamusic_fast.shards.manifest import find_shards as find_shards
from siamusic_fast.shards.pack import PackConfig as PackConfig
from siamusic_fast.shards.pack import pack as pack
from siamusic_fast.shards.samples import samples as samples
from siamusic_fast.storage.cache import ShardCache as ShardCache
from siamusic_fast.training.finetune import FinetuneResult as FinetuneResult
from siamusic_fast.training.finetune import finetune as finetune
from siamusic_fast.training.pretrain import PretrainResult as PretrainResult
from siamusic_fast.training.pretrain import pretrain as pretrain

__all__: list[str]
__version__: str
