from siamusic_fast.audio.rejects import reject_duplicate
from siamusic_fast.shards.summary import count_marks
from siamusic_fast.shards.tables import PackedTrack


def row(track_id: str = "a", **values: float) -> PackedTrack:
    return PackedTrack(
        key=track_id,
        track_id=track_id,
        offset=0.0,
        split="training",
        genre="",
        seconds=6.0,
        samples=6,
        shard="s.tar",
        path="p",
        sha256="",
        **{"clipped": 0, **values},  # type: ignore[arg-type]
    )


def test_a_track_without_anything_to_say_has_no_mark() -> None:
    assert count_marks([row(seconds_missing=0.08)], []) == {}


def test_a_track_in_segments_counts_once() -> None:
    rows = [row(damaged_packets=2, clipped=1), row(damaged_packets=2), row("b", damaged_packets=1)]
    assert count_marks(rows, []) == {"damaged": 2, "clipped": 1}


def test_every_mark_is_counted() -> None:
    rows = [row("a", seconds_missing=1.0), row("b", gain=0.5), row("c", channel=0)]
    rejects = [
        reject_duplicate("d", "Rock", "e", "Folk"),
        reject_duplicate("f", "Rock", "e", "Rock"),
        reject_duplicate("g", "", "e", "Rock"),
    ]
    assert count_marks(rows, rejects) == {"shorter": 1, "rescaled": 1, "one channel": 1, "label conflict": 1}
