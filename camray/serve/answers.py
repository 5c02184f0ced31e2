"""What each page shows: rows of a view, one image, classes, causes, two sides beside each other.

Flows in: the query of an address. Flows out: HTML, in which every text of the archive is escaped.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from types import MappingProxyType
from typing import Any, get_args, get_type_hints
from urllib.parse import urlencode

import numpy as np
from starlette.requests import Request

from camray.audit.charts import mean_maps
from camray.audit.columns import class_name
from camray.audit.night import Night, night_of, state_of
from camray.audit.report import cause_cards
from camray.audit.report_rows import as_shown
from camray.audit.templates import templates
from camray.audit.verdicts import VERDICTS, title
from camray.config import OverlayConfig
from camray.errors import UsageError, printable
from camray.ledger.committed import PARTITION
from camray.ledger.out import EXPLAINERS, files_of_runs, ids_in, pruned_runs, run_file
from camray.ledger.runs import installed_versions
from camray.ledger.side import DamagedError, read_side, tell
from camray.serve.pictures import Picture, Pictures
from camray.serve.reviews import Reviews, in_words, is_conflict
from camray.serve.rows import COLUMNS, STATES, Row, Rows, View, whole
from camray.storage import Folder

PER_PAGE = 48
FACETS = ("verdict", "flags", "predicted_class", "error_code", "cause_id", "run_id", PARTITION)
_CARD = (
    PARTITION, "run_id", "shard", "member", "index", "content_sha256", "verdict", "cause_id", "error_code",
    "predicted_class", "predicted_label", "confidence", "label", "label_class", "correct", "overlay_path",
    "heat_status", "target_class", "target_label", "audit_score",
)  # fmt: skip
_SORTS = (
    "-audit_score",
    "confidence",
    "-confidence",
    "margin",
    "member",
    "-heat_ring_mass",
    "image_sharpness",
)
_OVERLAY = get_type_hints(OverlayConfig)
COLORMAPS, ON = get_args(_OVERLAY["colormap"]), get_args(_OVERLAY["on"])
KEPT_PICTURES = 512
Query = Sequence[tuple[str, str]]


class Pages:
    """The pages of one OUT, of the rows as they were read. `nights`: the summaries of its audits."""

    def __init__(
        self, out: Folder, rows: Rows, nights: Sequence[Night], reviews: Reviews, may_review: bool
    ) -> None:
        self.out, self.rows, self.pictures, self.may_review = out, rows, Pictures(out), may_review
        self._reviews, self._nights = reviews, nights
        self._read_at = f"{datetime.now(UTC):%-d %B %Y, %H:%M} UTC"
        self.rows.decide(reviews.standing)
        self._pruned = pruned_runs(out)
        self._lock, self._drawn = threading.Lock(), OrderedDict[Any, Picture | None]()
        self._cards: dict[str, list[dict[str, Any]]] = {}
        self._has_labels = not self._nights or self._nights[-1].has_labels
        self._env = templates("camray.serve")
        self._env.filters |= {
            "query": lambda pairs: urlencode(list(pairs)),
            "words": lambda t: t.replace("_", " "),
        }
        self._env.filters["title"] = lambda v: title(v, self._has_labels)
        self.rows.order(View())  # the first page, before anybody waits for it
        self.rows.counts(View(), FACETS)

    @property
    def latest(self) -> str:
        """The explainer that was audited last, or else any."""
        return self._nights[-1].explainer if self._nights else next(iter(ids_in(self.out, EXPLAINERS)), "")

    @property
    def first_view(self) -> str:
        """The query of the first page: of several explainers the latest."""
        several = len(self.rows.counts(View(), (PARTITION,))[PARTITION]) > 1
        return urlencode({PARTITION: f"={self.latest}"} if several else {})

    def _render(self, template: str, page: str, **said: Any) -> str:
        return self._env.get_template(template).render(
            page=page, version=installed_versions().get("camray", ""), may_review=self.may_review,
            out=self.out.uri, read_at=self._read_at, **said,
        )  # fmt: skip

    def problem(self, text: str) -> str:
        """Render what is wrong with an address."""
        return self._render("problem.html.j2", "", text=text)

    def _refresh(self) -> None:
        if self._reviews.refresh():
            self.rows.decide(self._reviews.standing)

    # ── the grid ─────────────────────────────────────────────────────────────────────────────────

    def images(self, request: Request) -> str:
        """Render one page of a view."""
        self._refresh()
        query = _asked(request)
        view = View.of(query)
        ids = self.rows.order(view)
        pages = max(1, -(-len(ids) // PER_PAGE))
        number = min(max(whole(request.query_params.get("page", "1")), 1), pages)
        chosen = ids[(number - 1) * PER_PAGE : number * PER_PAGE]
        plain = [(name, value) for name, value in query if name != "page"]
        done = self.rows.size(replace(view, state="reviewed")) if not view.state else None
        return self._render(
            "images.html.j2", "images", query=plain, said=dict(plain), total=len(ids), all=self.rows.total,
            cards=self._cards_of(chosen.tolist()), number=number, pages=pages, facets=self._facets(view),
            chips=[(name, self._named(name, v), rest) for name, v, rest in _chips(plain)], columns=COLUMNS,
            sorts=_SORTS, states=STATES, done=done, most=PER_PAGE,
        )  # fmt: skip

    def _named(self, name: str, value: str) -> str:
        """Give a filter's value in words: of `like` the image's name."""
        found = self.rows.rows([whole(value)], ("member",)) if name == "like" else []
        return str(found[0]["member"]) if found else value

    def with_column(self, request: Request) -> str:
        """Give the query with the form's line for any column taken into it."""
        said = dict(request.query_params.multi_items())
        kept = [
            (n, v)
            for n, v in request.query_params.multi_items()
            if n not in ("column", "sign", "value") and v
        ]
        column, sign, value = (said.get(name, "") for name in ("column", "sign", "value"))
        return urlencode([*kept, *([(column, sign + value)] if column else [])])

    def _facets(self, view: View) -> dict[str, list[tuple[str, str, int]]]:
        """Give for each quick filter its choices: value, words, rows."""
        found = {}
        for column, counted in self.rows.counts(view, FACETS).items():
            found[column] = [(f"={value}", self._words(column, value), n) for value, n in counted]
        return found

    def _words(self, column: str, value: str) -> str:
        if column == "predicted_class":
            return self._class(self.latest, int(value)) or value
        if column == "verdict":
            return title(value, self._has_labels)
        if column == "cause_id":
            return next(
                (f"{c.label}: {c.cause}" for n in self._nights[-1:] for c in n.causes if c.id == value), value
            )
        return value if column in (PARTITION, "run_id") else value.replace("_", " ")

    def _class(self, explainer: str, class_id: int | None) -> str | None:
        return class_name(class_id, self.pictures.explainer(explainer).class_names)

    def _cards_of(self, ids: Sequence[int]) -> list[Row]:
        return [self._card(row) for row in self.rows.rows(ids, _CARD)]

    def _card(self, row: Row) -> Row:
        said = self._said(row)
        return row | {
            "said": said["words"], "is_conflict": said["conflict"], "decision": said["decision"],
            "predicted": row["predicted_label"] or self._class(row[PARTITION], row["predicted_class"]),
            "truth": row["label"] or self._class(row[PARTITION], row["label_class"]),
            "has_picture": row["heat_status"] in ("ok", "dead"), "lost": row["run_id"] in self._pruned,
        }  # fmt: skip

    def _said(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Give what people said of an image; or of its cause, where nobody spoke of the image."""
        own = self._reviews.of({**row, "cause": None}) if row["verdict"] else {}
        of_cause = (
            self._reviews.of({PARTITION: row[PARTITION], "cause": row["cause_id"]}) if row["cause_id"] else {}
        )
        said = own or of_cause
        words = [f"{text} (the whole cause)" if not own else text for text in in_words(said)]
        latest = [row["decision"] for row in said.values()][-1:]
        return {"words": words, "conflict": is_conflict(said), "decision": latest[0] if latest else ""}

    # ── one image ────────────────────────────────────────────────────────────────────────────────

    def image(self, request: Request) -> str:
        """Render one image, between its neighbours of the view."""
        self._refresh()
        row, record = self._record(request)
        query = [(name, value) for name, value in _asked(request) if name not in ("page", "at")]
        ids = self.rows.order(View.of([pair for pair in query if pair[0] not in _STYLE]))
        place = np.flatnonzero(ids == row["id"])
        at = int(place[0]) if len(place) else min(whole(request.query_params.get("at", "0")), len(ids))
        after = at + 1 if len(place) else at
        names = self.pictures.explainer(row[PARTITION]).class_names
        shown = as_shown(record, row, names) if row["verdict"] else {"why": [], "top": _top(record)}
        picture = self._drawn_now(record, row["id"], _style(request.query_params))
        return self._render(
            "image.html.j2", "images", row=self._card(row), shown=shown, query=query,
            plain=[pair for pair in query if pair[0] not in _STYLE], at=at, place=at + 1, total=len(ids),
            previous=int(ids[at - 1]) if at > 0 else None,
            following=int(ids[after]) if after < len(ids) else None,
            picture=picture, style=_style(request.query_params), colormaps=COLORMAPS, grounds=ON,
            is_kept=bool(picture and picture.kind == "heat" and self.pictures.file(row["overlay_path"])),
            drawn=self.pictures.style(row["run_id"], _style(request.query_params)),
            facts=[(n, _fact(value)) for n, value in record.items() if n in COLUMNS and value is not None],
        )  # fmt: skip

    def _record(self, request: Request) -> tuple[Row, Row]:
        found = self.rows.rows([request.path_params["id"]])
        if not found:
            raise UsageError("image", "there is no such row", "go back to the list")
        return found[0], self.rows.records(found)[0]

    def picture(self, request: Request) -> Picture | None:
        """Give the picture of a row: its file, or drawn now; `of`: `input` the image alone, `drawn` anew."""
        of, style = request.query_params.get("of", ""), _style(request.query_params)
        return self.picture_of(request.path_params["id"], of, style)

    def picture_of(
        self, number: int, of: str = "", style: Mapping[str, Any] = MappingProxyType({})
    ) -> Picture | None:
        """Give the picture of the row with this id, as `picture` does; None where there is none to draw."""
        found = self.rows.rows([number])
        if not found:
            return None
        if not of and (file := self.pictures.file(found[0]["overlay_path"])):
            return file
        return self._drawn_now(
            self.rows.records(found)[0], number, dict(style) | (_BARE if of == "input" else {})
        )

    def _drawn_now(self, record: Row, number: int, style: dict[str, Any]) -> Picture | None:
        key = number, *sorted(style.items())
        with self._lock:
            if key in self._drawn:
                return self._drawn[key]
        found = self.pictures.draw(record, style)
        with self._lock:
            self._drawn[key] = found
            while len(self._drawn) > KEPT_PICTURES:
                self._drawn.popitem(last=False)
        return found

    # ── classes, causes, two sides ───────────────────────────────────────────────────────────────

    def classes(self, request: Request) -> str:
        """Render the classes of an explainer, those with most confirmed shortcuts first."""
        explainer = self._explainer(request)
        names = self.pictures.explainer(explainer).class_names
        rows = [row | {"name": class_name(row["class_id"], names)} for row in self.rows.classes(explainer)]
        return self._render(
            "classes.html.j2", "classes", rows=rows, explainer=explainer, has_labels=self._has_labels
        )

    def class_page(self, request: Request) -> str:
        """Render one class: its counts, where it looks, its causes."""
        explainer, class_id = self._explainer(request), request.path_params["id"]
        view = View((("explainer", "=", explainer), ("predicted_class", "=", class_id)))
        counts = self.rows.counts(view, ("verdict", "flags", "run_id"))
        night = self._night(explainer)
        maps = mean_maps(night, _state(self.out, night.run_id)) if night else {}
        return self._render(
            "class.html.j2", "classes", name=self._class(explainer, class_id), class_id=class_id,
            total=self.rows.size(view), counts=counts, mean_map=maps.get(class_id, ""), explainer=explainer,
            cards=self._cards_of(self.rows.order(view)[:12].tolist()),
            causes=[c for c in self._causes(explainer) if c["card"].class_id == class_id], night=night,
            query=[("explainer", f"={explainer}"), ("predicted_class", f"={class_id}")],
        )  # fmt: skip

    def causes(self, request: Request) -> str:
        """Render the causes of an explainer, with what people said of each."""
        self._refresh()
        explainer = self._explainer(request)
        return self._render(
            "causes.html.j2", "causes", causes=self._causes(explainer), explainer=explainer,
            night=self._night(explainer),
        )  # fmt: skip

    def _causes(self, explainer: str) -> list[dict[str, Any]]:
        if explainer not in self._cards:
            nights = [night for night in self._nights if night.explainer == explainer]
            self._cards[explainer] = cause_cards(self.out, nights) if nights else []
        view = View((("explainer", "=", explainer),))
        shown = dict(self.rows.counts(view, ("cause_id",), 10**6)["cause_id"])
        said = {
            c["card"].id: self._reviews.of({PARTITION: explainer, "cause": c["card"].id})
            for c in self._cards[explainer]
        }
        return [
            c | {"shown": shown.get(c["card"].id, 0), "said": ", ".join(in_words(said[c["card"].id]))}
            for c in self._cards[explainer]
        ]

    def compare(self, request: Request) -> str:
        """Render two explainers, or two nights, beside each other; of explainers the images of both too."""
        sides = [self._side(request.query_params.get(name, "")) for name in ("one", "two")]
        choices = [
            (f"explainer:{e}", self._told(e)) for e, _ in self.rows.counts(View(), (PARTITION,))[PARTITION]
        ]
        choices += [
            (f"run_id:{run}", f"run {run}") for run, _ in self.rows.counts(View(), ("run_id",))["run_id"]
        ]
        both = all(side is not None for side in sides)
        pairs = self.rows.pairs(*(side["filter"] for side in sides if side)) if both else None
        if pairs:
            ids = [i for pair in pairs["first"] for i in pair]
            cards = {row["id"]: self._card(row) for row in self.rows.rows(ids, _CARD)}
            pairs["cards"] = [(cards[a], cards[b]) for a, b in pairs["first"]]
        return self._render(
            "compare.html.j2", "compare", choices=choices, sides=sides, pairs=pairs, verdicts=list(VERDICTS),
            one=request.query_params.get("one", ""), two=request.query_params.get("two", ""),
        )  # fmt: skip

    def _side(self, text: str) -> dict[str, Any] | None:
        column, _, value = text.partition(":")
        if not text:
            return None
        if column not in (PARTITION, "run_id"):
            raise UsageError("side", printable(f"{text!r} is neither an explainer nor a night"), "choose one")
        view = View(((column, "=", value),))
        counts = self.rows.counts(view, ("verdict", "error_code"))
        return {
            "filter": (column, value), "total": self.rows.size(view), "verdicts": dict(counts["verdict"]),
            "query": [(column, f"={value}")], "means": self.rows.means(view),
            "name": self._told(value) if column == PARTITION else value,
        }  # fmt: skip

    def _told(self, explainer: str) -> str:
        what = self.pictures.explainer(explainer)
        return printable(f"{what.model.rpartition('/')[2]}, {what.method}, {explainer}", 120)

    def _explainer(self, request: Request) -> str:
        return request.query_params.get(PARTITION, "").removeprefix("=") or self.latest

    def _night(self, explainer: str) -> Night | None:
        return next((night for night in reversed(self._nights) if night.explainer == explainer), None)

    # ── decisions ────────────────────────────────────────────────────────────────────────────────

    def decide(self, said: Mapping[str, Any]) -> dict[str, Any]:
        """Save a decision on an image (`id`) or a cause (`explainer`, `cause`), and say how things stand.

        Raises:
            UsageError, LookupError, TypeError: it is none.
            OSError: it could not be saved.
        """
        decision, reviewer = str(said["decision"]), str(said["reviewer"])
        if "cause" in said:
            what = {PARTITION: str(said[PARTITION]), "cause": str(said["cause"])}
            known = {card["card"].id for card in self._causes(what[PARTITION])}
            if what["cause"] not in known:
                raise UsageError("cause", "there is no such cause", "load the page again")
            self._reviews.decide(what, decision, reviewer)
            self.rows.decide(self._reviews.standing)
            of = self._reviews.of(what)
            return {"said": in_words(of), "conflict": is_conflict(of)}
        row = next(iter(self.rows.rows([int(said["id"])])), None)
        if row is None or said.get("verdict", row["verdict"]) != (row["verdict"] or ""):
            raise UsageError(
                "decision", "a night came in since, and tells otherwise of this", "load the page"
            )
        if not row["verdict"]:
            raise UsageError("decision", "this row has no verdict to decide on", "camray audit first")
        self._reviews.decide({**row, "cause": None}, decision, reviewer)
        self.rows.decide(self._reviews.standing, row)
        told = self._said(row)
        return {"said": told["words"], "conflict": told["conflict"], "decision": told["decision"]}


_STYLE = ("colormap", "on", "alpha", "contour", "legend", "of")
_BARE = {"alpha": 0.0, "contour": 0.0, "legend": False}  # the image without its map


def _style(query: Mapping[str, str]) -> dict[str, Any]:
    """Read how to draw, where it is asked for: colours, on what, strength, line, scale."""
    asked = {name: query.get(name, "") for name in _STYLE}
    choices = {"colormap": COLORMAPS, "on": ON}
    found: dict[str, Any] = {name: asked[name] for name, known in choices.items() if asked[name] in known}
    for name in ("alpha", "contour"):
        with suppress(ValueError):
            found |= {name: value} if 0 <= (value := float(asked[name])) <= 1 else {}
    return found | ({"legend": True} if asked["legend"] else {})


def _asked(request: Request) -> list[tuple[str, str]]:
    return [(name, value) for name, value in request.query_params.multi_items() if value]


def _chips(query: Query) -> list[tuple[str, str, Query]]:
    """Give each filter with the query that lacks it."""
    return [
        (name, value, [*query[:i], *query[i + 1 :]])
        for i, (name, value) in enumerate(query)
        if name not in ("sort", "page")
    ]


def _fact(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _top(record: Row) -> list[list[Any]]:
    return [[t["label"] or f"class {t['class_id']}", t["score"]] for t in record["topk"] or []]


def read_summaries(out: Folder) -> list[Night]:
    """Read the summary of every night, as `read_nights` does; a damaged one is named and stays."""
    found = []
    for path in files_of_runs(out, "summary.json"):
        try:
            found.append(read_side(out, path, partial(night_of, path)))
        except DamagedError as damage:
            tell(damage, "it is left out")
    return sorted(found, key=lambda night: night.order)


def _state(out: Folder, run_id: str) -> Any:
    try:
        return read_side(out, run_file(run_id, "state.json"), partial(state_of, run_id))
    except (DamagedError, FileNotFoundError):
        return None
