"""The graph that a GPU would run, defined where there is none, and counted.

DALI launches each GPU operator once for a batch or more often, after an upload of what it must know of each
sample, and schedules each CPU operator by itself. So their number is time, however small the work.
"""

import struct
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from siamusic_fast.config import MelConfig
from siamusic_fast.frontend import Frontend
from siamusic_fast.shards.manifest import ShardSet
from tests.pipelines.helpers import graph_of_gpu, plan_of

ALLOWED = {
    "ExternalSource": "Hands an array over: with `no_copy` no work on the CPU, and no launch.",
    "_conditional__Split": "Makes views of the samples by a predicate on the CPU: no launch.",
    "_conditional__Merge": "Makes views of all samples again: no launch, but as an output it is copied.",
    "Cast": "One launch.",
    "_ArithmeticGenericOp": "One launch, over tiles of the whole batch (expression_impl_gpu.cuh).",
    "Reshape": "Changes the shape alone: no launch.",
    "Spectrogram": "One launch for the windows, and those of cuFFT.",
    "MelFilterBank": "One launch.",
    "ToDecibels": "One launch: with a reference no maximum is looked for (to_decibels_gpu.cu).",
    "PermuteBatch": "One copy of the whole batch, by indices on the CPU (permute_batch.cc).",
    "Resize": "A launch for each axis and minibatch, of which there is one (resize_op_impl_gpu.h).",
    "AudioResample": "One launch: the window is uploaded once and for all (resampling_gpu.h).",
    "Slice": "One launch, by starts and shapes on the CPU.",
    "Filter": "One launch.",
    "reductions__RMS": "One or two launches; its result stays on the GPU.",
    "Cat": "One launch.",
    "Constant": "Uploaded once.",
}
"""Operators that a graph may have, and what they do there: none waits for the GPU."""


class Operator(NamedTuple):
    name: str
    device: str
    inputs: tuple[tuple[str, str], ...]
    """Names of tensors and the device that they are wanted on."""
    outputs: tuple[str, ...]


def fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Yield number and value of the fields of a protobuf message: the wire format, without its schema."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at, value, shift = at + 1, value | (byte & 0x7F) << shift, shift + 7
            if byte < 0x80:
                return value

    while at < len(message):
        number, kind = divmod(varint(), 8)
        if kind == 0:
            yield number, varint()
            continue
        size = {1: 8, 5: 4}.get(kind) or varint()
        yield number, message[at : at + size]
        at += size


def operators(pipeline: Any) -> tuple[list[Operator], list[str]]:
    """Return the operators of a pipeline, and the names of its outputs.

    In dali.proto, a pipeline's field 5 is its operators and 7 its outputs; an operator's name, inputs,
    outputs and arguments are its fields 1 to 4, and an input's name and device fields 1 and 2.
    """
    found, outputs = [], []
    for number, value in fields(pipeline.serialize()):
        if number == 5:
            parts = list(fields(value))
            ends = [(kind, [text for _, text in fields(part)][:2]) for kind, part in parts if kind in (2, 3)]
            arguments = [dict(fields(part)) for kind, part in parts if kind == 4]
            (device,) = (one[5].decode() for one in arguments if one.get(1) == b"device")
            found.append(
                Operator(
                    name=next(part.decode() for kind, part in parts if kind == 1),
                    device=device,
                    inputs=tuple((name.decode(), on.decode()) for kind, (name, on) in ends if kind == 2),
                    outputs=tuple(name.decode() for kind, (name, _) in ends if kind == 3),
                )
            )
        elif number == 7:
            outputs.append(dict(fields(value))[1].decode())
    return found, outputs


class Count(NamedTuple):
    cpu: int
    """Operators on the CPU that compute: those that hand over or share do not."""
    fed: int
    """Arrays that are handed over."""
    gpu: int
    """Operators on the GPU that launch something."""
    copies: int
    """Arrays that are moved to the GPU."""


SHARING = ("Reshape", "_conditional__Split", "_conditional__Merge")


def count(found: list[Operator]) -> Count:
    made_on_cpu = {name for one in found if one.device == "cpu" for name in one.outputs}
    moved = {name for one in found for name, device in one.inputs if device == "gpu" and name in made_on_cpu}
    kinds = Counter((one.name, one.device) for one in found)
    fed = kinds["ExternalSource", "cpu"]
    shared = sum(kinds[name, "gpu"] for name in SHARING)
    on = Counter(one.device for one in found)
    return Count(cpu=on["cpu"] - fed, fed=fed, gpu=on["gpu"] - shared, copies=len(moved))


SETTINGS: dict[str, Any] = {
    "frontend": Frontend(mel=MelConfig(seconds=1.0), mean=-30.0, std=10.0),
    "batch_size": 23,
}


@pytest.mark.parametrize("crops", ["same", "independent"])
@pytest.mark.parametrize(
    ("recipe", "most"),
    [
        ("none", Count(cpu=0, fed=2, gpu=8, copies=2)),
        ("image", Count(cpu=0, fed=20, gpu=36, copies=12)),
        ("audio", Count(cpu=2, fed=20, gpu=28, copies=4)),
        ("both", Count(cpu=2, fed=38, gpu=56, copies=14)),
    ],
)
def test_the_graph_of_a_gpu_has_few_operators_and_copies(
    numbered: ShardSet, recipe: str, crops: str, most: Count
) -> None:
    found, outputs = operators(graph_of_gpu(plan_of(numbered, recipe, crops=crops, **SETTINGS)))
    counted = count(found)
    assert all(have <= may for have, may in zip(counted, most, strict=True)), counted
    assert counted.cpu + counted.fed <= 30 or recipe == "both"
    assert counted.copies <= 12 or recipe == "both"
    made_by = {name: one for one in found for name in one.outputs}
    assert len(outputs) == 2
    for name in outputs:
        assert (made_by[name].name, made_by[name].device) == ("Reshape", "gpu")


def test_a_mean_of_each_band_costs_one_launch_per_view(numbered: ShardSet) -> None:
    mel = MelConfig(seconds=1.0)
    frontend = Frontend(mel=mel, mean=(-30.0,) * mel.n_mels, std=(10.0,) * mel.n_mels)
    found, _ = operators(graph_of_gpu(plan_of(numbered, "none", frontend=frontend, batch_size=23)))
    found_kinds = Counter((one.name, one.device) for one in found)
    assert found_kinds["_ArithmeticGenericOp", "gpu"] == 2
    assert count(found).gpu <= 10


@pytest.mark.parametrize("rate", [22_050, 44_100])
def test_all_steps_there_are_need_no_other_operators(numbered: ShardSet, rate: int) -> None:
    steps = "wavemix,pitch,stretch,gain,noise,cutmix,mixup,mask,hflip,vflip,cutout,tilt,griddistortion,rrc"
    frontend = Frontend(mel=MelConfig(seconds=1.0, sample_rate=rate, f_max=rate / 2), mean=-30.0, std=10.0)
    plan = plan_of(numbered, steps, frontend=frontend, batch_size=23)
    found, outputs = operators(graph_of_gpu(plan))
    kinds = {one.name for one in found}
    assert kinds <= ALLOWED.keys(), kinds - ALLOWED.keys()
    assert not any("erase" in name.lower() or "flip" in name.lower() for name in kinds)
    made_by = {name: one for one in found for name in one.outputs}
    for name in outputs:
        made = made_by[name]
        while made.name == "Reshape":
            made = made_by[made.inputs[0][0]]
        assert "Merge" not in made.name


def test_the_wire_format_is_read_as_it_is_specified() -> None:
    # From the documentation of protocol buffers: field 1 = 150, field 2 = "testing"; and a float, field 3.
    message = b"\x08\x96\x01" + b"\x12\x07testing" + b"\x1d" + struct.pack("<f", 0.5)
    assert list(fields(message)) == [(1, 150), (2, b"testing"), (3, struct.pack("<f", 0.5))]
