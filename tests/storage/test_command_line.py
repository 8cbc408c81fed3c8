"""Object storage on the command line."""

import json

import pytest
from click.testing import CliRunner

from siamusic_fast.cli import main
from siamusic_fast.shards.manifest import ShardSet
from siamusic_fast.shards.upload import work_folder
from tests.storage.test_packing import contents, files


@pytest.mark.usefixtures("in_process")
def test_the_way_through_on_the_command_line(s3: str, local: ShardSet) -> None:
    options = ("--min-seconds", "0.5", "--tracks-per-shard", "3", "--procs", "1", "--quiet", "--json")
    words = ("shard", f"{s3}/music", "--labels", "folders", "--out", f"{s3}/cli", *options)
    packed = CliRunner().invoke(main, words)
    assert packed.exit_code == 0, packed.output
    assert json.loads(packed.stdout)["folder"] == f"{s3}/cli"
    assert contents(f"{s3}/cli") == files(local.folder)
    assert not work_folder(f"{s3}/cli").exists()
    shown = CliRunner().invoke(main, ("inspect", f"{s3}/cli"))
    assert "Röck" in shown.stdout
    assert f"listed in {s3}/cli/rejected.csv" in shown.stdout.replace("\n", "")
    verified = CliRunner().invoke(main, ("verify", f"{s3}/cli", "--procs", "1", "--quiet"))
    assert verified.exit_code == 0, verified.output
    assert "as they should be" in verified.stdout
    again = CliRunner().invoke(main, words)
    assert again.exit_code == 1
    assert f"{s3}/cli already holds a shard set" in again.stderr.replace("\n", " ")
