"""The fine-tuning of a study's cells: what `finetune` does by default under each protocol."""

from siamusic_fast.config import FinetuneConfig
from siamusic_fast.config.studies import StudyConfig


def finetuning(config: StudyConfig, protocol: str, processes: int) -> FinetuneConfig:
    """Return the settings of fine-tuning under `protocol` in so many processes.

    The seed is that of the study's first cells; `with_seed` gives each cell its own.
    """
    return FinetuneConfig(
        target="class",
        protocol=protocol,
        epochs=config.finetune_epochs,
        batch_size=max(1, config.batch_size // processes),
        seed=config.seed,
        **config.common(),
    ).resolved("class")
