"""Networks as files for other programs: torchvision's state dict, safetensors, and ONNX."""

import json
import logging
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import siamusic_fast
from siamusic_fast.config import CHECKPOINTS
from siamusic_fast.config.fields import OneOf, check_value
from siamusic_fast.errors import ConfigError, DataError, not_installed
from siamusic_fast.files import WEIGHTS_LIMIT, atomic_write, file_sha256
from siamusic_fast.inference.model_card import model_card, read_facts
from siamusic_fast.models.exported import SAFETENSORS, sha256_file
from siamusic_fast.models.networks import Classifier, Encoder
from siamusic_fast.models.pretrained import load_pretrained, read_classifier
from siamusic_fast.models.run_checks import find_classifier
from siamusic_fast.pipelines.torch.features import ConvolutionalLogMel

ENDINGS = {"torch": (".pt", ".pth"), "safetensors": (SAFETENSORS,), "onnx": (".onnx",)}
"""Formats and the endings of their files, the default first."""
INPUTS = ("mels", "waveform")
"""What an ONNX file takes, the default first."""
TOLERANCE = 1e-4
"""Largest difference between outputs of an ONNX file and those of torch."""
_KEY = "siamusic_fast"
"""Name of the metadata in a file."""
_LAST_LAYERS = {"swin_t": "head"}
"""Name of the last layer, if it is not `fc`."""
_FIXED_SIZE = ("swin_t",)
"""Backbones whose ONNX files take one length only: their windows depend on it."""


@dataclass(frozen=True, kw_only=True)
class ExportResult:
    """Files that `export` has written."""

    file: Path
    """The network."""
    card: Path
    """The model card beside it."""
    sha256: str
    """SHA-256 of the file, which is beside it too."""
    difference: float | None
    """Largest difference between the outputs of ONNX and of torch, for noise; None for other formats."""


def export(
    run: Path | str,
    out: Path | str | None = None,
    *,
    to: str = "torch",
    source: str = INPUTS[0],
    classifier: bool = False,
    checkpoint: str = CHECKPOINTS[0],
    force: bool = False,
) -> ExportResult:
    """Write the encoder of `run`, or its `classifier`, to a file for other programs.

    `to` is one of:

    - `torch`: a state dict with torchvision's names. A classifier's last layer is `fc`, or `head` of swin_t.
    - `safetensors`: the same, with metadata that can be read without torch.
    - `onnx`: a network with a free batch size. With `source="mels"` it takes float32 [batch, 1, n_mels,
      frames], normalized as the frontend says; with `source="waveform"` audio of full scale 1 at the sample
      rate of the frontend, float32 [batch, samples]. Its output is `features` [batch, dim] or, of a
      classifier, `probabilities` [batch, classes]. ResNets take any number of frames or samples, swin_t
      those of a crop.

    Each file has metadata under the key siamusic_fast: target, classes or tags, frontend, length of a crop,
    and the SHA-256 of the checkpoint. A model card in Markdown and the SHA-256 are written beside it.
    `checkpoint` is that of the encoder, `last` or `best`. The default of `out` is the folder export in `run`.

    Raises ConfigError for an unknown format or ending and if a library of the extra `export` is not
    installed; DataError if `run` holds no such network, if a file exists and `force` is not set, or if the
    network cannot be exported.
    """
    check_value("to", to, OneOf(tuple(ENDINGS)))
    check_value("source", source, OneOf(INPUTS))
    if source != INPUTS[0] and to != "onnx":
        raise ConfigError(
            f"source = {source!r} is for to = 'onnx' only (on the command line --to onnx): add it, or "
            f"leave out source."
        )
    path = _target(Path(run), Path(out) if out else None, to, source, classifier)
    written = (path, path.with_name(f"{path.name}.md"), sha256_file(path))
    if not force and (existing := [str(file) for file in written if file.exists()]):
        raise DataError(
            f"{existing[0]} exists: use another out, or replace it by force=True (on the command line --out "
            f"or --force)."
        )
    network, about, folder = _load(Path(run), checkpoint, classifier)
    facts = read_facts(folder)  # before anything is written
    about |= {"format": to, "input": source}
    path.parent.mkdir(parents=True, exist_ok=True)
    difference = None
    if to == "onnx":
        difference = _write_onnx(path, network, source, about)
    elif to == "safetensors":
        _write_safetensors(path, network, about)
    else:
        _write_torch(path, network, about)
    sha256 = file_sha256(path, WEIGHTS_LIMIT)
    _write_text(written[1], model_card(facts, path.name, sha256, about))
    _write_text(written[2], f"{sha256}  {path.name}\n")
    return ExportResult(file=path, card=written[1], sha256=sha256, difference=difference)


def _target(run: Path, out: Path | None, to: str, source: str, classifier: bool) -> Path:
    """Return the file to write. Raises ConfigError if its ending is not one of the format."""
    name = "classifier" if classifier else "encoder"
    suffix = "" if source == INPUTS[0] else f"-{source}"
    path = out or run / "export" / f"{name}{suffix}{ENDINGS[to][0]}"
    if path.suffix not in ENDINGS[to]:
        raise ConfigError(
            f"out = {str(path)!r} does not end in {' or '.join(ENDINGS[to])}, as files for to = {to!r} do: "
            f"use {str(path.with_suffix(ENDINGS[to][0]))!r} (on the command line --out)."
        )
    return path


def _load(run: Path, checkpoint: str, classifier: bool) -> tuple[Encoder | Classifier, dict[str, Any], Path]:
    """Return the network in `run`, what is said about it in its file, and the folder of its checkpoint."""
    network: Encoder | Classifier
    if classifier:
        path = find_classifier(run)
        network, saved = read_classifier(path, torch.device("cpu"))
        pretrained_on = saved["pretrained_on"]
    else:
        pretrained = load_pretrained(run, checkpoint)
        network, path = pretrained.build_encoder(torch.device("cpu")), pretrained.path
        pretrained_on = pretrained.splits
    frontend = network.frontend
    encoder = network.encoder if isinstance(network, Classifier) else network
    about = {
        "version": siamusic_fast.__version__,
        "network": "classifier" if classifier else "encoder",
        **asdict(encoder.architecture),
        "target": network.target if isinstance(network, Classifier) else None,
        "classes": list(network.classes) if isinstance(network, Classifier) else [],
        "epoch": network.epoch,
        "pretrained_on": list(pretrained_on),
        "sample_rate": frontend.mel.sample_rate,
        "crop_seconds": frontend.mel.seconds,
        "frontend": frontend.dump(),
        "checkpoint_sha256": file_sha256(path, WEIGHTS_LIMIT),
    }
    return network.to(memory_format=torch.contiguous_format), about, path.parent  # type: ignore[call-overload]


def _state_dict(network: Encoder | Classifier) -> dict[str, Tensor]:
    """Return the weights under torchvision's names; a classifier's head is the last layer of its encoder."""
    if not isinstance(network, Classifier):
        return dict(network.state_dict())
    parts = [part for part in (network.projector, network.head) if not isinstance(part, nn.Identity)]
    last = parts[0] if len(parts) == 1 else nn.Sequential(*parts)
    name = _LAST_LAYERS.get(network.encoder.architecture.backbone, "fc")
    return {**network.encoder.state_dict(), **last.state_dict(prefix=f"{name}.")}


def _write_torch(path: Path, network: Encoder | Classifier, about: dict[str, Any]) -> None:
    state = OrderedDict(_state_dict(network))
    state._metadata = {_KEY: about}  # type: ignore[attr-defined]  # where torch itself keeps metadata
    with atomic_write(path) as file:
        torch.save(state, file)


def _write_safetensors(path: Path, network: Encoder | Classifier, about: dict[str, Any]) -> None:
    try:
        from safetensors.torch import save
    except ModuleNotFoundError:
        raise not_installed("safetensors", "export") from None
    tensors = {name: tensor.contiguous() for name, tensor in _state_dict(network).items()}
    with atomic_write(path) as file:
        file.write(save(tensors, {"format": "pt", _KEY: json.dumps(about)}))


class _OnnxNetwork(nn.Module):
    """What an ONNX file computes, from its input to its output."""

    def __init__(self, network: Encoder | Classifier, source: str) -> None:
        super().__init__()
        self.log_mel = ConvolutionalLogMel(network.frontend) if source == "waveform" else nn.Identity()
        self.network = network
        self.last = network.last if isinstance(network, Classifier) else nn.Identity()

    def forward(self, given: Tensor) -> Tensor:
        output: Tensor = self.last(self.network(self.log_mel(given)))
        return output


def _write_onnx(path: Path, network: Encoder | Classifier, source: str, about: dict[str, Any]) -> float:
    """Write an ONNX file and return the largest difference between its outputs and torch's, for noise."""
    for module in ("onnx", "onnxscript", "onnxruntime"):
        try:
            __import__(module)
        except ModuleNotFoundError:
            raise not_installed(module, "export") from None
    mel = network.frontend.mel
    shape = (1, mel.n_mels, mel.frames) if source == "mels" else (mel.samples,)
    example = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    model = _OnnxNetwork(network, source).eval()
    content = _onnx(model, example, source, about)
    difference = _difference(content, model, example)
    if not difference <= TOLERANCE:  # NaN is refused too
        raise DataError(
            f"{about['backbone']} as ONNX differs from torch by {difference:g}, not at most {TOLERANCE:g}: "
            f"export it to another format (on the command line --to safetensors)."
        )
    with atomic_write(path) as file:
        file.write(content)
    return difference


def _onnx(model: _OnnxNetwork, example: Tensor, source: str, about: dict[str, Any]) -> bytes:
    """Return `model` as the content of an ONNX file. Raises DataError if torch cannot export it."""
    any_length = about["backbone"] not in _FIXED_SIZE
    axes: dict[int, Any] = {0: torch.export.Dim("batch")}
    if any_length:
        last = torch.export.Dim("frames" if source == "mels" else "samples", min=example.shape[-1] // 2)
        axes[example.ndim - 1] = last
    output = "probabilities" if about["classes"] else "features"
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                model,
                (example,),
                input_names=[source],
                output_names=[output],
                dynamic_shapes=(axes,),
                dynamo=True,
                verbose=False,
            )
    except Exception as error:  # torch has no narrower class for it
        reason = " ".join(str(error).split())[:200]
        raise DataError(
            f"{about['backbone']} cannot be exported to ONNX by torch {torch.__version__} ({reason}): export "
            f"it to another format (on the command line --to safetensors)."
        ) from error
    assert program is not None
    proto = program.model_proto
    proto.metadata_props.add(key=_KEY, value=json.dumps(about))
    content: bytes = proto.SerializeToString()
    return content


def _difference(content: bytes, model: nn.Module, example: Tensor) -> float:
    import onnxruntime  # type: ignore[import-untyped]

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: example.numpy()})
    with torch.no_grad():
        return float((model(example) - torch.from_numpy(found)).abs().max())


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what torch's exporter says about its own workings from users."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _write_text(path: Path, text: str) -> None:
    with atomic_write(path) as file:
        file.write(text.encode())
