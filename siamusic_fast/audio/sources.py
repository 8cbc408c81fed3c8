"""What `siamusic-fast shard SOURCE` may name: FMA, or any folder of audio."""

from pathlib import Path

from siamusic_fast.audio.corpus import Corpus
from siamusic_fast.audio.fma import is_fma, load_fma
from siamusic_fast.audio.folder import load_folder
from siamusic_fast.errors import ConfigError


def load_corpus(
    source: str | Path,
    data_dir: Path = Path("data"),
    metadata: Path | None = None,
    labels: str | Path | None = None,
    seed: int = 0,
) -> Corpus:
    """Return the tracks of `source`, a name, a folder or a zip.

    It is FMA's if `metadata` is given or it looks like it (see `fma.is_fma`), and any folder of audio
    otherwise, or if `labels` is given (see `folder.load_folder`, which draws splits with `seed`). Raises
    `ConfigError` for both `metadata` and `labels`, and `DataError` as these functions do.
    """
    if labels is not None:
        if metadata is not None:
            raise ConfigError(
                f"metadata = {metadata} is for FMA, labels = {labels} for other audio: give one."
            )
        return load_folder(source, data_dir, labels, seed)
    if metadata is not None or is_fma(source, data_dir):
        return load_fma(source, data_dir, metadata)
    return load_folder(source, data_dir)
