"""Who is let in, what the pages hold, that every number opens what it counts, and the exports."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from starlette.testclient import TestClient

from camray.audit.templates import templates
from camray.cli.main import main
from camray.serve.draw import ACROSS, DOWN
from camray.serve.rows import View
from tests.audit import report_world
from tests.audit.report_world import CLASSES, NASTY, explainer, make_out
from tests.serve.conftest import HERE, ROWS, Served
from tests.serve.test_rows import truth

PAGES = ("/images", "/classes", "/class/2", "/causes", "/compare")


def test_a_token_opens_one_browser_and_no_more(served: Served) -> None:
    stranger = TestClient(served.app, base_url=HERE)
    assert [stranger.get(page).status_code for page in (*PAGES, "/image/0", "/picture/0", "/export/csv")] == [
        403
    ] * 8
    assert stranger.post("/decide", json={}).status_code == 403
    token = served.tokens[-1]
    first = stranger.get(f"/?token={token}", follow_redirects=False)
    cookie = first.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert token not in cookie
    assert stranger.get("/images").status_code == 200
    late = TestClient(served.app, base_url=HERE)
    assert late.get(f"/?token={token}").status_code == 403
    assert len(set(served.tokens)) == len(served.tokens) == 3  # the fixture's, this one's, the next


def test_no_other_host_and_no_other_page_gets_an_answer(served: Served) -> None:
    """A name that was pointed at 127.0.0.1, and a form on another page."""
    assert served.client.get("/images", headers={"host": "evil.example"}).status_code == 400
    said = {"id": served.ids[0], "decision": "accepted", "reviewer": "ada"}
    other = served.client.post("/decide", json=said, headers={"origin": "http://evil.example"})
    form = served.client.post("/decide", content=json.dumps(said), headers={"content-type": "text/plain"})
    assert (other.status_code, form.status_code) == (403, 403)
    assert not list((served.out).glob("qa-inbox/*"))
    policy = served.client.get("/images").headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


class Tags(HTMLParser):
    """Every tag and attribute that a browser would see."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.addresses: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.addresses += [value or "" for name, value in attrs if name in ("href", "src", "action")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_hostile_names_are_text_on_every_page(served: Served) -> None:
    wrong = served.client.get("/images?correct=false").text
    assert unescape(wrong).count("window.pwned") >= 4  # they are shown
    images = [
        f"/image/{i}" for i in served.pages.rows.order(View.of([("correct", "false")]))[: len(NASTY)].tolist()
    ]
    hostile = ("/images?q=<script>window.pwned=1</script>", '/images?member=~"onerror="x', "/images?<b>=1")
    for page in (*PAGES, "/images?correct=false", *images, *hostile):
        text = served.client.get(page).text
        seen = Tags(text)
        assert not seen.tags & {"b", "i", "iframe", "object", "embed", "base"}, page
        assert not any(name.startswith("on") for name in seen.attributes), page
        assert all(a.startswith(("/", "data:,", "data:image/png", "#")) for a in seen.addresses), page
        assert seen.tags & {"script"} == {"script"}  # our one, by address
        assert re.findall(r"<script[^>]*>", text) == [
            f'<script src="/static/{name}.js" defer>' for name in ("page", "serve")
        ]


def test_names_right_to_left_of_4_kb_and_with_zeros_have_their_page(served: Served, audited: Path) -> None:
    rows = served.pages.rows.rows(served.pages.rows.order(View()).tolist(), ("member",))
    shown = {row["member"]: row["id"] for row in rows if row["member"] in NASTY}
    assert set(shown) == set(NASTY)
    for name, number in shown.items():
        page = served.client.get(f"/image/{number}")
        assert page.status_code == 200
        if "\0" not in name:
            assert name.replace("\n", "")[:60] in Tags(page.text).text.replace("\n", "")


def test_every_number_of_the_classes_opens_so_many_records(served: Served, audited: Path) -> None:
    page = served.client.get("/classes").text
    links = re.findall(r'<td class="number"><a href="/images\?([^"]+)">([\d,]+)</a>', page)
    assert len(links) >= 12
    for query, number in links:
        found = served.client.get(f"/images?{unescape(query)}").text
        assert f"<strong>{number}</strong> of {ROWS} records" in found
    known = truth(audited)
    for class_id in range(len(CLASSES)):
        mine = [r for r in known if r["predicted_class"] == class_id]
        of_class = [int(n) for q, n in links if f"predicted_class=%3D{class_id}" in q]
        assert of_class[0] == len(mine)
        assert sum(r["correct"] is False for r in mine) in of_class


def test_pages_hold_each_record_once_and_neighbours_lead_on(served: Served) -> None:
    seen: list[int] = []
    for number in range(1, 8):
        page = served.client.get(f"/images?sort=member&page={number}").text
        seen += [int(i) for i in re.findall(r'<li data-id="(\d+)"', page)]
    assert sorted(seen) == sorted(served.ids)
    assert len(set(seen)) == ROWS
    at = f"/image/{seen[0]}?sort=member&at=0"
    for following in seen[1:5]:
        at = unescape(re.findall(r'rel="next" href="([^"]+)"', served.client.get(at).text)[0])
        assert at.startswith(f"/image/{following}?")


def test_what_a_browser_sends_of_the_form_is_the_view(served: Served) -> None:
    """Fields that are empty are not sent; the comparison of *Any column* never is."""
    wrong = served.client.get("/images?verdict=%3Dwrong").text
    for rest in ("sign=%3D", "column=&sign=%3D&value=", "sign=%3E&value=3"):
        assert served.client.get(f"/images?verdict=%3Dwrong&{rest}").text == wrong
    sure = served.client.get("/images?verdict=%3Dwrong&column=confidence&sign=%3E&value=0.5")
    assert sure.url.query == b"verdict=%3Dwrong&confidence=%3E0.5"


def test_the_view_as_csv_holds_its_rows_and_no_formula(served: Served, audited: Path) -> None:
    answer = served.client.get("/export/csv?correct=false")
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    wanted = {(r["shard"], str(r["index"])) for r in truth(audited) if r["correct"] is False}
    assert {(r["shard"], r["index"]) for r in rows} == wanted
    assert not [c for r in rows for c in r.values() if c.startswith(("=", "+", "-", "@"))]
    assert "attachment" in answer.headers["content-disposition"]


def test_the_view_as_image_folder_and_coco(served: Served, audited: Path) -> None:
    known = [
        r for r in truth(audited) if r["verdict"] == "right_wrong_reason_suspected" or r["correct"] is False
    ]
    wrong = [r for r in known if r["correct"] is False]
    with zipfile.ZipFile(
        io.BytesIO(served.client.get("/export/imagefolder?correct=false").content)
    ) as packed:
        names = pq.read_table(io.BytesIO(packed.read("metadata.parquet")))
        assert set(names["member"].to_pylist()) == {r["member"] for r in wrong}
        assert all(packed.read(name).startswith(b"\xff\xd8") for name in names["file_name"].to_pylist())
    tree = served.client.get("/export/coco?correct=false").json()
    assert {image["file_name"] for image in tree["images"]} == {r["member"] for r in wrong}
    assert {kind["id"]: kind["name"] for kind in tree["categories"]} == dict(enumerate(CLASSES))


def test_coco_is_read_by_pycocotools(served: Served, tmp_path: Path) -> None:
    coco = pytest.importorskip("pycocotools.coco")
    (tmp_path / "instances.json").write_bytes(served.client.get("/export/coco").content)
    read = coco.COCO(str(tmp_path / "instances.json"))
    assert sorted(read.getCatIds()) == [*range(len(CLASSES))]
    assert all(box["bbox"][2] > 0 and box["bbox"][3] > 0 for box in read.loadAnns(read.getAnnIds()))
    with_answer = {r["member"] for r in truth(served.out) if r["predicted_class"] is not None}
    assert {i["file_name"] for i in read.loadImgs(read.getImgIds())} == with_answer


def test_the_view_for_fiftyone(served: Served, audited: Path) -> None:
    """What its importer of a folder asks for: `samples`, a path in each, labels named by their class."""
    wrong = {r["member"]: r for r in truth(audited) if r["correct"] is False}
    content = served.client.get("/export/fiftyone?correct=false").content
    with zipfile.ZipFile(io.BytesIO(content)) as packed:
        samples = json.loads(packed.read("samples.json"))["samples"]
        assert {sample["member"] for sample in samples} == set(wrong)
        assert all(packed.read(sample["filepath"]).startswith(b"\xff\xd8") for sample in samples)
    for sample in samples:
        assert sample["prediction"]["_cls"] == "Classification"
        assert sample["prediction"]["confidence"] == pytest.approx(
            wrong[sample["member"]]["confidence"], abs=1e-4
        )
        assert sample["tags"][0] == wrong[sample["member"]]["verdict"]


def test_the_view_for_label_studio(served: Served, audited: Path) -> None:
    """Every row of the view, with its picture, under the path that its local files are served by."""
    wrong = {r["member"] for r in truth(audited) if r["correct"] is False}
    content = served.client.get("/export/label-studio?correct=false").content
    with zipfile.ZipFile(io.BytesIO(content)) as packed:
        tasks = json.loads(packed.read("tasks.json"))
        assert {task["data"]["member"] for task in tasks} == wrong
        places = [task["data"]["image"].removeprefix("/data/local-files/?d=") for task in tasks]
        assert all(packed.read(place).startswith(b"\xff\xd8") for place in places)
        choices = {c.get("value") for c in ElementTree.fromstring(packed.read("labels.xml")).iter("Choice")}
    assert choices == set(CLASSES)  # "<b>ring</b>" is one


def test_the_view_as_a_sheet_to_print(served: Served, audited: Path) -> None:
    wrong = sum(r["correct"] is False for r in truth(audited))
    sheet = served.client.get("/export/pdf?correct=false").content
    assert sheet.startswith(b"%PDF")
    assert len(re.findall(rb"/Type\s*/Page\b", sheet)) == -(-wrong // (ACROSS * DOWN))
    empty = served.client.get("/export/pdf?member=none")
    assert len(re.findall(rb"/Type\s*/Page\b", empty.content)) == 1


def test_one_and_two_beside_each_other(served: Served) -> None:
    (run,) = {row["run_id"] for row in served.pages.rows.rows(served.ids[:2])}
    page = served.client.get(f"/compare?one=run_id:{run}&two=explainer:{served.pages.latest}").text
    assert page.count(f">{ROWS}</a>") == 2
    assert "No image is on both sides" in page  # it is the same row
    assert served.client.get("/compare?one=member:x&two=run_id:y").status_code == 400


def test_serving_without_the_extra_or_an_out_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["serve", str(tmp_path / "none")]) == 2
    monkeypatch.setitem(__import__("sys").modules, "uvicorn", None)
    assert main(["serve", str(tmp_path)]) == 2
    assert "camray[serve]" in capsys.readouterr().err


def test_templates_refuse_what_they_do_not_know() -> None:
    from jinja2 import UndefinedError

    with pytest.raises(UndefinedError):
        templates("camray.serve").get_template("problem.html.j2").render()


def test_two_explainers_show_the_images_both_have(
    audited: Path, tmp_path: Path, serving: Callable[..., Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second model answers square wherever the first said disk, and is more sure everywhere."""
    out, other = Path(shutil.copytree(audited, tmp_path / "out")), replace(explainer(), method="layercam")

    def changed(rows: pa.Table) -> pa.Table:
        answers = [1 if c == 0 else c for c in rows["predicted_class"].to_pylist()]
        sure = pc.add(rows["confidence"], 0.25).cast(pa.float32())
        now = {
            "predicted_class": pa.array(answers, pa.int32()),
            "target_class": pa.array(answers, pa.int32()),
        }
        columns = {name: rows[name] for name in rows.column_names} | now | {"confidence": sure}
        return pa.table(columns, schema=rows.schema)

    monkeypatch.setattr(report_world, "explainer", lambda: other)
    make_out(out, ROWS, "20261125T000000Z-0", change=changed)
    served = serving(out)
    disks = sum(r["predicted_class"] == 0 for r in truth(audited))
    page = served.client.get(f"/compare?one=explainer:{explainer().id}&two=explainer:{other.id}").text
    text = " ".join(Tags(page).text.split())
    assert f"The same images on both sides: {ROWS}" in text
    assert f"{disks} get another answer" in text
    assert "confidence moves by +0.250 on average" in text
    assert served.client.get("/").url.query == f"explainer=%3D{other.id}".encode()
