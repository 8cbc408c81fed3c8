"""What `siamusic-fast shard SOURCE` may name: FMA, or any folder of audio."""

from pathlib import Path

from siamusic_fast.audio.corpus import Corpus
from siamusic_fast.audio.fma import is_fma, load_fma
from siamusic_fast.audio.folder import load_folder
from siamusic_fast.errors import ConfigError


def open_corpus(
    source: str | Path,
    *,
    data_dir: Path | str = "data",
    metadata: Path | str | None = None,
    labels: Path | str | None = None,
    seed: int = 0,
) -> Corpus:
    """Return the tracks of `source`, with the class and the split of each. No audio is read.

        corpus = open_corpus("fma_small")
        corpus = open_corpus("/music/mine", labels="labels.csv")
        print(corpus.classes, len(corpus.tracks))

    Args:
        source: A folder or a zip of audio: its path, or its name in `data_dir`. It is taken for FMA's if it
            is the name of a subset, such as fma_small, has such a name, holds a folder or zip with such a
            name, or has files that are named like 000/000002.mp3.
        data_dir: The folder in which names are looked up, and FMA's metadata if it is not beside the audio.
        metadata: FMA's tracks.csv, fma_metadata.zip, or a folder with one of them. `source` is then FMA's.
        labels: The classes of audio that is not FMA's. It is a CSV file with the columns path and label and,
            if you like, split and group, or the word "folders" if the sub-folder of a file is its class.
            Without it, audio that is not FMA's has no classes, and all of it is for training.
        seed: Draws the splits of the tracks that have classes, where no column names their split: 80% of
            each class for training, 10% for validation and 10% for test. Tracks of one group stay together.

    Raises:
        ConfigError: `metadata` and `labels` are both given.
        DataError: There is no such source, it holds no audio, the metadata is missing or not FMA's, or
            `labels` has an error, which is named with its row.

    """
    data_dir = Path(data_dir)
    if labels is not None and metadata is not None:
        raise ConfigError(
            f"metadata = {metadata} is for FMA, labels = {labels} for other audio: give one of them."
        )
    if labels is None and (metadata is not None or is_fma(source, data_dir)):
        return load_fma(source, data_dir, Path(metadata) if metadata is not None else None)
    return load_folder(source, data_dir, labels, seed)
