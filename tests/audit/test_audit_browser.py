"""The page in a real browser: nothing on the console, nothing fetched, headings sort, filters filter."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from camray.compare.page import Strip, render
from tests.audit.browser import CHROMIUM
from tests.compare.test_comparison_page import tree

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine"),
]
PROBE = """
<script>
const said = [];
const pick = s => [...document.querySelectorAll('#main-table ' + s)];
const road = () => pick('thead th').find(h => h.textContent.startsWith('road'));
const names = () => pick('tbody tr').filter(r => !r.hidden).map(r => r.dataset.name);
road().click(); said.push('up=' + names().join('|'));
road().click(); said.push('down=' + names().join('|'));
document.getElementById('filter-controls').click(); said.push('filtered=' + names().join('|'));
const box = document.getElementById('filter-text'); box.value = 'grad'; box.dispatchEvent(new Event('input'));
said.push('named=' + names().join('|'));
document.querySelector('input[data-group=faithfulness]').click();
said.push('hidden=' + road().hidden);
said.push('requests=' + performance.getEntriesByType('resource').length);
document.title = said.join(' @@ ');
</script></body>"""


def test_headings_sort_filters_filter_and_nothing_is_fetched(tmp_path: Path) -> None:
    page = tmp_path / "index.html"
    html = render(tree(), {"model": "m"}, [Strip("one", "data:,", {})])
    page.write_text(html.replace("</body>", PROBE))
    done = subprocess.run(
        [str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
         f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", page.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert "CONSOLE" not in done.stderr, [s for s in done.stderr.splitlines() if "CONSOLE" in s]
    title = re.search(r"<title>(.*?)</title>", done.stdout, re.S)
    assert title is not None
    said = dict(item.split("=", 1) for item in title[1].split(" @@ "))
    nasty = '&lt;script&gt;alert("x")&lt;/script&gt;'
    assert said["up"] == f"random|gradcam|cam|{nasty}"  # what has no value stays last
    assert said["down"] == f"gradcam|cam|random|{nasty}"
    assert said["filtered"] == f"gradcam|cam|{nasty}"
    assert said["named"] == "gradcam"
    assert (said["hidden"], said["requests"]) == ("true", "0")
