"""The walks of a reviewer and an analyst through `camray serve` and the report, in headless Chromium.

    python bench/pages.py --rows 1 500 20000 1000000     figures, of generated rows
    python bench/pages.py --out OUT --pictures FOLDER    pictures of the pages of an OUT instead
    python bench/pages.py --out OUT --pictures docs/images --forms desktop    those of the documents

Seconds are of the wall, from the click to the first paint of what follows; in parentheses CPU seconds of the
server, which other work of the machine hardly changes. Memory is the most that the server ever held.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow.dataset as ds
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from camray.audit.report import write_report  # noqa: E402
from camray.ledger.out import open_out  # noqa: E402
from camray.serve.redraw import COLUMNS, Redraw  # noqa: E402
from tests.audit.browser import Browser  # noqa: E402
from tests.audit.report_world import make_out  # noqa: E402

PAINTED = (
    "document.readyState === 'complete' && performance.getEntriesByName('first-contentful-paint').length > 0"
)
PAINT_S = "performance.getEntriesByName('first-contentful-paint')[0].startTime / 1000"
FILTER = """const fields = document.getElementById('filters').elements;
const field = fields.verdict || fields.state; field.selectedIndex = 1;
field.dispatchEvent(new Event('change', {bubbles: true}))"""
STEPS = {
    "first page": "",
    "filter": FILTER,
    "search": "location.assign('/images?q=img-00001')",
    "open ones": "location.assign('/images?state=open')",
    "last page": "location.assign('/images?page=100000')",
    "one image": "document.querySelector('#cards a').click()",
    "similar": "location.assign('/images?like=' + document.getElementById('detail-page').dataset.id)",
    "classes": "location.assign('/classes')",
    "causes": "location.assign('/causes')",
}
FORMS = {
    "desktop": (1280, 900, 1, "screen", "light"), "phone": (420, 860, 1, "screen", "light"),
    "dark": (1280, 900, 1, "screen", "dark"), "print": (794, 1123, 1, "print", "dark"),
    "double": (640, 450, 2, "screen", "light"),
}  # fmt: skip
PLACES = ("images", "image", "causes", "classes")
REPORT = {"overview": "overview", "queue": "queue", "queue?row=1": "image", "classes": "classes"}


class Server:
    """`camray serve OUT --review` in a process of its own."""

    def __init__(self, out: Path) -> None:
        started = time.monotonic()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "camray.cli", "serve", str(out), "--review"],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        self.url = self.token()
        self.opening_s = time.monotonic() - started

    def token(self) -> str:
        """Give the address for one browser."""
        assert self._process.stdout
        return self._process.stdout.readline().strip()

    @property
    def cpu_s(self) -> float:
        """Seconds of CPU so far."""
        said = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(said[11]) + int(said[12])) / os.sysconf("SC_CLK_TCK")

    @property
    def most_mib(self) -> float:
        """The most memory it ever held."""
        lines = Path(f"/proc/{self._process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait()


@contextmanager
def visiting(out: Path) -> Iterator[tuple[Server, Browser]]:
    """Serve an OUT, and open a browser."""
    server = Server(out)
    with tempfile.TemporaryDirectory() as profile:
        browser = Browser(Path(profile))
        try:
            yield server, browser
        finally:
            browser.close()
            server.close()


def told(text: str) -> None:
    """Print it at once: a walk through a million rows takes a while."""
    print(f"{text}; ", end="", flush=True)


def walk(out: Path) -> None:
    """Go through the pages as a person does, and print what each step took."""
    with visiting(out) as (server, page):
        told(f"opening {server.opening_s:.1f} s ({server.cpu_s:.1f})")

        for name, code in STEPS.items():
            spent = server.cpu_s
            if code:
                page.run(f"window.left = true; {code}; 0")
            else:
                page.open(server.url)
            page.wait_for(f"window.left === undefined && {PAINTED}")
            told(f"{name} {page.run(PAINT_S):.2f} s ({server.cpu_s - spent:.2f})")
        told(f"memory {server.most_mib:,.0f} MiB")
        spent = time.process_time()
        report = Path(write_report(str(out)))
        told(f"report written ({time.process_time() - spent:.1f})")
        page.open(report.as_uri())
        page.wait_for(PAINTED)
        told(f"its first page {page.run(PAINT_S):.2f} s")


def pictures(out: Path, folder: Path, forms: Sequence[str]) -> None:
    """Save what the pages of an OUT look like: on a desk, a phone, at night, on paper, at 200 %."""
    write_report(str(out))
    folder.mkdir(exist_ok=True)
    colours(out, folder / "overlay-colours.png")
    with visiting(out) as (server, page):
        page.open(server.url)
        base = page.run("location.origin") + "/"
        report = (out / "report" / "index.html").resolve().as_uri()
        for form in forms:
            kind, (width, height, scale, media, scheme) = f"-{form}" * (form != "desktop"), FORMS[form]
            page.ask("Emulation.setDeviceMetricsOverride", width=width, height=height,
                     deviceScaleFactor=scale, mobile=width < 600)  # fmt: skip
            page.ask("Emulation.setEmulatedMedia", media=media,
                     features=[{"name": "prefers-color-scheme", "value": scheme}])  # fmt: skip
            for place in PLACES:
                page.open(f"{base}images" if place == "image" else base + place)
                if place == "image":
                    page.open(page.run("document.querySelectorAll('#cards a')[1].href"))
                _save(page, folder / f"serve{kind}-{place}.png")
            page.open(report)
            for place, name in REPORT.items():
                page.run(f"location.hash = {place!r}")
                _save(page, folder / f"report{kind}-{name}.png")


def colours(out: Path, file: Path) -> None:
    """Draw twelve images at 72 pixels in three colour maps without and with the line, each in grey, too."""
    folder, table = open_out(str(out))
    wanted = table.dataset().scanner(columns=[*COLUMNS], filter=ds.field("heat_status") == "ok")
    rows = wanted.head(12).to_pylist()
    sheet = Image.new("RGB", (12 * 76, 12 * 76), "white")
    styles = [(c, level) for level in (0.0, 0.5) for c in ("turbo", "viridis", "inferno")]
    for down, (colormap, level) in enumerate(styles):
        style = {"colormap": colormap, "contour": level, "legend": False, "picture": "blend"}
        for across, done in enumerate(Redraw(folder)(rows, style)):
            if done.picture is None:
                sys.exit(f"{done.row['member']}: {done.why}")
            small = Image.fromarray(done.picture).resize((72, 72), Image.Resampling.BOX)
            for grey in (0, 1):
                shown = small.convert("L") if grey else small
                sheet.paste(shown, (across * 76, (2 * down + grey) * 76))
    _shrink(sheet, file)


def _save(page: Browser, file: Path) -> None:
    page.wait_for("[...document.images].slice(0, 12).every((i) => i.complete || i.loading === 'lazy')")
    time.sleep(0.8)  # lazy pictures
    page.picture(file)
    _shrink(Image.open(file), file)


def _shrink(picture: Image.Image, file: Path) -> None:
    whole = picture.convert("RGB")
    whole.quantize(palette=whole.quantize(255), dither=Image.Dither.FLOYDSTEINBERG).save(file, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 500, 20_000])
    parser.add_argument("--out", type=Path, help="an OUT that is there")
    parser.add_argument("--pictures", type=Path, help="a folder for pictures of the pages of --out")
    parser.add_argument("--forms", nargs="+", default=[*FORMS], choices=FORMS)
    asked = parser.parse_args()
    if asked.pictures:
        pictures(asked.out, asked.pictures, asked.forms)
        return
    for rows in asked.rows if asked.out is None else [0]:
        with tempfile.TemporaryDirectory() as place:
            out = asked.out or Path(place) / "out"
            if rows:
                make_out(out, rows)
            told(f"{rows or out} rows")
            walk(out)


if __name__ == "__main__":
    main()
