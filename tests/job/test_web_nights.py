"""Nights over a list of URLs: what is new is fetched, what failed and may pass is tried again."""

import pytest

import camray
from camray.archive import web
from tests.archive.makers import png
from tests.archive.small_web import Page, small_web


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(web, "is_public", lambda address: True)
    monkeypatch.setattr(web, "_WAITS_S", (0.01, 0.01, 0.01))
    monkeypatch.setattr(web, "_failures", {})
    web._pools.cache_clear()
    with small_web() as server:
        yield server


def test_only_what_is_new_is_fetched_and_a_bad_night_costs_no_record(tmp_path, demo, explain, server):
    names, out = ["/a.png", "/b.png", "/gone.png"], tmp_path / "out"
    server.pages |= {name: Page(png(i), {"ETag": f'"{i}"'}) for i, name in enumerate(names[:2])}
    (tmp_path / "l.txt").write_text("\n".join(map(server.url, names)), "utf-8")

    def night(**settings):
        server.asked.clear()
        explain(
            tmp_path / "l.txt", out, demo / "models" / "hans64-poisoned", archive__allow_http=True,
            overlay__policy="none", run__max_failed=1.0, **settings,
        )  # fmt: skip
        rows = camray.open_records(str(out)).to_table(columns=["member", "error_code"]).to_pylist()
        told = {row["member"].rpartition("/")[2]: row["error_code"] for row in rows}
        return told, sorted(ask for ask in server.asked if ask.startswith("GET"))

    server.pages["/b.png"].statuses = [200, 503, 503, 503, 503]  # listed, then out of order
    first = {"a.png": None, "b.png": "member_read_failed", "gone.png": "member_unreadable"}
    assert night()[0] == first
    mended = first | {"b.png": None}
    assert night()[0] == mended
    assert night() == (mended, ["GET /gone.png"])  # not every server answers HEAD
    for page in server.pages.values():
        page.status = 503
    assert night() == (mended, ["GET /gone.png"])
    assert night(archive__rehash=True)[0] == mended
    server.pages |= {"/a.png": Page(png(7), {"ETag": '"7"'}), "/b.png": Page(png(1), {"ETag": '"1"'})}
    told, asked = night()
    assert (told, "GET /a.png" in asked) == (mended, True)
