from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from siamusic_fast.config import BACKBONES, Architecture
from siamusic_fast.errors import ConfigError
from siamusic_fast.models.heads import predictor, projector
from siamusic_fast.models.networks import Classifier, encoder, place, stage


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


RESNETS = tuple(backbone for backbone in BACKBONES if backbone.startswith("resnet"))


@pytest.mark.parametrize("backbone", RESNETS)
def test_an_encoder_is_torchvisions_resnet_less_two_channels_and_the_classifier(backbone: str) -> None:
    with torch.device("meta"):  # shapes only
        ours = encoder(Architecture(backbone))
        theirs = torchvision.models.get_model(backbone, weights=None)
    two_channels = 64 * 2 * 7 * 7
    classifier = ours.dim * 1000 + 1000
    assert ours.dim == (512 if backbone in ("resnet18", "resnet34") else 2048)
    assert parameters(ours) == parameters(theirs) - two_channels - classifier


def test_an_encoder_computes_what_torchvisions_resnet_computes() -> None:
    torch.manual_seed(0)
    ours = encoder(Architecture("resnet18"))
    theirs = torchvision.models.resnet18(weights=None)
    state = ours.state_dict()
    state["conv1.weight"] = nn.functional.pad(
        state["conv1.weight"], (0, 0, 0, 0, 0, 2)
    )  # two silent channels
    theirs.fc = nn.Identity()
    theirs.load_state_dict(state)
    mels = torch.randn(2, 1, 48, 87)
    image = torch.cat([mels, torch.randn(2, 2, 48, 87)], dim=1)
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(mels), theirs.eval()(image))


def test_a_stem_that_keeps_frequency_has_torchvisions_weights_and_strides_in_time_alone() -> None:
    torch.manual_seed(0)
    ours = encoder(Architecture("resnet18", stem="keep-frequency"))
    theirs = torchvision.models.resnet18(weights=None)
    theirs.conv1 = nn.Conv2d(1, 64, kernel_size=7, stride=(1, 2), padding=3, bias=False)
    theirs.maxpool = nn.MaxPool2d(kernel_size=3, stride=(1, 2), padding=1)
    theirs.fc = nn.Identity()
    theirs.load_state_dict(ours.state_dict())
    shapes = []
    last: Any = ours.layer4
    last.register_forward_hook(lambda layer, given, output: shapes.append(output.shape))
    mels = torch.randn(2, 1, 48, 431)
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(mels), theirs.eval()(mels))
    assert shapes == [(2, 512, 6, 14)]  # 48 / 8 mels; 431 / 32 frames


@pytest.mark.parametrize(("backbone", "stride"), [("resnet18", 2), ("swin_t", 4)])
def test_a_stem_with_a_frequency_channel_sees_how_high_each_band_is(backbone: str, stride: int) -> None:
    torch.manual_seed(0)
    model = encoder(Architecture(backbone, stem="frequency-channel"))
    parts: Any = model
    layer = parts.conv1 if backbone == "resnet18" else parts.features[0][0]
    mels = torch.randn(2, 1, 48, 88)
    height = torch.tensor([-1 + 2 * band / 47 for band in range(48)]).repeat(88, 1).T.expand(2, 1, -1, -1)
    expected = nn.functional.conv2d(
        torch.cat([mels, height], dim=1), layer.weight, layer.bias, stride, padding=layer.padding
    )
    with torch.no_grad():
        torch.testing.assert_close(layer(mels), expected)
        torch.nn.init.zeros_(layer.weight[:, 1])
        without = nn.functional.conv2d(mels, layer.weight[:, :1], layer.bias, stride, padding=layer.padding)
        torch.testing.assert_close(layer(mels), without)
    assert model.eval()(mels).shape == (2, model.dim)


def test_mean_and_maximum_over_time_are_added_after_the_mean_over_frequency() -> None:
    ours = encoder(Architecture("resnet18", pooling="mean-max"))
    features = np.random.default_rng(0).random((3, 512, 2, 7))
    over_frequency = features.mean(axis=2)
    expected = over_frequency.mean(axis=2) + over_frequency.max(axis=2)
    found = ours.get_submodule("avgpool")(torch.from_numpy(features))
    np.testing.assert_allclose(found.numpy(), expected)
    assert ours.eval()(torch.randn(3, 1, 48, 87)).shape == (3, 512)


def test_a_swin_that_keeps_frequency_has_a_patch_at_every_mel() -> None:
    model = encoder(Architecture("swin_t", stem="keep-frequency", pooling="mean-max"))
    features: Any = model.features
    patches = features[0][0]
    mels = torch.randn(1, 1, 48, 431)
    with torch.no_grad():
        found, weight = patches(mels)[0], patches.weight[:, 0]
        here = (weight * mels[0, 0, 20:24, 40:44]).sum(dim=(1, 2)) + patches.bias
    assert found.shape == (96, 48, 108)
    torch.testing.assert_close(found[:, 20, 10], here, rtol=1e-4, atol=1e-5)
    assert model.eval()(mels[..., :87]).shape == (1, 768)


@pytest.mark.parametrize("shape", [(48, 431), (48, 173), (40, 30)], ids=str)
def test_a_swin_takes_crops_of_any_size(shape: tuple[int, int]) -> None:
    model = encoder(Architecture("swin_t"))
    with torch.no_grad():
        assert model.eval()(torch.randn(2, 1, *shape)).shape == (2, model.dim) == (2, 768)


def test_a_swin_is_torchvisions_but_for_two_channels_the_windows_and_the_classifier() -> None:
    with torch.device("meta"):
        ours = encoder(Architecture("swin_t"))
        theirs = torchvision.models.swin_t(weights=None)
    two_channels = 96 * 2 * 4 * 4
    classifier = ours.dim * 1000 + 1000
    # Each block has a bias for every head and every place of one patch relative to another in its window.
    heads = 2 * 3 + 2 * 6 + 6 * 12 + 2 * 24
    wider_windows = heads * ((2 * 6 - 1) * (2 * 9 - 1) - (2 * 7 - 1) ** 2)
    assert parameters(ours) == parameters(theirs) - two_channels - classifier + wider_windows
    assert ours.state_dict().keys() == theirs.state_dict().keys() - {"head.weight", "head.bias"}


def test_every_frame_counts_for_a_swin() -> None:
    # 431 frames are 107 patches of 4 and 3 frames more.
    torch.manual_seed(0)
    model = encoder(Architecture("swin_t"))
    mels = torch.randn(1, 1, 48, 431, requires_grad=True)
    model.eval()(mels).sum().backward()  # type: ignore[no-untyped-call]
    assert mels.grad is not None
    assert (mels.grad[0, 0].abs().sum(dim=0) > 0).all()


@pytest.mark.parametrize("backbone", ["resnet18", "swin_t"])
def test_gradients_reach_all_of_an_encoder(backbone: str) -> None:
    torch.manual_seed(0)
    model = encoder(Architecture(backbone))
    for name, parameter in model.named_parameters():
        if name.endswith("bn2.weight"):
            torch.nn.init.ones_(parameter)  # 0 at first, which keeps gradients from its branch for one step
    model.eval()  # no block of the Swin is left out by chance
    model(torch.randn(2, 1, 48, 87)).square().sum().backward()  # type: ignore[no-untyped-call]
    without = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is None or not parameter.grad.any()
    ]
    assert without == []


@pytest.mark.parametrize("backbone", ["resnet18", "resnet50", "swin_t"])
def test_an_encoders_stages_follow_each_other(backbone: str) -> None:
    with torch.device("meta"):
        model = encoder(Architecture(backbone))
    stages = [stage(name) for name, _ in model.named_parameters()]
    assert stages == sorted(stages)
    assert set(stages) == {0, 1, 2, 3, 4}


def test_a_head_may_have_a_hidden_layer_and_read_the_projector() -> None:
    model = Classifier(Architecture("resnet18"), classes=8, head="mlp", features="projector").eval()
    mels = torch.randn(3, 1, 48, 87)
    first, _, last = model.head.children()
    with torch.no_grad():
        hidden = first(model.projector(model.encoder(mels))).relu()
        torch.testing.assert_close(model(mels), last(hidden))
    assert parameters(model.head) == 2048 * 512 + 512 + 512 * 8 + 8


def test_the_heads_have_the_sizes_of_chen_and_he() -> None:
    # Linear layers without bias, batch norms of 2 per channel but for the projector's last, which has none.
    assert (
        parameters(projector("simsiam", 512, 2048)) == 512 * 512 + 2 * 512 + 512 * 512 + 2 * 512 + 512 * 2048
    )
    assert parameters(predictor("simsiam", 2048)) == 2048 * 512 + 2 * 512 + (512 * 2048 + 2048)


def test_a_classifier_reads_the_features_before_the_projector() -> None:
    model = Classifier(Architecture("resnet18"), classes=8).eval()
    mels = torch.randn(3, 1, 48, 87)
    with torch.no_grad():
        features = model.encoder(mels)
        assert isinstance(model.head, nn.Linear)
        torch.testing.assert_close(model(mels), features @ model.head.weight.T + model.head.bias)
    assert features.shape == (3, 512)


def test_channels_last_changes_the_layout_and_not_the_result() -> None:
    ours = encoder(Architecture("resnet18"))
    ours.eval()
    mels = torch.randn(2, 1, 48, 87)
    with torch.no_grad():
        before = ours(mels)
        after = place(ours, torch.device("cpu"))(mels)
    torch.testing.assert_close(after, before)
    assert all(
        weight.is_contiguous(memory_format=torch.channels_last)
        for weight in ours.parameters()
        if weight.ndim == 4
    )


def test_an_unknown_architecture_is_refused_with_the_choices() -> None:
    with pytest.raises(ConfigError, match="backbone = 'vgg' is unknown: choose one of resnet18"):
        Architecture("vgg")
    with pytest.raises(ConfigError, match="stem = 'patches' is unknown: choose one of standard, keep-freq"):
        Architecture("resnet18", stem="patches")
    with pytest.raises(ConfigError, match="pooling = 'max' is unknown: choose one of mean, mean-max"):
        Architecture("resnet18", pooling="max")
