"""`camray compare` end to end on the bundled archive: what is measured, kept, refused and shown."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from deltalake import DeltaTable

from camray import config
from camray.cli.arguments import names
from camray.cli.main import main
from camray.compare import job as compare
from camray.compare.job import CompareOutcome
from camray.compare.prepare import read_panels
from camray.compare.scorer import BatchScorer
from camray.errors import ExitCode, UsageError
from camray.flow.progress import Reporter
from camray.measure.catalogue import METRICS
from camray.measure.registry import CONTROLS
from camray.models.load import load_model
from camray.options import load
from camray.storage import open_folder
from demo import hans64

COUNT = 6
Run = Callable[..., CompareOutcome]


def settings(demo: Path, out: Path, *methods: str, **more: object) -> config.Config:
    named: dict[str, object] = {
        "archive.path": str(demo / "archive"), "out": str(out), "archive.sample": COUNT, "run.engine": "here",
        "model.name": str(demo / "models" / "hans64-clean"), "compare.methods": list(methods),
    }  # fmt: skip
    return load(None, named | {k.replace("__", "."): v for k, v in more.items()})


@pytest.fixture(scope="module")
def found(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, CompareOutcome]:
    out = tmp_path_factory.mktemp("compare") / "out"
    return out, compare.compare(settings(demo, out, "gradcam"), Reporter())


def scores(out: Path) -> list[dict[str, object]]:
    rows = DeltaTable(str(out / "scores")).to_pyarrow_table().to_pylist()
    return sorted(rows, key=lambda r: (r["shard"], r["index"], r["method"], r["metric"]))


def test_every_image_has_every_metric_of_every_method_once(
    found: tuple[Path, CompareOutcome],
) -> None:
    out, outcome = found
    assert outcome.code == ExitCode.DONE
    rows = scores(out)
    seen = Counter((r["shard"], r["index"], r["method"], r["metric"]) for r in rows)
    assert set(seen.values()) == {1}
    assert {r["method"] for r in rows} == {"gradcam", *CONTROLS}
    assert {r["metric"] for r in rows} == {*METRICS, "map"}
    assert len(rows) == COUNT * 4 * (len(METRICS) + 1)
    for row in rows:
        assert (row["value"] is not None) == (row["score_status"] == "ok" and row["metric"] != "map")
        assert not isinstance(row["value"], float) or math.isfinite(row["value"])


def test_regions_are_the_generators_own(found: tuple[Path, CompareOutcome]) -> None:
    """The heat of `center` inside the true box, by hand: its Gaussian summed over the object's box."""
    out, _ = found
    for row in scores(out):
        if row["method"] == "center" and row["metric"] == "energy_pointing":
            index = int(re.search(r"(\d+)\.jpg", str(row["member"]))[1])  # type: ignore[index]
            tagged = False  # the object does not depend on the tag
            x0, y0, x1, y1 = hans64.render(
                hans64.ARCHIVE_SEED, "audit", index, tagged=tagged, decoy=False
            ).box
            heat = _center(64)
            expected = sum(heat[y][x] for y in range(y0, y1) for x in range(x0, x1)) / sum(map(sum, heat))
            assert row["value"] == pytest.approx(expected, rel=0.02)


def _center(side: int) -> list[list[float]]:
    """A Gaussian of an 8 x 8 grid, sampled at -2 .. 2 standard deviations, enlarged bilinearly."""
    grid = [math.exp(-((-2 + 4 * i / 7) ** 2) / 2) for i in range(8)]

    def at(pixel: int) -> float:
        place = min(max((pixel + 0.5) * 8 / side - 0.5, 0), 7)
        low = min(int(place), 6)
        return grid[low] * (low + 1 - place) + grid[low + 1] * (place - low)

    line = [at(p) for p in range(side)]
    return [[a * b for b in line] for a in line]


def test_a_second_run_measures_nothing(found: tuple[Path, CompareOutcome], demo: Path) -> None:
    out, first = found
    version = DeltaTable(str(out / "scores")).version()
    again = compare.compare(settings(demo, out, "gradcam"), Reporter())
    assert (again.code, again.sample) == (ExitCode.DONE, first.sample)
    assert DeltaTable(str(out / "scores")).version() == version
    subset = compare.prepare(settings(demo, out, "gradcam", "layercam"))
    assert [p.methods for p, plan in subset.panels if plan.tasks] == [("layercam",)]


def test_the_page_asks_for_nothing_outside(found: tuple[Path, CompareOutcome]) -> None:
    page = Path(found[1].page).read_text()
    assert not re.findall(r"(?:src|href|url)\s*[=(]\s*[\"']?(?!data:|#)[a-z]+:", page)
    assert "default-src 'none'" in page
    for name in ("gradcam", *CONTROLS, *METRICS):
        assert name in page
    tree = json.loads((Path(found[1].page).parent / "summary.json").read_text())
    assert tree["images"] == COUNT
    assert len(re.findall(r"<img ", page)) == COUNT * 5  # the image, and four maps


def test_the_cost_is_told_before_it_is_paid(
    demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = ["compare", str(demo / "archive"), str(out), "--model", str(demo / "models" / "hans64-clean")]
    command += ["--methods", "gradcam", "--sample", "6", "--json"]
    assert main([*command, "--dry-run"]) == 0
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    forwards = next(t["forwards"] for t in told if "forwards" in t)
    # 4 maps: two curves of 10 steps that share their end, ROAD 8, product 1; all controls differ
    assert COUNT * (4 * 20) < forwards < COUNT * (4 * 29 + 20)
    assert main([*command, "--budget", f"forwards={forwards // 2 + 1}"]) == 2
    assert "--sample 3 fits" in capsys.readouterr().err  # half of the money, half of the 6 images
    assert not out.exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"compare.methods": ["grdcam"]}, "did you mean gradcam"),
        ({"compare.methods": []}, "names no method"),
        ({"compare.methods": ["dff"]}, "dff explains concepts"),
        ({"method.target": "top:2"}, "not one class per image"),
        ({"compare.stratify": ["colour"]}, "no column 'colour'"),
        ({"compare.stratify": ["confidence"]}, "holds no records of this model"),
        ({"compare.budget": {"hours": 3}}, "forwards=500000"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    demo: Path, tmp_path: Path, change: dict[str, object], says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        compare.prepare(
            settings(
                demo, tmp_path / "out", "gradcam", **{k.replace(".", "__"): v for k, v in change.items()}
            )
        )
    assert not (tmp_path / "out").exists()


NET = """
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.features, self.head = nn.Conv2d(3, 4, 3, stride=4), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.features(x).relu().mean((2, 3)))
"""


def test_what_was_done_to_load_the_model_is_said_and_kept(
    demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """SECURITY.md: a pickle that was run is named in a warning and in run.json, as other notes are."""
    (tmp_path / "net.py").write_text(NET)
    parts = {"features": torch.nn.Conv2d(3, 4, 3, stride=4), "head": torch.nn.Linear(4, 3)}
    state = {f"{name}.{key}": v for name, part in parts.items() for key, v in part.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "w.pth")
    model = {"model__checkpoint": str(tmp_path / "w.pth"), "method__layer": "features"}
    more = {"model__name": f"{tmp_path}/net.py:Net", "preprocess__input_size": 32, "archive__sample": 2}
    outcome = compare.compare(settings(demo, tmp_path / "out", "gradcam", **model, **more), Reporter())
    assert outcome.code == ExitCode.DONE
    note = "weights of w.pth: taken from 'state_dict'"
    assert note in capsys.readouterr().err
    (report,) = (json.loads(path.read_text()) for path in (tmp_path / "out" / "runs").glob("*/run.json"))
    assert note in report["notes"]


def test_commas_between_brackets_belong_to_the_method() -> None:
    assert names("gradcam, scorecam(channels=8, seed=1),,layercam") == [
        "gradcam", "scorecam(channels=8, seed=1)", "layercam",
    ]  # fmt: skip


@pytest.mark.slow
def test_a_method_added_later_computes_only_itself(
    found: tuple[Path, CompareOutcome], demo: Path, tmp_path: Path
) -> None:
    out, first = found
    before = scores(out)
    added = compare.compare(settings(demo, out, "gradcam", "eigencam"), Reporter())
    after = scores(out)
    assert added.sample == first.sample
    assert [r for r in after if r["method"] != "eigencam"] == before
    new = [r for r in after if r["method"] == "eigencam"]
    together = tmp_path / "together"
    compare.compare(settings(demo, together, "gradcam", "eigencam"), Reporter())
    _same([r for r in scores(together) if r["method"] == "eigencam"], new)
    tree = json.loads((Path(added.page).parent / "summary.json").read_text())
    assert tree["methods"][2:] == [*CONTROLS]
    assert set(tree["methods"][:2]) == {"gradcam", "eigencam"}


def test_a_panel_added_later_measures_no_controls_again(
    found: tuple[Path, CompareOutcome], demo: Path
) -> None:
    (panel,) = read_panels(open_folder(str(found[0]), "OUT"))
    model = load_model(config.ModelConfig(name=str(demo / "models" / "hans64-clean")))
    weights = model.module.state_dict()
    added = BatchScorer(replace(panel, methods=("eigencam",)), weights, "cpu", 2)
    views = np.stack([hans64.render(0, "audit", i).image for i in range(2)])
    nothing = {"label_class": None, "boxes": None, "mask": None, "width": 64, "height": 64}
    crop = {"crop_x0": 0.0, "crop_y0": 0.0, "crop_x1": 64.0, "crop_y1": 64.0}
    maps = added.score([nothing | crop] * 2, views).maps
    assert [method for method, _ in maps.keys] == ["eigencam"]


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_actors_change_nothing(found: tuple[Path, CompareOutcome], demo: Path, tmp_path: Path) -> None:
    out = tmp_path / "four"
    compare.compare(settings(demo, out, "gradcam", run__engine="ray", run__actors=4), Reporter())
    _same(scores(out), [r for r in scores(found[0]) if r["method"] != "eigencam"])


def _same(one: list[dict[str, object]], other: list[dict[str, object]]) -> None:
    """Rows are one but for run, panel and rounding."""
    assert len(one) == len(other) > 0
    for a, b in zip(one, other, strict=True):
        for name in a.keys() - {"run_id", "panel", "value", "curve", "heatmap", "picture"}:
            assert a[name] == b[name], name
        for name in ("value", "curve", "heatmap"):
            assert (a[name] is None) == (b[name] is None)
            if a[name] is not None:
                assert a[name] == pytest.approx(b[name], rel=1e-4, abs=1e-5), (a["method"], a["metric"])
    assert pa.array([r["value"] for r in one]).null_count < len(one)


def test_status_and_verify_know_an_out_of_scores_alone(
    found: tuple[Path, CompareOutcome], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    shutil.copytree(found[0], out)
    assert main(["status", str(out)]) == ExitCode.DONE
    said = capsys.readouterr().out
    assert "gradcam, random, center, sobel" in said
    assert f"{COUNT} members = {COUNT} ok" in said
    assert main(["verify", str(out)]) == ExitCode.DONE
    assert "all accounted for" in capsys.readouterr().out
    file = next(out.glob("scores/panel=*/*.parquet"))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    assert main(["verify", str(out)]) == ExitCode.GATE
    assert file.name in capsys.readouterr().out
