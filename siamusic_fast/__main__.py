"""The command `python -m siamusic_fast`, which is the same as `siamusic-fast`."""

from siamusic_fast.cli import main

main(prog_name="siamusic-fast")
