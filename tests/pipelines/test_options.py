"""What can be asked of a loader, and what is refused: the same of both backends."""

import dataclasses
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from siamusic_fast.config import MelConfig
from siamusic_fast.errors import ConfigError, DataError
from siamusic_fast.pipelines.augment import CutOut, HorizontalFlip
from siamusic_fast.pipelines.options import MOST_CROPS, LoaderOptions, crops_of, set_up
from siamusic_fast.pipelines.source import Source
from siamusic_fast.shards.manifest import Shard, ShardSet
from siamusic_fast.shards.tables import read_tracks
from tests.pipelines.both_backends import BACKENDS, MEL, labelled, same, take, two_views, whole_tracks
from tests.pipelines.conftest import RATE, PackAudio

COUNTS = {"Folk": 20, "Jazz": 10, "Rock": 3}


@pytest.fixture(scope="module")
def genres(pack_audio: PackAudio) -> ShardSet:
    """20, 10 and 3 tracks of three classes, as long as a crop, so that each has one image of its own."""
    rng = np.random.default_rng(0)
    genre_of: dict[str, str] = {}
    for genre, count in COUNTS.items():
        genre_of |= {f"{len(genre_of) + row:06d}": genre for row in range(count)}
    tracks = {key: 0.1 * rng.standard_normal(RATE) for key in genre_of}
    return pack_audio(tracks, genres=genre_of)


def epoch(loader: Any) -> dict[bytes, int]:
    """Return the label of each image of an epoch, and close the loader; no image comes twice."""
    pairs = [
        (image.numpy().tobytes(), int(label))
        for images, labels in loader
        for image, label in zip(images, labels, strict=True)
    ]
    loader.close()
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("share", "counts"), [(0.01, [1, 1, 1]), (0.1, [2, 1, 1]), (0.5, [10, 5, 2]), (1.0, [20, 10, 3])]
)
def test_a_share_of_the_labels_is_one_of_each_class(
    genres: ShardSet, backend: str, share: float, counts: list[int]
) -> None:
    everything = epoch(labelled(backend, genres, batch_size=1))
    chosen = epoch(labelled(backend, genres, batch_size=1, labels=share))
    found = Counter(chosen.values())
    assert [found[label] for label in range(3)] == counts  # of 20, 10 and 3: Folk, Jazz, Rock
    assert chosen.items() <= everything.items()
    assert epoch(labelled(backend, genres, batch_size=1, labels=share)) == chosen
    assert len(labelled(backend, genres, labels=share, batch_size=2)) == sum(counts) // 2


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_tracks_of_a_share_are_those_of_the_seed_in_every_epoch_and_on_all_ranks_together(
    genres: ShardSet, backend: str
) -> None:
    def of_seed(seed: int, **options: Any) -> Any:
        return labelled(backend, genres, batch_size=1, labels=0.5, seed=seed, **options)

    chosen = epoch(of_seed(3))
    assert epoch(of_seed(4)).keys() != chosen.keys()
    loader = of_seed(3)
    list(loader)
    assert epoch(loader) == chosen
    ranks = [epoch(of_seed(3, rank=rank, world_size=2)) for rank in range(2)]
    assert not ranks[0].keys() & ranks[1].keys()
    together = {**ranks[0], **ranks[1]}
    assert together.items() <= chosen.items()
    assert len(together) == 16  # of 17


def test_the_backends_choose_the_same_tracks(genres: ShardSet) -> None:
    ours, theirs = (
        sorted(
            (int(label), round(float(image.mean()), 3))
            for images, labels in labelled(backend, genres, batch_size=1, labels=0.5)
            for image, label in zip(images, labels, strict=True)
        )
        for backend in BACKENDS
    )
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-3)


def test_a_share_is_one_of_tracks_and_not_of_their_segments(pack_audio: PackAudio) -> None:
    rng = np.random.default_rng(0)
    tracks = {f"{row:06d}": 0.1 * rng.standard_normal((2 + row % 3) * RATE) for row in range(12)}
    genres = {key: "Folk" if int(key) < 8 else "Rock" for key in tracks}
    segmented = pack_audio(tracks, genres=genres, max_seconds=1.0)
    options: LoaderOptions = {"mel": MEL, "batch_size": 1}
    source = set_up(
        segmented, options, shuffle=True, labelled_only=True, smaller_batches=True, labels=0.25
    ).source

    def lines(shard: Shard) -> list[str]:
        return segmented.path(shard.index).read_text().splitlines()[1:]

    samples = list(read_tracks(segmented.folder))
    track_of = {
        (shard.file, line): sample.track_id
        for shard in segmented.shards(["training"])
        for line, sample in zip(lines(shard), [s for s in samples if s.shard == shard.file], strict=True)
    }
    chosen = Counter(track_of[shard.file, line] for shard in source.shards for line in lines(shard))
    assert Counter(genres[key] for key in chosen) == {"Folk": 2, "Rock": 1}  # of 8 and 4
    everything = Counter(sample.track_id for sample in samples)
    assert chosen == {key: everything[key] for key in chosen}
    assert source.tracks == chosen.total()


@pytest.mark.parametrize("minutes", [1, 10])
def test_crops_cover_a_whole_song(numbered: ShardSet, minutes: int) -> None:
    shard = dataclasses.replace(numbered.shards(["training"])[0], longest=minutes * 60 * RATE)
    source = Source(shard_set=numbered, shards=(shard,), shuffle=False)
    assert crops_of(source, MelConfig(), None) == minutes * 60 / 5
    assert crops_of(source, MelConfig(seconds=0.1), None) == MOST_CROPS


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("share", [0.0, -0.1, 1.5, float("nan")])
def test_an_impossible_share_of_the_labels_is_refused(genres: ShardSet, backend: str, share: float) -> None:
    with pytest.raises(ConfigError, match=f"labels = {share:g} must be a share"):
        labelled(backend, genres, labels=share)


@pytest.mark.parametrize("backend", BACKENDS)
def test_labelled_crops_can_be_augmented(genres: ShardSet, backend: str) -> None:
    plain = epoch(labelled(backend, genres, batch_size=1))
    flipped = epoch(labelled(backend, genres, batch_size=1, recipe=(HorizontalFlip(p=1),)))
    shape = (MEL.n_mels, MEL.frames)
    unflipped = {
        np.ascontiguousarray(np.frombuffer(image, np.float32).reshape(shape)[:, ::-1]).tobytes(): label
        for image, label in flipped.items()
    }
    assert unflipped == plain
    masked = epoch(labelled(backend, genres, batch_size=1, recipe="hflip,mask(p=1)"))
    assert all((np.frombuffer(image, np.float32) == 0).any() for image in masked)
    assert Counter(masked.values()) == Counter(plain.values())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("recipe", "names"), [("image", "cutmix, mixup"), ("audio", "wavemix"), ("mask,mixup(p=0.1)", "mixup")]
)
def test_a_recipe_that_mixes_labelled_tracks_is_refused(
    genres: ShardSet, backend: str, recipe: str, names: str
) -> None:
    with pytest.raises(ConfigError, match=f"^{names} would add another track to a labelled one"):
        labelled(backend, genres, recipe=recipe)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", [two_views, labelled, whole_tracks])
def test_bfloat16_is_float32_rounded(numbered: ShardSet, backend: str, kind: Any) -> None:
    for exact, rounded in zip(
        kind(backend, numbered), kind(backend, numbered, dtype=torch.bfloat16), strict=True
    ):
        assert rounded[0].dtype == torch.bfloat16
        assert torch.equal(rounded[0], exact[0].bfloat16())
        if kind is two_views:
            assert torch.equal(rounded[1], exact[1].bfloat16())
        else:
            assert rounded[1].dtype == torch.int64
            assert torch.equal(rounded[1], exact[1])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", [two_views, labelled, whole_tracks])
def test_an_unknown_keyword_is_named_with_those_there_are(
    numbered: ShardSet, backend: str, kind: Any
) -> None:
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'batchsize'.*batch_size"):
        kind(backend, numbered, batchsize=4)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mel": {"seconds": 2.5}}, r"A crop of 2.5 s is longer than the longest track in .*, 2.0 s"),
        ({"batch_size": 24}, "A batch of 24 does not fit the 23 tracks: use --batch-size 23"),
        ({"recipe": "cutot"}, r"'cutot' is unknown: did you mean cutout\?"),
        ({"recipe": "cutout(holes=1.5)"}, "holes=1.5 of an augmentation must be a whole number, such as"),
        ({"recipe": "griddistortion(steps=2.0)"}, "steps=2.0 of an augmentation must be a whole number"),
        ({"recipe": "timemask(count=True)"}, "count=True of an augmentation must be a whole number"),
        ({"recipe": "freqmask(count=0)"}, "count = 0 of FrequencyMask must be at least 1"),
        ({"recipe": "cutout(size=0)"}, "size = 0 of CutOut must be at least 1"),
        ({"recipe": "mask(most_mels=1.5)"}, "most_mels = 1.5 of Mask must be above 0, at most 1"),
        ({"recipe": "mixup(alpha=0)"}, "alpha = 0 of Mixup must be a number above 0"),
        ({"recipe": "cutmix(alpha=-1)"}, "alpha = -1 of CutMix must be a number above 0"),
        ({"recipe": "wavemix(alpha=1e999)"}, "alpha=1e309 of an augmentation must be a number"),
        ({"recipe": "mask(p={[]:1})"}, "of an augmentation must be a number, such as p=0.5"),
        ({"recipe": "pitch(semitones=200)"}, "semitones = 200 of PitchShift must lie between 0 and 12"),
        ({"recipe": "gain(decibels=500)"}, "decibels = 500 of Gain must lie between 0 and 100"),
        ({"recipe": "noise(highest_snr=500)"}, "and both at most 100 either way"),
        ({"recipe": "griddistortion(steps=60)"}, "steps = 60 of GridDistortion are more .*: 48 x 87"),
        ({"rank": 2, "world_size": 2}, "rank = 2 must be at least 0 and below world_size = 2"),
        ({"world_size": 0}, "rank = 0 must be at least 0 and below world_size = 0"),
        ({"seed": -1}, "seed = -1 must lie between 0 and"),
        ({"device": "mps"}, "device = mps must be cpu or cuda"),
        ({"recipe": "hflip(p=1.01)"}, "p = 1.01 of HorizontalFlip must lie between 0 and 1"),
        ({"recipe": "stretch(slowest=0)"}, "slowest = 0 of TimeStretch must be at least 0.25"),
        ({"short_tracks": "loop"}, "short_tracks = 'loop' is unknown: choose repeat or pad"),
        ({"dtype": torch.float64}, "dtype = torch.float64 must be one of"),
        ({"crops": "apart"}, "crops = 'apart' is unknown: choose same or independent"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_what_cannot_be_is_one_clear_line_before_anything_is_built(
    numbered: ShardSet, backend: str, options: dict[str, Any], words: str
) -> None:
    if "mel" in options:
        options = {"mel": type(MEL)(**options["mel"])}
    with pytest.raises(ConfigError, match=words) as raised:
        two_views(backend, numbered, **options)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_unknown_split_is_refused_with_those_there_are(numbered: ShardSet, backend: str) -> None:
    with pytest.raises(DataError, match=r"'test'.*training"):
        two_views(backend, numbered, splits=["test"])


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_epoch_that_is_counted_and_not_exhausted_is_an_epoch(numbered: ShardSet, backend: str) -> None:
    loader = two_views(backend, numbered)
    counts = [len(list(zip(range(len(loader)), loader, strict=False))) for _ in range(3)]
    assert counts == [len(loader)] * 3
    with pytest.raises(ConfigError, match="crops = -1 must be at least 1"):
        whole_tracks(backend, numbered, crops=-1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_loader_left_early_goes_on_where_it_stopped(numbered: ShardSet, backend: str) -> None:
    expected = take(two_views(backend, numbered), 7)
    loader = two_views(backend, numbered)
    found = []
    for count in (2, 1, 4):
        found += take(loader, count)
    assert same(found, expected)


def test_whole_numbers_are_taken_where_whole_numbers_are_asked_for(numbered: ShardSet) -> None:
    loader = two_views("dali", numbered, recipe="cutout(holes=1,size=6,p=1)")
    assert same(take(loader, 2), take(two_views("dali", numbered, recipe=(CutOut(holes=1, size=6, p=1),)), 2))
