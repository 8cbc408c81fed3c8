"""What to do about a name or a folder that was given for a shard set and is none."""

import difflib
import json
import shlex
from collections.abc import Iterable
from pathlib import Path

from siamusic_fast.audio.fma import SUBSETS
from siamusic_fast.audio.folder import ENDINGS
from siamusic_fast.audio.parquet import TABLE_ENDINGS
from siamusic_fast.audio.store import open_store
from siamusic_fast.errors import DataError
from siamusic_fast.files import SETTINGS_LIMIT, read_regular
from siamusic_fast.shards.manifest import MANIFEST

_RUN = "config.json"
"""The file in which a run says which shards it was made from."""
_MAX_NAMES = 5


def remedy(data: str | Path, data_dir: Path) -> str:
    """Return what to do about `data`, which is no shard set: the command to paste or the name to give."""
    path, elsewhere = Path(data), data_dir / data
    if recorded := _shards_of_run(path):
        return f"it is a run or a classifier, which was made from the shards {recorded}: give those"
    if sets := _sets_in(path):
        return f"it holds shard sets: give one of {_listed(str(path / name) for name in sets)}"
    option = () if data_dir == Path("data") else ("--data-dir", str(data_dir))
    if _holds_audio(path) or _holds_audio(elsewhere):
        return f"`{shlex.join(('siamusic-fast', 'shard', str(data), *option))}` packs its audio"
    if str(data) in SUBSETS:
        command = shlex.join(("siamusic-fast", "shard", str(data), *option, "--download"))
        return f"`{command}` fetches and packs it"
    if sets := _sets_in(data_dir / "shards"):
        near = difflib.get_close_matches(str(data), sets, n=1)
        return f"did you mean {near[0]}" if near else f"there are {_listed(sets)}"
    return "`siamusic-fast shard --help` says how audio is packed"


def _shards_of_run(path: Path) -> str:
    try:
        return str(json.loads(read_regular(path / _RUN, SETTINGS_LIMIT))["data"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _sets_in(folder: Path) -> list[str]:
    return sorted(path.parent.name for path in folder.glob(f"*/{MANIFEST}"))


def _holds_audio(path: Path) -> bool:
    try:
        return path.exists() and any(
            name.lower().endswith((*ENDINGS, *TABLE_ENDINGS)) for name in open_store(path).paths()
        )
    except DataError:  # neither a folder nor a zip
        return False


def _listed(names: Iterable[str]) -> str:
    found = list(names)
    return ", ".join(found[:_MAX_NAMES]) + (", ..." if len(found) > _MAX_NAMES else "")
