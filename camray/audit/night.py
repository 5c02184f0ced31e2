"""One night: judge the records, compare with the nights before, decide the gate, say it in a few files.

runs/<run>/summary.json   counts, classes, drift, gate, settings: what the report and machines read
runs/<run>/state.json     histograms and mean maps, for the nights to come
runs/<run>/metrics.prom   the same numbers for Prometheus' textfile collector
runs/<run>/message.txt    one paragraph for a chat
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from functools import cache, partial
from typing import Any, get_type_hints

from camray.audit.cause_book import Card
from camray.audit.counts import ClassCounts, ClassRow, NightState
from camray.audit.drift import Finding, compare_nights, level_of, worst_first
from camray.audit.gate import DRIFT_LEVELS, Condition, parse_gate
from camray.audit.history import SHOWN_NIGHTS, Nights
from camray.audit.judge import Past, judge_archive
from camray.audit.properties import PropertyFinding
from camray.audit.reviewed import decisions, take_in
from camray.audit.slices import SliceRow
from camray.audit.tally import Tally
from camray.audit.update import ModelUpdate, compare_models
from camray.config import AuditConfig
from camray.errors import ExitCode, UsageError, printable
from camray.ledger import log
from camray.ledger.committed import checksum
from camray.ledger.out import AUDIT, BRIEF_NIGHTS, RUNS, open_out, read_explainer, run_file
from camray.ledger.runs import is_accepted, is_name
from camray.ledger.side import DAMAGED, as_object, recovered, write_side
from camray.storage import Folder

CONFIDENCE_DISTANCE, HEAT_COSINE = 0.01, 0.99  # a GPU in place of a CPU stays within both
LISTED = 1000  # classes that a summary keeps
BRIEF_FORMAT = 3
LATEST = 8  # runs: one that has no summary yet may still be in its audit
_BRIEF = ("explainer", "previous", "covers", "records_version", "audit_version")
_SHOWN = ("written_at", "rates", "verdicts", "labelled", "archive_labelled")


@dataclass(frozen=True, slots=True)
class Images:
    """How many: explained in the archive and tonight, rows of tonight, and those that failed."""

    archive: int
    night: int
    rows: int
    failed: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """Tonight against one night before."""

    against: str  # "last night" or "the baseline"
    run_id: str
    level: str
    rows: Sequence[Finding]


@dataclass(frozen=True, slots=True)
class Drift:
    """What changed since other nights, and the worst of it."""

    level: str
    comparisons: Sequence[Comparison]


@dataclass(frozen=True, slots=True)
class Gate:
    """What must not be, and what of it is so."""

    conditions: Sequence[str]
    fired: Sequence[str]  # of the new images
    standing: Mapping[str, Sequence[str]] = field(default_factory=dict)  # earlier run -> what is still so

    @property
    def holds(self) -> int:
        """How many conditions are so, tonight's and those of earlier nights."""
        return len(self.fired) + sum(len(texts) for texts in self.standing.values())


@dataclass(frozen=True, slots=True)
class Night:
    """All that is said of a night: the content of its summary.json."""

    run_id: str
    explainer: str
    written_at: str
    previous: str | None
    covers: Sequence[str]  # the runs whose rows are new
    records_version: int | None
    audit_version: int | None  # of the verdicts' table, which every night writes
    settings: AuditConfig
    images: Images
    rates: Mapping[str, float]
    verdicts: Mapping[str, int]
    archive_verdicts: Mapping[str, int]
    archive_rates: Mapping[str, float]
    errors: Mapping[str, int]  # by code
    classes: Sequence[ClassRow]
    archive_classes: Sequence[ClassRow]
    properties: Sequence[PropertyFinding]  # of the whole archive
    slices: Sequence[SliceRow]
    archive_slices: Sequence[SliceRow]
    labelled: int | None  # of the new explained images; None: the audit of an earlier camray
    archive_labelled: int | None
    drift: Drift
    canary: Mapping[str, Any] | None  # how the same images fared; None where they were not looked at
    decisions_taken_in: int
    model_update: ModelUpdate | None
    gate: Gate
    causes: Sequence[Card] = ()  # of the archive; none in the audit of an earlier camray
    accepted: int = 0  # new images that a person's word on their cause covers

    @property
    def exit_code(self) -> ExitCode:
        """5 where the gate fired, tonight or on a night before that nobody has mended or accepted."""
        return ExitCode.GATE if self.gate.holds else ExitCode.DONE

    @property
    def shown_classes(self) -> Sequence[ClassRow]:
        """The classes of the new images, or of the archive where nothing is new."""
        return self.classes if self.images.rows else self.archive_classes

    @property
    def shown_slices(self) -> Sequence[SliceRow]:
        """The slices of the new images, or of the archive where nothing is new."""
        return self.slices if self.images.rows else self.archive_slices

    @property
    def has_labels(self) -> bool:
        """False where no image of what is shown has a label that is known: nothing is right or wrong then."""
        return (self.labelled if self.images.rows else self.archive_labelled) != 0

    @property
    def message(self) -> str:
        """The night in one paragraph."""
        images, rates, verdicts = self.images, self.rates, self.verdicts
        if not images.rows:
            return f"camray: nothing new; {images.archive:,} images in the archive.{self._gate_said}"
        if not images.night and images.rows > images.failed:
            said = f"camray: {images.rows - images.failed:,} new records, {images.failed:,} failed."
            return f"{said} None has a class: there is nothing to judge.{self._gate_said}"
        hanging, of_all = "Answers that hang on a shortcut", ""
        if self.has_labels:
            hanging, of_all = "Right for the wrong reason", ", right or wrong, hang on a shortcut"
        said = (
            f"camray: {images.night:,} new images explained, {images.failed:,} failed."
            f" {hanging}: {verdicts.get('right_wrong_reason', 0):,} confirmed"
            f" ({rates['confirmed_rate']:.2%} of all answers{of_all}),"
            f" {verdicts.get('right_wrong_reason_suspected', 0):,} suspected."
        )
        if self.accepted:
            said += f" A reviewer's word covers {self.accepted:,} of them."
        if self.classes and (first := self.classes[0]).confirmed:
            name = printable(first.label or f"class {first.class_id}", 60)
            said += f" Most of all in {name}: {first.confirmed:,} of {first.images:,}{self._cause_of(first)}."
        said += self._said_of_labels()
        if worse := [row for row in self.slices if row.is_worse]:
            said += f" Worse than the rest: {printable(_slice_said(worse[0]), 120)}"
            said += f" and {len(worse) - 1:,} more." if len(worse) > 1 else "."
        said += f" Drift: {self.drift.level}."
        if (canary := self.canary) and stack_changed(canary):
            said += (
                f" The stack is another one: of {canary['images']} images explained before,"
                f" {canary['changed']} get another answer, and confidence moves by up to"
                f" {canary['confidence_distance']:.3f}."
            )
        if update := self.model_update:
            said += (
                f" The model changed: {update.agreement:.1%} of {update.images:,} answers are as before,"
                f" {update.repaired:,} are right now that were wrong, {update.broken:,} the other way."
            )
        return said + self._gate_said

    @property
    def _gate_said(self) -> str:
        said = f" Gate: {', '.join(self.gate.fired)}." if self.gate.fired else ""
        for run, texts in self.gate.standing.items():
            said += f" Still so of run {run}: {', '.join(texts)} (mend it, or camray accept OUT {run})."
        return said

    def _cause_of(self, row: ClassRow) -> str:
        found = [c.cause for c in self.causes if c.class_id == row.class_id and not c.is_gone]
        return f" (cause: {', '.join(dict.fromkeys(found))})" if found else ""

    def _said_of_labels(self) -> str:
        wrong, suspects = (self.verdicts.get(name, 0) for name in ("wrong", "label_suspect"))
        if not self.has_labels:
            return " No labels: nobody can say which answers are wrong."
        return f" Wrong: {wrong:,}; label suspects: {suspects:,}."

    def to_json(self) -> dict[str, Any]:
        """Give plain lists and numbers, and the message."""
        return asdict(self) | {"message": self.message}

    @property
    def order(self) -> tuple[int, int, str]:
        """Sort nights as they were: by the versions of the tables they wrote, whatever their clocks said."""
        versions = (self.records_version, self.audit_version)
        records, audit = (-1 if version is None else version for version in versions)
        return records, audit, self.run_id

    @staticmethod
    def from_json(said: Any) -> Night:
        """Read what `to_json` gave; what a summary of another version lacks is None.

        Raises:
            ValueError, LookupError, TypeError, AttributeError: it is none.
        """
        known: dict[str, Any] = {field.name: said.get(field.name) for field in fields(Night)}
        needed = {"run_id", "explainer", "settings", "images", "rates", "classes", "archive_classes", "drift"}
        needed |= {"gate", "covers", "verdicts"}
        known |= {name: known[name] or [] for name in ("slices", "archive_slices", "properties", "causes")}
        known["accepted"] = known["accepted"] or 0
        for name in needed | {name for name, value in known.items() if value is not None}:
            known[name] = _validators()[name](known[name])
        if missing := ClassCounts(0).rates().keys() - known["rates"].keys():
            raise ValueError(f"no {min(missing)}")
        stack_changed(known["canary"])
        return Night(**known)


@cache
def _validators() -> dict[str, Callable[[Any], Any]]:
    """Give what reads each field of a night; made once, which costs more than to read a hundred nights."""
    from pydantic import TypeAdapter  # late: --help needs none of it

    return {name: TypeAdapter(type_).validate_python for name, type_ in get_type_hints(Night).items()}


Told = dict[str, Night | bool]  # of each run


def audit_night(
    place: str, explainer: str, run_id: str, settings: AuditConfig, reviewed: Sequence[str] = ()
) -> Night:
    """Audit the records of one explainer and write the files of the night.

    `reviewed` names files of decisions that the report saved.

    Raises:
        UsageError: no records, or a gate that cannot be read.
    """
    conditions = parse_gate(settings.fail_on)
    out, table = open_out(place)
    told = _told(out)
    _write_briefs(out, {run: said for run, said in told.items() if run != run_id})
    nights, lost = _in_order(told), {run for run, said in told.items() if said is True}
    before = [night for night in nights if night.explainer == explainer]
    taken = take_in(out, reviewed)
    covered = {run for n in before for run in n.covers} | lost
    past = Past(frozenset(covered), decisions(out, explainer), _nights(lost, before, run_id))
    what = read_explainer(out, explainer)
    names = what.class_names
    open_nights = _open_nights(out, before)
    tally = judge_archive(
        out, table, explainer, what.num_classes, settings, past, run_id,
        {night.run_id: frozenset(night.covers) for night in open_nights}, names,
    )  # fmt: skip
    properties, slices = tally.sample.described()
    rates, drift = tally.night.rates(), _drift(out, tally.state, before, settings.baseline)
    update = None
    if nights and not before:  # a new model or setting: what did it change?
        update = compare_models(table, nights[-1].explainer, explainer, names)
    asked = tally.asked.rates()
    fired = [c.text for c in conditions if tally.night.rows and c.fires(asked, drift.level)]
    standing = _standing(open_nights, _stood(before), tally, conditions)
    night = Night(
        run_id=run_id,
        explainer=explainer,
        written_at=datetime.now(UTC).isoformat(timespec="seconds"),
        previous=before[-1].run_id if before else None,
        covers=sorted(tally.covered),
        records_version=table.delta.version() if table.delta else None,
        audit_version=log.versions(out)[AUDIT],
        settings=settings,
        images=Images(tally.archive.ok, tally.night.ok, tally.night.rows, tally.night.failed),
        rates=rates,
        verdicts=dict(tally.verdicts),
        archive_verdicts=dict(tally.archive_verdicts),
        archive_rates=tally.archive.rates(),
        errors=dict(tally.errors),
        classes=tally.night.ranked(names)[:LISTED],
        archive_classes=tally.archive.ranked(names)[:LISTED],
        properties=properties.findings(names),
        slices=tally.night_slices.found()[:LISTED],
        archive_slices=slices.found()[:LISTED],
        labelled=tally.night.known_labels,
        archive_labelled=tally.archive.known_labels,
        drift=drift,
        canary=recovered(out, run_file(run_id, "canary.json"), canary_of),
        decisions_taken_in=taken,
        model_update=update,
        gate=Gate([c.text for c in conditions], fired, standing),
        causes=tally.causes[:LISTED],
        accepted=tally.accepted,
    )
    _write(out, night, tally.state)
    return night


def _nights(lost: set[str], before: Sequence[Night], run_id: str) -> Nights:
    """Give the nights so far, tonight last, and what the last one said of causes."""
    runs = {run: place for place, night in enumerate(before) for run in night.covers}
    for run in lost:
        runs.setdefault(run, max(sum(night.run_id < run for night in before) - 1, 0))
    cards = before[-1].causes if before else ()
    names = [*(night.run_id for night in before), run_id]
    return Nights(names, runs, cards)


def _slice_said(row: SliceRow) -> str:
    return f"{row.attribute} {row.value} ({row.rate} {row.hits:,}, expected {row.expected:.0f})"


def _stood(before: Sequence[Night]) -> set[str]:
    """Name the nights that the gate ever spoke against."""
    return {run for n in before for run in (*n.gate.standing, *[n.run_id] * bool(n.gate.fired))}


def _open_nights(out: Folder, before: Sequence[Night]) -> list[Night]:
    """Give the earlier nights whose verdict may still stand, and the last one with new images."""
    runs = _stood(before) | {night.run_id for night in [n for n in before if n.images.rows][-1:]}
    return [night for night in before if night.run_id in runs and not is_accepted(out, night.run_id)]


def _standing(
    nights: Sequence[Night], stood: set[str], tally: Tally, conditions: Sequence[Condition]
) -> dict[str, list[str]]:
    """Ask tonight's gate, or without one their own, about the images that are left of earlier nights.

    Where nothing is new the last night with new images is asked too, whatever its own gate said.
    """
    found = {}
    for night in nights:
        counts = tally.open_nights[night.run_id]
        if counts.rows and (night.run_id in stood or not tally.night.rows):
            asked, rates = conditions or parse_gate(",".join(night.gate.conditions)), counts.rates()
            found[night.run_id] = [c.text for c in asked if c.fires(rates, night.drift.level)]
    return {run: texts for run, texts in found.items() if texts}


def read_nights(out: Folder) -> list[Night]:
    """Read the nights, in the order of the log's versions; a damaged summary is set aside.

    The last one of each explainer is whole; of those that stand in OUT/carried/nights.json there is what the
    next nights and the history ask for.
    """
    return _in_order(_told(out))


def _in_order(told: Told) -> list[Night]:
    nights = [night for night in told.values() if isinstance(night, Night)]
    return sorted(nights, key=lambda night: night.order)


def _told(out: Folder) -> Told:
    """Tell of each run its night; False: it has none, True: its summary was damaged, and is set aside."""
    known = recovered(out, BRIEF_NIGHTS, _briefs_of) or {}
    told = {run: known[run] if run in known else _summary(out, run) for run in out.names(RUNS)}
    while brief := [
        run
        for run in {night.explainer: night.run_id for night in _in_order(told)}.values()
        if told[run] is known.get(run)
    ]:
        told |= {run: _summary(out, run) for run in brief}
    return told


def _summary(out: Folder, run_id: str) -> Night | bool:
    path = run_file(run_id, "summary.json")
    return recovered(out, path, partial(night_of, path)) or out.exists(f"{path}{DAMAGED}")


def _write_briefs(out: Folder, told: Told) -> None:
    """Write what the nights to come ask for; of the last sixty with images also what the history shows."""
    later: Counter[str] = Counter()  # nights with new images, by explainer
    old = sorted(told)[:-LATEST]
    runs: dict[str, Any] = {run: told[run] for run in old if isinstance(told[run], bool)}
    for night in reversed(_in_order(told)):
        names = (*_BRIEF, *_SHOWN) if later[night.explainer] < SHOWN_NIGHTS else _BRIEF
        images, gate = (
            [getattr(part, field.name) for field in fields(part)] for part in (night.images, night.gate)
        )
        runs[night.run_id] = [images, gate, night.drift.level, *(getattr(night, name) for name in names)]
        later[night.explainer] += night.images.rows > 0
    write_side(out, BRIEF_NIGHTS, {"format": BRIEF_FORMAT, "runs": runs}, indent=None)


def _briefs_of(tree: Any) -> Told:
    """Read what `_write_briefs` wrote."""
    left_out: dict[str, Any] = {field.name: [] for field in fields(Night)} | {
        "settings": AuditConfig(), "written_at": "", "rates": {}, "verdicts": {}, "labelled": None,
        "archive_labelled": None, "canary": None, "model_update": None, "accepted": 0,
    }  # fmt: skip
    found: Told = {}
    for run, said in tree["runs"].items() if tree.get("format") == BRIEF_FORMAT else ():
        if isinstance(said, bool):
            found[run] = said
        else:
            images, gate, level, *plain = said
            known = dict(zip((*_BRIEF, *_SHOWN), plain, strict=False)) | {"run_id": run}
            parts = {"images": Images(*images), "gate": Gate(*gate), "drift": Drift(level, ())}
            found[run] = Night(**left_out | known | parts)
    return found


def night_of(path: str, tree: Any) -> Night:
    """Take the JSON of the summary at `path`; raises where it is none, or of another run."""
    night = Night.from_json(tree)
    if run_file(night.run_id, "summary.json") != path:
        raise ValueError(f"it is of another run, {night.run_id}")
    return night


def latest_nights(out: Folder) -> list[Night]:
    """Read the nights of the explainer that was audited last, oldest first.

    Raises:
        UsageError: OUT holds no audit.
    """
    nights = read_nights(out)
    if not nights:
        raise UsageError("OUT", f"{out.uri} holds no audit", "camray audit ARCHIVE OUT --model NAME")
    return [night for night in nights if night.explainer == nights[-1].explainer]


def read_state(out: Folder, run_id: str) -> NightState | None:
    """Read the sums of a night: histograms and mean maps. None where there are none, or they are damaged."""
    return recovered(out, run_file(run_id, "state.json"), partial(state_of, run_id))


def state_of(run_id: str, tree: Any) -> NightState:
    """Take the JSON of a run's state; raises where it is none, or of another run."""
    if tree.get("run_id", run_id) != run_id:  # a state of an earlier camray does not say
        raise ValueError(f"it is of another run, {tree['run_id']}")
    return NightState.from_json(tree)


def canary_of(tree: Any) -> dict[str, Any]:
    """Take the JSON of how the canary images fared; raises where it is none."""
    if int(tree["images"]):
        stack_changed(tree)
    return as_object(tree)


def stack_changed(canary: Mapping[str, Any] | None) -> bool:
    """Tell whether the same images fare differently: more than rounding on another device explains."""
    if not canary or not int(canary["images"]):
        return False
    distance, cosine = float(canary["confidence_distance"]), float(canary["heat_cosine"])
    return int(canary["changed"]) > 0 or distance > CONFIDENCE_DISTANCE or cosine < HEAT_COSINE


def _drift(out: Folder, tonight: NightState, before: Sequence[Night], baseline: str | None) -> Drift:
    """Compare with the last night that had new images, and with the pinned one."""
    compared = []
    for night in reversed(before):
        if night.images.night and (state := read_state(out, night.run_id)) is not None:
            compared.append(("last night", night.run_id, state))
            break
    if baseline:
        if (state := read_state(out, baseline) if is_name(baseline) else None) is None:
            said = f"{printable(baseline)} is no audited run"
            raise UsageError("audit.baseline", said, "see `camray status OUT`")
        compared.append(("the baseline", baseline, state))
    comparisons = []
    for against, run_id, state in compared:
        found = compare_nights(state, tonight)
        comparisons.append(Comparison(against, run_id, level_of(found), worst_first(found)))
    return Drift(max((c.level for c in comparisons), key=DRIFT_LEVELS.index, default="none"), comparisons)


def _write(out: Folder, night: Night, state: NightState) -> None:
    """Write the files of a night; the summary last: it says that the night is done."""
    texts = {"metrics.prom": _metrics(night).encode(), "message.txt": f"{night.message}\n".encode()}
    write_side(out, run_file(night.run_id, "state.json"), {"run_id": night.run_id, **state.to_json()})
    for name, text in texts.items():
        out.write(run_file(night.run_id, name), text)
    checksums = {name: checksum(text) for name, text in texts.items()}
    write_side(
        out,
        run_file(night.run_id, "summary.json"),
        night.to_json() | {"files": checksums, "tables": log.versions(out)},
    )


def _metrics(night: Night) -> str:
    """Write the numbers as gauges of Prometheus."""
    label = f'{{explainer="{night.explainer}"}}'
    gauges = {f"camray_audit_{name}": value for name, value in night.rates.items()}
    gauges |= {f"camray_audit_images_{name}": value for name, value in asdict(night.images).items()}
    gauges["camray_audit_gate_fired"] = night.gate.holds
    return "".join(f"# TYPE {name} gauge\n{name}{label} {value}\n" for name, value in gauges.items())
