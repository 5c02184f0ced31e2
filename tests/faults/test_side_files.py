"""150 damaged side files in an OUT: each night goes on, names the file, and exits as a whole one does.

Drawn: the inbox, summary, state, report and canary of runs, explainers, canaries, pruned.json, the hold.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from camray.cli.main import main
from tests.faults.test_damage import ROOT, audited, files, sound

__all__ = ["sound"]
FUZZED = int(os.environ.get("CAMRAY_SIDE_FILES", "150"))
PLACES = ("runs/*/*.json", "explainers/*.json", "canary/*.json", "qa-inbox/*.json", "overlays/pruned.json")
NASTY: tuple[Any, ...] = (
    None, True, -1, 2**70, 1.5, 1e308, float("nan"), float("inf"), "", "\ud800", "\x1b[31m\n", "x" * 10_000,
    [], {}, [[]], {"a": None}, "../../etc/passwd", "0", [1] * 1000,
)  # fmt: skip


def mutated(tree: Any, chance: random.Random) -> Any:
    """Put something else in one place of a tree."""
    if isinstance(tree, dict) and tree and chance.random() < 0.9:
        name = chance.choice(sorted(tree))
        if chance.random() < 0.15:
            return {k: v for k, v in tree.items() if k != name}
        return tree | {name: mutated(tree[name], chance)}
    if isinstance(tree, list) and tree and chance.random() < 0.8:
        at = chance.randrange(len(tree))
        return [*tree[:at], mutated(tree[at], chance), *tree[at + 1 :]]
    return chance.choice(NASTY)


def fuzzed(data: bytes, chance: random.Random) -> bytes:
    how = chance.choice(["tree", "tree", "tree", "cut", "flip", "nest", "empty", "noise"])
    if how == "tree":
        tree = json.loads(data)
        if isinstance(tree, dict):
            tree.pop("checksum", None)  # as of an earlier camray: the shape alone can tell
        for _ in range(chance.randint(1, 3)):
            tree = mutated(tree, chance)
        return json.dumps(tree).encode()
    if how == "flip":
        at = chance.randrange(len(data))
        return data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :]
    others = {"cut": data[: chance.randrange(len(data))], "nest": b"[" * 100_000, "empty": b""}
    return others.get(how, chance.randbytes(200))


@pytest.mark.faults
def test_no_side_file_ends_a_night(
    sound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = sound.parent / "archive"
    for at in (2, 3):  # something new for each of the two models
        shutil.copy(sorted((ROOT / "demo/archive").glob("*.tar"))[at + 1], archive)
    wrong, unsaid = [], []
    for seed in range(FUZZED):
        chance, out = random.Random(seed), tmp_path / "out"
        shutil.copytree(sound, out)
        path = chance.choice(files(out, chance.choice(PLACES)))
        path.write_bytes(fuzzed(path.read_bytes(), chance))
        name = str(path.relative_to(out))
        codes = [main(["status", str(out)]), main(["verify", str(out)])]
        named = name in capsys.readouterr().out
        try:
            audited(archive, out, "hans64-poisoned" if seed % 2 else "hans64-clean")
            codes += [main(["report", str(out)]), main(["prune", str(out), "--keep-last", "1", "--yes"])]
        except BaseException as error:  # noqa: BLE001 - counted
            wrong.append(f"seed {seed}: {name}: {error!r} {capsys.readouterr().err[-1500:]}")
        said = capsys.readouterr()
        if codes[0] or codes[1] not in (0, 5) or any(codes[2:]) or "Traceback" in said.err + said.out:
            wrong.append(f"seed {seed}: {name}: exits {codes}: {said.err[-1500:]}")
        if codes[1] == 0 and (out / f"{name}.damaged").exists() and not named:
            unsaid.append(f"seed {seed}: {name}")
        shutil.rmtree(out)
    print(
        f"{FUZZED} fuzzed side files: {len(wrong)} ends or crashes, {len(unsaid)} set aside and not verified"
    )
    assert wrong == []
    assert unsaid == []
