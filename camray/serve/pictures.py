"""The picture of a record: the file in OUT, or drawn anew from its heatmap and the image in its archive.

Flows in: a record. Flows out: JPEG bytes, and what they are. Where the image cannot be read any more, or is
another one by now, the heat alone is drawn, and that is said.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from camray.config import Explainer, OverlayConfig
from camray.explain import overlays
from camray.ledger.out import OVERLAYS
from camray.serve.redraw import Drawn, Redraw
from camray.storage import Folder

SIDE = 224  # of the heat alone


@dataclass(frozen=True, slots=True)
class Picture:
    """A JPEG, and what it is: `file`, `drawn` or, with the reason, `heat`."""

    jpeg: bytes
    kind: str
    why: str = ""


class Pictures:
    """Gives the pictures of an OUT."""

    def __init__(self, out: Folder) -> None:
        self._out, self._redraw = out, Redraw(out)

    def file(self, path: str | None) -> Picture | None:
        """Give the picture that was drawn with the record; None where it is not there."""
        if path and path.startswith(f"{OVERLAYS}/") and ".." not in path.split("/"):
            try:
                return Picture(self._out.read(path), "file")
            except OSError:
                return None
        return None

    def draw(self, record: Mapping[str, Any], style: Mapping[str, Any]) -> Picture | None:
        """Draw a record anew, in the style of its run but for `style`; None where it has no heatmap."""
        return next(self.draw_all([record], style))

    def draw_all(
        self, records: Sequence[Mapping[str, Any]], style: Mapping[str, Any]
    ) -> Iterator[Picture | None]:
        """Draw records anew, in their order; each shard is read once."""
        style = {"picture": "blend"} | dict(style)
        with_heat = [record for record in records if record["heatmap"]]
        done = {id(drawn.row): self._encoded(drawn, style) for drawn in self._redraw(with_heat, style)}
        return (done.get(id(record)) for record in records)

    def _encoded(self, drawn: Drawn, style: Mapping[str, Any]) -> Picture:
        """Encode a picture; where there is none, the heat alone."""
        overlay = self.style(drawn.row["run_id"], style)
        if drawn.picture is not None:
            return Picture(overlays.encode_jpeg(drawn.picture, overlay.quality), "drawn")
        grey = np.full((SIDE, SIDE, 3), 128, np.uint8)
        alone = overlays.overlay_on_input(grey, overlays.heat_of(drawn.row), overlay)
        return Picture(overlays.encode_jpeg(alone, overlay.quality), "heat", drawn.why)

    def style(self, run_id: str, style: Mapping[str, Any]) -> OverlayConfig:
        """Give how a run draws, but for what is said otherwise."""
        return replace(self._redraw.config(run_id).overlay, **style)

    def explainer(self, explainer: str) -> Explainer:
        """Give what an explainer id stands for."""
        return self._redraw.explainer(explainer)
