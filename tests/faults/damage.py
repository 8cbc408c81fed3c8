"""Single flipped bits and cuts in the files of a folder, which are undone after each try."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Damage:
    """What was done to a file."""

    file: str
    offset: int
    """Of the flipped bit's byte, or the length that was left."""
    what: str
    """Either "bit N" or "cut"."""


class Damager:
    """Damages the files of a folder as they were when it was made: the same ones for the same seed."""

    def __init__(self, folder: Path, seed: int = 0) -> None:
        self.folder = folder
        self.files = {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}
        self._rng = random.Random(seed)

    @contextmanager
    def flipped(self) -> Iterator[Damage]:
        """Flip one bit of any file, each file as often as another."""
        name = self._rng.choice([name for name, content in self.files.items() if content])
        changed = bytearray(self.files[name])
        place, bit = self._rng.randrange(len(changed)), self._rng.randrange(8)
        changed[place] ^= 1 << bit
        with self._replaced(name, bytes(changed)):
            yield Damage(name, place, f"bit {bit}")

    @contextmanager
    def cut(self) -> Iterator[Damage]:
        """Cut off the end of any file."""
        name = self._rng.choice([name for name, content in self.files.items() if content])
        kept = self._rng.randrange(len(self.files[name]))
        with self._replaced(name, self.files[name][:kept]):
            yield Damage(name, kept, "cut")

    @contextmanager
    def _replaced(self, name: str, content: bytes) -> Iterator[None]:
        (self.folder / name).write_bytes(content)
        try:
            yield
        finally:
            for path in self.folder.iterdir():
                if path.name not in self.files:
                    path.unlink()
                elif path.name in (name, "frontends.json"):  # which is measured anew where it does not fit
                    path.write_bytes(self.files[path.name])
