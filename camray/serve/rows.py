"""Every record as a row that can be asked: filters on any column, search, order, counts.

Flows in: the committed records and the audit, read once into a table of DuckDB's in memory; what does not fit
into `MEMORY` spills into temporary files. Flows out: places in a view, rows, counts.

No text of a person becomes SQL: columns and comparisons are chosen among those there are, values are bound.
"""

from __future__ import annotations

import math
import threading
import weakref
from collections import OrderedDict, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
from numpy.typing import NDArray

from camray.audit.reviewed import QA_SCHEMA
from camray.audit.verdict_table import AUDIT_SCHEMA
from camray.errors import UsageError, printable
from camray.ledger import log
from camray.ledger.committed import PARTITION
from camray.ledger.out import AUDIT
from camray.ledger.table import Table
from camray.records import RECORD_SCHEMA, Shard
from camray.storage import Folder

Row = dict[str, Any]
MEMORY = "1GB"
VIEWS = 8  # orders of rows that are kept, of 8 bytes a row
_PLAIN = (pa.string(), pa.int32(), pa.int64(), pa.float32(), pa.bool_())
_RECORD = [f.name for f in RECORD_SCHEMA if f.type in _PLAIN and f.name != "key"]
_JUDGED = [name for name in AUDIT_SCHEMA.names if name not in {PARTITION, "night", *_RECORD}]
_ID = (
    "(md5_number_lower(concat_ws('|', r.explainer, r.run_id, coalesce(r.index, -1), "
    "coalesce(r.target_class, -1), coalesce(r.detection, -1), r.shard)) >> 1)::bigint"
)
"""Names a row by what it is, not by where it stands: a new night moves none under a reviewer."""
_COLOURS = [f"image_{name}" for name in ("mean", "std", "red", "red_std", "blue", "blue_std", "saturation")]
COLUMNS = (PARTITION, *_RECORD, "attributes", *_JUDGED, "is_new")
"""What can be filtered and sorted by."""
SEARCHED = ("member", "label", "predicted_label", "content_sha256", "cause", "cause_id", "attributes")
_NUMBERS = {f.name for s in (RECORD_SCHEMA, AUDIT_SCHEMA) for f in s if pa.types.is_floating(f.type)}
_COUNTS = {f.name for s in (RECORD_SCHEMA, AUDIT_SCHEMA) for f in s if pa.types.is_integer(f.type)}
_TRUTHS = {"correct", "confirm_flip", "is_new"}
_SIGNS = {"<=": "<=", ">=": ">=", "!=": "is distinct from", "<": "<", ">": ">", "~": "~", "=": "="}
_SETTLED_BY = "coalesce((explainer, cause_id) in (select (explainer, cause) from settled), false)"
STATES = {
    "open": f"id not in (select id from decided) and not {_SETTLED_BY}",
    "reviewed": f"(id in (select id from decided) or {_SETTLED_BY})",
    "conflict": "id in (select id from decided group by id having count(distinct decision) > 1)",
}
"""How far people are with a row, as SQL of our own."""


@dataclass(frozen=True, slots=True)
class View:
    """What a person asks for: (column, comparison, value) that all hold, a search, a state, an order."""

    filters: tuple[tuple[str, str, Any], ...] = ()
    search: str = ""
    state: str = ""
    sort: str = "audit_score"
    is_descending: bool = True
    like: int = 0

    @staticmethod
    def of(query: Sequence[tuple[str, str]]) -> View:
        """Read `column=value`, `confidence=<0.5`, `member=~cat`, `q=`, `state=`, `sort=-column`, `like=id`.

        Without `sort` the rows that look most like that of `like` come first, else the most suspicious.

        Raises:
            UsageError: no such column, or a value that it cannot have.
        """
        said = dict(query)
        filters = [_filter_of(name, value) for name, value in query if value and name in COLUMNS]
        if unknown := sorted({name for name, _ in query} - {*COLUMNS, *_WORDS}):
            raise UsageError(
                "filter", printable(f"{unknown[0]!r} is no column"), f"one of {', '.join(COLUMNS)}"
            )
        like = whole(said.get("like", ""))
        sort = said.get("sort", "") or ("" if like else "-audit_score")
        column, state = sort.removeprefix("-"), said.get("state", "")
        if column not in (*COLUMNS, *([""] if like else [])) or (state and state not in STATES):
            raise UsageError("sort", printable(f"{sort!r} {state!r} is no column"), "leave it out")
        return View(tuple(filters), said.get("q", "")[:1000], state, column, sort.startswith("-"), like)

    def where(self) -> tuple[str, dict[str, Any]]:
        """Give the condition as SQL, and its values by their names in it."""
        parts, values = ["true"], dict[str, Any]()
        for number, (column, sign, value) in enumerate(self.filters):
            parts.append(_condition(column, sign, value, f"$v{number}"))
            values |= {} if value is None else {f"v{number}": value}
        if self.search:
            parts.append("(" + " or ".join(f"contains(lower({name}), $q)" for name in SEARCHED) + ")")
            values["q"] = self.search.lower()
        parts += [STATES[self.state]] if self.state else []
        parts += ["look is not null"] if self.like else []
        return " and ".join(parts), values


_WORDS = ("q", "state", "sort", "page", "at", "like")


def whole(text: str) -> int:
    """Read a whole number of an address; 0 where it is none."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else 0


def _filter_of(column: str, text: str) -> tuple[str, str, Any]:
    sign = next((sign for sign in _SIGNS if text.startswith(sign)), "")
    value: Any = text.removeprefix(sign)
    if not value and sign in ("=", "!="):
        return column, sign, None  # nothing is there
    try:
        if column in _NUMBERS:
            value = float(value)
        elif column in _COUNTS:
            value = int(value)
        elif column in _TRUTHS:
            value = {"true": True, "false": False}[value]
    except (ValueError, KeyError):
        raise UsageError(
            column, printable(f"{value!r} is no value of it"), "such as 0.5, <0.5 or >=0.5"
        ) from None
    if sign == "~" and not isinstance(value, str):
        raise UsageError(column, "is no text, ~ looks for a part of a text", "compare with =, < or >")
    return column, sign or "=", value


def _condition(column: str, sign: str, value: Any, place: str) -> str:
    name = f'"{column}"'
    if value is None:
        return f"{name} is {'not ' if sign == '!=' else ''}null"
    if column == "flags":
        return f"{'not ' if sign == '!=' else ''}coalesce(list_contains({name}, {place}), false)"
    if sign == "~":
        return f"contains(lower({name}), lower({place}))"
    return f"{name} {_SIGNS[sign]} {place}"


def _audit(out: Folder) -> pa.RecordBatchReader:
    """Read the verdicts on all rows; none where nobody audited, nulls where an earlier camray did."""
    if not log.exists(out, AUDIT):
        return AUDIT_SCHEMA.empty_table().to_reader()
    table = log.dataset(out, AUDIT, log.opened(out, AUDIT))
    whole = ds.FileSystemDataset([*table.get_fragments()], AUDIT_SCHEMA, table.format, table.filesystem)
    return whole.scanner(**_READ_AHEAD).to_reader()


_READ_AHEAD: Any = {"batch_size": 16384, "batch_readahead": 2, "fragment_readahead": 4}


def _value(column: str) -> str:
    return "unnest(flags)" if column == "flags" else f'"{column}"'


def _shard_of(path: str) -> str:
    """Give explainer and key of the shard from the path of a file of records."""
    folder, _, name = path.rpartition("/")
    return f"{folder.rpartition('=')[2]}/{name.partition('-')[0]}"


def _files_of(row: Row) -> str:
    """Give explainer and key of the shard of a row."""
    return f"{row[PARTITION]}/{Shard(row['shard'], '', 0, '').key}"


def _target(explainer: str, row: Row) -> tuple[Any, ...]:
    return explainer, *(row[name] for name in ("shard", "index", "target_class", "detection"))


class Rows:
    """The rows of an OUT as they are when it is opened."""

    def __init__(self, out: Folder, table: Table, new_runs: Mapping[str, Sequence[str]]) -> None:
        """`new_runs`: by explainer the runs whose rows its latest audit called new."""
        self._table, self._spill = table, TemporaryDirectory(prefix="camray-serve-")
        self._lock, self._orders = threading.Lock(), OrderedDict[Any, NDArray[np.int64]]()
        self._counted = OrderedDict[Any, dict[str, list[tuple[Any, int]]]]()
        self._decisions = 0  # how often they changed
        self._files: defaultdict[str, list[Any]] | None = None
        limits: dict[str, str | bool | int | float | list[str]] = {
            "memory_limit": MEMORY,
            "temp_directory": self._spill.name,
            "autoinstall_known_extensions": "false",
        }
        self._db = duckdb.connect(":memory:", config=limits)
        self.close = weakref.finalize(self, _let_go, self._db, self._spill)
        """Let go of memory and temporary files; else that is done when nobody asks any more."""
        self._db.execute("attach ':memory:' as kept (compress)")
        self._db.execute("use kept")
        self._fill(out, new_runs)

    def _fill(self, out: Folder, new_runs: Mapping[str, Sequence[str]]) -> None:
        records = self._table.dataset().scanner(columns=[PARTITION, *_RECORD, "attributes"], **_READ_AHEAD)
        runs = pa.table({"run_id": pa.array([r for of in new_runs.values() for r in of], pa.string())})
        chosen = ", ".join(f'r."{name}"' for name in (PARTITION, *_RECORD))
        judged = ", ".join(f'a."{name}"' for name in _JUDGED)
        self._db.register("records_in", records.to_reader())
        self._db.register("audit_in", _audit(out))
        self._db.register("runs_in", runs)
        self._db.execute(
            "create table audited as select distinct on (explainer, shard, index) * from audit_in"
        )
        self._db.execute(
            f"create table rows as select {_ID} as id, r.place, {chosen}, "
            "array_to_string(list_transform(map_entries(r.attributes), lambda e: e.key || '=' || e.value), "
            f"' ') as attributes, {judged}, r.run_id in (select run_id from runs_in) as is_new, "
            "try_cast('0x' || r.image_hash as ubigint) as look "
            "from (select row_number() over () - 1 as place, * from records_in) r left join audited a "
            "on r.explainer = a.explainer and r.shard = a.shard and r.index = a.index"
        )
        self._db.execute("drop table audited")
        for name in ("records_in", "audit_in", "runs_in"):
            self._db.unregister(name)
        self._db.execute("create table decided (id bigint, reviewer varchar, decision varchar)")
        self._db.execute("create table settled (explainer varchar, cause varchar, decision varchar)")

    def records(self, rows: Sequence[Row]) -> list[Row]:
        """Read the whole records of rows, heatmaps too, from their files; each file once."""
        with self._lock:
            if self._files is None:
                self._files = defaultdict(list)
                for fragment in self._table.dataset().get_fragments():
                    self._files[_shard_of(fragment.path)].append(fragment)
        wanted: dict[str, set[int]] = {}
        for row in rows:
            wanted.setdefault(_files_of(row), set()).update({row["index"]} - {None})
        found = {
            _target(name.partition("/")[0], record): record
            for name, indices in wanted.items()
            for fragment in self._files.get(name, [])
            for record in fragment.to_table(
                RECORD_SCHEMA, filter=ds.field("index").isin(sorted(indices)) | ds.field("index").is_null()
            ).to_pylist()
        }
        return [found[_target(row[PARTITION], row)] | {PARTITION: row[PARTITION]} for row in rows]

    def chosen(self, condition: str, explainer: str, limit: int) -> list[int]:
        """Give the ids of an explainer's rows that a condition in SQL chooses, the most suspicious first.

        The condition is the owner's own, and may read these rows and nothing else.

        Raises:
            UsageError: DuckDB does not take it.
        """
        with self._db.cursor() as cursor:
            cursor.execute("use kept")
            cursor.execute("set enable_external_access = false")
            try:
                asked = f"select id, place, audit_score from rows where explainer = $1 and ({condition}\n)"
                found = cursor.execute(
                    f"select id from ({asked}) order by audit_score desc nulls last, place limit $2",
                    [explainer, limit],
                ).fetchall()
            except (duckdb.Error, ValueError) as error:
                why = printable(str(error).partition("\n")[0], 200)
                raise UsageError("--where", why, f"a condition on {', '.join(COLUMNS[:6])} ...") from None
        return [row[0] for row in found]

    def _ask(self, sql: str, values: Any = None) -> list[tuple[Any, ...]]:
        with self._db.cursor() as cursor:
            cursor.execute("use kept")
            return cursor.execute(sql, values).fetchall()

    def order(self, view: View) -> NDArray[np.int64]:
        """Give the ids of a view in its order."""
        key = view, self._decisions if view.state else 0
        with self._lock:
            if key in self._orders:
                self._orders.move_to_end(key)
                return self._orders[key]
        where, values = view.where()
        sort = (
            f'"{view.sort}" {"desc" if view.is_descending else "asc"}' if view.sort else self._nearness(view)
        )
        with self._db.cursor() as cursor:
            cursor.execute("use kept")
            sql = f"select id from rows where {where} order by {sort} nulls last, place"
            asked = cursor.execute(sql, values)
            found: NDArray[np.int64] = asked.fetchnumpy()["id"].astype(np.int64)
        with self._lock:
            self._orders[key] = found
            while len(self._orders) > VIEWS:
                self._orders.popitem(last=False)
        return found

    def _nearness(self, view: View) -> str:
        """Give the order of likeness as SQL: bits of the hash that differ, and colours by their deviations.

        Raises:
            UsageError: there is no such image.
        """
        chosen = ", ".join(f"{name}, (select stddev_pop({name}) from rows)" for name in _COLOURS)
        found = self._ask(f"select look, {chosen} from rows where id = $1", [view.like])
        if not found or found[0][0] is None:
            raise UsageError("like", "there is no such image", "choose one of the list")
        look, *colours = found[0]
        pairs = zip(_COLOURS, colours[::2], colours[1::2], strict=True)
        apart = [
            f"abs({name} - {value!r}) / {by!r}"
            for name, value, by in pairs
            if value is not None and by and math.isfinite(value / by)
        ]
        return f"bit_count(xor(look, {look}::ubigint)) + 2 * ({' + '.join(apart) or 0})"

    def rows(self, ids: Sequence[int], columns: Sequence[str] = COLUMNS) -> list[Row]:
        """Give rows by id, in the order asked for."""
        chosen = ", ".join(f'"{name}"' for name in columns if name in COLUMNS)
        found = self._ask(
            f"select id, {chosen} from rows where id in (select unnest($1::bigint[]))",
            [[i for i in map(int, ids) if i < 2**63]],
        )
        known = {row[0]: dict(zip(("id", *columns), row, strict=True)) for row in found}
        return [known[int(i)] for i in ids if int(i) in known]

    def parts(
        self, ids: NDArray[np.int64], columns: Sequence[str] = COLUMNS, size: int = 5000
    ) -> Iterator[list[Row]]:
        """Give many rows, some at a time."""
        for start in range(0, len(ids), size):
            yield self.rows(ids[start : start + size].tolist(), columns)

    def counts(self, view: View, columns: Sequence[str], most: int = 200) -> dict[str, list[tuple[Any, int]]]:
        """Count the rows of a view by the values of each column, the most frequent first."""
        key = view, tuple(columns), self._decisions if view.state else 0
        if key in self._counted:
            return self._counted[key]
        where, values = view.where()
        chosen = ", ".join(f'"{name}"' for name in columns)
        parts = [
            f"(select {place} as place, {_value(name)}::varchar as value, count(*) as n from v group by 2 "
            f"order by n desc, value limit {most})"
            for place, name in enumerate(columns)
        ]
        sql = f"with v as materialized (select {chosen} from rows where {where}) " + " union all ".join(parts)
        found: dict[str, list[tuple[Any, int]]] = {name: [] for name in columns}
        for place, value, n in self._ask(sql, values):
            if value is not None:
                found[columns[place]].append((value, n))
        with self._lock:
            self._counted[key] = found
            while len(self._counted) > 8 * VIEWS:
                self._counted.popitem(last=False)
        return found

    @property
    def total(self) -> int:
        """How many rows there are."""
        return self.size(View())

    def size(self, view: View) -> int:
        """Count the rows of a view."""
        where, values = view.where()
        return int(self._ask(f"select count(*) from rows where {where}", values)[0][0])

    def means(self, view: View) -> Row:
        """Give the mean confidence of a view, and the share of its rows with a label that are right."""
        where, values = view.where()
        sql = f"select avg(confidence), avg(correct::int), avg(heat_ring_mass) from rows where {where}"
        return dict(zip(("confidence", "correct", "heat_ring_mass"), self._ask(sql, values)[0], strict=True))

    def classes(self, explainer: str) -> list[Row]:
        """Count the answers of an explainer by class."""
        flagged = ("shortcut_confirmed", "shortcut_suspected", "wrong", "label_suspect")
        counts = ", ".join(f"count(*) filter (list_contains(flags, '{flag}')) as {flag}" for flag in flagged)
        sql = (
            f"select predicted_class, count(*) as images, {counts}, avg(confidence), avg(correct::int) "
            "from rows where explainer = $1 and predicted_class is not null "
            "group by 1 order by 3 desc, 2 desc, 1"
        )
        names = ("class_id", "images", *flagged, "confidence", "correct")
        return [dict(zip(names, row, strict=True)) for row in self._ask(sql, [explainer])]

    def pairs(self, one: tuple[str, str], two: tuple[str, str]) -> Row | None:
        """Compare the same images on two sides (explainer or run_id, value); None where none is on both.

        `first`: pairs of ids, other answers first, then by how much confidence moved.
        """
        if one == two or not {one[0], two[0]} <= {PARTITION, "run_id"}:
            return None
        sql = (
            "with both_sides as materialized (select a.id as a, b.id as b, "
            "a.predicted_class is distinct from b.predicted_class as flipped, "
            "b.confidence - a.confidence as shift, coalesce(b.correct and not a.correct, false) as repaired, "
            "coalesce(a.correct and not b.correct, false) as broken from rows a join rows b "
            "on a.shard = b.shard and a.index = b.index and a.content_sha256 = b.content_sha256 "
            "and a.id <> b.id and a.target_class is not distinct from a.predicted_class "
            "and b.target_class is not distinct from b.predicted_class "
            f'where a."{one[0]}" = $1 and b."{two[0]}" = $2) '
        )
        sums = ", ".join(f"sum({name}::int)" for name in ("flipped", "repaired", "broken"))
        counted = f"select count(*), {sums}, avg(shift) from both_sides"
        names = ("images", "flipped", "repaired", "broken", "shift")
        found = dict(zip(names, self._ask(sql + counted, [one[1], two[1]])[0], strict=True))
        if not found["images"]:
            return None
        order = "select a, b from both_sides order by flipped desc, abs(shift) desc nulls last, a limit 24"
        return found | {"first": self._ask(sql + order, [one[1], two[1]])}

    def decide(
        self, said: Mapping[tuple[Any, ...], Mapping[str, Mapping[str, Any]]], image: Row | None = None
    ) -> None:
        """Take over what stands of decisions (`Reviews.standing`), of all images or of one."""
        rows = [row for of in said.values() for row in of.values()]
        on_images = [row for row in rows if not row.get("cause") and (image is None or _is_of(row, image))]
        told = pa.Table.from_pylist(on_images, QA_SCHEMA)
        settled = pa.Table.from_pylist([row for row in rows if row.get("cause")], QA_SCHEMA)
        with self._lock, self._db.cursor() as cursor:
            cursor.execute("use kept")
            ids = "true" if image is None else "id in (select id from rows where shard = $s and index = $i)"
            values = {} if image is None else {"s": image["shard"], "i": image["index"]}
            cursor.execute(f"delete from decided where {ids}", values)
            for name, table, sql in (("told", told, _DECIDED), ("settling", settled, _SETTLED)):
                cursor.register(name, table)
                cursor.execute(sql)
                cursor.unregister(name)
            self._decisions += 1


def _let_go(db: duckdb.DuckDBPyConnection, spill: TemporaryDirectory[str]) -> None:
    db.close()
    spill.cleanup()


_DECIDED = (
    "insert into decided select r.id, t.reviewer, t.decision from told t join rows r "
    "on r.explainer = t.explainer and r.shard = t.shard and r.index = t.index and r.verdict = t.verdict "
    "and r.content_sha256 is not distinct from t.content_sha256"
)
_SETTLED = "create or replace table settled as select explainer, cause, decision from settling"


def _is_of(row: Mapping[str, Any], image: Row) -> bool:
    return all(row[name] == image[name] for name in ("explainer", "shard", "index"))
