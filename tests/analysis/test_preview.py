import dataclasses
import itertools
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
from matplotlib import image
from numpy.typing import NDArray

from siamusic_fast.analysis.preview import draw, each_alone, examples, write_waves
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
        pictures = (example.original.decibels, example.views[0].decibels, example.views[1].decibels)
        assert all(picture.shape == (48, 431) for picture in pictures)
        assert not np.array_equal(example.views[0].decibels, example.views[1].decibels)
        assert -100 <= example.original.decibels.min() < example.original.decibels.max() < 60


def test_without_augmentation_the_views_are_the_original(shard_set: ShardSet) -> None:
    for example in examples(shard_set, FRONTEND, recipe=(), count=2, split="test"):
        np.testing.assert_array_equal(example.views[0].decibels, example.original.decibels)
        np.testing.assert_array_equal(example.views[1].decibels, example.original.decibels)


def test_the_picture_is_a_png_with_a_row_per_track(shard_set: ShardSet, tmp_path: Path) -> None:
    path = tmp_path / "new" / "views.anything"
    draw(examples(shard_set, FRONTEND, recipe=IMAGE, count=3), MEL, "Recipe image", path)
    picture = image.imread(path, format="png")[..., :3]
    # Axes are surrounded by white: down through the middle of the first column of pictures, three are met.
    column = picture[:, picture.shape[1] // 4]
    inked = (column < 1).any(axis=1)
    runs = np.diff(np.flatnonzero(np.diff(inked.astype(int), prepend=0, append=0)))[::2]
    assert (runs > 80).sum() == 3


def test_long_labels_stay_within_their_rows(shard_set: ShardSet, tmp_path: Path) -> None:
    label = f"{'W' * 150}\n{'Experimental ' * 20}"
    found = [
        dataclasses.replace(example, label=label)
        for example in examples(shard_set, FRONTEND, recipe=(), count=3)
    ]
    draw(found, MEL, "Recipe none", tmp_path / "views.png")
    picture = image.imread(tmp_path / "views.png")[..., :3]
    left = _borders(picture[picture.shape[0] // 2, :])[0][0]
    rows = _borders(picture[:, left + 10])
    for (_, end), (begin, _) in itertools.pairwise(rows):
        assert (picture[end + 1 : begin, 25 : left - 50] == 1).all()  # the label of the axes is left of it


def _borders(line: NDArray[np.float32]) -> list[tuple[int, int]]:
    """Begin and end of the spectrograms that a line through the picture crosses: its long runs of color."""
    edges = np.diff((line < 1).any(axis=1).astype(int), prepend=0, append=0)
    runs = zip(np.flatnonzero(edges > 0).tolist(), np.flatnonzero(edges < 0).tolist(), strict=True)
    return [(begin, end) for begin, end in runs if end - begin > 80]


@pytest.mark.parametrize(
    ("aug", "done"),
    [
        ("none", ""),
        ("hflip(p=1),vflip(p=0),cutout(p=1)", "hflip, cutout"),
        ("stretch(p=1,min_rate=1.25,max_rate=1.25)", r"stretch x1\.2[05]"),  # 6 s allow 1.2 times 5 s
        ("pitch(p=1),stretch(p=0),gain(p=1),noise(p=0)", r"pitch [+-]\d\.\d, gain"),
        ("noise(p=1),mixup(p=1),tilt(p=0),rrc(p=1)", r"noise, mixup \d+%, rrc"),
        ("tilt(p=1),mask(p=1),mask(p=0),wavemix(p=0),cutmix(p=0)", "tilt, mask"),
    ],
)
def test_each_view_says_what_was_done_to_it(shard_set: ShardSet, aug: str, done: str) -> None:
    found = examples(shard_set, FRONTEND, recipe=parse_recipe(aug), count=3)
    for view in (view for example in found for view in example.views):
        assert re.fullmatch(done, view.done)


@pytest.mark.parametrize("count", [0, 17])
def test_a_picture_has_one_to_sixteen_tracks(shard_set: ShardSet, count: int) -> None:
    with pytest.raises(
        ConfigError, match=rf"count = {count} must lie between 1 and 16 \(on the command line --tracks\)"
    ):
        examples(shard_set, FRONTEND, recipe=IMAGE, count=count)


def test_an_unknown_split_is_refused(shard_set: ShardSet) -> None:
    with pytest.raises(DataError, match="'exam'"):
        examples(shard_set, FRONTEND, recipe=IMAGE, count=1, split="exam")


def test_each_augmentation_alone_always_happens_to_the_same_crop(shard_set: ShardSet) -> None:
    found = each_alone(shard_set, FRONTEND, recipe=parse_recipe("stretch,mask(p=0),cutout"))
    assert [example.label for example in found] == ["stretch", "mask", "cutout"]
    np.testing.assert_array_equal(found[0].original.decibels, found[1].original.decibels)
    np.testing.assert_array_equal(found[1].original.decibels, found[2].original.decibels)
    for example in found:
        assert not np.array_equal(example.views[0].decibels, example.original.decibels)
        assert not np.array_equal(example.views[1].decibels, example.original.decibels)
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
