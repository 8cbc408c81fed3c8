import inspect
import pydoc
import subprocess
import sys
from importlib.resources import files
from typing import TYPE_CHECKING, assert_type

import pytest

import siamusic_fast as sf

if TYPE_CHECKING:
    from siamusic_fast.models.networks import Encoder


def test_the_package_lists_its_public_names() -> None:
    expected = {
        *("pack", "open_corpus", "find_shards", "samples", "TwoViewLoader", "LabelledLoader", "TrackLoader"),
        *("Frontend", "load_encoder", "pretrain", "finetune", "evaluate", "probe", "CutMix", "TimeMask"),
        *("PretrainConfig", "FinetuneConfig", "PackConfig", "SiamusicError", "ConfigError", "DataError"),
    }
    assert expected <= set(sf.__all__)
    assert set(sf.__all__) <= set(dir(sf))
    with pytest.raises(AttributeError, match="'siamusic_fast' has no attribute 'no_such_name'"):
        sf.no_such_name  # type: ignore[attr-defined]  # noqa: B018


def test_every_public_augmentation_is_what_the_command_line_knows() -> None:
    from siamusic_fast.pipelines.recipes import AUGMENTATIONS

    kinds = sf.WaveAugmentation, sf.ImageAugmentation
    public = {getattr(sf, name) for name in sf.__all__}
    assert set(AUGMENTATIONS.values()) == {
        kind for kind in public if isinstance(kind, type) and issubclass(kind, kinds) and kind not in kinds
    }


def test_every_public_name_is_documented() -> None:
    assert [name for name in sf.__all__ if len(getattr(sf, name).__doc__ or "") < 10] == []


def test_every_public_name_spells_its_arguments_out() -> None:
    public = {name: getattr(sf, name) for name in sf.__all__}
    called = {
        name: value
        for name, value in public.items()
        if not (isinstance(value, type) and issubclass(value, BaseException))
        and name not in ("Encoder", "Progress")  # nobody calls these: the one is loaded, the other a protocol
    }
    hiding = {
        name
        for name, value in called.items()
        for parameter in inspect.signature(value).parameters.values()
        if parameter.kind is inspect.Parameter.VAR_KEYWORD
    }
    assert hiding == set()


def test_help_shows_every_public_name() -> None:
    text = pydoc.plain(pydoc.render_doc(sf))
    assert [name for name in sf.__all__ if name not in text] == []


def test_importing_the_package_and_its_settings_imports_neither_torch_nor_dali() -> None:
    code = (
        "import sys, siamusic_fast as sf; sf.PretrainConfig(); sf.DataError\n"
        "print([name for name in ('torch', 'nvidia', 'numpy') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_type_checkers_see_the_types_of_public_names() -> None:
    assert files("siamusic_fast").joinpath("py.typed").is_file()
    assert_type(sf.PretrainConfig().lr, float)
    if TYPE_CHECKING:
        assert_type(sf.load_encoder("run"), Encoder)
        assert_type(sf.find_shards("data").sample_rate, int)
