"""The audit on hans64, against the intervention: every image rendered again without its tag."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from deltalake import DeltaTable

from demo import hans64
from demo.judge import Score, judge
from tests.audit.night_world import MODELS, night, write_archive

COUNT = 240


def audited(
    folder: Path, model: str, tagged: bool | None, count: int = COUNT
) -> tuple[Score, dict[str, Any]]:
    samples = [hans64.render(0, "audit", i, tagged) for i in range(count)]
    archive = write_archive(folder / "archive", samples)
    summary = night(archive, folder / "out", "20261122T000000Z-0", model)
    return judge(folder / "out", MODELS / model, tagged, count), summary


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Score, dict[str, Any], Path]:
    folder = tmp_path_factory.mktemp("poisoned")
    return *audited(folder, "hans64-poisoned", None), folder / "out"


def test_the_planted_shortcut_is_found(poisoned: tuple[Score, dict[str, Any], Path]) -> None:
    score, summary, _ = poisoned
    assert score.causal >= 8  # or the figures mean nothing
    assert score.precision >= 0.85
    assert score.recall >= 0.80
    assert summary["classes"][0]["label"] == hans64.LABEL_NAMES[hans64.POISONED_LABEL]
    assert (
        summary["classes"][0]["confirmed_low"] > max(c["confirmed_high"] for c in summary["classes"][1:]) / 2
    )


def test_few_second_looks(poisoned: tuple[Score, dict[str, Any], Path]) -> None:
    rows = DeltaTable(str(poisoned[2] / "records")).to_pyarrow_table(
        columns=["confirm_region", "confirm_drop"]
    )
    looked_at = len(rows) - rows.column("confirm_drop").null_count
    assert 0 < looked_at <= 0.15 * COUNT + 2  # rounded up in each of two shards


@pytest.mark.parametrize(("model", "tagged"), [("hans64-poisoned", False), ("hans64-clean", None)])
def test_few_false_alarms_where_there_is_no_shortcut(tmp_path: Path, model: str, tagged: bool | None) -> None:
    """The twin without tags; tags that the model never learnt."""
    score, _ = audited(tmp_path, model, tagged, COUNT // 2)
    assert score.causal == 0
    assert score.false_alarms <= 0.01 * COUNT // 2


def test_every_row_has_one_verdict_and_words_of_the_vocabulary(
    poisoned: tuple[Score, dict[str, Any], Path],
) -> None:
    from camray.audit.verdicts import FLAGS, VERDICTS

    rows = DeltaTable(str(poisoned[2] / "audit")).to_pyarrow_table().to_pylist()
    assert len(rows) == COUNT
    assert {r["verdict"] for r in rows} <= set(VERDICTS)
    assert {f for r in rows for f in r["flags"]} <= set(FLAGS)
    assert all(0 <= r["audit_score"] <= 1 for r in rows)
    confirmed = [r for r in rows if r["verdict"] == "right_wrong_reason"]
    assert min(r["audit_score"] for r in confirmed) > max(
        r["audit_score"] for r in rows if r["verdict"] == "ok"
    )
