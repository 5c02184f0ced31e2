"""Outputs of every shape read as logits; preprocessing as the model and the user say; pixels normalised."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from camray.config import InputSpec, PreprocessConfig
from camray.errors import ModelError, UsageError
from camray.models.outputs import as_logits, class_scores, read_output, score_entropy
from camray.models.preprocessing import (
    USUAL,
    guessed,
    input_channels,
    input_spec,
    to_input,
    torchvision_defaults,
)
from camray.options import load

SPEC = InputSpec(8, 8, (8, 8), "center", "bilinear", (0.5,) * 3, (0.5,) * 3)
Head = Callable[[Tensor], Any]


class Net(nn.Module):
    """Four means of a convolution, given out in some form."""

    def __init__(self, give: Head, outputs: int = 4) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.give = nn.Conv2d(3, outputs, 3), give

    def logits(self, x: Tensor) -> Tensor:
        return 3 * self.conv(x).mean((2, 3))

    def forward(self, x: Tensor) -> Any:
        return self.give(self.logits(x))


FORMS: list[tuple[Head, int, str, str]] = [
    (lambda z: z, 4, "logits", "softmax"),
    (lambda z: z, 1, "logits", "sigmoid"),
    (lambda z: z[:, 0], 1, "logits", "sigmoid"),
    (lambda z: z[:, :, None, None], 4, "logits", "softmax"),
    (lambda z: z.sigmoid()[:, :, None, None], 1, "sigmoid", "sigmoid"),
    (lambda z: z.sigmoid().squeeze(), 1, "sigmoid", "sigmoid"),
    (nn.Sigmoid(), 4, "sigmoid", "sigmoid"),
    (lambda z: z.softmax(1), 4, "softmax", "softmax"),
    (lambda z: z.log_softmax(1), 4, "log_softmax", "softmax"),
    (lambda z: (z, "aux"), 4, "logits", "softmax"),
    (lambda z: {"aux": 1, "logits": z}, 4, "logits", "softmax"),
]


@pytest.mark.parametrize(("give", "count", "form", "activation"), FORMS)
def test_every_form_gives_the_same_scores(give: Head, count: int, form: str, activation: str) -> None:
    net = Net(give, count).eval()
    reading = read_output(net, SPEC)
    assert (reading.form, reading.count, reading.activation) == (form, count, activation)
    assert reading.classes == max(2, count)
    as_logits(net, **reading.to_dict())
    for batch in (1, 2, 5):
        x = torch.randn(batch, 3, 8, 8)
        z = net(x)
        assert z.shape == (batch, count)
        found = class_scores(z, activation)
        own = net.logits(x)
        wanted = own.softmax(1) if activation == "softmax" else own.sigmoid()
        wanted = torch.cat([1 - wanted, wanted], 1) if count == 1 else wanted
        assert torch.allclose(found, wanted, atol=1e-6)


def test_the_gradient_of_an_undone_sigmoid_is_that_of_the_logit() -> None:
    net = as_logits(Net(lambda z: z.sigmoid(), 1).eval(), "sigmoid", 1)
    x = torch.randn(3, 3, 8, 8, requires_grad=True)
    (found,) = torch.autograd.grad(net(x).sum(), x)
    (wanted,) = torch.autograd.grad(net.logits(x).sum(), x)  # type: ignore[operator]
    assert torch.allclose(found, wanted, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize(
    ("give", "said"),
    [
        (lambda z: z[:, :, None, None].expand(-1, -1, 5, 5), "its output is (images, 4, 5, 5)"),
        (lambda z: z.sum(), "its output is one number"),
        (lambda z: "a cat", "its output is str"),
        (lambda z: {}, "its output is NoneType"),
        (lambda z: z.reshape(5, 3), "fails on an image of 3 x 8 x 8"),
    ],
)
def test_no_classifier(give: Head, said: str) -> None:
    with pytest.raises(ModelError) as caught:
        read_output(Net(give), SPEC)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("end", [lambda p: p.softmax(1), lambda p: p.log_softmax(1)])
def test_a_softmax_of_a_softmax_is_told(end: Head) -> None:
    """The one before it has shares for logits: their gradient fades, and the scores are flat."""
    said = " ".join(read_output(Net(lambda z: end(z.softmax(1))), SPEC).told)
    assert "is a softmax already" in said
    assert "already" not in " ".join(read_output(Net(end), SPEC).told)


def test_a_network_that_takes_channels_last_is_told_so() -> None:
    net = Net(lambda z: z)
    forward = net.forward
    net.forward = lambda x: forward(x.permute(0, 3, 1, 2))  # type: ignore[method-assign]
    with pytest.raises(ModelError, match=r"it takes the channels last: .* permutes \(0, 2, 3, 1\)"):
        read_output(net, SPEC)


def test_activations_that_contradict_the_network() -> None:
    assert read_output(Net(lambda z: z), SPEC, "sigmoid").activation == "sigmoid"
    for give, count, asked in (
        (lambda z: z.softmax(1), 4, "sigmoid"), (lambda z: z.sigmoid(), 4, "softmax"),
        (lambda z: z, 1, "softmax"),
    ):  # fmt: skip
        with pytest.raises(ModelError, match="--activation"):
            read_output(Net(give, count), SPEC, asked)


def test_entropy_is_zero_when_sure_and_one_when_not() -> None:
    even = torch.full((1, 4), 0.25)
    assert float(score_entropy(even, "softmax")) == pytest.approx(1)
    assert float(score_entropy(torch.tensor([[1.0, 0, 0, 0]]), "softmax")) == pytest.approx(0)
    assert float(score_entropy(torch.full((1, 4), 0.5), "sigmoid")) == pytest.approx(1)
    assert float(score_entropy(torch.tensor([[1.0, 1, 0, 0]]), "sigmoid")) == pytest.approx(0)
    h = -(0.2 * math.log(0.2) + 0.8 * math.log(0.8)) / math.log(2)
    assert float(score_entropy(torch.tensor([[0.2, 0.8]]), "sigmoid")) == pytest.approx(h)
    assert float(score_entropy(torch.tensor([[0.2, 0.8]]), "softmax")) == pytest.approx(h)


# ── preprocessing ────────────────────────────────────────────────────────────────────────────────


def test_what_is_given_replaces_what_the_model_says() -> None:
    spec = input_spec(USUAL)
    assert (spec.height, spec.width, spec.resize, spec.interpolation) == (224, 224, (256, 256), "bilinear")
    given = PreprocessConfig(
        input_size=(256,),
        resize=(256,),
        mean=(0.5,),
        std=(0.25,),
        crop_mode="squash",
        interpolation="nearest",
    )
    spec = input_spec(USUAL, 3, given)
    assert (spec.height, spec.width, spec.resize) == (256, 256, (256, 256))
    assert (spec.mean, spec.std) == ((0.5,) * 3, (0.25,) * 3)
    assert (spec.crop_mode, spec.interpolation) == ("squash", "nearest")


def test_sizes_keep_the_share_of_the_crop() -> None:
    assert input_spec(USUAL, 3, PreprocessConfig(input_size=(448,))).resize == (512, 512)
    wide = input_spec(USUAL, 3, PreprocessConfig(input_size=(224, 448), crop_pct=1.0))
    assert (wide.height, wide.width, wide.resize) == (224, 448, (224, 448))


def test_torchvisions_own_recipes() -> None:
    """Of its newest weights, or of those whose file is given: as its page of weights has them."""
    files = {
        None: 232, "mine.pth": 256, "hub/resnet50-0676ba61.pth": 256, "hub/resnet50-11ad3fa6.pth": 232,
    }  # fmt: skip
    assert {f: input_spec(torchvision_defaults("resnet50", f)).resize[0] for f in files} == files
    assert input_spec(torchvision_defaults("inception_v3", None)).height == 299
    swag = input_spec(torchvision_defaults("regnet_y_16gf", "regnet_y_16gf_swag-43afe44d.pth"))
    assert (swag.height, swag.resize, swag.interpolation) == (384, (384, 384), "bicubic")


def test_grey_models_see_luminance() -> None:
    assert input_channels(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 3)), 8, 8) == 1
    spec = input_spec(USUAL, 1)
    assert spec.mean == (pytest.approx((0.485 + 0.456 + 0.406) / 3),)
    views = torch.tensor([[[[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]]]], dtype=torch.uint8)
    x = to_input(views, torch.tensor([0.5]), torch.tensor([0.5]))
    assert x.shape == (1, 1, 1, 4)
    assert torch.allclose((x * 0.5 + 0.5).flatten(), torch.tensor([0.299, 0.587, 0.114, 1.0]))


class Gated(nn.Module):
    """An attention over two maps, or a filter of grey made inside, is built before the stem."""

    def __init__(self, stem: int, first: int) -> None:
        super().__init__()
        self.gate, self.stem = nn.Conv2d(first, 1, 3, padding=1), nn.Conv2d(stem, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        if self.gate.in_channels == 1:
            x = x * self.gate(x.mean(1, keepdim=True)).sigmoid()
        y = self.stem(x)
        if self.gate.in_channels == 2:
            y = y * self.gate(torch.stack([y.mean(1), y.amax(1)], 1)).sigmoid()
        return y.mean((2, 3))


@pytest.mark.parametrize(("stem", "first"), [(3, 2), (3, 1), (1, 2), (4, 2), (4, 1), (2, 2)])
def test_channels_are_those_of_what_receives_the_image(stem: int, first: int) -> None:
    assert input_channels(Gated(stem, first).eval(), 8, 8) == stem


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "size 224, resize 256, mean, std"),
        ({"input_size": (256,)}, "crop of 224/256, mean, std"),
        ({"mean": (0.5,)}, "size 224, resize 256, std"),
        ({"input_size": (64,), "resize": (64,), "std": (0.5,)}, "mean"),
        ({"input_size": (64,), "crop_pct": 1.0, "mean": (0.5,), "std": (0.5,)}, ""),
    ],
)
def test_what_is_still_guessed_is_named(given: dict[str, Any], said: str) -> None:
    wanted = (f"preprocessing of ImageNet ({said}): own code names none",) if said else ()
    assert guessed(PreprocessConfig(**given)) == wanted
    named = ", ".join(part for part in ("mean", "std") if part in said)
    of_a_folder = (f"preprocessing of ImageNet ({named}): there is no preprocessor_config.json",)
    assert guessed(PreprocessConfig(**given), is_sized=True) == of_a_folder * bool(named)


class Normalised(nn.Module):
    """Subtracts a mean of its own first, so that images of other channels never reach a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(1, channels, 1, 1))
        self.fixed, self.stem = nn.Conv2d(9, 1, 1), nn.Conv2d(channels, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.stem(x - self.mean).mean((2, 3))


@pytest.mark.parametrize("channels", [2, 6, 13])
def test_channels_are_tried_where_the_image_reaches_nothing(channels: int) -> None:
    assert input_channels(Normalised(channels).eval(), 8, 8) == channels


def test_channels_that_images_do_not_have() -> None:
    with pytest.raises(ModelError, match=r"it takes 4 channels; pictures have 3, .*Fix: --bands 1,2,3"):
        input_spec(USUAL, 4)
    with pytest.raises(ModelError, match=r"it takes 2 channels; .*Fix: --bands 1:"):
        input_spec(USUAL, 2)
    with pytest.raises(ModelError, match=r"--mean: 3 numbers for 4 channels"):
        input_spec(USUAL, 4, bands=(1,))
    with pytest.raises(ModelError, match=r"--mean: 2 numbers for 3 channels"):
        input_spec(USUAL, 3, PreprocessConfig(mean=(0.1, 0.2)))


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("preprocess.input_size", 0, "--input-size: 0 is out of range"),
        ("preprocess.input_size", [1, 2, 3], "give one, or HEIGHTxWIDTH"),
        ("preprocess.input_size", "256", "preprocess.input_size"),
        ("preprocess.resize", True, "preprocess.resize"),
        ("preprocess.crop_pct", 1.5, "--crop-pct"),
        ("preprocess.std", [0.5, 0.0, 0.5], "--std: 0.0 is out of range"),
        ("preprocess.mean", [float("nan")], "--mean"),
        ("preprocess.crop_mode", "fit", "one of center, squash, border"),
        ("model.activation", "relu", "one of auto, softmax, sigmoid, none"),
        ("model.args", 5, "model.args"),
    ],
)
def test_settings_out_of_range(name: str, value: object, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        load(None, {name: value})
    assert said in str(caught.value)


def test_toml_and_options_say_the_same(tmp_path: Any) -> None:
    from camray.cli.jobs import typed_config
    from camray.cli.main import build_parser

    (tmp_path / "c.toml").write_text(
        'out = "o"\n[archive]\npath = "a"\n[model]\nname = "m.py:Net"\nargs = {width = 8, deep = false}\n'
        "[preprocess]\ninput_size = 256\nresize = [256, 320]\nmean = [0.5, 0.5, 0.5]\nstd = 0.5\n"
    )
    by_file = load(str(tmp_path / "c.toml"), {})
    line = (
        "explain a o --model m.py:Net --model-arg width=8 --model-arg deep=False --input-size 256 "
        "--resize 256x320 --mean 0.5,0.5,0.5 --std 0.5"
    )
    assert typed_config(build_parser().parse_args(line.split())) == by_file
    more = load(str(tmp_path / "c.toml"), {"model.args": {"width": 4, "name": "x"}})
    assert more.model.args == {"width": 4, "deep": False, "name": "x"}


def test_colours_are_normalised_by_the_plain_formula_and_stay_innermost() -> None:
    views = torch.randint(0, 256, (2, 5, 7, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = to_input(views, mean, std)
    plain = (views.permute(0, 3, 1, 2).float() / 255 - mean[:, None, None]) / std[:, None, None]
    assert torch.equal(x, plain)
    assert x.is_contiguous(memory_format=torch.channels_last)
