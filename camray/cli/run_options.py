"""The options of `camray explain`, `audit` and `plan`; which of all commands' options are common."""

from __future__ import annotations

import argparse

from camray.cli.arguments import Pairs, numbers, sizes
from camray.config import OVERLAY_POLICIES

# What --help shows of the commands with many options; --help-all shows the rest.
_MODEL = {"config", "model", "checkpoint", "class-names", "download"}
_RUN = _MODEL | {"method", "target", "layer", "limit", "sample", "overlays", "device", "actors", "max-failed"}
COMMON = {
    "explain": _RUN,
    "audit": _RUN - {"limit", "sample", "layer"} | {"reviewed", "fail-on"},
    "plan": _RUN - {"overlays", "max-failed"} | {"pilot"},
    "compare": _MODEL | {"methods", "target", "layer", "sample", "dry-run", "budget", "device", "actors"},
    "layers": _MODEL - {"config", "model"}
    | {"model-arg", "num-classes", "layer", "all", "maps", "image", "save"},
}
_MODEL_HELP = (
    "timm name or folder, torchvision:NAME, path/to/file.py:Class, package.module:factory, hf-hub:OWNER/NAME"
)


def add_model_options(parser: argparse.ArgumentParser, positional: bool = False) -> None:
    """Add the model and its preprocessing; `positional` where the model is what the command is about."""
    group = parser.add_argument_group("model")
    if positional:
        group.add_argument("model", metavar="MODEL", help=_MODEL_HELP)
    else:
        group.add_argument("--model", metavar="NAME", help=_MODEL_HELP)
    group.add_argument(
        "--model-arg", action=Pairs, metavar="NAME=VALUE", help="argument of the model (repeatable)"
    )
    group.add_argument("--checkpoint", metavar="FILE", help=".safetensors, or .pth with a state_dict")
    group.add_argument("--trust-pickle", action="store_true", help="run a pickled checkpoint as a program")
    group.add_argument("--partial", action="store_true", help="go on with the weights that fit")
    group.add_argument("--num-classes", type=int, metavar="N", help="size of the head; default: as weights")
    group.add_argument("--class-names", metavar="FILE", help="class names: txt, csv, json, or imagenet")
    group.add_argument(
        "--activation", choices=("auto", "softmax", "sigmoid"), help="how outputs become scores (auto)"
    )
    group.add_argument("--download", action="store_true", help="fetch pretrained weights from the hub")
    how = parser.add_argument_group("preprocessing (default: as the model says)")
    how.add_argument("--input-size", type=sizes, metavar="N", help="side of the input, or HxW")
    how.add_argument("--resize", type=sizes, metavar="N", help="shorter side before the crop, or HxW")
    how.add_argument("--crop-pct", type=float, metavar="F", help="instead: input as a share of the resize")
    how.add_argument("--crop-mode", choices=("center", "squash", "border"), help="how the aspect is handled")
    how.add_argument("--interpolation", choices=("bicubic", "bilinear", "nearest", "lanczos"))
    how.add_argument(
        "--fast-decode", action="store_true", help="large JPEGs at 1/2, 1/4 or 1/8 of their size"
    )
    how.add_argument("--mean", type=numbers, metavar="M", help="of channels in 0..1: one number, or R,G,B")
    how.add_argument("--std", type=numbers, metavar="S", help="of channels in 0..1: one number, or R,G,B")


def add_places(parser: argparse.ArgumentParser) -> None:
    """Add ARCHIVE, OUT and --config."""
    parser.add_argument(
        "archive",
        metavar="ARCHIVE",
        nargs="?",
        help="folder, tar, zip, Parquet or list of paths; path or URI",
    )
    parser.add_argument("out", metavar="OUT", nargs="?", help="folder for records, overlays and runs")
    parser.add_argument("--config", metavar="TOML", help="settings; options on the command line win")


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Add everything that decides what is explained and how."""
    add_places(parser)
    add_model_options(parser)
    method = parser.add_argument_group("method")
    method.add_argument("--method", metavar="NAME", help="class activation map method (gradcam)")
    method.add_argument(
        "--target", metavar="T", help="predicted (default), label, class index, top:5, above:0.5 ..."
    )
    method.add_argument("--layer", metavar="NAME", help="target layer; default: chosen for the model")
    method.add_argument("--top-k", type=int, metavar="K", help="predictions kept per image (5)")
    which = parser.add_argument_group("which images")
    which.add_argument("--include", action="append", metavar="GLOB", help="only these paths (repeatable)")
    which.add_argument("--exclude", action="append", metavar="GLOB", help="not these paths (repeatable)")
    which.add_argument("--limit", type=int, metavar="N", help="only the first N images")
    which.add_argument("--sample", type=int, metavar="N", help="only N images, drawn with --seed")
    which.add_argument("--seed", type=int, metavar="S", help="seed of --sample (0)")
    which.add_argument("--image-column", metavar="NAME", help="Parquet: column of images; a list: of paths")
    which.add_argument("--label-column", metavar="NAME", help="Parquet and lists: column of labels")
    which.add_argument("--bbox", choices=("xywh", "xyxy"), help="what four numbers called bbox are (xywh)")
    which.add_argument("--captions", action="store_true", help=".txt files are captions, never labels")
    which.add_argument("--max-pixels", type=int, metavar="N", help="refuse larger images (100 million)")
    which.add_argument("--allow-empty", action="store_true", help="an archive without images is fine")
    pictures = parser.add_argument_group("overlays")
    policies = ", ".join(OVERLAY_POLICIES)
    pictures.add_argument(
        "--overlays", choices=OVERLAY_POLICIES, metavar="WHICH", help=f"{policies} (sample)"
    )
    pictures.add_argument("--overlay-sample", type=int, metavar="N", help="N per chunk of 256 images (16)")
    pictures.add_argument(
        "--overlay-on", choices=("input", "original"), help="draw on the model's view or ..."
    )
    pictures.add_argument(
        "--overlay-alpha", type=float, metavar="A", help="strength of the colours, 0..1 (0.5)"
    )
    pictures.add_argument("--overlay-gamma", type=float, metavar="G", help="colours grow as heat ** G (0.5)")
    pictures.add_argument("--overlay-picture", choices=("blend", "triple"), help="triple: image, map, blend")
    pictures.add_argument("--colormap", metavar="NAME", help="turbo (default), jet, viridis, inferno, ...")
    pictures.add_argument("--caption", action="store_true", help="write label and score under the picture")
    audit = parser.add_argument_group("audit")
    audit.add_argument("--confirm", type=float, metavar="F", help="share that may get a second look (0.15)")
    audit.add_argument("--reviewed", action="append", metavar="FILE", help="decisions saved in the report")
    audit.add_argument("--against", metavar="RUN", help="compare with this run too, beside last night")
    audit.add_argument("--fail-on", metavar="WHAT", help="exit 5: confirmed_rate>0.5%%,drift=major ...")
    work = parser.add_argument_group("how")
    work.add_argument("--engine", choices=("auto", "here", "ray"), help="here: in this process (auto: small)")
    work.add_argument("--device", choices=("auto", "cpu", "cuda"), help="where the model runs (auto)")
    work.add_argument("--actors", type=int, metavar="N", help="model copies; default: one a GPU, or by CPUs")
    work.add_argument("--max-actors", type=int, metavar="N", help="grow up to N copies while more nodes join")
    work.add_argument("--batch-size", type=int, metavar="N", help="images per forward (32 GPU, 8 CPU)")
    work.add_argument("--chunk-size", type=int, metavar="N", help="images per unit of work (256)")
    work.add_argument("--max-failed", metavar="N", help="failures that are fine: images, or a share (1%%)")
    work.add_argument("--force", action="store_true", help="run although another run seems to hold OUT")
