"""What loaders promise whatever the engine: order, labels, resumption, errors, and to leave nothing."""

import dataclasses
import gc
import inspect
import os
import weakref
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from siamusic_fast.config import MelConfig
from siamusic_fast.errors import ConfigError, DataError
from siamusic_fast.frontend import Frontend
from siamusic_fast.pipelines.base_loader import Loader
from siamusic_fast.pipelines.dali.engine import DaliEngine
from siamusic_fast.pipelines.loaders import LabelledLoader, TrackLoader, TwoViewLoader
from siamusic_fast.pipelines.tracks import open_tracks, with_label_fraction
from siamusic_fast.shards.manifest import ShardSet
from siamusic_fast.shards.tables import read_tracks
from tests.pipelines.conftest import PackAudio, noises
from tests.pipelines.helpers import BACKENDS, LOADERS, MEL, RATE, config, labels_of, same, take, two_views
from tests.runs import FRONTEND

SMALL = Frontend(mel=MelConfig(seconds=0.25, n_mels=16), mean=-40.0, std=10.0)
MEGABYTES = 4.0
"""By how much the process may grow once all buffers have: less than 1 kB for each of 9,000 batches."""


@pytest.fixture(scope="module")
def genres(pack_audio: PackAudio) -> ShardSet:
    """20, 10 and 3 tracks of three classes and two of none; each as long as a crop."""
    rng = np.random.default_rng(0)
    counts = {"Folk": 20, "Jazz": 10, "Rock": 3, "": 2}
    names = [genre for genre, count in counts.items() for _ in range(count)]
    genre_of = {f"{row:06d}": genre for row, genre in enumerate(names)}
    return pack_audio({key: 0.1 * rng.standard_normal(RATE) for key in genre_of}, genres=genre_of)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("recipe", ["image", "both"])
def test_a_restored_loader_goes_on_from_any_batch_on_other_threads_as_if_never_stopped(
    numbered: ShardSet, recipe: str, backend: str
) -> None:
    settings: dict[str, Any] = {"backend": backend, "crops": "independent", "window": 2}
    with two_views(numbered, recipe, **settings) as loader:
        expected = take(loader, 8)
    with two_views(numbered, recipe, **settings) as stopped:
        with two_views(numbered, recipe, loader_threads=3, **settings) as fresh:
            for given in range(7):  # an epoch has five
                fresh.load_state_dict(stopped.state_dict())
                assert same(take(fresh, 1), [expected[given]])
                assert same(take(stopped, 1), [expected[given]])
        assert stopped.state_dict() == {"epoch": 1, "batch": 2}
    with two_views(numbered, recipe, **settings) as fresh:
        fresh.load_state_dict({"epoch": 0, "batch": 3})
        assert same(take(fresh, 5), expected[3:])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", [LabelledLoader, TrackLoader])
def test_labelled_batches_go_on_after_a_restart_as_if_never_stopped(
    numbered: ShardSet, kind: Any, backend: str
) -> None:
    with kind(numbered, **config(backend=backend)) as loader:
        expected = take(loader, 14)
    with (
        kind(numbered, **config(backend=backend)) as stopped,
        kind(numbered, **config(backend=backend)) as fresh,
    ):
        for given in (0, 3, 4):
            taken = take(stopped, given - sum(stopped.state_dict().values()))
            fresh.load_state_dict(stopped.state_dict())
            assert same(taken + take(fresh, 7), expected[given - len(taken) : given + 7])


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_epoch_counted_or_left_early_goes_on_where_it_stopped(numbered: ShardSet, backend: str) -> None:
    with two_views(numbered, backend=backend) as loader:
        expected = take(loader, 15)
    with two_views(numbered, backend=backend) as loader:
        assert len(loader) == 5
        found = [pair for _ in range(2) for _, pair in zip(range(5), loader, strict=False)]
        for count in (2, 1, 2):
            found += take(loader, count)
        assert same(found, expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", LOADERS)
def test_batches_have_the_documented_shape_and_bfloat16_is_float32_rounded(
    numbered: ShardSet, backend: str, kind: Any
) -> None:
    loaders = [
        kind(numbered, **config(backend=backend, dtype=dtype)) for dtype in (torch.float32, torch.bfloat16)
    ]
    crops = (2,) if kind is TrackLoader else ()  # cover up to 2 s
    with loaders[0], loaders[1]:
        for exact, rounded in zip(*loaders, strict=True):
            assert exact[0].shape[1:] == (*crops, 1, 48, MEL.frames)
            assert exact[0].dtype == torch.float32
            assert rounded[0].dtype == torch.bfloat16
            assert torch.equal(rounded[0], exact[0].bfloat16())
            assert exact[1].dtype == (torch.float32 if kind is TwoViewLoader else torch.int64)
            assert torch.equal(rounded[1], exact[1].to(rounded[1].dtype))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_batch_stays_what_it_was_while_others_follow_and_when_the_loader_is_closed(
    numbered: ShardSet, backend: str
) -> None:
    loader = two_views(numbered, backend=backend)
    batches = take(loader, 9)
    copies = [(one.clone(), other.clone()) for one, other in batches]
    take(loader, 9)
    loader.close()
    assert same(batches, copies)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ranks_share_an_epoch_and_an_evaluation_of_uneven_shards(
    uneven: ShardSet, world_size: int, backend: str
) -> None:
    """The label of each of the 23 tracks is its number."""
    ranks = [
        config(splits=uneven.splits, batch_size=5, backend=backend, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    taken = [label for settings in ranks for label in labels_of(LabelledLoader(uneven, **settings))]
    assert len(taken) == len(set(taken)) == 23 // (5 * world_size) * 5 * world_size
    evaluated = [label for settings in ranks for label in labels_of(TrackLoader(uneven, crops=1, **settings))]
    assert evaluated == open_tracks(uneven, list(uneven.splits), labels=True).labels.tolist()  # type: ignore[union-attr]
    assert sorted(evaluated) == list(range(23))


@pytest.mark.parametrize("backend", BACKENDS)
def test_labels_are_those_of_the_crops_beside_them(genres: ShardSet, backend: str) -> None:
    def by_image(loader: Any) -> dict[bytes, int]:
        with loader:
            pairs = [
                (image.numpy().tobytes(), int(label))
                for images, labels in loader
                for image, label in zip(images.flatten(0, -4), labels, strict=True)
            ]
        assert len(dict(pairs)) == len(pairs)
        return dict(pairs)

    settings = config(backend=backend)
    everything = by_image(TrackLoader(genres, **settings))
    # Tracks of no class come in an evaluation of all, with a label of -1, and nowhere else.
    assert Counter(everything.values()) == {-1: 2, 0: 20, 1: 10, 2: 3}
    assert genres.classes == ("Folk", "Jazz", "Rock")
    labelled = {image: label for image, label in everything.items() if label >= 0}
    assert by_image(TrackLoader(genres, target="class", **settings)) == labelled
    assert by_image(LabelledLoader(genres, **config(backend=backend, batch_size=11))) == labelled
    flipped = by_image(LabelledLoader(genres, aug="hflip(p=1)", **config(backend=backend, batch_size=11)))
    shape = (MEL.n_mels, MEL.frames)
    turned = {
        np.frombuffer(image, np.float32).reshape(shape)[:, ::-1].tobytes(): n for image, n in flipped.items()
    }
    assert turned == labelled
    chosen = by_image(LabelledLoader(genres, label_fraction=0.5, **config(backend=backend, batch_size=1)))
    assert chosen.items() <= labelled.items()
    assert Counter(chosen.values()) == {0: 10, 1: 5, 2: 2}
    both = [
        by_image(
            LabelledLoader(
                genres,
                label_fraction=0.5,
                **config(backend=backend, batch_size=1, rank=rank, world_size=2),
            )
        )
        for rank in range(2)
    ]
    assert {**both[0], **both[1]}.items() <= chosen.items()
    assert len(both[0]) == len(both[1]) == 8  # of 17


@pytest.mark.parametrize(
    ("share", "counts"), [(0.01, [1, 1, 1]), (0.1, [2, 1, 1]), (0.5, [10, 5, 2]), (1.0, [20, 10, 3])]
)
def test_a_share_of_the_labels_is_one_of_each_class(
    genres: ShardSet, share: float, counts: list[int]
) -> None:
    tracks = open_tracks(genres, ["training"], target="class")
    chosen = with_label_fraction(tracks, share, seed=3)
    assert chosen.labels is not None
    assert np.bincount(chosen.labels).tolist() == counts
    assert set(chosen.names) <= set(tracks.names)
    assert with_label_fraction(tracks, share, seed=3).names == chosen.names
    assert share == 1 or with_label_fraction(tracks, share, seed=4).names != chosen.names


def test_a_share_is_one_of_tracks_whose_segments_come_together(pack_audio: PackAudio) -> None:
    rng = np.random.default_rng(0)
    tracks = {f"{row:06d}": 0.1 * rng.standard_normal((2 + row % 3) * RATE) for row in range(12)}
    genres = {key: "Folk" if int(key) < 8 else "Rock" for key in tracks}
    segmented = pack_audio(tracks, genres=genres, max_seconds=1.0)
    chosen = with_label_fraction(open_tracks(segmented, ["training"], target="class"), 0.25, seed=3)
    segments = Counter(chosen.names)
    assert Counter(genres[key] for key in segments) == {"Folk": 2, "Rock": 1}  # of 8 and 4
    everything = Counter(sample.track_id for sample in read_tracks(segmented.folder))
    assert segments == {key: everything[key] for key in segments}
    settings = config(batch_size=1)
    with LabelledLoader(segmented, label_fraction=0.25, **settings) as loader:
        assert len(loader) == segments.total()


@pytest.mark.parametrize("backend", BACKENDS)
def test_tags_are_those_of_the_crops_beside_them(tagged: ShardSet, backend: str) -> None:
    # Each genre of the corpus has a pitch and tags of its own.
    settings: dict[str, Any] = {"frontend": FRONTEND, "batch_size": 5, "backend": backend}
    found: dict[tuple[float, ...], set[int]] = defaultdict(set)
    with (
        LabelledLoader(tagged, **settings) as loader,
        TrackLoader(tagged, crops=2, target="tags", **settings) as whole,
    ):
        assert (
            len(loader) * 5 <= len(whole.plan.tracks) == len(loader.plan.tracks) == 22
        )  # 24, and 2 have no tags
        batches = [*loader, *((mels[:, 1], tags) for mels, tags in whole)]
    for mels, tags in batches:
        assert tags.dtype == torch.float32
        for mel, own in zip(mels, tags.tolist(), strict=True):
            found[tuple(own)].add(int(mel.mean(dim=(0, 2)).argmax()))
    names = [tuple(name for name, has in zip(tagged.tags, own, strict=True) if has) for own in found]
    assert set(names) == {("low",), ("middle", "voice"), ("high", "voice")}
    bands = dict(zip((own[0] for own in names), found.values(), strict=True))
    assert [len(of_tag) for of_tag in bands.values()] == [1, 1, 1]
    assert max(bands["low"]) < max(bands["middle"]) < max(bands["high"])


def test_a_share_of_tagged_tracks_is_one_of_all_and_holds_any_smaller_one(tagged: ShardSet) -> None:
    tracks = open_tracks(tagged, ["training"], target="tags")
    half, fifth = (set(with_label_fraction(tracks, share, 3, "tags").names) for share in (0.5, 0.2))
    assert (len(tracks), len(half), len(fifth)) == (22, 11, 4)
    assert fifth < half < set(tracks.names)


def test_a_split_without_tags_is_an_error(pack_audio: PackAudio) -> None:
    tags = {"000000": ("calm", "slow"), "000001": ("calm",)}
    splits = {"000002": "test"}
    half = pack_audio(
        noises(3), genres=dict.fromkeys(("000000", "000001", "000002"), ""), splits=splits, tags=tags
    )
    assert (half.target, half.names(half.target)) == ("tags", ("calm", "slow"))
    words = r"has no tracks with tags in split 'test': .* --labels FILE\.csv --tags"
    with pytest.raises(DataError, match=words):
        TrackLoader(half, splits=["training", "test"], target="tags", **config())


def test_a_small_labelled_split_is_one_batch(numbered: ShardSet) -> None:
    assert sorted(labels_of(LabelledLoader(numbered, **config(batch_size=64)))) == list(range(23))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"splits": "training"}, r"splits = 'training' must be a list of names"),
        ({"splits": []}, r"splits = \[\] must be a list of names"),
        ({"batch_size": 0}, "batch_size = 0 must be a whole number of at least 1"),
        (
            {"batch_size": 24},
            r"batch_size = 24 does not fit the 23 tracks: use 23 or less .*--batch-size 23\)",
        ),
        ({"batch_size": 12, "world_size": 2}, "the 11 tracks that each of 2 processes gets: use 11 or less"),
        ({"backend": "tf"}, "backend = 'tf' is unknown: choose one of dali, torch"),
        ({"dtype": torch.float16}, "dtype = torch.float16 must be one of torch.float32, torch.bfloat16"),
        ({"loader_threads": 0}, r"loader_threads = 0 must be a whole .* 1 .*--loader-threads\)"),
        ({"window": 0}, "window = 0 must be a whole number of at least 1"),
        ({"seed": -1}, "seed = -1 must lie between 0 and"),
        ({"rank": 2, "world_size": 2}, "rank = 2 must be at least 0 and below world_size = 2"),
        ({"world_size": 0}, "rank = 0 must be at least 0 and below world_size = 0"),
        ({"device": "mps"}, "device = mps must be cpu or cuda"),
        ({"device": "gpu"}, "device = gpu must be cpu or cuda"),
        (
            {"device": "cuda:99"},
            r"device = cuda:99 asks for a GPU, and . are visible: .*device='cpu' .*--gpus 0\)",
        ),
        (
            {"frontend": Frontend(mel=MelConfig(seconds=2.5), mean=0, std=1)},
            r"seconds = 2.5 .*--seconds 1.9\)",
        ),
        ({"aug": "cutot"}, r"'cutot' is unknown: did you mean cutout\?"),
        ({"aug": ["image"]}, r"aug = \['image'\] must be text such as 'image'"),
        ({"aug": "griddistortion(steps=60)"}, "steps = 60 of GridDistortion must be at most 48"),
        ({"crops": "apart"}, "crops = 'apart' is unknown: choose one of same, independent"),
        (
            {"crops": "independent", "max_distance": -1.0},
            "max_distance = -1 must be a number that is not neg",
        ),
        (
            {"crops": "independent", "max_distance": float("nan")},
            "max_distance = nan must be a number that is not neg",
        ),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else "",
)
def test_what_cannot_be_is_one_clear_line_at_once(
    numbered: ShardSet, settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words) as raised:
        two_views(numbered, **settings)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("share", [0.0, -0.1, 1.5, float("nan")])
def test_what_labelled_loaders_cannot_do_is_refused(genres: ShardSet, share: float) -> None:
    with pytest.raises(ConfigError, match=f"label_fraction = {share:g} must be above 0 and at most 1"):
        LabelledLoader(genres, label_fraction=share, **config())
    with pytest.raises(ConfigError, match=r"^cutmix, mixup would add another track"):
        LabelledLoader(genres, aug="image", **config())
    with pytest.raises(ConfigError, match="crops = -1 must be at least 1"):
        TrackLoader(genres, crops=-1, **config())
    for kind in (LabelledLoader, TrackLoader):
        with pytest.raises(ConfigError, match="such tracks, too few for 99 processes"):
            kind(genres, **config(world_size=99))


def test_an_unknown_split_is_refused_with_those_there_are(numbered: ShardSet) -> None:
    with pytest.raises(DataError, match=r"'test'.*training"):
        two_views(numbered, splits=["test"])


@pytest.mark.parametrize("kind", LOADERS)
def test_an_unknown_argument_is_refused_and_all_share_the_same(numbered: ShardSet, kind: Any) -> None:
    with pytest.raises(TypeError, match="batchsize"):
        kind(numbered, batchsize=4)
    shared = {field.name: field.default for field in dataclasses.fields(Loader) if field.kw_only}
    parameters = inspect.signature(kind).parameters
    assert {name: parameters[name].default for name in shared} == shared


@pytest.mark.parametrize("state", [{"epoch": 0, "batch": 99}, {"epoch": -1, "batch": 0}, {}])
def test_a_place_that_there_is_not_is_refused(numbered: ShardSet, state: dict[str, int]) -> None:
    with two_views(numbered) as loader, pytest.raises(ConfigError, match="is no place of this loader"):
        loader.load_state_dict(state)


def test_more_processes_than_tracks_are_told_how_many_there_may_be(numbered: ShardSet) -> None:
    with pytest.raises(ConfigError, match="too few for 64 processes: use 23"):
        two_views(numbered, rank=0, world_size=64)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_closed_loader_says_so(numbered: ShardSet, backend: str) -> None:
    with two_views(numbered, backend=backend) as loader:
        take(loader, 1)
    loader.close()
    with pytest.raises(ValueError, match="closed"):
        take(loader, 1)


def test_a_closed_loader_leaves_no_graph_for_a_forked_process_to_end(numbered: ShardSet) -> None:
    loader = two_views(numbered)
    take(loader, 1)
    assert isinstance(loader._engine, DaliEngine)
    graph = weakref.ref(loader._engine._pipeline)
    loader.close()
    assert graph() is None


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rounds", [3, pytest.param(10, marks=pytest.mark.slow)])
def test_closed_loaders_leave_no_thread_and_no_open_file(genres: ShardSet, backend: str, rounds: int) -> None:
    def use() -> None:
        for kind in LOADERS:
            with kind(genres, **config(backend=backend, loader_threads=2, frontend=SMALL)) as loader:
                take(loader, 2)
                loader.load_state_dict(loader.state_dict())
                take(loader, 2)

    use()  # libraries start threads and open files of their own, once
    before = threads_and_files()
    for _ in range(rounds):
        use()
    assert threads_and_files() == before


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("recipe", ["image", "audio"])
@pytest.mark.parametrize(
    ("warm_up", "batches"), [(150, 400), pytest.param(1_000, 10_000, marks=pytest.mark.slow)]
)
def test_memory_does_not_grow_with_the_batches(
    numbered: ShardSet, recipe: str, backend: str, warm_up: int, batches: int
) -> None:
    with two_views(numbered, recipe, backend=backend, frontend=SMALL, batch_size=2) as loader:
        start = 0.0
        for done in range(batches // 50):
            for _, _ in zip(range(50), _endless(loader), strict=False):
                pass
            if done == warm_up // 50:
                start = resident_megabytes()
        assert resident_megabytes() - start < MEGABYTES


def _endless(loader: TwoViewLoader) -> Any:
    while True:
        yield from loader


def threads_and_files() -> tuple[int, int]:
    gc.collect()
    task, files = Path("/proc/self/task"), Path("/proc/self/fd")
    return len(list(task.iterdir())), len(list(files.iterdir()))


def resident_megabytes() -> float:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
