"""Write docs/configuration.md from the docstrings of the config dataclasses; with --check, compare only."""

import sys
from pathlib import Path

from siamusic_fast.config import (
    PRESETS,
    EmbedConfig,
    FinetuneConfig,
    MelConfig,
    PretrainConfig,
    ProbeConfig,
    preset_defaults,
)
from siamusic_fast.config.fields import Between, Positive, Setting, settings_of
from siamusic_fast.config.studies import AblateConfig, ReproduceConfig
from siamusic_fast.shards.pack import PackConfig

PAGE = Path(__file__).parents[1] / "docs" / "configuration.md"
HEAD = """\
# Configuration: every setting

`scripts/configuration.py` makes this page from the config dataclasses, which have the only text about a
setting. A setting `name_of_it` is the option `--name-of-it` of the command, the line `name_of_it: value` of
a file, and the argument `name_of_it=value` of the dataclass. A setting that is `on` or `off` has the
options `--name` and `--no-name`.

`pretrain`, `finetune`, `evaluate`, `probe` and `embed` read options from a YAML file with `--config FILE`.
The command line comes first, then the file, then `--preset`, then the defaults. Other options, such as
`data`, `out` and `gpus`, may stand in the file too. The `config.json` of a run is such a file:
`siamusic-fast pretrain --config runs/first/config.json` trains the same again.

    # mine.yaml
    data: fma_medium
    preset: simsiam
    backbone: resnet18
    splits: [training, validation]
    mel:
      seconds: 3
"""
SECTIONS = (
    ("Pre-training: `siamusic-fast pretrain`", "PretrainConfig", PretrainConfig),
    ("Mel spectrogram: `siamusic-fast pretrain`, under `mel:` in a file", "MelConfig", MelConfig),
    ("Fine-tuning: `siamusic-fast finetune`", "FinetuneConfig", FinetuneConfig),
    ("Probes: `siamusic-fast probe`", "ProbeConfig", ProbeConfig),
    ("The paper's grid: `siamusic-fast reproduce`", "ReproduceConfig", ReproduceConfig),
    ("Parts of a recipe: `siamusic-fast ablate`", "AblateConfig", AblateConfig),
    ("Embedding: `siamusic-fast embed`", "EmbedConfig", EmbedConfig),
    ("Packing: `siamusic-fast shard`", "PackConfig", PackConfig),
)
AFTER_PRESETS = """
The `lr` of `simsiam` is that for 256 pairs per step, and in proportion for other numbers: the pairs of a
step are those of `batch_size` (at most the tracks that a process gets), times `grad_accum_steps`, times the
processes.
"""
TAIL = """
`predict` has `crops` and `hop_seconds` of embedding, `similar` has `checkpoint`.
`evaluate` has `backend` and `seed` of fine-tuning.
`preview` has `aug`, `crops`, `max_distance`, `short_tracks` and `seed` of pre-training, and `seconds`.
Without `sample_rate`, `pretrain` takes that of the shards.
"""


def page() -> str:
    """Return the page."""
    parts = [HEAD]
    for title, name, config in SECTIONS:
        rows = [_row(setting) for setting in settings_of(config)]
        table = ["| setting | values | default | meaning |", "|---|---|---|---|", *rows]
        parts.append(f"\n## {title}\n\nIn Python: `{name}`.\n\n" + "\n".join(table) + "\n")
        if config is PretrainConfig:
            parts.append(_presets())
    return "".join(parts) + TAIL


def _row(setting: Setting) -> str:
    default = setting.default_words if setting.default is None else f"`{setting.default_words}`"
    return f"| `{setting.name}` | {_values(setting)} | {default} | {setting.help} |"


def _values(setting: Setting) -> str:
    if setting.choices:
        several = ", or several of them" if setting.kind is tuple else ""
        return ", ".join(f"`{choice}`" for choice in setting.choices) + several
    words = {str: "text", int: "whole number", float: "number", bool: "`on`, `off`", tuple: "words"}
    if isinstance(setting.rule, Between):
        limit = setting.rule.max
        upper = "" if limit == float("inf") else f" to {limit:,.12g}"
        return f"{words[setting.kind]}, {setting.rule.min:g}{upper or ' or more'}"
    return words[setting.kind] + (" above 0" if isinstance(setting.rule, Positive) else "")


def _presets() -> str:
    presets = [preset_defaults(preset, 256) for preset in PRESETS]
    rows = [f"| `{name}` | {' | '.join(_shown(values[name]) for values in presets)} |" for name in presets[0]]
    others = "".join(f" `{preset}` |" for preset in PRESETS[1:])
    heading = f"| setting | `{PRESETS[0]}` (default) |{others}\n|---|{'---|' * len(PRESETS)}"
    return f"\n`--preset` sets some of these:\n\n{heading}\n" + "\n".join(rows) + f"\n{AFTER_PRESETS}"


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "`on`" if value else "`off`"
    return "none" if value is None else f"`{value}`"


if __name__ == "__main__":
    if "--check" not in sys.argv:
        PAGE.write_text(page(), encoding="utf-8")
    elif not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != page():
        sys.exit(f"{PAGE} is not what the settings say: run python scripts/configuration.py")
