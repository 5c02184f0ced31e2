"""A night that comes in while people look: it is shown, and no row moves under a decision."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.audit.report_world import make_out
from tests.serve.conftest import ROWS, Served
from tests.serve.test_reviews import inbox

DEADLINE_S = 120


def wait_for(served: Served, text: str) -> None:
    end = time.monotonic() + DEADLINE_S
    while text not in served.client.get("/images").text:
        assert time.monotonic() < end, text
        time.sleep(0.02)


def test_a_new_night_is_seen_and_a_page_of_before_decides_on_its_own_image(served: Served) -> None:
    seen = dict(zip(served.ids, served.pages.rows.rows(served.ids, ("member", "verdict")), strict=True))
    served.decide(id=served.ids[4], decision="accepted", reviewer="ada")
    served.current._next = 0.0
    make_out(served.out, 40, "20261125T000000Z-0", first=1)
    wait_for(served, f"of {ROWS + 40} records")
    assert set(seen) < set(served.ids)
    for number in list(seen)[:8]:
        served.decide(id=str(number), verdict=seen[number]["verdict"], decision="problem", reviewer="bob")
    assert [r["member"] for r in inbox(served.out)[1:]] == [seen[n]["member"] for n in list(seen)[:8]]
    assert "ada: accepted; bob: problem" in served.client.get(f"/image/{list(seen)[4]}").text
    assert f"8 of {ROWS + 40} reviewed" in served.client.get("/images").text


def test_a_decision_on_what_is_otherwise_by_now_is_refused_in_words(served: Served) -> None:
    """The verdict that the reviewer read is not that of the table; or the image was explained anew."""
    said = {"id": str(served.ids[3]), "verdict": "wrong", "decision": "problem", "reviewer": "ada"}
    (row,) = served.pages.rows.rows(served.ids[3:4], ("verdict",))
    assert row["verdict"] != "wrong"
    for changed in (said, said | {"id": str(served.ids[3] ^ 1), "verdict": row["verdict"]}):
        answer = served.client.post("/decide", json=changed)
        assert answer.status_code == 400
        assert "a night came in since" in answer.json()["error"]
    assert inbox(served.out) == []


def test_a_log_that_cannot_be_read_leaves_what_was_read(
    served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    log = Path(served.out / "records/_delta_log")
    log.rename(log.with_name("away"))
    served.current._next = 0.0
    end = time.monotonic() + DEADLINE_S
    while served.current._next == 0.0:
        assert f"of {ROWS} records" in served.client.get("/images").text
        assert time.monotonic() < end
        time.sleep(0.02)
    assert served.client.get("/classes").status_code == 200
    assert "the rows stay as they were read" in capsys.readouterr().err
