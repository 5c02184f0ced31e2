"""200 damages to an OUT of three nights and two explainers, one at a time: `camray verify` names every one.

Drawn: a file removed or renamed, two files swapped between explainers or runs, a log entry removed, a side
file damaged. What people put into the inbox they may take away; all else of OUT is drawn from.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote

import pytest

from camray.cli.main import main
from camray.ledger import side
from camray.upkeep import beside
from tests.faults.sabotage import AlwaysEqual

ROOT = Path(__file__).resolve().parents[2]
DAMAGES = int(os.environ.get("CAMRAY_DAMAGES", "200"))
Damage = Callable[[Path, random.Random], str]


def audited(archive: Path, out: Path, model: str) -> None:
    given = ["audit", str(archive), str(out), "--model", str(ROOT / "demo/models" / model)]
    assert main([*given, "--engine", "here"]) == 0


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("damage")
    archive, out = place / "archive", place / "out"
    archive.mkdir()
    tars = sorted((ROOT / "demo/archive").glob("*.tar"))
    with tarfile.open(tars[0]) as tar:
        tar.extractall(archive, filter="data")
    shutil.copy(tars[1], archive)
    audited(archive, out, "hans64-poisoned")
    shutil.copy(tars[2], archive)
    (out / "qa-inbox").mkdir()
    decision = {
        "explainer": next((out / "explainers").iterdir()).stem, "shard": "s", "member": "m", "index": 0,
        "content_sha256": None, "verdict": "wrong", "decision": "accepted", "decided_at": "2026-11-27",
    }  # fmt: skip
    review = {"camray_review": 1, "decisions": [decision]}
    (out / "qa-inbox/review.json").write_text(json.dumps(review))
    audited(archive, out, "hans64-poisoned")
    audited(archive, out, "hans64-clean")
    assert main(["prune", str(out), "--keep-last", "2", "--yes"]) == 0  # checkpoints, pruned.json
    return out


def files(out: Path, *patterns: str) -> list[Path]:
    """Files of OUT, without those of tables that a later version replaced: they are of no use any more."""
    found = {p for pattern in patterns for p in out.glob(pattern) if p.is_file()}
    for log in out.glob("*/_delta_log/*.json"):
        for action in map(json.loads, log.read_text().splitlines()):
            if "remove" in action:
                found.discard(log.parents[1] / unquote(action["remove"]["path"]))
    return sorted(found)


MADE_ANEW = {"qa-inbox", "carried"}  # a person's files once taken in, sums of the audit: no loss


def remove(out: Path, chance: random.Random) -> str:
    path = chance.choice([p for p in files(out, "**/*") if not MADE_ANEW & {*p.parts}])
    path.unlink()
    return str(path.relative_to(out))


def rename(out: Path, chance: random.Random) -> str:
    path = chance.choice([p for p in files(out, "**/*") if not MADE_ANEW & {*p.parts}])
    path.rename(path.with_name(f"x{path.name}"))
    return str(path.relative_to(out))


def swap(out: Path, chance: random.Random) -> str:
    """Two files of one kind change places: of two explainers, or of two runs."""
    kinds = [
        "records/explainer=*/*",
        "overlays/*/**/*.jpg",
        "explainers/*",
        "canary/*",
        "audit/explainer=*/*",
    ]
    kinds += ["runs/*/run.json", "runs/*/summary.json", "runs/*/state.json", "runs/*/m*"]
    while True:
        found = files(out, chance.choice(kinds))
        one, other = chance.sample(found, 2)
        if one.parts[:-1] == other.parts[:-1] and one.parent.name not in ("explainers", "canary"):
            continue
        if (a := one.read_bytes()) != (b := other.read_bytes()):
            one.write_bytes(b)
            other.write_bytes(a)
            return f"{one.relative_to(out)} and {other.relative_to(out)}"


def remove_entry(out: Path, chance: random.Random) -> str:
    path = chance.choice(files(out, "*/_delta_log/*"))
    path.unlink()
    return str(path.relative_to(out))


def damage_side_file(out: Path, chance: random.Random) -> str:
    places = ("runs/*/*", "explainers/*", "canary/*", "hold/*", "report/*", "qa-inbox/*")
    path = chance.choice(files(out, *places, "overlays/pruned.json"))
    data = bytearray(path.read_bytes())
    at = chance.randrange(len(data))
    digits = [i for i, byte in enumerate(data) if 48 <= byte < 57]
    how = chance.choice(["cut", "flip", "empty", "other", "digit"])
    if "qa-inbox" in path.parts:
        how = chance.choice(["cut", "empty", "other"])  # a person's file has no checksum
    if how == "digit" and digits:
        data[chance.choice(digits)] += 1
    elif how in ("flip", "digit"):
        data[at] ^= 1 << chance.randrange(8)
    data = {"cut": data[:at], "empty": b"", "other": b"{}"}.get(how, data)  # type: ignore[assignment]
    path.write_bytes(data)
    return f"{path.relative_to(out)}, {how}"


KINDS: tuple[Damage, ...] = (remove, rename, swap, remove_entry, damage_side_file)


def unnamed(sound: Path, place: Path, draws: int, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Damage so many copies; give the damages that `verify` did not name."""
    missed, drawn = [], Counter[str]()
    for seed in range(draws):
        kind, out = KINDS[seed % len(KINDS)], place / "out"
        shutil.copytree(sound, out)
        what = kind(out, random.Random(seed))
        code = main(["verify", str(out)])
        said = capsys.readouterr()
        names = [part.rpartition("/")[2].partition(",")[0] for part in what.split(" and ")]
        told = any(name in said.out + said.err for name in names) or "overlay of" in said.out
        told |= f"the log of {out}/{what.partition('/')[0]} is damaged" in said.out + said.err
        if code not in (2, 5) or not told:
            missed.append(f"seed {seed}: {kind.__name__} {what}: exit {code}: {said.out} {said.err}")
        drawn[kind.__name__] += 1
        shutil.rmtree(out)
    print(f"{draws} damages {dict(drawn)}, {len(missed)} not named")
    return missed


@pytest.mark.faults
def test_every_damage_is_named(sound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(sound, tmp_path / "whole")
    assert main(["verify", str(tmp_path / "whole")]) == 0, capsys.readouterr().out
    capsys.readouterr()
    assert unnamed(sound, tmp_path, DAMAGES, capsys) == []


@pytest.mark.faults
def test_sabotage_of_the_checks_is_noticed(
    sound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without checksums of side files, and without a look at the logs."""
    monkeypatch.setattr(side, "_checksum", lambda _: AlwaysEqual())
    monkeypatch.setattr(beside, "_logs", lambda *_: iter(()))
    assert main(["verify", str(sound)]) == 0, "the sabotage itself must not look like damage"
    capsys.readouterr()
    assert len(unnamed(sound, tmp_path, 25, capsys)) > 3
