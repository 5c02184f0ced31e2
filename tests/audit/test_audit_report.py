"""The report in headless Chromium, from disk: fast, silent, inert to names, whole by keyboard."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from camray.audit.report import write_report
from tests.audit.browser import CHROMIUM, DEADLINE_S, Browser
from tests.audit.conftest import MADE_ROWS
from tests.audit.report_world import NASTY, all_failed, make_out

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


@pytest.fixture
def report(made: Path) -> Path:
    return made / "report" / "index.html"


@pytest.fixture
def page(report: Path, tmp_path: Path) -> Iterator[Browser]:
    browser = Browser(tmp_path)
    browser.open(report.as_uri())
    yield browser
    browser.close()


def silent(page: Browser) -> None:
    assert page.errors == []
    assert [url for url in page.requests if not url.startswith(("file:", "data:"))] == []


def show(page: Browser, address: str) -> None:
    page.run(f"location.hash = {json.dumps(address)}")
    page.wait_for("document.querySelectorAll('#cards li').length > 0")


def test_it_paints_at_once_and_asks_nobody(page: Browser) -> None:
    page.wait_for("performance.getEntriesByName('first-contentful-paint').length > 0")
    assert page.run("document.querySelectorAll('script').length") == 3  # nothing of the queue is loaded yet
    show(page, "queue")
    assert f"{MADE_ROWS:,}" in page.run("document.getElementById('count').textContent")
    for section in ("classes", "failures", "drift", "nights", "overview"):
        page.run(f"location.hash = '{section}'")
        page.wait_for(f"!document.getElementById('{section}').hidden")
    silent(page)


def test_hostile_names_are_text(page: Browser) -> None:
    show(page, "queue?flag=wrong")
    members = page.run("Promise.all(chosen.map(row)).then((l) => l.map((r) => r.member))")
    places = page.run("chosen")
    assert set(NASTY) <= set(members)
    for name in NASTY:
        show(page, f"queue?flag=wrong&row={places[members.index(name)]}")
        page.wait_for(f"document.querySelector('#detail h2')?.textContent === {json.dumps(name)}")
    assert page.run("document.querySelectorAll('main script, main iframe, [onerror], [onload]').length") == 0
    assert page.run("String(window.pwned)") == "undefined"
    assert page.run("document.documentElement.scrollWidth <= innerWidth")  # 4 KB of name do not widen it
    silent(page)


def test_the_queue_by_keyboard_and_back_through_a_file(page: Browser, tmp_path: Path) -> None:
    page.ask("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    show(page, "queue?verdict=right_wrong_reason")
    for key, shown, decided in (
        ("j", 0, 0), ("a", 1, 1), ("p", 2, 2), ("k", 1, 2), ("u", 1, 1), ("a", 2, 2)
    ):  # fmt: skip
        page.press(key)
        page.wait_for(f"open === {shown} && document.getElementById('detail').open")
        page.wait_for(f"document.getElementById('decided').textContent === '{decided}'")
    page.press("s")
    end = time.monotonic() + DEADLINE_S
    while not (saved := list(tmp_path.glob("camray-review-*.json"))):  # it has its name once it is whole
        assert time.monotonic() < end
        time.sleep(0.05)
    said = json.loads(saved[0].read_text())
    assert said["camray_review"] == 1
    assert [d["decision"] for d in said["decisions"]] == ["accepted", "accepted"]
    assert all(d["verdict"] == "right_wrong_reason" for d in said["decisions"])
    page.press("Escape")
    page.wait_for("!document.getElementById('detail').open")
    page.press("?")
    page.wait_for("document.getElementById('keys').open")
    silent(page)


def test_filters_and_deep_links_agree(page: Browser) -> None:
    show(page, "queue?verdict=low_margin&class=3")
    assert page.run("document.getElementById('filters').elements.verdict.value") == "low_margin"
    shown = page.run("Promise.all(chosen.map(row)).then((l) => l.map((r) => [r.verdict, r.class]))")
    assert shown
    assert all(pair == ["low_margin", 3] for pair in shown)
    show(page, f"queue?verdict=low_margin&class=3&row={page.run('chosen[0]')}")
    page.wait_for("document.getElementById('detail').open")
    facts = page.run("Object.fromEntries([...document.querySelectorAll('#detail dt')]"
                     ".map((e) => [e.textContent, e.nextSibling.textContent]))")  # fmt: skip
    margin = page.run("row(chosen[0]).then((r) => r.margin)")
    assert facts["margin"] == f"{margin:.3f}"
    page.press("Escape")
    page.wait_for("!document.getElementById('detail').open")
    page.run("const v = document.getElementById('filters').elements.class; v.value = ''; "
             "v.dispatchEvent(new Event('change', {bubbles: true}))")  # fmt: skip
    page.wait_for("location.hash === '#queue?verdict=low_margin'")
    silent(page)


ACCESSIBLE = """(() => {
  const bad = [];
  const shown = (e) => e.offsetParent !== null || e.closest('dialog');
  for (const e of document.querySelectorAll('button, a, select, input, [role]')) {
    const text = e.textContent.trim() || e.title || e.labels?.[0]?.textContent;
    const label = e.getAttribute('aria-label') || text;
    if (shown(e) && !label) bad.push('no name: ' + e.outerHTML.slice(0, 80));
  }
  for (const e of document.querySelectorAll('img')) if (!e.hasAttribute('alt')) bad.push('no alt');
  const ids = [...document.querySelectorAll('[id]')].map((e) => e.id);
  if (new Set(ids).size !== ids.length) bad.push('an id twice');
  if (!document.documentElement.lang || !document.title) bad.push('no language or title');
  const channel = (v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = (c) => 0.2126 * channel(c[0]) + 0.7152 * channel(c[1]) + 0.0722 * channel(c[2]);
  const colour = (t) => t.match(/[\\d.]+/g).map(Number);
  const ground = (e) => {
    for (; e; e = e.parentElement) {
      const c = colour(getComputedStyle(e).backgroundColor);
      if (c.length < 4 || c[3] > 0) return c;
    }
    return [255, 255, 255];
  };
  for (const e of document.querySelectorAll('main *, header *')) {
    const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || e.offsetParent === null || e.disabled) continue;
    const [a, b] = [light(colour(getComputedStyle(e).color)), light(ground(e))].sort((x, y) => y - x);
    const contrast = (a + 0.05) / (b + 0.05);
    if (contrast < 4.5) bad.push(`contrast ${contrast.toFixed(1)}: ${e.outerHTML.slice(0, 90)}`);
  }
  const seen = [...document.querySelectorAll('h1,h2,h3')].filter((e) => e.offsetParent !== null);
  const heads = seen.map((e) => +e.tagName[1]);
  heads.forEach((h, i) => { if (i && h - heads[i - 1] > 1) bad.push('a heading level is skipped'); });
  return bad;
})()"""


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (390, False)])
def test_names_contrast_headings(report: Path, tmp_path: Path, width: int, dark: bool) -> None:
    """The checks of an accessibility audit that a script can make, on every page, light, dark and narrow."""
    browser = Browser(tmp_path, width, 844, dark)
    try:
        browser.open(report.as_uri())
        for address in ("overview", "classes", "failures", "drift", "nights", "queue", "queue?row=3"):
            browser.run(f"location.hash = '{address}'")
            section = address.partition("?")[0]
            browser.wait_for(f"!document.getElementById('{section}').hidden")
            if "row" in address:
                browser.wait_for("document.getElementById('detail').open")
            elif section == "queue":
                browser.wait_for("document.querySelectorAll('#cards li').length > 0")
            assert browser.run(ACCESSIBLE) == [], address
            assert browser.run("document.documentElement.scrollWidth <= innerWidth"), address
        silent(browser)
    finally:
        browser.close()


def test_a_night_without_a_good_row(tmp_path: Path) -> None:
    """Every image failed: the page opens, says how many, and has no script error."""
    make_out(tmp_path / "out", 40, change=all_failed)
    browser = Browser(tmp_path)
    try:
        browser.open(Path(write_report(str(tmp_path / "out"))).as_uri())
        browser.run("location.hash = 'failures'")
        browser.wait_for("!document.getElementById('failures').hidden")
        said = browser.run("document.getElementById('failures').textContent")
        assert "corrupt_image" in said
        assert "40" in said
        silent(browser)
    finally:
        browser.close()
