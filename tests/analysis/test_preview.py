from pathlib import Path

import numpy as np
import pytest
import soundfile
from matplotlib import image

from siamusic_fast.analysis.preview import PreviewConfig, draw, each_alone, examples, write_waves
from siamusic_fast.config import MelConfig
from siamusic_fast.errors import ConfigError, DataError
from siamusic_fast.frontend import Frontend
from siamusic_fast.pipelines.recipes import parse_recipe
from siamusic_fast.shards.manifest import ShardSet
from siamusic_fast.shards.tables import read_tracks

MEL = MelConfig()
FRONTEND = Frontend(mel=MEL, mean=-40.0, std=15.0)
IMAGE = parse_recipe("image")


def test_examples_are_the_first_tracks_of_the_split_with_views_of_their_own(shard_set: ShardSet) -> None:
    found = examples(shard_set, FRONTEND, recipe=IMAGE, count=3)
    tracks = [track for track in read_tracks(shard_set.folder) if track.split == "training"]
    assert [example.track for example in found] == tracks[:3]
    for example in found:
        pictures = (example.original, example.views[0].decibels, example.views[1].decibels)
        assert all(picture.shape == (48, 431) for picture in pictures)
        assert not np.array_equal(example.views[0].decibels, example.views[1].decibels)
        assert -100 <= example.original.min() < example.original.max() < 60


def test_without_augmentation_the_views_are_the_original(shard_set: ShardSet) -> None:
    for example in examples(shard_set, FRONTEND, recipe=(), count=2, config=PreviewConfig(split="test")):
        np.testing.assert_array_equal(example.views[0].decibels, example.original)
        np.testing.assert_array_equal(example.views[1].decibels, example.original)


def test_the_picture_is_a_png_with_a_row_per_track(shard_set: ShardSet, tmp_path: Path) -> None:
    path = tmp_path / "new" / "views.anything"
    draw(examples(shard_set, FRONTEND, recipe=IMAGE, count=3), MEL, "Recipe image", path)
    picture = image.imread(path, format="png")[..., :3]
    # Axes are surrounded by white: down through the middle of the first column of pictures, three are met.
    column = picture[:, picture.shape[1] // 4]
    inked = (column < 1).any(axis=1)
    runs = np.diff(np.flatnonzero(np.diff(inked.astype(int), prepend=0, append=0)))[::2]
    assert (runs > 80).sum() == 3


@pytest.mark.parametrize("count", [0, 17])
def test_a_picture_has_one_to_sixteen_tracks(shard_set: ShardSet, count: int) -> None:
    with pytest.raises(
        ConfigError, match=rf"count = {count} must lie between 1 and 16 \(on the command line --tracks\)"
    ):
        examples(shard_set, FRONTEND, recipe=IMAGE, count=count)


def test_an_unknown_split_is_refused(shard_set: ShardSet) -> None:
    with pytest.raises(DataError, match="'exam'"):
        examples(shard_set, FRONTEND, recipe=IMAGE, count=1, config=PreviewConfig(split="exam"))


def test_each_augmentation_alone_always_happens_to_the_same_crop(shard_set: ShardSet) -> None:
    found = each_alone(shard_set, FRONTEND, recipe=parse_recipe("stretch,mask(p=0),cutout"))
    assert [example.label for example in found] == ["stretch", "mask", "cutout"]
    np.testing.assert_array_equal(found[0].original, found[1].original)
    np.testing.assert_array_equal(found[1].original, found[2].original)
    for example in found:
        assert not np.array_equal(example.views[0].decibels, example.original)
        assert not np.array_equal(example.views[1].decibels, example.original)
    with pytest.raises(ConfigError, match="no augmentation to show"):
        each_alone(shard_set, FRONTEND, recipe=())


def test_a_view_that_is_stretched_is_heard_at_its_tempo_for_the_length_of_a_crop(
    shard_set: ShardSet, tmp_path: Path
) -> None:
    recipe = parse_recipe("stretch(p=1,min_rate=1.4,max_rate=1.4),hflip")
    found = examples(shard_set, FRONTEND, recipe=recipe, count=2)
    paths = write_waves(found, MEL, tmp_path / "waves")
    assert len(paths) == 4
    for path, view in zip(paths, (view for example in found for view in example.views), strict=True):
        audio, rate = soundfile.read(path, dtype="float32")
        assert rate == MEL.sample_rate
        assert len(view.wave) == pytest.approx(1.4 * MEL.samples, rel=0.2)  # some tracks are too short
        assert len(audio) == pytest.approx(MEL.samples, abs=MEL.hop_length)
        assert audio.std() == pytest.approx(view.wave.std(), rel=0.4)


def test_a_view_at_its_own_tempo_is_heard_as_it_is(shard_set: ShardSet, tmp_path: Path) -> None:
    (found,) = examples(shard_set, FRONTEND, recipe=IMAGE, count=1)
    for path, view in zip(write_waves([found], MEL, tmp_path), found.views, strict=True):
        np.testing.assert_allclose(soundfile.read(path, dtype="float32")[0], view.wave, atol=1 / 32768)
