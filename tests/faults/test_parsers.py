"""Parsers of index, manifest, tables, recipes and settings read or refuse whatever they are given."""

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from siamusic_fast.cli import config_file
from siamusic_fast.cli.pretrain import pretrain
from siamusic_fast.errors import SiamusicError
from siamusic_fast.pipelines.recipes import parse_recipe
from siamusic_fast.pipelines.tracks import open_tracks
from siamusic_fast.shards.index import read_index
from siamusic_fast.shards.manifest import read_manifest
from siamusic_fast.shards.tables import read_rejects, read_tracks
from tests.faults.tries import Tries
from tests.shards.small import fit_index, fit_tracks

pytestmark = pytest.mark.faults
Read = Callable[[bytes], object]

_ODD = (b"-1", b"1e999", b"NaN", b"null", b"{}", b"[]", b'"', b"\0", b"\xff", b"\n", b",", b"9" * 40, b"(")
"""What parsers tend to stumble over."""


def damaged(valid: bytes) -> st.SearchStrategy[bytes]:
    """Return texts that are `valid` but for some pieces that were replaced, inserted or left out."""
    piece = st.tuples(
        st.integers(0, len(valid)), st.integers(0, 8), st.sampled_from(_ODD) | st.binary(max_size=8)
    )

    def patched(pieces: list[tuple[int, int, bytes]]) -> bytes:
        text = valid
        for start, size, words in pieces:
            text = text[:start] + words + text[start + size :]
        return text

    return st.lists(piece, min_size=1, max_size=4).map(patched) | st.binary(max_size=64)


def changed_values(valid: Any) -> st.SearchStrategy[bytes]:
    """Return JSON in which one value of `valid`, at any depth, is another."""
    places = list(_places(valid))
    values: st.SearchStrategy[object] = (
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.just([])
    )

    def changed(place: tuple[Any, ...], value: object) -> bytes:
        copy = inside = json.loads(json.dumps(valid))
        for key in place[:-1]:
            inside = inside[key]
        inside[place[-1]] = value
        return json.dumps(copy).encode()

    return st.builds(changed, st.sampled_from(places), values)


def _places(value: Any) -> list[tuple[Any, ...]]:
    keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [(key, *rest) for key in keys for rest in [(), *_places(value[key])]]


def fuzz(tries: Tries, texts: st.SearchStrategy[bytes], read: Read) -> None:
    """Have `read` take so many texts: only an error for users may come of it."""

    @settings(
        max_examples=tries.count,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(texts)
    def each(text: bytes) -> None:
        with tries.attempt(text), contextlib.suppress(SiamusicError, click.ClickException):
            read(text)

    each()
    tries.finish()


def test_any_index_is_read_or_refused(small: Path, tries: Tries) -> None:
    shard_set = read_manifest(small)
    shard = shard_set.shards(["training"])[0]
    valid = shard_set.path(shard.index).read_bytes()
    fuzz(tries, damaged(valid), lambda text: read_index(shard_set, fit_index(shard_set, shard, text)))


def test_any_manifest_is_read_or_refused(small: Path, tries: Tries) -> None:
    path = small / "manifest.json"
    valid = path.read_bytes()

    def read(text: bytes) -> None:
        path.write_bytes(text)
        open_tracks(read_manifest(small), ["training"], labels=True)

    fuzz(tries, damaged(valid) | changed_values(json.loads(valid)), read)


def test_any_tables_are_read_or_refused(small: Path, tries: Tries) -> None:
    shard_set = read_manifest(small)
    valid = shard_set.path("tracks.csv").read_bytes()

    def read(text: bytes) -> None:
        (small / "rejected.csv").write_bytes(text)
        fitted = fit_tracks(shard_set, text)
        for reader in (read_tracks, read_rejects):
            with contextlib.suppress(SiamusicError):
                list(reader(small))
        open_tracks(fitted, ["training"], labels=True)

    fuzz(tries, damaged(valid), read)


def test_any_recipe_is_read_or_refused(tries: Tries) -> None:
    valid = b"cutmix(p=0.3),hflip,timemask(p=0.5,max_width=0.2)"
    fuzz(tries, damaged(valid), lambda text: parse_recipe(text.decode("utf-8", "replace")))


def test_any_file_of_settings_is_read_or_refused(tmp_path: Path, tries: Tries) -> None:
    path = tmp_path / "settings.yaml"
    option = next(one for one in pretrain.params if one.name == "config")

    def read(text: bytes) -> None:
        path.write_bytes(text)
        context = click.Context(pretrain)
        config_file.read_into_defaults(context, option, path)
        pretrain.parse_args(context, ["--gpus", "0"])

    valid = b"aug: image\nbatch-size: 64\nmel:\n  seconds: 2.5\n  n_mels: 48\nsplits: [training, test]\n"
    fuzz(tries, damaged(valid), read)
