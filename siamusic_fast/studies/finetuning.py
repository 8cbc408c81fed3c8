"""The fine-tuning of a study's cells: what `finetune` does by default under each protocol."""

from siamusic_fast.config import FinetuneConfig
from siamusic_fast.config.studies import StudyConfig


def finetuning(config: StudyConfig, protocol: str, processes: int) -> FinetuneConfig:
    """Return the settings of fine-tuning under `protocol` in so many processes.

    The protocols differ in the classifier that is kept and in nothing else.
    """
    return FinetuneConfig(
        target="class",
        protocol=protocol,
        crops_per_track=1,
        encoder_lr=FinetuneConfig.lr,
        schedule="constant",
        warmup_epochs=0.0,
        epochs=config.finetune_epochs,
        batch_size=max(1, config.batch_size // processes),
        backend=config.backend,
        seed=config.seed,
        keep_going=config.keep_going,
        logger=config.logger,
    ).resolved("class")
