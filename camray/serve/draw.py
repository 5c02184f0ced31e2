"""`camray draw OUT`: pictures of any records, drawn anew from heatmaps and archive, without a model.

rows that a condition chooses ──records, by shard──> pictures ──> files, or pages of a contact sheet
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from camray.errors import ExitCode, UsageError, printable
from camray.explain.overlays import overlay_name, with_caption
from camray.ledger.out import open_out
from camray.records import shard_key
from camray.serve.pictures import Picture, Pictures
from camray.serve.rows import Row, Rows

AT_ONCE = 256  # records in memory
ACROSS, DOWN = 5, 7  # pictures of a page of a contact sheet, an A4 page upright
SIDE, GAP = 224, 12  # pixels
_SHEETS = (".pdf", ".png")


def print_draw(
    place: str, where: str, explainer: str, limit: int, to: str, sheet: str, style: Mapping[str, Any],
    as_json: bool,
) -> ExitCode:  # fmt: skip
    """Draw the records that `where` chooses, the most suspicious first, into a folder or onto a sheet.

    Raises:
        UsageError: no such column, nothing chosen, a folder or a file that is there already.
    """
    if bool(to) == bool(sheet):
        raise UsageError("--to", "or --sheet says where pictures go, one of them", "--to FOLDER")
    goal = Path(to or sheet)
    if sheet and goal.suffix.lower() not in _SHEETS:
        raise UsageError("--sheet", printable(f"{sheet}: its ending says no form"), "FILE.pdf or FILE.png")
    if goal.exists() and (sheet or not goal.is_dir() or any(goal.iterdir())):
        raise UsageError(
            "--sheet" if sheet else "--to", f"{printable(str(goal))} is there already", "a new name"
        )
    out, table = open_out(place)
    rows = Rows(out, table, {})
    try:
        ids = rows.chosen(where or "true", explainer or table.latest_owner(), limit)
        if not ids:
            raise UsageError("--where", "no record is chosen", "see the columns in docs/format.md")
        drawn = drawn_anew(rows, Pictures(out), ids, style)
        kinds = write_sheet(goal, drawn) if sheet else _files(goal, drawn)
    finally:
        rows.close()
    kinds["none"] = len(ids) - sum(kinds.values())
    if as_json:
        print(json.dumps({"to": str(goal), **kinds}))
        return ExitCode.DONE
    print(f"{kinds['drawn'] + kinds['heat']:,} pictures in {goal}")
    if kinds["heat"]:
        print(
            f"{kinds['heat']:,} of them show the heat alone: their images are gone or changed",
            file=sys.stderr,
        )
    if kinds["none"]:
        print(f"{kinds['none']:,} records have no heatmap", file=sys.stderr)
    return ExitCode.DONE


def drawn_anew(
    rows: Rows, pictures: Pictures, ids: Sequence[int], style: Mapping[str, Any]
) -> Iterator[tuple[Row, Picture]]:
    """Draw in the order of the ids, some at a time."""
    for first in range(0, len(ids), AT_ONCE):
        records = rows.records(rows.rows(ids[first : first + AT_ONCE]))
        for record, picture in zip(records, pictures.draw_all(records, style), strict=True):
            if picture is not None:
                yield record, picture


def caption(record: Mapping[str, Any]) -> str:
    """Say what was answered, how surely, and the label where it is another."""
    answer = record["predicted_label"] or f"class {record['predicted_class']}"
    sure = f"{answer} {record['confidence']:.1%}" if record["confidence"] is not None else answer
    return f"{record['label']} -> {sure}" if record["correct"] is False else sure


def _files(folder: Path, drawn: Iterator[tuple[Row, Picture]]) -> dict[str, int]:
    """Write each picture into a folder of its shard, named as the overlays of OUT are."""
    kinds = {"drawn": 0, "heat": 0}
    for record, picture in drawn:
        target = f"{record['target_class']}-{record['target_label'] or ''}-{record['detection'] or 0}"
        path = folder / overlay_name(
            shard_key(record["shard"]), record["index"], record["member"] or "", target
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture.jpeg)
        kinds[picture.kind] += 1
    return kinds


def write_sheet(file: Path, drawn: Iterator[tuple[Row, Picture]]) -> dict[str, int]:
    """Lay the pictures with their captions onto A4 pages (PDF), or onto one long picture (PNG)."""
    kinds, pages = {"drawn": 0, "heat": 0}, []
    while page := list(islice(drawn, ACROSS * DOWN)):
        for _, picture in page:
            kinds[picture.kind] += 1
        tiles = [_tile(record, picture) for record, picture in page]
        pages.append(_page(tiles, is_whole=file.suffix.lower() == ".pdf"))
    file.parent.mkdir(parents=True, exist_ok=True)
    if not pages:
        return kinds
    if file.suffix.lower() == ".pdf":
        pages[0].save(file, save_all=True, append_images=pages[1:], resolution=150.0)
        return kinds
    whole = Image.new("RGB", (pages[0].width, sum(p.height for p in pages)), "white")
    for number, own in enumerate(pages):
        whole.paste(own, (0, sum(p.height for p in pages[:number])))
    whole.save(file)
    return kinds


def _tile(record: Mapping[str, Any], picture: Picture) -> Image.Image:
    """Bring a picture to the width of a tile, and write its caption and its name under it."""
    image = Image.open(io.BytesIO(picture.jpeg)).convert("RGB")
    image.thumbnail((SIDE, SIDE))
    square = Image.new("RGB", (SIDE, SIDE), "white")
    square.paste(image, ((SIDE - image.width) // 2, (SIDE - image.height) // 2))
    name = str(record["member"] or record["shard"]).rpartition("/")[2]
    return Image.fromarray(with_caption(with_caption(np.asarray(square), caption(record)), name))


def _page(tiles: Sequence[Image.Image], is_whole: bool) -> Image.Image:
    height = max(tile.height for tile in tiles)
    down = DOWN if is_whole else -(-len(tiles) // ACROSS)
    page = Image.new("RGB", (GAP + ACROSS * (SIDE + GAP), GAP + down * (height + GAP)), "white")
    for place, tile in enumerate(tiles):
        page.paste(tile, (GAP + place % ACROSS * (SIDE + GAP), GAP + place // ACROSS * (height + GAP)))
    return page
