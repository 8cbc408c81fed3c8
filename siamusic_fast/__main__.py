"""`python -m siamusic_fast`: the same as `siamusic-fast`."""

from siamusic_fast.cli import main

main(prog_name="siamusic-fast")
