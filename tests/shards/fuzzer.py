"""Damaged audio files, and names and links that make trouble: the same ones for the same seed."""

import io
import os
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile

from siamusic_fast.audio.corpus import Corpus, Track

FORMATS = ("MP3", "WAV", "FLAC", "OGG", "AIFF", "AU")
SECONDS = 1.5
RATE = 16_000
_NAMES = (
    "plain",
    "with space",
    "new\nline",
    "carriage\rreturn",
    "音楽",
    "ñandú",
    'quo"te,comma',
    "a.b..c",
    "-dash",
)


def make_corpus(folder: Path, count: int, seed: int) -> Corpus:
    """Write `count` damaged inputs into `folder`, and list them."""
    rng = random.Random(seed)
    sound = {kind: _encode(kind, rng.randrange(1 << 32)) for kind in FORMATS}
    tracks = []
    for number in range(count):
        kind = rng.choice(FORMATS)
        name = f"{number:04d} {rng.choice(_NAMES)}.{rng.choice((kind, rng.choice(FORMATS))).lower()}"
        rng.choice(_WAYS)(folder / name, sound[kind], rng)
        split = rng.choice(("training", "validation", "test"))
        tracks.append(Track(f"{number:06d}", name, split, rng.choice(("", "Folk", "Rock"))))
    name = os.fsdecode(b"no utf-8 \xff\xfe.wav")
    (folder / name).write_bytes(sound["WAV"] + b"another")
    tracks.append(Track(f"{count:06d}", name, "training", "Folk"))
    return Corpus(name="damaged", folder=folder, tracks=tuple(tracks))


def _encode(kind: str, seed: int) -> bytes:
    noise = np.random.default_rng(seed).normal(0, 0.1, (round(SECONDS * RATE), 2))
    file = io.BytesIO()
    soundfile.write(file, noise, RATE, format=kind)
    return file.getvalue()


def _flip_bits(path: Path, content: bytes, rng: random.Random) -> None:
    changed = bytearray(content)
    end = len(content) if rng.random() < 0.5 else min(200, len(content))
    for _ in range(rng.choice((1, 8, 200))):
        changed[rng.randrange(end)] ^= 1 << rng.randrange(8)
    path.write_bytes(changed)


def _truncate(path: Path, content: bytes, rng: random.Random) -> None:
    path.write_bytes(content[: rng.randrange(len(content))])


def _cut_out(path: Path, content: bytes, rng: random.Random) -> None:
    start = rng.randrange(len(content))
    path.write_bytes(content[:start] + content[start + rng.randrange(5000) :])


def _random_bytes(path: Path, content: bytes, rng: random.Random) -> None:
    head = content[: rng.choice((0, 4, 12, 64, 1000))]
    path.write_bytes(head + rng.randbytes(rng.randrange(20_000)))


def _absurd_header(path: Path, content: bytes, rng: random.Random) -> None:
    changed = bytearray(content)
    for _ in range(rng.choice((1, 2, 4))):
        place = rng.randrange(4, 64) & ~1
        extreme = rng.choice(
            (b"\xff\xff\xff\xff", b"\x00\x00\x00\x00", b"\xff\xff\xff\x7f", b"\x7f\xff\xff\xff")
        )
        changed[place : place + 4] = extreme
    path.write_bytes(changed)


def _sound(path: Path, content: bytes, rng: random.Random) -> None:
    # A tail of its own makes it no duplicate.
    path.write_bytes(content + rng.randbytes(16))


def _copy(path: Path, content: bytes, rng: random.Random) -> None:
    path.write_bytes(content)


def _twice(path: Path, content: bytes, rng: random.Random) -> None:
    path.write_bytes(content + content)


def _empty(path: Path, content: bytes, rng: random.Random) -> None:
    path.touch()


def _unreadable(path: Path, content: bytes, rng: random.Random) -> None:
    path.write_bytes(content)
    path.chmod(0)


def _odd_thing(path: Path, content: bytes, rng: random.Random) -> None:
    kind = rng.choice(("loop", "dangling", "outside", "device", "folder", "pipe", "nothing"))
    targets = {
        "loop": path,
        "dangling": Path("nowhere"),
        "outside": Path("/etc/passwd"),
        "device": Path("/dev/zero"),
    }
    if kind in targets:
        path.symlink_to(targets[kind])
    elif kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)


_WAYS: tuple[Callable[[Path, bytes, random.Random], None], ...] = (
    *(_flip_bits, _flip_bits, _truncate, _truncate, _cut_out, _random_bytes, _absurd_header, _absurd_header),
    *(_sound, _copy, _twice, _empty, _unreadable, _odd_thing),
)
