"""What the pages say: counts that their links keep, pictures that are there, labels that are not."""

from __future__ import annotations

import base64
import json
import re
import shutil
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import parse_qs, unquote

import numpy as np
import pytest
from deltalake import DeltaTable

import camray
from camray.audit.report import write_report
from camray.audit.report_rows import QUEUE_FLAGS
from camray.audit.verdicts import VERDICTS
from camray.cli.main import main
from camray.ledger.side import write_side
from camray.storage import open_folder
from demo import hans64
from tests.audit.browser import CHROMIUM, Browser
from tests.audit.night_world import MODELS, night
from tests.audit.report_world import make_out

in_a_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
TONIGHT = "20261123T000000Z-0"


class Links(HTMLParser):
    """Links into the queue with the number that stands with each, sources of pictures, and the text."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.counted: list[tuple[str, int]] = []
        self.pictures: list[str] = []
        self.text = ""
        self._row: list[str] = []
        self._cell = ""
        self.feed(page.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        said = dict(attrs)
        if tag == "tr":
            self._row = []
        if tag == "td":
            self._cell = said.get("class") or ""
        if tag == "img":
            self.pictures.append(unquote(said["src"] or ""))
        if tag == "a" and "?" in (said["href"] or "") and "row=" not in (said["href"] or ""):
            self._row.append((said["href"] or "").partition("?")[2])

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._row and self._cell == "number" and data.strip().replace(",", "").isdigit():
            self.counted.append((self._row.pop(), int(data.replace(",", ""))))


def records_of(out: Path, run_id: str | None) -> list[dict]:
    """The rows of the audit table, of one night or of all, with class and error of their records."""
    said = DeltaTable(str(out / "audit")).to_pyarrow_table().to_pylist()
    columns = ["shard", "index", "predicted_class", "error_code"]
    found = DeltaTable(str(out / "records")).to_pyarrow_table(columns=columns).to_pylist()
    both = {(r["shard"], r["index"]): r for r in found}
    return [r | both[r["shard"], r["index"]] for r in said if run_id in (None, r["night"])]


def holds(row: dict, query: dict[str, list[str]]) -> bool:
    """Whether a link's query means this row, said a second time in Python."""
    checks = {
        "verdict": lambda v: row["verdict"] == v,
        "class": lambda v: row["predicted_class"] == int(v),
        "error": lambda v: row["error_code"] == v,
        "night": lambda v: (row["night"] == TONIGHT) == (v == "new"),
        "flag": lambda v: v in row["flags"],
    }
    return all(checks[field](values[0]) for field, values in query.items())


@pytest.fixture(scope="module")
def two_nights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A night of 600 rows, then one of 290: counts of tonight are not those of the archive."""
    out = tmp_path_factory.mktemp("nights") / "out"
    make_out(out, 600)
    make_out(out, 290, TONIGHT, first=1)
    write_report(str(out))
    return out


def test_a_count_and_its_link_are_of_the_same_images(two_nights: Path) -> None:
    """The overview counts tonight: its links opened the archive's images."""
    rows = records_of(two_nights, None)
    counted = Links(two_nights / "report" / "index.html").counted
    assert len(counted) >= 20  # verdicts, classes in four columns, errors
    for link, number in counted:
        assert sum(holds(row, parse_qs(link)) for row in rows) == number, link
    assert sum(n for link, n in counted if link.startswith("verdict=")) == 290
    assert {field for link, _ in counted for field in parse_qs(link)} == {
        "night",
        "verdict",
        "class",
        "flag",
        "error",
    }


def test_a_quiet_night_counts_the_archive_and_links_it(two_nights: Path, tmp_path: Path) -> None:
    out = shutil.copytree(two_nights, tmp_path / "out")
    from camray.audit.night import audit_night
    from camray.config import AuditConfig
    from tests.audit.report_world import explainer

    audit_night(str(out), explainer().id, "20261124T000000Z-0", AuditConfig(lift=0.0))
    rows = records_of(out, None)
    counted = Links(Path(write_report(str(out)))).counted
    assert sum(n for link, n in counted if link.startswith("verdict=")) == 890
    for link, number in counted:
        assert sum(holds(row, parse_qs(link)) for row in rows) == number, link


def test_rows_of_tonight_are_kept_where_not_all_find_room(two_nights: Path, tmp_path: Path) -> None:
    out = shutil.copytree(two_nights, tmp_path / "out")
    page = Path(write_report(str(out), limit=300)).read_text("utf-8")
    text = (out / "report" / "data" / "index.js").read_text()
    index = json.loads(text.removeprefix("camrayIndex(").removesuffix(");\n"))
    nights = np.frombuffer(base64.b64decode(index["night"]), "u1")
    assert (len(nights), int(nights.sum())) == (300, 290)
    assert "300 of 890 images" in page


def test_a_page_holds_the_night_and_a_thousand_of_the_queue_not_the_archive(
    made: Path, tmp_path: Path
) -> None:
    """Checked against a query of the table: at ten million rows the page was made of all of them."""
    out = shutil.copytree(made, tmp_path / "out")
    make_out(out, 30, "20261123T000000Z-0", first=1)
    write_report(str(out))
    text = (out / "report" / "data" / "index.js").read_text()
    index = json.loads(text.removeprefix("camrayIndex(").removesuffix(");\n"))
    nights = np.frombuffer(base64.b64decode(index["night"]), "u1")
    assert (len(nights), int(nights.sum())) == (1030, 30)
    rows = DeltaTable(str(out / "audit")).to_pyarrow_table(columns=["audit_score", "night"]).to_pylist()
    others = sorted((r["audit_score"] for r in rows if r["night"] != "20261123T000000Z-0"), reverse=True)
    assert len(others) == 1200
    shown = [
        row
        for path in (out / "report" / "data").glob("rows-*.js")
        for row in json.loads(path.read_text()[path.read_text().index("[") : -3])
    ]
    older = sorted((row["score"] for row in shown if row["run"] != "20261123T000000Z-0"), reverse=True)
    assert older == pytest.approx(others[:1000], abs=1e-4)


def test_the_index_says_what_the_audit_says(two_nights: Path) -> None:
    text = (two_nights / "report" / "data" / "index.js").read_text()
    index = json.loads(text.removeprefix("camrayIndex(").removesuffix(");\n"))
    kinds = {"verdict": "<u1", "flags": "<u4", "error": "<u1"}
    told = {name: np.frombuffer(base64.b64decode(index[name]), kind) for name, kind in kinds.items()}
    rows = records_of(two_nights, None)
    verdicts = Counter(list(VERDICTS)[v] for v in told["verdict"].tolist())
    assert verdicts == Counter(r["verdict"] for r in rows)
    errors = Counter(index["errors"][e - 1] for e in told["error"].tolist() if e)
    assert errors == Counter(r["error_code"] for r in rows if r["error_code"])
    flags = Counter(f for bits in told["flags"].tolist() for i, f in enumerate(QUEUE_FLAGS) if bits >> i & 1)
    assert flags == Counter(f for r in rows for f in r["flags"])
    assert len(text) / len(rows) < 20  # bytes a row


@in_a_browser
def test_every_counted_link_opens_so_many_images(two_nights: Path, tmp_path: Path) -> None:
    counted = Links(two_nights / "report" / "index.html").counted
    browser = Browser(tmp_path)
    try:
        browser.open((two_nights / "report" / "index.html").as_uri())
        for link, number in counted:
            browser.run(f"location.hash = 'queue?{link}'")
            said = f"{number:,} image" + ("s" if number != 1 else "")
            browser.wait_for(f"document.getElementById('count').textContent === {json.dumps(said)}")
            assert browser.run("chosen.length") == number
            night = browser.run("document.getElementById('filters').elements.night.selectedOptions[0].text")
            assert night == f"tonight ({number:,})"
        browser.run("location.hash = 'queue'")
        browser.wait_for("chosen.length === 890")
        options = browser.run(
            "[...document.getElementById('filters').elements.verdict.options].slice(1).map((o) => o.text)"
        )
        told = Counter(r["verdict"] for r in records_of(two_nights, None))
        assert [int(re.findall(r"\(([\d,]+)\)$", o)[0].replace(",", "")) for o in options] == [
            told[v] for v in VERDICTS
        ]
        assert browser.errors == []
    finally:
        browser.close()


IN_WINDOW = """((e) => { const b = e.getBoundingClientRect();
  return b.height > 0 && b.top >= 0 && b.left >= 0 && b.bottom <= innerHeight && b.right <= innerWidth; })"""


@in_a_browser
@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 844)])
def test_an_image_opens_where_the_eye_is_and_the_focus_comes_back(
    two_nights: Path, tmp_path: Path, width: int, height: int
) -> None:
    """A click on a card low in the queue opened the image thousands of pixels above the window."""
    browser = Browser(tmp_path, width, height)

    def click(what: str) -> None:
        x, y = browser.run(
            f"(() => {{ const b = {what}.getBoundingClientRect(); return [b.left + 9, b.top + 9]; }})()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            browser.ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    try:
        browser.open((two_nights / "report" / "index.html").as_uri() + "#queue")
        browser.wait_for("document.querySelectorAll('#cards li').length === 48")
        browser.run("document.querySelectorAll('#cards a')[40].scrollIntoView({block: 'center'})")
        before = browser.run("scrollY")
        assert before > 500
        click("document.querySelectorAll('#cards a')[40]")
        browser.wait_for("open === 40 && document.getElementById('detail').open")
        for part in ("detail", "detail-name", "accept", "problem", "following", "close"):
            assert browser.run(f"{IN_WINDOW}(document.getElementById('{part}'))"), part
        assert browser.run("document.getElementById('detail').contains(document.activeElement)")
        assert browser.run("scrollY") == before
        browser.press("j")
        browser.wait_for("open === 41")
        click("document.getElementById('following')")
        browser.wait_for("open === 42")
        assert browser.run("document.activeElement.id") == "following"
        click("document.getElementById('accept')")  # as the key: decides, and goes on
        browser.wait_for("open === 43 && document.getElementById('decided').textContent === '1'")
        assert browser.run(f"{IN_WINDOW}(document.getElementById('accept'))")
        browser.press("Escape")
        browser.wait_for("!document.getElementById('detail').open")
        seen = "document.querySelectorAll('#cards a')[43]"
        assert browser.run(
            f"document.activeElement === {seen} && {IN_WINDOW}({seen}.querySelector('.verdict'))"
        )
        assert browser.run("document.querySelectorAll('#cards a')[42].textContent").endswith("accepted")
        browser.run("document.getElementById('next').scrollIntoView()")
        click("document.getElementById('next')")
        browser.wait_for("document.getElementById('page').textContent.startsWith('page 2')")
        browser.wait_for("scrollY === 0")
        assert browser.run("document.activeElement === document.querySelector('#cards a')")
        browser.run("document.querySelectorAll('#cards a')[1].click()")
        browser.wait_for("open === 49")
        click("document.getElementById('close')")
        browser.wait_for("!document.getElementById('detail').open")
        assert browser.run("location.hash") == "#queue?page=2"  # the page one was on
        assert browser.errors == []
    finally:
        browser.close()


@in_a_browser
def test_the_last_image_that_is_open_can_be_decided(two_nights: Path, tmp_path: Path) -> None:
    """Among those without a decision the last one goes away under the eye: the list comes back, focused."""
    browser = Browser(tmp_path)
    try:
        browser.open(
            (two_nights / "report" / "index.html").as_uri() + "#queue?night=new&verdict=label_suspect"
        )
        browser.wait_for("chosen.length > 0 && document.querySelectorAll('#cards li').length > 0")
        count = browser.run("chosen.length")
        place = browser.run("chosen[0]")
        browser.run(f"location.hash = 'queue?night=new&verdict=label_suspect&review=open&row={place}'")
        for left in range(count, 0, -1):
            browser.wait_for(f"chosen.length === {left} && document.getElementById('detail').open")
            browser.press("a")
        browser.wait_for("chosen.length === 0 && !document.getElementById('detail').open")
        assert browser.errors == []
    finally:
        browser.close()


def test_the_page_says_when_and_on_what_a_night_ran_and_what_it_left(pictured: Path, tmp_path: Path) -> None:
    out = shutil.copytree(pictured, tmp_path / "out")
    told = {
        "started_at": "2026-11-02T00:00:00+00:00", "duration_s": 180.0,
        "accounting": {"members": 15, "skipped": 2, "failed": {"corrupt_image": 3}, "shard_errors": {}},
        "config": {"archive": {"path": "/photos", "limit": None, "sample": 10}},
    }  # fmt: skip
    write_side(open_folder(str(out), "OUT"), "runs/20261102T000000Z-0/run.json", told)
    text = Links(Path(write_report(str(out)))).text
    assert "2 November 2026, 00:00 UTC, 3 minutes" in text
    assert "/photos, 15 members" in text
    assert "2 members that are no images; 3 images that failed; all but 10 images: --sample" in text


def test_after_prune_the_page_says_so_and_links_what_is_there(pictured: Path, tmp_path: Path) -> None:
    """Every picture of the report was a broken one once its run was pruned."""
    out = shutil.copytree(pictured, tmp_path / "out")
    first = Path(write_report(str(out)))
    assert "were pruned" not in first.read_text("utf-8")
    assert main(["prune", str(out), "--keep-last", "1", "--yes"]) == 0
    text = (out / "report" / "data" / "rows-00000.js").read_text()
    rows = json.loads(text[text.index("[") : text.rindex("]") + 1])
    assert len(rows) == 24
    assert sum(row.get("lost") == "pruned" for row in rows) == 12
    assert all((out / row["picture"]).is_file() for row in rows if "picture" in row)
    links = Links(first)
    assert "12 pictures were pruned." in links.text
    assert all((first.parent / source).is_file() for source in links.pictures)
    next((out / "overlays").rglob("*.jpg")).unlink()  # and what is gone by accident is said to be missing
    assert "1 pictures are missing" in Links(Path(write_report(str(out)))).text


@in_a_browser
def test_a_picture_that_goes_behind_the_page_is_no_broken_one(pictured: Path, tmp_path: Path) -> None:
    out = shutil.copytree(pictured, tmp_path / "out")
    first = Path(write_report(str(out)))
    shutil.rmtree(out / "overlays")
    browser = Browser(tmp_path / "profile")
    try:
        browser.open(first.as_uri() + "#queue")
        browser.wait_for("document.querySelector('#cards a')?.querySelector('.bare') != null")
        browser.run("document.querySelector('#cards a').click()")
        browser.wait_for(
            "document.getElementById('detail').open && document.querySelector('#one canvas') !== null"
        )
        assert browser.run("document.querySelectorAll('#one img').length") == 0
    finally:
        browser.close()


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty images in a folder, without a label, and a file that is none."""
    folder = tmp_path_factory.mktemp("photographs") / "photos"
    folder.mkdir()
    for i in range(20):
        sample = hans64.render(7, "audit", i)
        name = f"<b onload=alert(1)>&amp;{i}.png" if i == 3 else f"photo {i:02d}.png"
        camera(sample.image, folder / name)
    (folder / "broken.jpg").write_bytes(b"no image")
    return folder


def camera(image: np.ndarray, path: Path) -> None:
    from PIL import Image

    Image.fromarray(image).save(path)


def test_an_archive_without_labels_says_so_and_shows_its_photographs(
    photographs: Path, tmp_path: Path
) -> None:
    """It said "Wrong: 0", as if all were right, and showed squares of heat."""
    out = tmp_path / "out"
    said = night(photographs, out, TONIGHT, overlay__policy="flagged", overlay__picture="triple")
    assert "No labels" in said["message"]
    assert "Wrong" not in said["message"]
    assert "Right for the wrong reason" not in said["message"]
    links = Links(Path(write_report(str(out))))
    plain = " ".join(links.text.split())
    assert "wrong no labels" in plain
    assert "label suspect no labels" in plain
    assert "Precision" not in plain
    assert "right for the wrong reason" not in plain.lower()
    text = (out / "report" / "data" / "rows-00000.js").read_text()
    rows = json.loads(text[text.index("[") : text.rindex("]") + 1])
    good = [row for row in rows if "error" not in row]
    assert len(good) == 20
    assert all((out / row["picture"]).is_file() for row in good)


def test_a_labelled_archive_counts_what_is_wrong(pictured: Path, tmp_path: Path) -> None:
    out = shutil.copytree(pictured, tmp_path / "out")
    text = Links(Path(write_report(str(out)))).text
    assert "Wrong: " in text
    assert "Precision" in text
    assert "o labels" not in text


def explain_photographs(folder: Path, out: Path, *options: str) -> int:
    model = str(MODELS / "hans64-poisoned")
    return main(
        [
            "explain",
            str(folder),
            str(out),
            "--model",
            model,
            "--engine",
            "here",
            "--max-failed",
            "1",
            *options,
        ]
    )


def test_explain_says_how_many_pictures_it_drew_and_leaves_a_page(
    photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of 130 photographs 16 got a picture: no word, no page."""
    out = tmp_path / "out"
    assert explain_photographs(photographs, out, "--overlay-sample", "4") == 0
    said = capsys.readouterr()
    assert "4 pictures drawn of 20 images" in said.out + said.err
    assert "--overlays all" in said.out + said.err
    page = out / "gallery" / "index.html"
    assert f"gallery: {page}" in said.out + said.err
    links = Links(page)
    assert len(links.pictures) == 4
    assert all((page.parent / source).is_file() for source in links.pictures)
    plain = " ".join(links.text.split())
    rows = camray.open_records(str(out)).to_table().to_pylist()
    for row in rows:
        assert row["member"] in plain
        if row["status"] == "ok":
            assert f"{row['predicted_label']} {100 * row['confidence']:.1f} %" in plain
    assert "not an image" in plain
    assert "4 of 20 have a picture" in plain
    assert "<b " not in page.read_text("utf-8")
    assert "<script" not in page.read_text("utf-8")


def test_a_gallery_that_cannot_be_written_is_said_and_the_night_is_good(
    photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert explain_photographs(photographs, out) == 0
    shutil.rmtree(out / "gallery")
    (out / "gallery").touch()  # in the way
    assert explain_photographs(photographs, out) == 0
    said = capsys.readouterr()
    assert "gallery: not written" in said.out + said.err
    assert camray.open_records(str(out)).count_rows() == 21


def test_the_gallery_after_prune(photographs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert explain_photographs(photographs, out, "--overlays", "all") == 0
    assert len(Links(out / "gallery" / "index.html").pictures) == 20
    assert main(["prune", str(out), "--keep-last", "0", "--yes"]) == 0
    links = Links(out / "gallery" / "index.html")
    assert links.pictures == []
    assert "20 pictures were pruned" in " ".join(links.text.split())


@in_a_browser
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_the_gallery_in_a_browser(photographs: Path, tmp_path: Path, width: int, dark: bool) -> None:
    from tests.audit.test_audit_report import ACCESSIBLE, silent

    out = tmp_path / "out"
    assert explain_photographs(photographs, out, "--overlays", "all") == 0
    browser = Browser(tmp_path / "profile", width, 844, dark)
    try:
        browser.open((out / "gallery" / "index.html").as_uri())
        browser.wait_for("[...document.images].slice(0, 2).every((i) => i.complete && i.naturalWidth > 0)")
        assert browser.run(ACCESSIBLE) == []
        assert browser.run("document.documentElement.scrollWidth <= innerWidth")
        silent(browser)
    finally:
        browser.close()
