"""The wheel that is built from the checkout works without it."""

import json
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
import yaml

import siamusic_fast

ROOT = Path(__file__).parents[1]
UV = Path(sys.executable).with_name("uv")


def run(*command: str | Path, folder: Path) -> str:
    """Run a command in `folder`, without what the environment says of this Python, and return its output."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "HOME": str(Path.home())},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    build = (UV, "build", "--quiet", "--wheel", "--out-dir", out, ROOT)
    # `make install` left the build backend in uv's cache; without that, it has to be downloaded.
    if subprocess.run([*build, "--offline"], capture_output=True, check=False).returncode:
        subprocess.run(build, check=True)
    (built,) = out.glob("*.whl")
    return built


def test_the_wheel_holds_the_package_with_its_types_and_nothing_else(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    package = ROOT / "siamusic_fast"
    assert names == {
        str(path.relative_to(ROOT)) for path in package.rglob("*") if path.is_file() and path.suffix != ".pyc"
    }
    assert {"siamusic_fast/py.typed", "siamusic_fast/__init__.pyi"} <= names


def test_the_installed_wheel_runs_the_demo_outside_of_the_checkout(wheel: Path, tmp_path: Path) -> None:
    environment = tmp_path / "environment"
    run(UV, "venv", "--quiet", "--python", sys.executable, environment, folder=tmp_path)
    run(
        UV,
        "pip",
        "install",
        "--quiet",
        "--offline",
        "--no-deps",
        "--python",
        environment,
        wheel,
        folder=tmp_path,
    )
    (packages,) = environment.glob("lib/python3*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    print_file = "import siamusic_fast; print(siamusic_fast.__file__)"
    file = run(environment / "bin" / "python", "-c", print_file, folder=tmp_path)
    assert Path(file).is_relative_to(packages)
    quick = ("demo", "--quick", "--device", "cpu", "--json", "--quiet")
    result = json.loads(run(environment / "bin" / "siamusic-fast", *quick, folder=tmp_path))
    assert result["test_tracks"] > 0
    assert (tmp_path / "demo/quick/data/shards/fma_small/manifest.json").is_file()
    version = run(environment / "bin" / "siamusic-fast", "--version", folder=tmp_path)
    assert siamusic_fast.__version__ in version


@pytest.mark.slow
def test_the_wheel_installs_with_its_dependencies_and_runs_the_whole_demo(
    wheel: Path, tmp_path: Path
) -> None:
    environment, constraints = tmp_path / "environment", ROOT / "constraints.txt"
    run(UV, "venv", "--quiet", "--python", sys.executable, environment, folder=tmp_path)
    install = ("pip", "install", "--quiet", "--python", environment, "--constraint", constraints, wheel)
    run(UV, *install, folder=tmp_path)
    run(environment / "bin" / "siamusic-fast", "demo", "--device", "cpu", "--quiet", folder=tmp_path)
    assert list(tmp_path.glob("demo/runs/*/finetune/evaluate/results.json"))


def test_the_citation_names_this_version_and_the_paper() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == siamusic_fast.__version__
    assert citation["preferred-citation"]["title"] in " ".join((ROOT / "README.md").read_text().split())
