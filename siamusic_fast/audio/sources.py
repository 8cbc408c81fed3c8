"""What `siamusic-fast shard SOURCE` may name: datasets, any folder of audio, and tables of audio."""

from dataclasses import replace
from pathlib import Path

from siamusic_fast.audio.corpus import Corpus, with_top_tags
from siamusic_fast.audio.fma import is_fma, load_fma
from siamusic_fast.audio.folder import load_folder
from siamusic_fast.audio.labels import BY_FOLDER
from siamusic_fast.audio.magnatagatune import MAGNATAGATUNE, load_magnatagatune
from siamusic_fast.audio.mtg_jamendo import SUBSETS, load_mtg_jamendo
from siamusic_fast.audio.parquet import TABLE_ENDINGS, holds_tables, load_tables
from siamusic_fast.errors import ConfigError
from siamusic_fast.storage.remote import is_url

TAGGED = {MAGNATAGATUNE: load_magnatagatune, **dict.fromkeys(SUBSETS, load_mtg_jamendo)}
"""Datasets with tags by name, and what loads them."""


def open_corpus(
    source: str | Path,
    *,
    data_dir: Path | str = "data",
    metadata: Path | str | None = None,
    labels: Path | str | None = None,
    tags: bool = False,
    top_tags: int | None = None,
    label_column: str | None = None,
    split_column: str | None = None,
    group_column: str | None = None,
    seed: int = 0,
) -> Corpus:
    """Return the tracks of `source`, each with its class or tags, split and group. No audio is read.

        corpus = open_corpus("fma_small")
        corpus = open_corpus("/music/mine", labels="labels.csv")
        print(corpus.classes, len(corpus.tracks))

    Args:
        source: A folder or a zip of audio: its path, or its name in `data_dir`; or the URL of a folder of
            audio in object storage, such as s3://bucket/music. It is MagnaTagATune or
            MTG-Jamendo if it has the name magnatagatune, mtg_jamendo or that of a subset, such as
            mtg_jamendo_genre. It is taken for FMA's if it is the name of a subset, such as fma_small, has
            such a name, holds a folder or zip with such a name, or has files that are named like
            000/000002.mp3. A Parquet or Arrow file, or a folder with such files and no other audio, has a
            track in every row.
        data_dir: The folder in which names are looked up, and metadata if it is not beside the audio.
        metadata: FMA's tracks.csv, fma_metadata.zip, or a folder with one of them; annotations_final.csv of
            MagnaTagATune; or the repository of MTG-Jamendo. Unless it has one of their names, `source` is
            FMA's.
        labels: The classes or tags of other audio. It is a CSV file with the columns path and label and,
            if you like, split and group, or the word "folders" if the sub-folder of a file is its class.
            Without it, such audio has no classes, and all of it is for training.
        tags: Whether `labels` has tags: a column tags with `|` between those of a track, or a column of 0 and
            1 for each. A column label may be missing then.
        top_tags: Number of tags that are kept, those that most tracks have. None: 50 of MagnaTagATune, all of
            others.
        label_column: Column of a Parquet or Arrow file that has the classes: words, or numbers with names in
            the metadata that the Hugging Face hub writes.
        split_column: Column of a Parquet or Arrow file that has the splits. None: names of files tell it,
            such as train-00000-of-00004.parquet.
        group_column: Column of a Parquet or Arrow file that has the groups, such as the artists.
        seed: Draws the splits of the tracks that have classes or tags, where nothing names their split: 80%
            of each class for training, 10% for validation and 10% for test. Tracks of one group, such
            as those of an artist, stay together.

    Raises:
        ConfigError: Arguments do not go together, or tables are read without pyarrow.
        DataError: There is no such source, it holds no audio, the metadata is missing or not that of
            `source`, or `labels` or a table has an error, which is named with its row.

    """
    data_dir, metadata = Path(data_dir), None if metadata is None else Path(metadata)
    column = label_column or split_column or group_column
    _check_together(metadata, labels, tags, column)
    load_tagged = TAGGED.get(Path(source).name) if labels is None and not column else None
    remote = is_url(source)
    if top_tags is not None and not (tags or load_tagged):
        raise ConfigError(
            f"top_tags = {top_tags} is for audio with tags, and none are given: add --labels FILE.csv --tags."
        )
    if load_tagged:
        return load_tagged(source, data_dir, metadata, top_tags)
    if column or (labels is None and str(source).endswith(TABLE_ENDINGS)):
        return load_tables(source, data_dir, label_column, split_column, group_column, seed)
    if labels is None and (metadata is not None or (not remote and is_fma(source, data_dir))):
        return load_fma(source, data_dir, metadata)
    if labels is None and not remote and holds_tables(source, data_dir):
        return load_tables(source, data_dir, None, None, None, seed)
    corpus = load_folder(source, data_dir, labels, seed, tags)
    return replace(corpus, tracks=with_top_tags(corpus.tracks, top_tags)) if top_tags else corpus


def _check_together(metadata: Path | None, labels: Path | str | None, tags: bool, column: str | None) -> None:
    if labels is not None and metadata is not None:
        raise ConfigError(
            f"metadata = {metadata} is for datasets with a name, labels = {labels} for other audio: give one "
            f"of them."
        )
    if column and (labels is not None or metadata is not None):
        raise ConfigError(
            f"{column!r} is a column of Parquet or Arrow files, which have their labels in them: leave out "
            f"labels = {labels}, metadata = {metadata}."
        )
    if tags and (labels is None or str(labels) == BY_FOLDER):
        raise ConfigError("tags are read from a CSV file: name it with --labels FILE.csv.")
