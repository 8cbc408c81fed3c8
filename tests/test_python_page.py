"""The scripts of docs/python.md run exactly as they are printed there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from siamusic_fast.config import MelConfig
from siamusic_fast.pipelines.estimate import estimate_frontend
from siamusic_fast.shards.manifest import ShardSet
from tests.runs import save_run

ROOT = Path(__file__).parents[1]
SCRIPTS = {
    re.search(r"python (\w+)\.py", script)[1]: script  # type: ignore[index]
    for script in re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(), re.DOTALL)
}


def run_script(name: str, *arguments: Path, folder: Path) -> str:
    """Save a script of the page in `folder`, run it there and return what it prints."""
    path = folder / f"{name}.py"
    path.write_text(SCRIPTS[name])
    done = subprocess.run(
        [sys.executable, path.name, *map(str, arguments)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_script_of_the_page_is_run() -> None:
    assert set(SCRIPTS) == {"whole_way", "simclr", "low_pass", "alike", "resnet"}


def test_audio_becomes_scores(fma_corpus: Path, tmp_path: Path) -> None:
    said = run_script("whole_way", fma_corpus / "fma_medium", folder=tmp_path)
    assert re.fullmatch(r"\d+% of 5 test tracks are right; chance is 40%\n", said)


def test_a_simclr_loop_trains_on_two_views(shard_set: ShardSet, tmp_path: Path) -> None:
    said = run_script("simclr", shard_set.folder, folder=tmp_path)
    assert re.fullmatch(r"epoch 1: loss \d\.\d{3}\nepoch 2: loss \d\.\d{3}\n", said)
    assert (tmp_path / "simclr.pt").is_file()


def test_one_dataclass_is_an_augmentation_of_both_engines(shard_set: ShardSet, tmp_path: Path) -> None:
    said = run_script("low_pass", shard_set.folder, folder=tmp_path)
    found = re.fullmatch(r"LowPass changes bands by (.*) dB; the engines differ by (.*) dB\n", said)
    assert found
    std = estimate_frontend(shard_set, MelConfig()).std
    assert float(found[1]) == pytest.approx(std, abs=0.06)
    assert float(found[2]) < 0.005


def test_a_resnet_of_torchvision_takes_the_pretrained_weights(shard_set: ShardSet, tmp_path: Path) -> None:
    run = save_run(tmp_path / "run", mel=MelConfig(seconds=2.0))
    said = run_script("resnet", run, shard_set.folder, folder=tmp_path)
    assert re.fullmatch(r"[0-6] of 6 validation tracks are right\n", said)


def test_two_files_of_a_folder_sound_most_alike(fma_corpus: Path, pretrained: Path, tmp_path: Path) -> None:
    first, *left_out = run_script(
        "alike", pretrained, fma_corpus / "fma_medium", folder=tmp_path
    ).splitlines()
    assert re.fullmatch(r"\S+\.mp3 and \S+\.mp3: [01]\.\d{3}", first)
    assert f"left out: {fma_corpus}/fma_medium/900/900002.mp3: empty" in left_out


PAGES = [path.relative_to(ROOT) for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(((?!https?:)[^)#]+)", (ROOT / page).read_text()):
        assert (ROOT / page).parent.joinpath(target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_a_page_has_no_leftovers_of_a_merge_or_of_a_placeholder(page: Path) -> None:
    found = re.findall(r"^(?:<{7}|={7}|>{7}).*|@@\w+@@", (ROOT / page).read_text(), re.MULTILINE)
    assert not found
