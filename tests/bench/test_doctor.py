import dataclasses
import re

import pytest

from siamusic_fast.bench.doctor import Facts, advise

GPU = Facts(
    training=1000,
    loader=800,
    crops=9000,
    disk=9000,
    cold=True,
    other_backend=None,
    codec="wav",
    device="cuda",
    threads=8,
    cores=8,
)
CPU = dataclasses.replace(GPU, device="cpu", other_backend=1600.0)


@pytest.mark.parametrize(
    ("facts", "advice"),
    [
        (dataclasses.replace(GPU, loader=1100), "Nothing to change"),
        (dataclasses.replace(GPU, codec="flac", crops=850), "Decoding flac .* --codec wav"),
        (dataclasses.replace(GPU, disk=700), "The disk holds"),
        (dataclasses.replace(GPU, threads=2), "Only 2 of 8 cores .* --threads 8"),
        (dataclasses.replace(GPU, crops=850), "more CPU cores"),
        (GPU, "lighter recipe"),
        (CPU, "--backend torch"),
        (dataclasses.replace(CPU, other_backend=500.0), "use a GPU"),
    ],
)
def test_the_advice_fits_what_holds_the_loader_up(facts: Facts, advice: str) -> None:
    assert re.search(advice, advise(facts))
