"""Imports between the rooms of the package go one way, as docs/architecture.md draws them."""

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "siamusic_fast"
FLOORS = [
    names.split()
    for names in (
        *(
            "errors",
            "files progress",
            "config",
            "folder_lock frontend storage",
            "processes",
            "audio",
            "shards",
        ),
        *("synthetic pipelines", "embedding", "models", "evaluation", "inference", "training", "analysis"),
        *("studies", "bench", "cli"),
    )
]
"""The rooms, as sub-packages and modules: each imports from lower floors only, which stand before its own."""


def imports() -> Iterator[tuple[str, str, Path]]:
    """Yield the rooms that each file of the package is in and imports from."""
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            modules = []
            if isinstance(node, ast.ImportFrom):
                modules = [f"{node.module}.{name.name}" for name in node.names]
            elif isinstance(node, ast.Import):
                modules = [name.name for name in node.names]
            for module in modules:
                if module.startswith("siamusic_fast."):
                    yield file.relative_to(PACKAGE).parts[0].removesuffix(".py"), module.split(".")[1], file


def test_every_file_is_in_a_room() -> None:
    rooms = {
        path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()
    }
    assert rooms - {"__init__", "__main__"} == {room for rooms in FLOORS for room in rooms}


def test_rooms_import_from_lower_floors_only() -> None:
    floor = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    wrong = {
        f"{file.relative_to(PACKAGE)} imports from {imported}"
        for room, imported, file in imports()
        if room not in ("__main__", imported)
        and imported != "__version__"
        and floor.get(imported, len(FLOORS)) >= floor[room]
    }
    assert wrong == set()
