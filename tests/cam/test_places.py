"""Which positions of a layer are places of the image is proved by changing it, for every kind of token model.

The truth is the network's own construction: where its author put class tokens, registers, prompts and rows.
"""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor, nn

from camray.cam import explain, find_target_layer, find_target_layers, list_layers
from camray.cam.layers import UNREAD
from camray.errors import ModelError
from tests.cam.cam_zoo import images, relative


class Tokens(nn.Module):
    """Patches as tokens, with others before and behind, through blocks of attention; read out by the mean."""

    def __init__(
        self, patch: int = 8, before: int = 1, behind: int = 0, depth: int = 2, width: int = 24
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patch = nn.Conv2d(3, width, patch, patch)
        self.extra = nn.Parameter(torch.randn(1, before + behind, width))
        self.before, self.by_class = before, before > 0
        self.blocks = nn.ModuleList([Block(width) for _ in range(depth)])
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 5)

    def arrange(self, tokens: Tensor) -> Tensor:
        extra = self.extra.expand(len(tokens), -1, -1)
        return torch.cat([extra[:, : self.before], tokens, extra[:, self.before :]], 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.arrange(self.patch(x).flatten(2).transpose(1, 2))
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return self.head(x[:, 0] if self.by_class else x.mean(1))


class Attention(nn.Module):
    """As the widely copied one: its own norm, its softmax a module."""

    def __init__(self, width: int, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.norm, self.attend = heads, nn.LayerNorm(width), nn.Softmax(dim=-1)
        self.to_qkv, self.to_out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            t.unflatten(2, (self.heads, -1)).transpose(1, 2) for t in self.to_qkv(self.norm(x)).chunk(3, -1)
        )
        mixed = self.attend(q @ k.mT * q.shape[-1] ** -0.5) @ v
        return self.to_out(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention = Attention(width)
        self.mlp = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 48), nn.GELU(), nn.Linear(48, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x)
        return x + self.mlp(x)


def ready(model: nn.Module) -> nn.Module:
    return model.eval().requires_grad_(False)


def test_nothing_inside_an_attention_is_a_picture() -> None:
    """The softmax gives (heads, 50, 50) for an image of 112 pixels: the norm before the last one is right."""
    layer = find_target_layer(ready(Tokens(16)), (3, 112, 112))
    assert (layer.name, layer.layout, layer.prefix, layer.grid) == (
        "blocks.1.attention.norm",
        "tokens",
        1,
        (7, 7),
    )
    problems = {i.name: i.problem for i in list_layers(ready(Tokens(16)), (3, 112, 112))}
    assert "no places of the image" in problems["blocks.0.attention.attend"]
    with pytest.raises(ModelError, match="no places of the image"):
        find_target_layer(ready(Tokens(16)), (3, 112, 112), "blocks.0.attention.attend")


@pytest.mark.parametrize("channels", [256, 64, 512])
def test_channels_are_no_positions(channels: int) -> None:
    """(256, 49) looks like 256 tokens on 16 x 16: the map of 7 x 7 in front of it is right."""
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 16, 4, 4), nn.ReLU(), nn.Conv2d(16, channels, 2, 2), nn.ReLU())
    model = nn.Sequential(body, nn.Flatten(2), nn.AdaptiveAvgPool1d(1), nn.Flatten(1), nn.Linear(channels, 4))
    layer = find_target_layer(ready(model), (3, 56, 56))
    assert (layer.name, layer.layout) == ("0", "nchw")
    assert UNREAD not in layer.reason


class Gate(nn.Module):
    """CBAM's: where to look, one number a place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 7, padding=3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(torch.stack([x.mean(1), x.amax(1)], 1)).sigmoid()


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.ReLU(), nn.Conv2d(8, 6, 2, 2), nn.ReLU())
        self.gate, self.head = Gate(), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        return self.head((x * self.gate(x)).mean((2, 3)))


def test_a_gate_is_no_picture_of_features() -> None:
    """It runs last and reaches the score, and has one channel that others are multiplied by."""
    assert find_target_layer(ready(Gated()), (3, 64, 64)).name == "body.3"
    assert find_target_layer(ready(Gated()), (3, 64, 64), "gate").name == "gate"


def test_registers_of_transformers_own_model() -> None:
    """1 + 4 + 16 tokens could be 1 + 4 x 5: the token that moves with each patch is 5 + its number."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.Dinov2WithRegistersConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=64, patch_size=16,
        num_register_tokens=4, num_labels=5,
    )  # fmt: skip
    model = ready(transformers.Dinov2WithRegistersForImageClassification(config))
    layer = find_target_layer(model, (3, 64, 64))
    assert (layer.prefix, layer.grid) == (5, (4, 4))
    kept: list[Tensor] = []
    model.dinov2_with_registers.embeddings.register_forward_hook(lambda *a: kept.append(a[2]))
    x = images(64, 1)
    for patch in range(16):
        y, (row, column) = x.clone(), divmod(patch, 4)
        y[:, :, row * 16 : row * 16 + 16, column * 16 : column * 16 + 16] += 1
        model(x), model(y)
        moved = (kept[-1] - kept[-2]).abs().amax((0, 2)).nonzero()[:, 0].tolist()
        assert moved == [layer.prefix + patch]


@pytest.mark.parametrize(
    ("before", "behind", "size"), [(11, 0, (64, 64)), (0, 1, (64, 64)), (1, 10, (64, 96)), (0, 0, (40, 72))]
)
def test_prompts_and_tokens_behind_the_patches(before: int, behind: int, size: tuple[int, int]) -> None:
    model = ready(Tokens(before=before, behind=behind))
    layer = find_target_layer(model, (3, *size))
    assert (layer.prefix, layer.grid, layer.suffix) == (before, (size[0] // 8, size[1] // 8), behind)
    out = torch.arange(before + behind + layer.grid[0] * layer.grid[1])[None, :, None].float()
    assert layer.to_maps(out).flatten().tolist() == list(range(before, out.shape[1] - behind))


class Encoder(nn.Module):
    """torch's own encoder, batch first or (as it is by default) sequence first."""

    def __init__(self, batch_first: bool, norm_first: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.batch_first = batch_first
        self.patch, self.token = nn.Conv2d(3, 24, 8, 8), nn.Parameter(torch.randn(1, 1, 24))
        layer = nn.TransformerEncoderLayer(24, 4, 48, 0.0, batch_first=batch_first, norm_first=norm_first)
        self.encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        x = self.encoder(x) if self.batch_first else self.encoder(x.transpose(0, 1)).transpose(0, 1)
        return self.head(x[:, 0])


@pytest.mark.parametrize("norm_first", [True, False])
def test_a_sequence_first_encoder_is_explained_as_its_batch_first_twin(norm_first: bool) -> None:
    one, other = (ready(Encoder(batch_first, norm_first)) for batch_first in (False, True))
    x = images(64, 3)
    made = []
    for model in (one, other):
        layer = find_target_layer(model, (3, 64, 64))
        assert layer.name == ("encoder.layers.2.norm1" if norm_first else "encoder.layers.1")
        made.append(explain(model, x, layer, ["gradcam", "layercam", "ablationcam", "scorecam"]).maps)
    for key, found in made[0].items():
        assert relative(found, made[1][key]) < 1e-5, key


class Shuffled(Tokens):
    def arrange(self, tokens: Tensor) -> Tensor:
        order = torch.randperm(tokens.shape[1], generator=torch.Generator().manual_seed(5))
        return tokens[:, order]


def test_tokens_out_of_order_are_no_map() -> None:
    layer = find_target_layer(ready(Shuffled(before=0)), (3, 64, 64))
    assert layer.name == "patch"
    assert f"; blocks.0.attention and what is behind it {UNREAD}" in layer.reason
    for model in (Tokens(), Tokens(before=0)):
        assert UNREAD not in find_target_layer(ready(model), (3, 64, 64)).reason
    with pytest.raises(ModelError, match="64 tokens are no places of the image"):
        find_target_layer(ready(Shuffled(before=0)), (3, 64, 64), "blocks.0")


class Twice(Tokens):
    def arrange(self, tokens: Tensor) -> Tensor:
        return torch.cat([tokens, tokens], 1)


def test_where_two_readings_fit_both_are_told_and_one_can_be_said() -> None:
    model = ready(Twice(before=0, depth=1))
    with pytest.raises(ModelError) as caught:
        find_target_layer(model, (3, 64, 64), "blocks.0")
    assert "--grid 8x8 --prefix 0" in str(caught.value)
    assert "--grid 8x8 --prefix 64" in str(caught.value)
    said = find_target_layers(model, (3, 64, 64), "blocks.0", grid=(8, 8), prefix=64)[0]
    assert (said.prefix, said.grid, said.suffix) == (64, (8, 8), 0)


class Bare(nn.Module):
    """Nothing but patches behind other tokens, and a norm: the shape is all that arithmetic sees."""

    def __init__(self, before: int) -> None:
        super().__init__()
        self.patch, self.extra = nn.Conv2d(3, 6, 4, 4), nn.Parameter(torch.randn(1, before, 6))
        self.norm, self.head = nn.LayerNorm(6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        return self.head(self.norm(torch.cat([self.extra.expand(len(x), -1, -1), x], 1)).square().mean(1))


SQUARE = [(n, n, p) for n in range(2, 41) for p in range(21)]
WIDE = [(h, w, p) for h in range(2, 31) for w in range(2, 31) for p in (2, 5, 9)]
SOME = random.Random(0).sample(SQUARE, 12) + random.Random(1).sample(WIDE, 12)


def misread(cases: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    wrong = []
    for h, w, before in cases:
        torch.manual_seed(h * 1000 + w * 10 + before)
        layer = find_target_layer(ready(Bare(before)), (3, 4 * h, 4 * w), "norm")
        if (layer.prefix, layer.grid, layer.suffix) != (before, (h, w), 0):
            wrong.append((h, w, before))
    return wrong


def test_no_grid_and_no_prefix_is_misread() -> None:
    assert misread(SOME) == []


@pytest.mark.parametrize(("h", "w", "before"), [(10, 3, 9), (6, 5, 5), (3, 2, 2), (28, 9, 9), (3, 3, 3)])
def test_other_tokens_are_no_row_of_the_grid(h: int, w: int, before: int) -> None:
    """As many tokens in front as a row has: a grid of one row more fits nearly as well."""
    assert misread([(h, w, before)]) == []
    layer = find_target_layer(ready(Tokens(before=w)), (3, 96, 72), "blocks.1.attention.norm")
    assert (layer.prefix, layer.grid) == (w, (12, 9))


@pytest.mark.slow
@pytest.mark.parametrize("part", range(10))
def test_no_grid_and_no_prefix_at_all_is_misread(part: int) -> None:
    assert misread((SQUARE + WIDE)[part::10]) == []
