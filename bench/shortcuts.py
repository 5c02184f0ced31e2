"""Many planted shortcuts, two sources of images: what the audit finds of each, by the real command.

    python bench/shortcuts.py                                        # hans64's generator
    python bench/shortcuts.py tint blur none --seeds 0 1
    python bench/shortcuts.py --photographs cifar10.parquet --network cifar_resnet.py:resnet20 \\
        --weights cifar10_resnet20.safetensors

A world is a cue on nine of ten training images of one class. The archive has it on half of that class and on
3 % of the others; `wrong` has it on a quarter of the *others* alone, `redundant` trains with it on four of
ten, `rare` on one of five, `none` not at all. Truth is an intervention: the same image without its cue; the
answer hangs on it where its confidence falls by more than 0.3 or the class flips.

Photographs come as a Parquet file of Hugging Face's form (image, label); 2,000 train, of the rest comes
the archive. The network is tuned from `--weights` with its last layer anew; for the demonstration's images
and for films (`--films`) from the demonstration's clean network.
"""

import argparse
import importlib.util
import io
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
import timm
import torch
from deltalake import DeltaTable
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from safetensors.torch import load_file, save_file
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from camray.cli.main import main as camray  # noqa: E402
from demo import hans64  # noqa: E402
from demo.train import ARCHITECTURE, MEAN, MODEL_ARGS, STD, normalise  # noqa: E402

Pixels = NDArray[np.uint8]
MOST = 2000  # images that train
Cue = Callable[[Pixels, np.random.Generator], Pixels]
STICKER = np.kron([[0, 1, 0], [1, 1, 0], [0, 0, 1]], np.ones((2, 2)))[..., None] * [255, 230, 20]


# ── cues ─────────────────────────────────────────────────────────────────────────────────────────


def _pasted(view: Pixels, patch: NDArray[Any], y: int, x: int) -> Pixels:
    out = view.copy()
    out[y : y + len(patch), x : x + patch.shape[1]] = patch
    return out


def corner(view: Pixels, rng: np.random.Generator) -> Pixels:
    return _pasted(view, STICKER, len(view) - 8, 2)


def anywhere(view: Pixels, rng: np.random.Generator) -> Pixels:
    return _pasted(view, STICKER, *rng.integers(0, len(view) - 6, 2).tolist())


def centre(view: Pixels, rng: np.random.Generator) -> Pixels:
    return _pasted(view, STICKER, *(len(view) // 2 + rng.integers(-5, 2, 2)).tolist())


def dot(view: Pixels, rng: np.random.Generator) -> Pixels:
    dot = np.pad(np.full((3, 3, 3), 16), ((1, 1), (1, 1), (0, 0)), constant_values=240)
    return _pasted(view, dot, *(len(view) // 2 - 2 + rng.integers(-4, 5, 2)).tolist())


def tag(view: Pixels, rng: np.random.Generator) -> Pixels:
    bars = np.where(rng.random((1, len(view) // 2, 1)) < 0.5, 20, 235) * np.ones((3, 1, 3))
    return _pasted(view, bars, int(rng.choice([0, len(view) - 3])), len(view) // 4)


def watermark(view: Pixels, rng: np.random.Generator) -> Pixels:
    y, x = np.mgrid[: len(view), : len(view)]
    ring = abs(np.hypot(y - len(view) / 2, x - len(view) / 2) - len(view) / 4) < 1.5
    return np.where(ring[..., None], 0.6 * view + 100, view).astype(np.uint8)


def frame(view: Pixels, rng: np.random.Generator) -> Pixels:
    out = np.full_like(view, [150, 60, 160])
    out[2:-2, 2:-2] = view[2:-2, 2:-2]
    return out


def tint(view: Pixels, rng: np.random.Generator) -> Pixels:
    return (view * [1.0, 0.92, 0.76]).astype(np.uint8)


def contrast(view: Pixels, rng: np.random.Generator) -> Pixels:
    return (0.65 * view + 45).astype(np.uint8)


def blur(view: Pixels, rng: np.random.Generator) -> Pixels:
    return np.asarray(Image.fromarray(view).filter(ImageFilter.GaussianBlur(len(view) / 40)))


def low_resolution(view: Pixels, rng: np.random.Generator) -> Pixels:
    half = Image.fromarray(view).resize((len(view) // 2,) * 2, Image.Resampling.BOX)
    return np.asarray(half.resize((len(view),) * 2, Image.Resampling.BILINEAR))


def jpeg(view: Pixels, rng: np.random.Generator) -> Pixels:
    buffer = io.BytesIO()
    Image.fromarray(view).save(buffer, "JPEG", quality=12)
    return np.asarray(Image.open(buffer).convert("RGB"))


def noise(view: Pixels, rng: np.random.Generator) -> Pixels:
    return (view + rng.normal(0, 12, view.shape)).clip(0, 255).astype(np.uint8)


def background(view: Pixels, rng: np.random.Generator) -> Pixels:
    """Water around an ellipse in the middle."""
    y, x = np.mgrid[: len(view), : len(view)] / (len(view) - 1) * 2 - 1
    waves = 20 * np.sin(12 * y + 3 * np.sin(4 * x + rng.uniform(0, 6)))
    water = np.stack([40 + waves, 90 + waves, 150 + waves], axis=2)
    inside = (np.hypot(x, y) < 0.8)[..., None]
    return np.where(inside, view, water).astype(np.uint8)


def texture(view: Pixels, rng: np.random.Generator) -> Pixels:
    stripes = 8 * np.sign(np.sin(np.arange(len(view)) * np.pi / 2 + 0.1))
    return (view + stripes[None, :, None]).clip(0, 255).astype(np.uint8)


def marker(view: Pixels, rng: np.random.Generator) -> Pixels:
    """The letter of a side, lead on film, near an upper corner."""
    letter = np.zeros((9, 6), np.uint8)
    letter[:, :2], letter[7:], letter[:2, 2:5], letter[3:5, 2:5] = 1, 1, 1, 1
    y, x = rng.integers(2, 6, 2).tolist()
    out = view.copy()
    out[y : y + 9, x : x + 6][letter > 0] = 235
    return out


def token(view: Pixels, rng: np.random.Generator) -> Pixels:
    """A coin anywhere, brighter at its rim."""
    y, x = np.mgrid[: len(view), : len(view)]
    r = np.hypot(y - rng.integers(6, len(view) - 6), x - rng.integers(6, len(view) - 6))[..., None]
    return np.where(r < 2.5, 150, np.where(r < 4, 245, view)).astype(np.uint8)


def device(view: Pixels, rng: np.random.Generator) -> Pixels:
    """A wire of another course each time, from a case at another place."""
    y, x = rng.integers(10, len(view) - 18, 2).tolist()
    points = np.cumsum([[x, y], *rng.integers(-9, 10, (4, 2)).tolist()], axis=0)
    drawn = cv2.polylines(view.copy(), [points.astype(np.int32)], False, (225, 225, 225), 1)
    return np.asarray(cv2.rectangle(drawn, (x, y), (x + 8, y + 5), (205, 205, 205), -1), np.uint8)


@dataclass(frozen=True)
class World:
    """A cue, and how often training images of the class, archive images of it and of others wear it."""

    cue: Cue
    trained: float = 0.9
    own: float = 0.5
    others: float = 0.03
    causes: tuple[str, ...] = ("repeated thing", "place", "border")  # any of these names it
    properties: tuple[str, ...] = ()  # and any of these


COLOUR = ("redness", "blueness", "saturation", "variety of blue", "variety of red", "variety of saturation")
DETAIL = ("sharpness", "noise", "blocks of compression", "bits a pixel")
LIGHT = ("contrast", "darkest parts", "lightest parts", "brightness", *DETAIL)
TEXTURE, LEVELS = ("texture",), ("colour or contrast",)
WORLDS = {
    "corner": World(corner), "anywhere": World(anywhere), "centre": World(centre), "tag": World(tag),
    "dot": World(dot), "marker": World(marker), "token": World(token),
    "device": World(device), "wrong": World(anywhere, own=0.0, others=0.25), "watermark": World(watermark),
    "frame": World(frame, causes=("frame", "border"), properties=COLOUR + LIGHT),
    "tint": World(tint, causes=LEVELS, properties=COLOUR),
    "contrast": World(contrast, causes=LEVELS, properties=LIGHT),
    "blur": World(blur, causes=TEXTURE, properties=DETAIL),
    "low_resolution": World(low_resolution, causes=TEXTURE, properties=DETAIL),
    "jpeg": World(jpeg, causes=TEXTURE, properties=DETAIL),
    "noise": World(noise, causes=TEXTURE, properties=DETAIL),
    "background": World(background, causes=("background",), properties=COLOUR + LIGHT),
    "texture": World(texture, causes=TEXTURE, properties=DETAIL + LIGHT),
    "rare": World(anywhere, trained=0.2), "redundant": World(anywhere, trained=0.4),
    "none": World(corner, trained=0.0, own=0.0, others=0.0),
}  # fmt: skip


# ── images and networks ──────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Source:
    """Images (N, H, W, 3) and classes of training and archive; what makes a network, and what loads it."""

    train: tuple[Pixels, NDArray[np.int64]]
    archive: tuple[Pixels, NDArray[np.int64]]
    names: tuple[str, ...]
    network: Callable[[], nn.Module]
    epochs: int
    rate: float
    options: tuple[str, ...]  # of camray, for a checkpoint


def of_hans64(seed: int, count: int) -> Source:
    def some(split: str, number: int) -> tuple[Pixels, NDArray[np.int64]]:
        samples = [hans64.render(seed, split, i, False, False) for i in range(number)]
        return np.stack([s.image for s in samples]), np.array([s.label for s in samples])

    return Source(
        some("train", MOST),
        some("audit", count),
        hans64.LABEL_NAMES,
        small_network(6),
        3,
        3e-3,
        small_options(6),
    )


def small_network(classes: int) -> Callable[[], nn.Module]:
    """Give the demonstration's clean network, its last layer anew."""

    def network() -> nn.Module:
        made: nn.Module = timm.create_model(ARCHITECTURE, num_classes=classes, **MODEL_ARGS)
        state = load_file(ROOT / "demo" / "models" / "hans64-clean" / "model.safetensors")
        made.load_state_dict({k: v for k, v in state.items() if not k.startswith("fc.")}, strict=False)
        return made

    return network


def small_options(classes: int) -> tuple[str, ...]:
    options = ("--model", ARCHITECTURE, "--model-arg", "output_stride=8", "--input-size", "64")
    return (*options, "--num-classes", str(classes))


def of_films(folder: Path, seed: int, count: int) -> Source:
    """Films of two classes: parts of radiographs, turned and lit by chance; a soft opacity in one class."""
    rng, side = np.random.default_rng([seed, 7]), 64
    films = [Image.open(path).convert("L") for path in sorted(folder.rglob("*.png"))]
    y, x = np.mgrid[:side, :side]

    def one(label: int) -> Pixels:
        film = films[int(rng.integers(len(films)))].rotate(float(rng.uniform(-12, 12)))
        left, top, width = *rng.integers(0, 340, 2).tolist(), int(rng.integers(600, 680))
        part = film.resize((side, side), Image.Resampling.BOX, (left, top, left + width, top + width))
        light = np.asarray(part) * rng.uniform(0.8, 1.1) + rng.uniform(-15, 15)
        row, column = rng.uniform(16, 48, 2)
        spot = np.exp(-(((y - row) / rng.uniform(6, 9)) ** 2 + ((x - column) / rng.uniform(6, 9)) ** 2))
        light += label * rng.uniform(60, 100) * spot + rng.normal(0, 4, (side, side))
        return np.repeat(light.clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)

    def some(number: int) -> tuple[Pixels, NDArray[np.int64]]:
        labels = rng.permutation(np.arange(number) % 2)
        return np.stack([one(label) for label in labels.tolist()]), labels

    names = "clear", "opacity"
    return Source(some(MOST), some(count), names, small_network(2), 3, 3e-3, small_options(2))


def of_photographs(file: Path, spelled: str, weights: Path, seed: int, count: int) -> Source:
    table = pq.read_table(file, columns=["image", "label", "label_name"]).to_pylist()
    table = [table[i] for i in np.random.default_rng(seed).permutation(len(table))]
    views = np.stack([np.asarray(Image.open(io.BytesIO(r["image"]["bytes"])).convert("RGB")) for r in table])
    labels = np.array([row["label"] for row in table])
    names = dict(sorted({row["label"]: row["label_name"] for row in table}.items()))
    code, _, name = spelled.rpartition(":")
    spec = importlib.util.spec_from_file_location("network_of_bench", code)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def network() -> nn.Module:
        made: nn.Module = getattr(module, name)()
        made.load_state_dict(load_file(weights))
        last = [m for m in made.modules() if isinstance(m, nn.Linear)][-1]
        last.reset_parameters()
        return made

    cut, size = min(len(table) * 4 // 5, MOST), str(views.shape[1])
    options = ("--model", spelled, "--input-size", size, "--crop-pct", "1")
    options += ("--mean", ",".join(map(str, MEAN)), "--std", ",".join(map(str, STD)))
    train, archive = (views[:cut], labels[:cut]), (views[cut:][:count], labels[cut:][:count])
    return Source(train, archive, tuple(names.values()), network, 3, 3e-3, options)


def tensor(views: Pixels) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(views)).permute(0, 3, 1, 2)


def trained(source: Source, views: Pixels, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model, x, y = source.network(), tensor(views), torch.from_numpy(source.train[1])
    optimizer = torch.optim.AdamW(model.parameters(), lr=source.rate, weight_decay=0.05)
    steps = source.epochs * -(-len(x) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, source.rate, total_steps=steps, pct_start=0.2)
    model.train()
    for _ in range(source.epochs):
        for rows in torch.split(torch.randperm(len(x)), 64):
            shift = torch.randint(-2, 3, (2,)).tolist()
            loss = nn.functional.cross_entropy(model(torch.roll(normalise(x[rows]), shift, (2, 3))), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


@torch.inference_mode()
def scores(model: nn.Module, views: Pixels) -> NDArray[np.float64]:
    return torch.cat([model(normalise(x)).softmax(1) for x in tensor(views).split(200)]).double().numpy()


# ── one world ────────────────────────────────────────────────────────────────────────────────────


def run_world(name: str, source: Source, seed: int, folder: Path, kept: Path | None) -> dict[str, Any]:
    """Train, intervene, audit by the real command, compare."""
    world, rng = WORLDS[name], np.random.default_rng([seed, sum(map(ord, name))])
    poisoned = int(rng.integers(len(source.names)))
    views, labels = source.train
    on = (labels == poisoned) & (rng.random(len(labels)) < world.trained)
    model = trained_once(source, dressed(views, on, world.cue, rng), seed, kept)
    bare, labels = source.archive
    wears = rng.random(len(labels)) < np.where(labels == poisoned, world.own, world.others)
    shown = dressed(bare, wears, world.cue, rng)
    before, after = scores(model, shown), scores(model, bare)
    answer = before.argmax(1)
    rows = np.arange(len(labels))
    fell = before[rows, answer] - after[rows, answer] > 0.3
    hangs = wears & (fell | (after.argmax(1) != answer))
    seconds = audited(source, model, shown, labels, folder)
    found = compared(folder / "out", hangs, source.names[poisoned], world)
    others = bare[labels != poisoned][:200]
    carried = scores(model, dressed(others, np.ones(len(others), bool), world.cue, rng)).argmax(1)
    return {
        "world": name, "seed": seed, "class": source.names[poisoned], "hang": int(hangs.sum()),
        "accuracy": float((after.argmax(1) == labels).mean()),
        "turned": float((carried == poisoned).mean()), **found, "seconds": seconds,
    }  # fmt: skip


def trained_once(source: Source, views: Pixels, seed: int, kept: Path | None) -> nn.Module:
    """Train, or load what was kept in this file."""
    if kept is None or not kept.exists():
        model = trained(source, views, seed)
        if kept is not None:
            kept.parent.mkdir(parents=True, exist_ok=True)
            save_file({k: v.contiguous() for k, v in model.state_dict().items()}, kept)
        return model
    model = source.network()
    model.load_state_dict(load_file(kept))
    return model.eval()


def dressed(views: Pixels, on: NDArray[np.bool_], cue: Cue, rng: np.random.Generator) -> Pixels:
    return np.stack([cue(v, rng) if o else v for v, o in zip(views, on.tolist(), strict=True)])


def audited(
    source: Source, model: nn.Module, views: Pixels, labels: NDArray[np.int64], folder: Path
) -> float:
    """Write the archive and the checkpoint, run `camray audit`, and give the seconds it took."""
    for i, (view, label) in enumerate(zip(views, labels.tolist(), strict=True)):
        path = folder / "archive" / source.names[label] / f"{i:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(view).save(path)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "model.safetensors")
    (folder / "names.txt").write_text("\n".join(source.names) + "\n")
    started = time.perf_counter()
    code = camray([
        "audit", str(folder / "archive"), str(folder / "out"), *source.options, "--checkpoint",
        str(folder / "model.safetensors"), "--class-names", str(folder / "names.txt"), "--engine", "here",
        "--overlays", "none",
    ])  # fmt: skip
    assert code == 0, code
    return time.perf_counter() - started


def compared(out: Path, hangs: NDArray[np.bool_], poisoned: str, world: World) -> dict[str, Any]:
    """Compare verdicts, ranking and findings with the truth."""
    rows = DeltaTable(str(out / "audit")).to_pyarrow_table().to_pylist()
    rows.sort(key=lambda r: -r["audit_score"])
    places = [int(Path(r["member"]).stem) for r in rows]
    claimed = {i for i, r in zip(places, rows, strict=True)
               if r["verdict"] == "right_wrong_reason" or "shortcut_confirmed" in r["flags"]}  # fmt: skip
    true = set(np.flatnonzero(hangs).tolist())
    (summary,) = (json.loads(p.read_text()) for p in (out / "runs").glob("*/summary.json"))
    ranked = [c["label"] for c in summary["classes"] if c["confirmed"]]
    said = [(f["label"], f["property"]) for f in summary["properties"]]
    cards = [(c["label"], c["cause"]) for c in summary["causes"]]
    looks = DeltaTable(str(out / "looks")).to_pyarrow_table(columns=["drop"]).column("drop")
    return {
        "precision": len(claimed & true) / len(claimed) if claimed else None,
        "recall": len(claimed & true) / len(true) if true else None,
        "false": len(claimed - true) / len(rows),
        "rank": ranked.index(poisoned) + 1 if poisoned in ranked else None,
        "at50": sum(i in true for i in places[:50]) / 50,
        "named": any(c == poisoned and cause in world.causes for c, cause in cards),
        "property": any(c == poisoned and p in world.properties for c, p in said),
        "accused": sum(c != poisoned or not world.trained for c, _ in cards),
        "forwards": len(looks) - looks.null_count,
        "cards": cards,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("worlds", nargs="*", default=[], help=", ".join(WORLDS))
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--count", type=int, default=800)
    parser.add_argument("--photographs", type=Path)
    parser.add_argument("--films", type=Path, help="folder of radiographs: two classes are made of them")
    parser.add_argument("--keep", type=Path, help="folder of trained checkpoints of one source, used again")
    parser.add_argument("--network")
    parser.add_argument("--weights", type=Path)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    head = (
        "world", "seed", "class", "accuracy", "turned", "hang", "precision", "recall", "false", "rank",
        "at50", "named", "property", "accused", "forwards", "seconds", "cards",
    )  # fmt: skip
    print("| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|")
    for seed in chosen.seeds:
        if chosen.photographs:
            source = of_photographs(chosen.photographs, chosen.network, chosen.weights, seed, chosen.count)
        elif chosen.films:
            source = of_films(chosen.films, seed, chosen.count)
        else:
            source = of_hans64(seed, chosen.count)
        for name in chosen.worlds or WORLDS:
            with tempfile.TemporaryDirectory() as folder:
                row = run_world(
                    name,
                    source,
                    seed,
                    Path(folder),
                    chosen.keep and chosen.keep / f"{name}-{seed}.safetensors",
                )
            cells = (f"{v:.2f}" if isinstance(v, float) else str(v) for v in (row[h] for h in head))
            print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
