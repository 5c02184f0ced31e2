"""Classes for a network that gives embeddings: an affine head made of prompts, or read from a file.

    --prompts classes.txt ──text side, once, by the driver──┐
    --head weights.safetensors ─────────────────────────────┼──> weight (C, D), bias (C) ──> Headed(network)
    --head FOLDER of labelled images ──the network, once────┤
    --target similarity:IMAGE, or a folder of images ───────┘    one row: the value is the cosine itself

A contrastive model (CLIP, SigLIP) compares normalised embeddings and multiplies by a temperature that it
learnt; a thousand prompts are then a thousand rows of one matrix, and cost one forward of the tower.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import normalize

from camray.archive.names import file_kind
from camray.errors import ImageError, ModelError, printable
from camray.models import hugging_face, open_clip
from camray.models.hugging_face import Contrast, TextSide

Embedding = Literal["output", "image_embeds", "pooler_output", "class_token", "class_and_patches"]
_MANY_PROMPTS = 100_000


@dataclass(frozen=True, slots=True)
class Head:
    """An affine head: weight (C, D), bias (C). `names` of the classes, where prompts gave them."""

    weight: Tensor
    bias: Tensor | None = None
    names: tuple[str, ...] = ()
    activation: str = "auto"
    notes: tuple[str, ...] = ()


class Headed(nn.Module):
    """A network whose embedding an affine head turns into logits (B, C)."""

    def __init__(
        self, tower: nn.Module, classes: int, width: int, bias: bool, embedding: Embedding,
        prefix: int = 1, normalized: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.tower, self.embedding, self.prefix, self.normalized = tower, embedding, prefix, normalized
        self.head = nn.Linear(width, classes, bias)
        self.num_prefix_tokens = int(getattr(tower, "num_prefix_tokens", 0) or 0)

    def forward(self, images: Tensor) -> Tensor:
        """Give logits (B, C)."""
        found = read_embedding(self.tower(images), self.embedding, self.prefix)
        logits: Tensor = self.head(normalize(found, dim=-1) if self.normalized else found)
        return logits


def read_embedding(output: Any, embedding: Embedding, prefix: int = 1) -> Tensor:
    """Find the embedding (B, D) in what a network returns."""
    if embedding == "class_token":
        found = output.last_hidden_state[:, 0]
    elif embedding == "class_and_patches":
        tokens = output.last_hidden_state
        found = torch.cat([tokens[:, 0], tokens[:, prefix:].mean(1)], 1)
    elif embedding == "output":
        found = output if isinstance(output, Tensor) else next(iter(output))
    else:
        found = getattr(output, embedding)
    flat: Tensor = found.flatten(1)
    return flat


def from_prompts(file: str, folder: Path | None, contrast: Contrast | None) -> Head:
    """Embed the prompts of a file with the text side of a contrastive model.

    Raises:
        ModelError: no text side, no such file, fewer than two classes.
    """
    if contrast is None or folder is None:
        fix = "give a folder of CLIPModel, SiglipModel or open_clip, or --head FILE with their embeddings"
        raise ModelError("--prompts", "this model has no text side", fix)
    prompts = read_prompts(file)
    texts = [text for each in prompts.values() for text in each]
    side = _text_side(folder, contrast, texts)
    counts = [len(each) for each in prompts.values()]
    means = torch.stack([normalize(part, dim=-1).mean(0) for part in side.embeddings.split(counts)])
    weight = normalize(means, dim=-1) * side.scale
    bias = None if side.bias is None else side.bias.expand(len(weight)).clone()
    averaged = f", averaged from {len(texts):,} prompts" if len(texts) > len(weight) else ""
    notes = [
        f"{len(weight):,} classes of {Path(file).name}{averaged}, temperature {side.scale:.4g} as trained"
    ]
    if side.cut:
        notes.append(
            f"WARNING: {side.cut:,} prompts are longer than the text side reads: their ends are lost"
        )
    return Head(weight, bias, tuple(prompts), contrast.activation, tuple(notes))


def _text_side(folder: Path, contrast: Contrast, texts: Sequence[str]) -> TextSide:
    if contrast.tower == open_clip.KIND:
        return open_clip.embed_texts(folder, texts)
    return hugging_face.embed_texts(folder, contrast, texts)


def read_prompts(file: str) -> dict[str, list[str]]:
    """Read classes and their prompts: `name: prompt`, a bare name, or a template with {} for all bare names.

    A name that stands in several lines has several prompts.

    Raises:
        ModelError: no such file, fewer than two classes.
    """
    try:
        lines = [line.strip() for line in Path(file).expanduser().read_text("utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise ModelError(
            "--prompts", printable(f"{file}: {why}"), "give a text file, one prompt a line"
        ) from None
    pairs = [line.partition(": ") for line in lines if line]
    templates = [line for line in lines if "{}" in line and ": " not in line]
    prompts: dict[str, list[str]] = {}
    for name, colon, text in pairs:
        if colon:
            prompts.setdefault(name.strip(), []).append(text.strip().replace("{}", name.strip()))
        elif name not in templates:
            own = prompts.setdefault(name, [])
            own += [
                t for t in (template.replace("{}", name) for template in templates or ["{}"]) if t not in own
            ]
    if not 2 <= len(prompts) <= _MANY_PROMPTS:
        raise ModelError("--prompts", f"{file} names {len(prompts)} classes", "give at least two, one a line")
    return prompts


def from_file(file: str, contrast: Contrast | None, folder: Path | None) -> Head:
    """Read a head from safetensors: one matrix (classes x width), and maybe a bias (classes).

    Behind a contrastive model, rows without a bias are embeddings of classes, as prompts would give them: the
    temperature (and SigLIP's bias) as trained belongs to them.

    Raises:
        ModelError: not such a file.
    """
    path = Path(file).expanduser()
    try:
        tensors = [t.float() for t in load_file(path).values()]
    except (SafetensorError, OSError, ValueError) as error:
        said = printable(f"{file}: {error}", 160)
        raise ModelError("--head", said, "give safetensors with weight (classes x width)") from None
    matrices, rows = [t for t in tensors if t.ndim == 2], [t for t in tensors if t.ndim == 1]
    fits = len(matrices) == 1 and len(matrices[0]) > 1 and len(rows) <= 1 and len(tensors) == 1 + len(rows)
    if not fits or (rows and len(rows[0]) != len(matrices[0])):
        shapes = ", ".join(" x ".join(map(str, t.shape)) for t in tensors[:4])
        raise ModelError(
            "--head", f"{file} holds {shapes}", "give weight (classes x width), maybe bias (classes)"
        )
    weight, bias = matrices[0], rows[0] if rows else None
    if bias is not None or contrast is None or folder is None:
        return Head(weight, bias, notes=(f"head of {len(weight):,} classes from {path.name}",))
    side = _text_side(folder, contrast, [])
    note = f"head of {len(weight):,} classes from {path.name}, temperature {side.scale:.4g} as trained"
    own = None if side.bias is None else side.bias.expand(len(weight)).clone()
    return Head(weight * side.scale, own, (), contrast.activation, (note,))


def from_images(path: Path, option: str, embed: Callable[[bytes], Tensor], classes: bool = False) -> Head:
    """Make a row of each class folder, or one of an image or of all images of a folder: the mean direction.

    `embed` gives the embedding (D,) of an encoded image. Every row has length 1.

    Raises:
        ModelError: nothing there, fewer than two classes, an image that cannot be read.
    """
    folders = {own.name: own for own in sorted(path.iterdir()) if own.is_dir()} if classes else {"": path}
    if classes and len(folders) < 2:
        said = f"{printable(str(path))} holds {len(folders)} folders of images"
        raise ModelError(option, said, "give a folder with a folder of images for each class")
    rows, count = [], 0
    for own in folders.values():
        files = sorted(f for f in own.iterdir() if f.is_file()) if own.is_dir() else [own]
        files = [f for f in files if file_kind(f.name, arrays=True) == "image"]
        if not files:
            raise ModelError(option, f"{printable(str(own))} holds no image", "give images")
        found = []
        for file in files:
            try:
                found.append(normalize(embed(file.read_bytes()), dim=0))
            except (ImageError, OSError) as error:
                why = error.strerror if isinstance(error, OSError) else error
                raise ModelError(
                    option, printable(f"{file}: {why}"), "give images that can be read"
                ) from None
        rows.append(normalize(torch.stack(found).mean(0), dim=0))
        count += len(found)
    note = f"{path.name}: the mean direction of {count} image{'s' * (count > 1)}"
    each = f" of {len(rows)} classes" if classes else ""
    return Head(torch.stack(rows), None, tuple(folders) if classes else (), "none", (note + each,))


def embeddings_of(output: Any, contrast: Contrast | None, config: Mapping[str, Any]) -> list[Embedding]:
    """Name the embeddings that a network's output holds, the customary one first."""
    if contrast is not None:
        return [contrast.embedding]
    if getattr(output, "last_hidden_state", None) is None:
        return ["output"]
    return ["class_token", "class_and_patches"] if config.get("has_class_token") else ["pooler_output"]


def place(head: Head, output: Any, contrast: Contrast | None, config: Mapping[str, Any]) -> dict[str, Any]:
    """Say where the head belongs, by the network's output for one image: arguments of `Headed`, plain data.

    Raises:
        ModelError: no embedding of the head's width.
    """
    classes, width = head.weight.shape
    prefix = 1 + int(config.get("num_register_tokens") or 0)
    names = embeddings_of(output, contrast, config)
    found = {name: read_embedding(output, name, prefix).shape[1] for name in names}
    chosen = next((name for name, size in found.items() if size == width), None)
    if chosen is None:
        said = f"its rows have {width} numbers, the embedding has {' or '.join(map(str, found.values()))}"
        raise ModelError("--head", said, "give the head that was trained on this network")
    return {
        "classes": classes, "width": width, "bias": head.bias is not None, "embedding": chosen,
        "prefix": prefix, "normalized": contrast is not None or head.activation == "none",
    }  # fmt: skip
