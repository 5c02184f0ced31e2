"""The options of `camray compare`, beside those it shares with `explain`."""

from __future__ import annotations

import argparse

from camray.cli.arguments import Pairs

SETTINGS = {
    "methods": "compare.methods", "stratify": "compare.stratify", "baseline": "compare.baseline",
    "budget": "compare.budget",
}  # fmt: skip


def add_compare_options(parser: argparse.ArgumentParser) -> None:
    """Add the methods, the sample, and what may be spent."""
    what = parser.add_argument_group("what is compared")
    what.add_argument("--methods", type=names, metavar="A,B,...", help="methods; the controls come along")
    what.add_argument("--target", metavar="T", help="predicted (default), label, or a class index")
    what.add_argument("--layer", metavar="NAME", help="target layer; default: chosen for the model")
    what.add_argument("--baseline", choices=("blur", "zero"), help="what takes the place of pixels (blur)")
    which = parser.add_argument_group("on which images")
    which.add_argument("--sample", type=int, metavar="N", help="images, drawn once and kept (2000)")
    which.add_argument("--seed", type=int, metavar="S", help="seed of the sample (0)")
    which.add_argument(
        "--stratify", type=names, metavar="A,B", help="predicted_class,confidence where OUT has records"
    )
    which.add_argument("--include", action="append", metavar="GLOB", help="only these paths (repeatable)")
    which.add_argument("--exclude", action="append", metavar="GLOB", help="not these paths (repeatable)")
    which.add_argument("--image-column", metavar="NAME", help="Parquet: column of images; a list: of paths")
    which.add_argument("--label-column", metavar="NAME", help="Parquet and lists: column of labels")
    which.add_argument("--bbox", choices=("xywh", "xyxy"), help="what four numbers called bbox are (xywh)")
    work = parser.add_argument_group("how")
    work.add_argument("--dry-run", action="store_true", help="try two images, tell the cost, write nothing")
    work.add_argument("--budget", action=Pairs, metavar="forwards=N", help="refuse to spend more than that")
    work.add_argument("--engine", choices=("auto", "here", "ray"), help="here: in this process (auto: small)")
    work.add_argument("--device", choices=("auto", "cpu", "cuda"), help="where the model runs (auto)")
    work.add_argument("--actors", type=int, metavar="N", help="model copies; default: one a GPU, or by CPUs")
    work.add_argument("--batch-size", type=int, metavar="N", help="images measured at once (4)")
    work.add_argument("--max-failed", type=float, metavar="F", help="share of failures that is fine (0.01)")
    work.add_argument("--force", action="store_true", help="run although another run seems to hold OUT")


def names(text: str) -> list[str]:
    """Read `gradcam,scorecam(channels=64,seed=1)`: commas between brackets belong to the name."""
    found, depth = [""], 0
    for character in text:
        depth += (character == "(") - (character == ")")
        if character == "," and depth == 0:
            found.append("")
        else:
            found[-1] += character
    return [name.strip() for name in found if name.strip()]
