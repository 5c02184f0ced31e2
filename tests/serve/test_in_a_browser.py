"""The server's pages in headless Chromium: a reviewer by keyboard, an analyst by filters, and axe-core."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from camray.audit.report import write_report
from tests.audit.browser import AXE, CHROMIUM, Browser
from tests.audit.report_world import NASTY, make_out
from tests.serve.test_reviews import inbox

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine"),
]
SIZES = pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (420, False)])
with_axe = pytest.mark.skipif(not AXE, reason="axe-playwright-python is not installed")
PLACES = ("images", "image", "causes", "classes", "class/2", "compare", "images?nope=1", "images?member=none")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two nights with causes, of which one is gone, hostile names and failures."""
    place = tmp_path_factory.mktemp("pages") / "out"
    make_out(place, 260, "20261122T000000Z-0", causes={0: "frame", 4: "frame"})
    make_out(place, 250, "20261123T000000Z-0", first=1, causes={0: "frame"})
    write_report(str(place))
    return place


@pytest.fixture(scope="module")
def visit(out: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Browser]]:
    """Opens browsers that `camray serve --review` lets in; their `base` is its address."""
    server = subprocess.Popen(
        [sys.executable, "-m", "camray.cli", "serve", str(out), "--review"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert server.stdout
    opened: list[Browser] = []

    def let_in(width: int = 1280, dark: bool = False) -> Browser:
        browser = Browser(tmp_path_factory.mktemp("profile"), width, 900, dark)
        opened.append(browser)
        assert server.stdout
        browser.open(server.stdout.readline().strip())
        return browser

    yield let_in
    for browser in opened:
        browser.close()
    server.terminate()
    server.wait()
    server.stdout.close()


_STUCK = """[...document.querySelectorAll('header, .actions')].reduce((sum, e) =>
  sum + (getComputedStyle(e).position === 'sticky' ? e.offsetHeight : 0), 0)"""


def go(page: Browser, place: str) -> None:
    """Open a place of the server; `image` is the second of the list."""
    base = page.run("location.origin") + "/"
    if place == "image":
        page.open(f"{base}images")
        place = page.run("document.querySelectorAll('#cards a')[1].href").removeprefix(base)
    page.open(base + place)


def pressed(page: Browser, key: str, then: str) -> None:
    """Press a key and wait for what it does; a page that loads meanwhile hears keys once it is whole."""
    page.press(key)
    page.wait_for(f"document.readyState === 'complete' && ({then})")


def silent(page: Browser) -> None:
    assert [e for e in page.errors if "400 (Bad Request)" not in e] == []
    assert {url.partition("?")[0].split("/")[2] for url in page.requests if url.startswith("http")} == {
        page.run("location.host")
    }


@with_axe
@SIZES
def test_axe_finds_nothing_in_the_report(out: Path, tmp_path: Path, width: int, dark: bool) -> None:
    page = Browser(tmp_path, width, 900, dark)
    try:
        page.open((out / "report" / "index.html").as_uri())
        for place in ("overview", "classes", "failures", "drift", "nights", "queue", "queue?row=3"):
            page.run(f"location.hash = '{place}'")
            page.wait_for(f"!document.getElementById('{place.partition('?')[0]}').hidden")
            page.wait_for(f"document.getElementById('detail').open === {str('row' in place).lower()}")
            assert page.axe() == [], place
    finally:
        page.close()


@with_axe
@SIZES
def test_axe_finds_nothing(visit: Callable[..., Browser], width: int, dark: bool) -> None:
    page = visit(width, dark)
    for place in PLACES:
        go(page, place)
        page.run("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
        assert page.axe() == [], place
        assert page.run("document.documentElement.scrollWidth <= innerWidth"), place
    if width > 600:  # a phone has no keys
        pressed(page, "?", "document.getElementById('keys').open")
        assert page.axe() == []
    silent(page)


def test_a_reviewer_decides_by_keyboard(visit: Callable[..., Browser], out: Path) -> None:
    page = visit()
    go(page, "images?verdict=right_wrong_reason")
    said = "[...document.querySelectorAll('#cards .decision')].map((d) => d.textContent)"
    ids = page.run("[...document.querySelectorAll('#cards > li')].map((c) => c.dataset.id)")
    pressed(page, "j", "document.activeElement.closest('#cards li') !== null")
    pressed(page, "a", "document.getElementById('told').textContent.includes('who you are')")
    assert page.run("document.activeElement.id") == "reviewer"
    page.ask("Input.insertText", text="ada")
    page.run("document.querySelector('#cards a').focus()")
    pressed(page, "a", f"{said}[0] === 'accepted'")
    pressed(page, "p", f"{said}[1] === 'problem'")
    pressed(page, "k", "document.activeElement.closest('li').dataset.id === " + json.dumps(ids[1]))
    pressed(page, "u", f"{said}[1] === ''")
    page.press("Enter")
    page.wait_for("document.getElementById('detail-page') !== null && document.readyState === 'complete'")
    pressed(page, "p", f"document.getElementById('detail-page')?.dataset.id === {json.dumps(ids[2])}")
    pressed(page, "Escape", "document.querySelectorAll('#cards li').length > 0")
    assert page.run("document.getElementById('progress').textContent").startswith("2 of ")
    kept = [(r["decision"], r["reviewer"]) for r in inbox(out)]
    assert kept == [("accepted", "ada"), ("problem", "ada"), ("open", "ada"), ("problem", "ada")]
    silent(page)


def test_an_analyst_narrows_a_view_and_finds_what_is_like_it(visit: Callable[..., Browser]) -> None:
    page = visit()
    count = "Number(document.querySelector('.bar strong').textContent.replace(',', ''))"
    whole = page.run(count)
    page.run("const f = document.getElementById('filters').elements.verdict; f.value = '=wrong'; "
             "f.dispatchEvent(new Event('change', {bubbles: true}))")  # fmt: skip
    page.wait_for("location.search.includes('verdict=%3Dwrong') && document.querySelector('footer') !== null")
    assert 0 < page.run(count) < whole
    page.open(page.run("document.querySelector('#cards a').href"))
    name = page.run("document.querySelector('h1').textContent")
    page.open(
        page.run(
            "[...document.querySelectorAll('a.flag')].find((a) => a.textContent === 'similar images').href"
        )
    )
    assert page.run("document.querySelector('#cards .name.quiet').title") == name
    page.open(
        page.run("document.querySelector('a[href*=\"/export/csv\"]').href.replace('/export/csv', '/classes')")
    )
    page.wait_for("document.querySelectorAll('tbody tr').length > 0")
    silent(page)


def test_names_of_4_kb_right_to_left_and_hostile_stay_in_their_place(visit: Callable[..., Browser]) -> None:
    page = visit(420)
    for name in NASTY:
        if "\0" in name or "\n" in name:
            continue
        page.open(page.run("location.origin") + "/images?correct=false&sort=member")
        starts = f"c.querySelector('[title]').title.startsWith({json.dumps(name[:900])})"
        found = f"[...document.querySelectorAll('#cards > li')].find((c) => {starts})"
        link = page.run(f"{found}?.querySelector('a').href")
        assert link, name[:60]
        page.open(link)
        assert page.run("document.querySelector('h1').textContent") == name
        assert page.run("document.documentElement.scrollWidth <= innerWidth"), name[:60]
        assert page.run("String(window.pwned)") == "undefined"
    silent(page)


def test_paper_is_white_and_has_no_buttons(visit: Callable[..., Browser]) -> None:
    page = visit(dark=True)
    at_night = {"name": "prefers-color-scheme", "value": "dark"}
    page.ask("Emulation.setEmulatedMedia", media="print", features=[at_night])
    shown = "[...document.querySelectorAll('header, button, form')].filter((e) => e.offsetParent !== null)"
    for place in PLACES:
        go(page, place)
        assert page.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)", place
        assert page.run(f"{shown}.map((e) => e.outerHTML.slice(0, 80))") == [], place


@pytest.mark.parametrize(("width", "height"), [(640, 450)], ids=["200 %"])
def test_at_twice_the_size_nothing_is_cut(visit: Callable[..., Browser], width: int, height: int) -> None:
    """A window of 1280 x 900 at 200 % is one of 640 x 450 with two pixels a point."""
    page = visit()
    page.ask(
        "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=2, mobile=False
    )
    for place in PLACES:
        go(page, place)
        assert page.run("document.documentElement.scrollWidth <= innerWidth"), place
        assert page.run(_STUCK) < height / 2, place
