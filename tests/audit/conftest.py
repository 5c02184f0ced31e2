"""Two OUTs that the tests of pages, exports and upkeep share; nobody writes into their records."""

from __future__ import annotations

from pathlib import Path

import pytest

from camray.audit.report import write_report
from demo import hans64
from tests.audit.night_world import night
from tests.audit.report_world import make_out

MADE_ROWS = 1200  # a dozen files of rows, of which a page loads one


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An audited OUT of rows that no model made, with every verdict and hostile names, and its report."""
    out = tmp_path_factory.mktemp("made") / "out"
    make_out(out, MADE_ROWS)
    write_report(str(out))
    return out


@pytest.fixture(scope="session")
def pictured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two nights of twelve real images with their overlays."""
    folder = tmp_path_factory.mktemp("pictured")
    (folder / "archive").mkdir()
    for number in range(2):
        samples = [hans64.render(number, "audit", i, tagged=True) for i in range(12)]
        (shard,) = hans64.write_tar_shards(samples, folder / "new", 12)
        shard.rename(folder / "archive" / f"s{number}.tar")
        run_id = f"202611{number + 1:02d}T000000Z-0"
        night(folder / "archive", folder / "out", run_id, overlay__policy="all", overlay__picture="triple")
    return folder / "out"
