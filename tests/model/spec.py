"""The ledger as a specification: its atomic steps, in the order in which camray takes them.

Read it beside the code: a driver is `job/prepare.py`, `job/run.py`, `ledger/commit.py` and
`ledger/table.py::Table.commit`; the hold is `ledger/hold.py`; prune is `upkeep/prune.py`. Each function here
is one step that others see whole: a list, one file put, a read of the log, a put of the next entry if it is
absent, a look at the hold, a delete. `moves` gives every step that any process can take next. A state is a
tuple of integers, so that millions of them can be compared.

The world: drivers with a worker for each of two shards of two chunks; shard 1 changes once. A record file is
one bit, (run, shard, version, chunk); a log entry is (run, added files, removed files). The reader and the
audit are the invariants, asked in every state: they see what the log says at that moment.

Left out: the grouping of loose files, overlays, a prune that is frozen itself, workers that outlive a driver.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

SHARDS, CHUNKS, VERSIONS, RUNS = 2, 2, 2, 8
PRUNE = 99  # as a holder of OUT
PACKS = RUNS  # as the run that wrote a part of a pack
SEEN = -10  # less a number: that of the hold that was seen; Python gives -1 and -2 one hash
MEMBERS = 2  # of a chunk; one of them fails, and has a row all the same
SHORT = "rows only for what went well"  # and nobody compares rows with members


def bit(run: int, shard: int, version: int, chunk: int) -> int:
    """Name one record file."""
    return 1 << (((run * SHARDS + shard) * VERSIONS + version) * CHUNKS + chunk)


def _mask(shard: int, version: int | None = None, chunk: int | None = None) -> int:
    return sum(
        bit(r, shard, v, c)
        for r in range(RUNS + 1)
        for v in range(VERSIONS)
        for c in range(CHUNKS)
        if version in (None, v) and chunk in (None, c)
    )


SHARD = [_mask(s) for s in range(SHARDS)]
CONTENT = [[_mask(s, v) for v in range(VERSIONS)] for s in range(SHARDS)]
CHUNK = [[[_mask(s, v, c) for c in range(CHUNKS)] for v in range(VERSIONS)] for s in range(SHARDS)]
PACKED = sum(bit(PACKS, s, v, c) for s in range(SHARDS) for v in range(VERSIONS) for c in range(CHUNKS))
Entry = tuple[int, int, int]


class Setting(NamedTuple):
    """What may happen, how often, and which protections are taken out (`off`)."""

    force: tuple[bool, ...] = (False, True)  # of each driver
    crashes: int = 0  # kill -9 of a driver, a worker or prune
    lost: int = 0  # a log entry is put, the answer is lost
    freezes: int = 0  # of driver 0, and it wakes
    losses: int = 0  # of power: every process ends; what was not flushed may be gone
    full: int = 0  # the disk is full for one write
    changes: int = 0  # shard 1 of the archive changes
    days: int = 0  # a day passes: what no commit names is old enough for prune
    ignores: bool = False  # a store that ignores put-if-absent
    packs: bool = False  # prune puts small files together
    off: frozenset[str] = frozenset()


class Driver(NamedTuple):
    """One `camray explain`, its workers, and what it remembers."""

    run: int
    at: str = "open"
    frozen: bool = False
    before: int = 0  # committed files when the table was opened
    want: tuple[int, ...] = ()  # the listing: the version of each shard
    open: int = 0  # shards not committed, a bit each
    reused: int = 0  # whole chunks that the plan found
    sent: int = 0  # files whose receipts are on their way
    got: int = 0  # files whose receipts the desk has
    due: int = 0  # sabotage: receipts sent before their files
    number: int = 0  # of its hold
    snap: int = -1  # the log as last read: entries, and what is live; -1: to be read
    live: int = 0


class Prune(NamedTuple):
    """One `camray prune --yes`."""

    at: str = "open"
    number: int = 0
    live: int = 0
    snap: int = 0  # entries of the log as it read it


class World(NamedTuple):
    """Everything there is."""

    drivers: tuple[Driver, ...]
    prune: Prune
    archive: tuple[int, ...] = (0, 0)
    files: int = 0  # whole and durable
    soft: int = 0  # sabotage: whole, not flushed
    old: int = 0  # older than a day
    log: tuple[Entry, ...] = ()
    durable: int = 0  # a bit for each entry that is flushed
    hold: tuple[int, int, bool] = (0, -1, True)  # number, run, ended
    kept: tuple[int, ...] = (-1, -1)  # what was promised of each shard: its version
    left: tuple[int, ...] = ()  # crashes, lost answers, freezes, losses, full disks, changes, days
    wrong: str = ""  # a step that broke an invariant


CRASH, LOST, FREEZE, LOSS, FULL, CHANGE, DAY = range(7)
Move = tuple[str, World]


def first(s: Setting, prune: bool = False) -> World:
    """Give the world before anything happened."""
    drivers = tuple(Driver(i) for i in range(len(s.force)))
    left = (s.crashes, s.lost, s.freezes, s.losses, s.full, s.changes, s.days)
    return World(drivers, Prune("open" if prune else "end"), left=left)


# ── what the log says ────────────────────────────────────────────────────────────────────────────


@lru_cache(maxsize=1 << 18)
def live(log: tuple[Entry, ...]) -> int:
    """Give the files that a reader of this log sees."""
    seen = 0
    for _run, added, removed in log:
        seen = seen & ~removed | added
    return seen


@lru_cache(maxsize=1 << 18)
def shapes(files: int) -> tuple[int, ...] | str:
    """Give the version of each shard that a reader sees, -1 where there is none; or what is wrong."""
    found = []
    for s in range(SHARDS):
        versions = [v for v in range(VERSIONS) if files & CONTENT[s][v]]
        counts = [(files & CHUNK[s][v][c]).bit_count() for v in versions for c in range(CHUNKS)]
        if len(versions) > 1 or any(n > 1 for n in counts):
            return "nothing repeated"
        if 0 in counts:
            return "a reader sees whole shards"
        found.append(versions[0] if versions else -1)
    return tuple(found)


def broken(w: World, setting: Setting) -> str:
    """Name the invariant that does not hold in this state."""
    if w.wrong:
        return w.wrong
    seen = live(w.log)
    versions = shapes(seen)
    if isinstance(versions, str):
        return versions
    if seen & ~(w.files | w.soft):
        gone = seen & ~(w.files | w.soft)
        return "what prune deletes no commit names" if gone & w.old else "nothing torn"
    if any(has < kept for has, kept in zip(versions, w.kept, strict=True)):
        return "nothing lost"
    holding = sum(d.number > 0 and d.at not in ENDS for d in w.drivers)
    if holding > 1 and not any(setting.force) and not setting.freezes:
        return "one run holds OUT"
    return ""


ENDS = ("done", "held", "stopped")  # exit 0, 7, 4 or 2


# ── the steps of a driver ────────────────────────────────────────────────────────────────────────


def drive(w: World, i: int, s: Setting) -> Iterator[Move]:
    """Give every next step of driver `i`; a step is told by its name."""
    d = w.drivers[i]
    for name, after in _DRIVE[d.at](w, i, d, s):
        yield f"driver {i}: {name}", after


def _set(w: World, i: int, d: Driver, **world: object) -> World:
    return w._replace(drivers=(*w.drivers[:i], d, *w.drivers[i + 1 :]), **world)  # type: ignore[arg-type]


def _open(w: World, i: int, d: Driver, s: Setting) -> Iterator[Move]:
    """`Table(out)`: read the log, before the archive is listed, and flush it: all stands on it."""
    if "log read before the listing" in s.off and not d.want:
        yield "lists", _set(w, i, d._replace(want=w.archive))
        return
    at = "plan" if d.want else "list"
    yield "reads the log", _set(w, i, d._replace(at=at, before=live(w.log)), durable=_flushed(w, s))


def _flushed(w: World, s: Setting) -> int:
    off = {"what is read is flushed", "no flush of the log"} & s.off
    return w.durable if off else (1 << len(w.log)) - 1


def _list(w: World, i: int, d: Driver, s: Setting) -> Iterator[Move]:
    """`list_archive`."""
    yield "lists", _set(w, i, d._replace(at="plan", want=w.archive))


def _planned(w: World, d: Driver, seen: int, s: Setting) -> Driver:
    """`make_plan`: what the table does not hold, and whole chunks that no commit names."""
    todo = reused = 0
    for shard, version in enumerate(d.want):
        if seen & CONTENT[shard][version] and "committed work forgotten" not in s.off:
            continue
        todo |= 1 << shard
        for c in range(CHUNKS):
            found = w.files & CHUNK[shard][version][c] & ~seen & ~PACKED  # a pack is no finished chunk
            reused |= found & -found  # one of them
    return d._replace(open=todo, reused=reused)


def _plan(w: World, i: int, d: Driver, s: Setting) -> Iterator[Move]:
    planned = _planned(w, d, d.before, s)
    yield "plans", _set(w, i, planned._replace(at="look")) if planned.open else _done(w, i, planned)


def _look(w: World, i: int, d: Driver, s: Setting) -> Iterator[Move]:
    """`hold._take`: see the last number, wait for its end unless forced."""
    number, run, ended = w.hold
    lives = not ended and _lives(w, run)
    waits = not s.force[i] or (run == PRUNE and "prune is not forced aside" not in s.off)
    if lives and waits and not {"no hold", "hold by this machine's clock"} & s.off:
        yield "is refused: OUT is held", _set(w, i, d._replace(at="held"))
    else:
        yield "sees that OUT is free", _set(w, i, d._replace(at="take", number=SEEN - number))


def _lives(w: World, run: int) -> bool:
    """Tell whether the heartbeat of a holder changes within 60 s."""
    if run == PRUNE:
        return w.prune.at != "end"
    return any(d.run == run and not d.frozen and d.at not in ENDS for d in w.drivers)


def _take(w: World, i: int, d: Driver, s: Setting) -> Iterator[Move]:
    """`Folder.create` of the next number: of all who make it, one does. Then it is asked for once more."""
    number = SEEN - d.number + 1
    if w.hold[0] >= number and not (s.ignores and w.hold[0] == number):
        yield "finds the number taken", _set(w, i, d._replace(at="look", number=0))
    elif s.ignores and "no second create" not in s.off:
        yield "is told: the store ignores If-None-Match", _set(w, i, d._replace(at="stopped", number=0))
    else:
        at = "work" if "plan again" in s.off else "reopen"
        yield (
            f"makes hold {number}",
            _set(w, i, d._replace(at=at, number=number), hold=(number, d.run, False)),
        )


def _reopen(w: World, i: int, d: Driver, s: Setting) -> Iterator[Move]:
    """Read the log under the hold ..."""
    again = d._replace(at="replan", live=live(w.log), snap=len(w.log))
    yield "reads the log again", _set(w, i, again, durable=_flushed(w, s))


def _replan(w: World, i: int, d: Driver, s: Setting) -> Iterator[Move]:
    """... and plan again what was planned: somebody may have committed or pruned since."""
    planned = _planned(w, d, d.live, s)
    todo = planned.open & d.open
    if "unpack first" not in s.off and any(
        todo >> n & 1 and d.live & SHARD[n] & PACKED for n in range(SHARDS)
    ):
        yield "finds a pack in its way", _set(w, i, d._replace(at="unpack"))
        return
    planned = planned._replace(at="work" if todo else "end", open=todo, live=0, snap=-1)
    yield "plans again", _set(w, i, planned)


def _unpack(w: World, i: int, d: Driver, s: Setting) -> Iterator[Move]:
    """`ledger/pack.py::unpack`: all that lies in the pack gets files of its own ..."""
    made = as_files(d.live & PACKED, d.run)
    yield "writes the files of a pack", _set(w, i, d._replace(at="unpacked"), files=w.files | made)


def _unpacked(w: World, i: int, d: Driver, s: Setting) -> Iterator[Move]:
    """... in one entry, if it is absent; then all is read and planned again."""
    if len(w.log) > d.snap:
        yield "stops: somebody else committed", _ended(w, i, d, "stopped")
        return
    packed = d.live & PACKED
    log = (*w.log, (d.run, as_files(packed, d.run), packed))
    yield f"puts entry {d.snap}, of the unpacked", _set(w, i, d._replace(at="reopen", snap=-1), log=log)


def as_files(files: int, run: int) -> int:
    """Give the files that a run makes of the same rows."""
    return sum(
        bit(run, n, v, c)
        for n in range(SHARDS)
        for v in range(VERSIONS)
        for c in range(CHUNKS)
        if files & CHUNK[n][v][c]
    )


def _work(w: World, i: int, d: Driver, s: Setting) -> Iterator[Move]:
    """Workers write chunks; the desk takes receipts, and commits what is finished."""
    for shard in range(SHARDS):
        if d.open >> shard & 1:
            yield from _worker(w, i, d, shard, s)
    if d.sent:
        yield "takes receipts", _set(w, i, d._replace(sent=0, got=d.got | d.sent))
    if any(d.open >> shard & 1 and _finished(d, shard) for shard in range(SHARDS)):
        at = "read" if d.snap < 0 else "confirm"
        yield (
            "begins a commit",
            _set(w, i, d._replace(at=at if "hold seen after the log" not in s.off else "early")),
        )
    if d.due:
        yield "writes the file of a receipt", _set(w, i, d._replace(due=0), files=w.files | d.due)


def _worker(w: World, i: int, d: Driver, shard: int, s: Setting) -> Iterator[Move]:
    """One chunk: `write_records`, then its receipt. Finished chunks are passed over."""
    version = d.want[shard]
    skip = 0 if "finished chunks forgotten" in s.off else d.reused
    for c in range(CHUNKS):
        place = CHUNK[shard][version][c]
        if (d.got | d.sent | skip) & place:
            continue
        made = bit(d.run, shard, version, c)
        told = d._replace(sent=d.sent | made)
        what = f"puts chunk {c} of shard {shard}, version {version}"
        wrong = "committed work is not done again" if (d.reused | d.before) & place else ""
        if "receipt before file" in s.off:
            yield "tells of " + what, _set(w, i, told._replace(due=d.due | made))
        elif "no flush" in s.off:
            yield what, _set(w, i, told, soft=w.soft | made, wrong=wrong)
        else:
            yield what, _set(w, i, told, files=w.files | made, wrong=wrong)
        if w.left[FULL]:
            spent = _spent(w, FULL)
            if "a full disk goes unnoticed" in s.off:
                yield "misses that the disk is full", _set(w, i, told, left=spent)
            else:
                yield "stops: the disk is full", _ended(_set(w, i, d, left=spent), i, d, "stopped")
        return


def _finished(d: Driver, shard: int) -> bool:
    """`_Open.finished`: every chunk has its receipt."""
    return all((d.got | d.reused) & CHUNK[shard][d.want[shard]][c] for c in range(CHUNKS))


def _early(w: World, i: int, d: Driver, s: Setting) -> Iterator[Move]:
    """As it was: the hold is seen before the log is read."""
    if w.hold[:2] != (d.number, d.run):
        yield "stops: OUT was taken over", _ended(w, i, d, "stopped")
    else:
        yield "sees that it holds OUT", _set(w, i, d._replace(at="read" if d.snap < 0 else "put"))


def _read(w: World, i: int, d: Driver, s: Setting) -> Iterator[Move]:
    """`update_incremental`, before the first commit and after a refused one."""
    at = "confirm" if "hold seen after the log" not in s.off else "put"
    read = d._replace(at=at, snap=len(w.log), live=live(w.log))
    yield "reads the log", _set(w, i, read, durable=_flushed(w, s))


def _confirm(w: World, i: int, d: Driver, s: Setting) -> Iterator[Move]:
    """`Held.confirm`, behind the read of the log."""
    if w.hold[:2] != (d.number, d.run):
        yield "stops: OUT was taken over", _ended(w, i, d, "stopped")
    else:
        yield "sees that it holds OUT", _set(w, i, d._replace(at="put"))


def _put(w: World, i: int, d: Driver, s: Setting) -> Iterator[Move]:
    """`_write`: the next entry, if it is absent. What is there already is left out."""
    entry, stale, mine = _entry(d, s)
    rows, members = entry[1].bit_count() * (MEMBERS - (SHORT in s.off)), mine.bit_count() * CHUNKS * MEMBERS
    if stale:
        yield "stops: another run committed other content", _ended(w, i, d, "stopped")
        return
    if not mine:
        yield "finds its shards committed", _set(w, i, _committed(d))
        return
    index = d.snap
    if len(w.log) > index and not s.ignores and "commit without looking" not in s.off:
        yield "is refused: somebody else committed", _set(w, i, d._replace(at="read", snap=-1))
        return
    if "commit without looking" in s.off:
        index = len(w.log)
    wrong = "accounting is exact" if rows != members else _wrong(w, index, entry)
    log = (*w.log[:index], entry, *w.log[index + 1 :])
    after = w._replace(log=log, durable=w.durable & ~(1 << index), wrong=wrong)
    yield f"puts entry {index}", _set(after, i, d._replace(at="flush"))
    if w.left[LOST]:
        again = d._replace(at="read", snap=-1)
        yield f"puts entry {index}, the answer is lost", _set(after, i, again, left=_spent(w, LOST))


def _entry(d: Driver, s: Setting) -> tuple[Entry, bool, int]:
    """Give the entry; whether a shard is not as the plan saw it; the shards that are put."""
    added = removed = mine = 0
    blind = {"commit without looking", "committed work forgotten"} & s.off
    for shard in range(SHARDS):
        if not d.open >> shard & 1 or not _finished(d, shard):
            continue
        current = 0 if blind else d.live & SHARD[shard]
        if current & CONTENT[shard][d.want[shard]]:
            continue
        is_other = versions_of(current, shard) != versions_of(d.before, shard)
        if is_other and "replace what the plan saw" not in s.off and not blind:
            return (d.run, 0, 0), True, 0
        if current & PACKED:  # the whole file would go
            if "unpack first" not in s.off:
                return (d.run, 0, 0), True, 0
            current |= d.live & PACKED
        mine |= 1 << shard
        removed |= current
        for c in range(CHUNKS):
            place = CHUNK[shard][d.want[shard]][c]
            added |= (d.got & place) or (d.reused & place)
    return (d.run, added, removed), False, mine


def versions_of(files: int, shard: int) -> list[bool]:
    """Give which contents of a shard are among these files."""
    return [bool(files & CONTENT[shard][v]) for v in range(VERSIONS)]


def _wrong(w: World, index: int, entry: Entry) -> str:
    """Look at an entry as it is put: no content is committed twice, none gives way to an older one."""
    seen = live(w.log[:index])
    for shard in range(SHARDS):
        for version in range(VERSIONS):
            if entry[1] & CONTENT[shard][version] and seen & CONTENT[shard][version]:
                return "committed work is not done again"
            if entry[1] & CONTENT[shard][version] and seen & SHARD[shard] and seen & CONTENT[shard][-1]:
                return "nothing lost"
    return ""


def _flush(w: World, i: int, d: Driver, s: Setting) -> Iterator[Move]:
    """`log.flush`, and `_follow`: the commit is promised from here on."""
    index = d.snap if "commit without looking" not in s.off else len(w.log) - 1
    flushed = 0 if "no flush of the log" in s.off else 1 << index
    snap = index + 1 if len(w.log) == index + 1 else -1
    mine = _committed(d)._replace(snap=snap, live=live(w.log) if snap > 0 else 0)
    kept = w.kept if s.ignores else _promised(w.kept, d, mine)
    yield "flushes the log", _set(w, i, mine, durable=w.durable | flushed, kept=kept)


def _promised(kept: tuple[int, ...], before: Driver, after: Driver) -> tuple[int, ...]:
    now = before.open & ~after.open
    return tuple(max(k, before.want[n]) if now >> n & 1 else k for n, k in enumerate(kept))


def _committed(d: Driver) -> Driver:
    left = sum(1 << n for n in range(SHARDS) if d.open >> n & 1 and not _finished(d, n))
    return d._replace(open=left, at="work" if left else "end")


def _end(w: World, i: int, d: Driver, s: Setting) -> Iterator[Move]:
    """`CommitDesk.confirm`, a second look at the table; then the last heartbeat, and exit 0."""
    versions = shapes(live(w.log))
    gone = s.ignores and any(has < want for has, want in zip(versions, d.want, strict=True))
    if gone and "no second look at the table" not in s.off:
        yield "is told: commits are gone", _ended(w, i, d, "stopped")
    else:
        yield "ends well", _done(_ended(w, i, d, "done"), i, d)


def _done(w: World, i: int, d: Driver) -> World:
    kept = tuple(max(k, want) for k, want in zip(w.kept, d.want, strict=True))
    return _set(w, i, Driver(d.run, "done", want=d.want), kept=kept)


def _ended(w: World, i: int, d: Driver, at: str) -> World:
    """Say in the heartbeat that it has ended."""
    hold = (*w.hold[:2], True) if w.hold[:2] == (d.number, d.run) else w.hold
    return _set(w, i, Driver(d.run, at, want=d.want), hold=hold)


_DRIVE = {
    "open": _open, "list": _list, "plan": _plan, "look": _look, "take": _take,
    "reopen": _reopen, "replan": _replan, "unpack": _unpack, "unpacked": _unpacked, "work": _work,
    "early": _early, "read": _read,
    "confirm": _confirm, "put": _put, "flush": _flush, "end": _end,
}  # fmt: skip


# ── prune ────────────────────────────────────────────────────────────────────────────────────────


def prune(w: World, s: Setting) -> Iterator[Move]:
    """Give the next step of prune."""
    p = w.prune
    if p.at == "open":
        yield "prune: reads the log", w._replace(prune=p._replace(at="look", live=live(w.log)))
    elif p.at == "look":
        number, run, ended = w.hold
        free = ended or not _lives(w, run)
        then = Prune("take", SEEN - number, p.live) if free else Prune("end")
        yield f"prune: {'sees that OUT is free' if free else 'is refused'}", w._replace(prune=then)
    elif p.at == "take":
        number = SEEN - p.number + 1
        if w.hold[0] >= number:
            yield "prune: finds the number taken", w._replace(prune=Prune("look", 0, p.live))
            return
        at = "reopen" if "prune puts an entry first" in s.off else "announce"
        yield (
            f"prune: makes hold {number}",
            w._replace(prune=Prune(at, number, p.live), hold=(number, PRUNE, False)),
        )
    elif p.at == "reopen":
        again = p.live if "prune reads again" in s.off else live(w.log)
        at = "pack" if s.packs and again & ~PACKED else "delete"
        yield "prune: reads the log again", w._replace(prune=p._replace(at=at, live=again, snap=len(w.log)))
    elif p.at == "pack":
        packed = as_files(p.live, PACKS)
        yield "prune: writes packs", w._replace(prune=p._replace(at="entry"), files=w.files | packed)
    elif p.at == "entry":
        if len(w.log) > p.snap:
            yield "prune: is refused: somebody else committed", w._replace(prune=Prune("end"))
            return
        packed = as_files(p.live, PACKS)
        log = (*w.log, (PACKS, packed, p.live & ~packed))
        now = p._replace(at="flush", live=packed)
        yield f"prune: puts entry {p.snap}, of the packs", w._replace(prune=now, log=log)
    elif p.at == "flush":
        yield "prune: flushes the log", w._replace(prune=p._replace(at="delete"), durable=_flushed(w, s))
    elif p.at == "announce":
        log = (*w.log, (PRUNE, 0, 0))
        yield "prune: puts an empty entry", w._replace(prune=p._replace(at="reopen"), log=log)
    elif p.at == "delete":
        hold = (*w.hold[:2], True) if w.hold[:2] == (p.number, PRUNE) else w.hold
        gone = w.old & ~p.live
        yield "prune: deletes", w._replace(prune=Prune("end"), files=w.files & ~gone, hold=hold)


# ── what the world does ──────────────────────────────────────────────────────────────────────────


def _spent(w: World, what: int) -> tuple[int, ...]:
    return (*w.left[:what], w.left[what] - 1, *w.left[what + 1 :])


def chance(w: World, s: Setting) -> Iterator[Move]:
    """Give everything that may happen to the processes."""
    if w.left[CHANGE]:
        yield "shard 1 changes", w._replace(archive=(0, 1), left=_spent(w, CHANGE))
    if w.left[DAY] and w.files:
        yield "a day passes", w._replace(old=w.files, left=_spent(w, DAY))
    if w.left[LOSS]:
        yield from _power_loss(w)
    for i, d in enumerate(w.drivers):
        if d.at in ENDS:
            continue
        if w.left[CRASH] and d.at != "open":
            left = _spent(w, CRASH)
            yield f"driver {i} is killed, and started again", _set(w, i, _again(d), left=left)
            if d.sent:
                yield f"a worker of driver {i} is killed", _set(w, i, d._replace(sent=0), left=left)
    d = w.drivers[0]
    if d.frozen:
        yield "driver 0 wakes", _set(w, 0, d._replace(frozen=False))
    elif w.left[FREEZE] and d.number > 0 and d.at not in ENDS:
        yield "driver 0 is frozen", _set(w, 0, d._replace(frozen=True), left=_spent(w, FREEZE))
    if w.left[CRASH] and w.prune.at in ("announce", "reopen", "pack", "entry", "flush", "delete"):
        yield "prune is killed", w._replace(prune=Prune("end"), left=_spent(w, CRASH))


def _again(d: Driver) -> Driver:
    """The same command, as a new run."""
    return Driver(d.run + 2)


def _power_loss(w: World) -> Iterator[Move]:
    """Every process ends. Of the entries that were not flushed any prefix is whole, one more may be empty."""
    drivers = tuple(d if d.at in ENDS else _again(d) for d in w.drivers)
    after = w._replace(drivers=drivers, prune=Prune("end"), left=_spent(w, LOSS), soft=0)
    unflushed = [n for n in range(len(w.log)) if not w.durable >> n & 1 and w.log[n][0] != PRUNE]
    for whole in range(len(unflushed) + 1):
        gone = unflushed[whole:]
        log = tuple((e[0], 0, 0) if n in gone else e for n, e in enumerate(w.log))
        kept = f", {len(gone)} entries are empty" if gone else ""
        yield f"the power is lost{kept}", after._replace(log=log, durable=(1 << len(log)) - 1)
        if gone and gone == list(range(gone[0], len(w.log))):
            log = w.log[: gone[0]]
            yield (
                f"the power is lost, {len(gone)} entries are gone",
                after._replace(log=log, durable=(1 << len(log)) - 1),
            )


def moves(w: World, s: Setting) -> Iterator[Move]:
    """Give every next step of the world."""
    for i, d in enumerate(w.drivers):
        if not d.frozen and d.at not in ENDS:
            yield from drive(w, i, s)
    if w.prune.at != "end":
        yield from prune(w, s)
    yield from chance(w, s)


def resumed(w: World, s: Setting) -> World:
    """Give the same command once more to a world at rest, and let nothing happen to it."""
    again = _set(w, 0, Driver(7), left=(0,) * 7)
    while again.drivers[0].at not in ENDS and not broken(again, s):
        again = next(drive(again, 0, s))[1]
    return again
