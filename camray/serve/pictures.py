"""The picture of a record: the file in OUT, or drawn anew from its heatmap and the image in its archive.

Flows in: a record. Flows out: JPEG bytes, and what they are. Where the image cannot be read any more, or is
another one by now, the heat alone is drawn, and that is said.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np

from camray.archive.frames import file_index
from camray.archive.readers import packed_format
from camray.audit.looks import read_views
from camray.config import ArchiveConfig, Config, Explainer, OverlayConfig
from camray.errors import CamrayError, printable, said_by
from camray.explain import overlays
from camray.ledger.committed import PARTITION
from camray.ledger.intake import recall
from camray.ledger.out import OVERLAYS, read_explainer, run_file
from camray.ledger.side import DamagedError, read_side
from camray.records import Shard
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
        self._out = out
        self._explainer = lru_cache(64)(lambda explainer: read_explainer(out, explainer))
        self._config = lru_cache(64)(self._config_of)
        self._recall = lru_cache(4)(lambda root: {group.number: group for group in recall(out, root)})

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
        """Draw records anew, in their order; those of one shard beside each other read it once."""
        alike = itemgetter("run_id", PARTITION, "shard")
        for (run_id, explainer, shard), group in groupby(records, key=alike):
            own, config = list(group), self._config(run_id)
            overlay = replace(config.overlay, picture="blend", **style)
            with_heat = [r for r in own if r["heatmap"]]
            views, why = {}, "the archive does not hold this image any more"
            try:
                views = self._views(shard, explainer, with_heat, config) if with_heat else {}
            except (CamrayError, OSError, KeyError, ValueError) as error:
                why = printable(said_by(error), 160)
            for record in own:
                yield _picture(record, views, overlay, why) if record["heatmap"] else None

    def _views(
        self, shard: str, explainer: str, records: Sequence[Mapping[str, Any]], config: Config
    ) -> dict[tuple[str, int, str], Any]:
        """Read images of a shard as the model saw them, (H, W, 3); what is gone or changed is left out."""
        files = sorted({file_index(r["index"], config.archive.frames) for r in records})
        alone = replace(self._shard(shard, config.archive), selection=tuple(files))
        views = read_views([alone], config, self._explainer(explainer), [dict(r) for r in records])
        return {(shard, index, content): view for (_, index, content), view in views.items()}

    def _shard(self, uri: str, archive: ArchiveConfig) -> Shard:
        """Find where the shard of a record is opened, without a listing of the archive."""
        root, hash_sign, number = uri.rpartition("#")
        here = archive.path if archive.name and not archive.also else ""
        if hash_sign and number.isdecimal():
            place = here + root.removeprefix(archive.name or "") if here else ""
            return self._recall(root)[int(number)].shard(root, place)
        place = here + uri.removeprefix(archive.name or "") if here else ""
        return Shard(uri, packed_format(uri) or "", 0, "", place=place)

    def _config_of(self, run_id: str) -> Config:
        """Read how a run read its archive and drew; the defaults where its run.json is gone."""
        from pydantic import TypeAdapter

        def parts(tree: Any) -> Config:
            said = tree["config"]
            archive = TypeAdapter(ArchiveConfig).validate_python(said["archive"])
            overlay = TypeAdapter(OverlayConfig).validate_python(said["overlay"])
            return replace(Config(), archive=archive, overlay=overlay)

        try:
            return read_side(self._out, run_file(run_id, "run.json"), parts)
        except (DamagedError, FileNotFoundError):
            return Config()

    def explainer(self, explainer: str) -> Explainer:
        """Give what an explainer id stands for."""
        return self._explainer(explainer)


def _picture(
    record: Mapping[str, Any], views: Mapping[tuple[str, int, str], Any], style: OverlayConfig, why: str
) -> Picture:
    heat = np.array(record["heatmap"], np.float32).reshape(record["heat_h"], record["heat_w"])
    view = views.get((record["shard"], record["index"], record["content_sha256"]))
    if view is not None:
        return Picture(drawn(np.asarray(view), heat, style), "drawn")
    return Picture(drawn(np.full((SIDE, SIDE, 3), 128, np.uint8), heat, style), "heat", why)


def drawn(view: np.ndarray[Any, np.dtype[np.uint8]], heat: Any, style: OverlayConfig) -> bytes:
    """Draw the heat over the model's view, as the run itself does, and encode it."""
    return overlays.encode_jpeg(overlays.overlay_on_input(view, heat, style), style.quality)
