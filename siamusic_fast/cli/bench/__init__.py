"""`siamusic-fast bench`: how fast it is here, beside its peers and beside what the machine allows."""

import click

from siamusic_fast.cli.bench.compare import compare
from siamusic_fast.cli.bench.doctor import doctor
from siamusic_fast.cli.bench.everything import everything
from siamusic_fast.cli.bench.loader import loader
from siamusic_fast.cli.bench.shard import shard
from siamusic_fast.cli.bench.train import train


@click.group()
def bench() -> None:
    """Measure how fast it is, beside its peers and what this machine allows.

    The last line of each is everything as JSON, with every window; --out keeps it with a chart.

    \b
    siamusic-fast bench loader
    siamusic-fast bench loader --data fma_small --quick
    siamusic-fast bench compare before/loader.json after/loader.json
    """


for command in (loader, train, shard, everything, compare, doctor):
    bench.add_command(command)
