"""Causes: what is counted, decided as a whole, seen over nights; in the server and in the static report."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from html import unescape
from pathlib import Path

import pytest
from deltalake import DeltaTable

from camray.audit.charts import ticks, trend
from camray.audit.history import NightRate
from camray.audit.night import audit_night
from camray.audit.report import write_report
from camray.audit.reviewed import decisions, take_in
from camray.config import AuditConfig
from camray.storage import open_folder
from tests.audit.report_world import explainer, make_out
from tests.serve.conftest import Served

FIRST, SECOND = "20261101T000000Z-0", "20261102T000000Z-0"


@pytest.fixture(scope="module")
def caused(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two nights: disks hang on their frame in both, rings in the first alone."""
    out = tmp_path_factory.mktemp("caused") / "out"
    for place, (run, causes) in enumerate(((FIRST, {0: "frame", 4: "frame"}), (SECOND, {0: "frame"}))):
        make_out(out, 250, run, first=place, causes=causes)
    write_report(str(out))
    return out


def counted(out: Path) -> Counter[str]:
    """Images by cause, as the audit's table has them."""
    rows = DeltaTable(str(out / "audit")).to_pyarrow_table(columns=["cause_id"]).to_pylist()
    return Counter(row["cause_id"] for row in rows if row["cause_id"])


def test_a_cause_links_what_it_counts_and_says_since_when_it_is_gone(
    caused: Path, serving: Callable[..., Served]
) -> None:
    served = serving(caused, may_review=False)
    page, known = served.client.get("/causes").text, counted(caused)
    assert set(known) >= {"0-frame", "4-frame"}
    links = re.findall(r'<a href="([^"]+)">See ([\d,]+)</a>', page)
    assert {unescape(link).rpartition("cause_id=%3D")[2]: int(n) for link, n in links} == known
    for link, number in links:
        assert f"<strong>{number}</strong> of" in served.client.get(unescape(link)).text
    gone = page[page.index('data-cause="4-frame"') :]
    assert "Not seen since the night of 1 November 2026" in gone
    assert "Not seen since" not in page[: page.index('data-cause="4-frame"')]
    static = (caused / "report" / "index.html").read_text()
    assert {c: int(n) for c, n in re.findall(r'href="#queue\?cause=([^"]+)">See ([\d,]+)<', static)} == known


def test_a_whole_cause_is_decided_and_one_image_otherwise(
    caused: Path, tmp_path: Path, serving: Callable[..., Served]
) -> None:
    import shutil

    served = serving(Path(shutil.copytree(caused, tmp_path / "out")))
    who, known = explainer().id, counted(caused)["0-frame"]
    said = served.decide(explainer=who, cause="0-frame", decision="accepted", reviewer="ada")
    assert said["said"] == ["ada: accepted"]
    view = "/images?cause_id==0-frame"
    assert f"{known} of {known} reviewed" in served.client.get(view).text
    assert f"{known} of 500 reviewed" in served.client.get("/images").text
    first = int(re.findall(r'<li data-id="(\d+)"', served.client.get(view).text)[0])
    assert "ada: accepted (the whole cause)" in served.client.get(f"/image/{first}").text
    assert served.decide(id=first, decision="problem", reviewer="ada")["said"] == ["ada: problem"]
    out = open_folder(str(served.out), "OUT")
    take_in(out)
    assert decisions(out, who).causes == {"0-frame": "accepted"}
    audit_night(str(served.out), who, "20261103T000000Z-0", AuditConfig(lift=0.0))
    rows = DeltaTable(str(served.out / "audit")).to_pyarrow_table().to_pylist()
    assert Counter(r["reviewed"] for r in rows if r["cause_id"] == "0-frame") == {
        "accepted": known - 1,
        "problem": 1,
    }
    assert served.decide(explainer=who, cause="0-frame", decision="open", reviewer="ada")["said"] == []
    take_in(out)
    assert decisions(out, who).causes == {}


def test_scales_are_round_and_hold_the_largest() -> None:
    for top, marks in ((0.23, [0, 0.1, 0.2, 0.3]), (1, [0, 0.5, 1]), (0.04, [0, 0.01, 0.02, 0.03, 0.04])):
        assert ticks(top, 2 if top == 1 else 4) == pytest.approx(marks)


def test_the_trend_has_axes_and_numbers() -> None:
    drawn = trend([NightRate(FIRST, 10, 40), NightRate(SECOND, 0, 30)])
    assert {"20 %", "0 %", "1 Nov", "2 Nov"} <= set(re.findall(r"<text[^>]*>([^<]+)</text>", drawn))
    assert re.findall("<title>([^<]+)</title>", drawn) == ["1 Nov: 10 of 40 (25.0%)", "2 Nov: 0 of 30 (0.0%)"]
    assert trend([NightRate(FIRST, 10, 40)]) == ""
