"""`camray draw`: what is drawn from the records is what the run itself drew; the archive is only read."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import camray
from camray.cli.main import main
from camray.errors import ExitCode

pytest.importorskip("duckdb")


@pytest.fixture(scope="module")
def drawn_out(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One shard of the demonstration, every picture drawn by the run; the archive is a copy."""
    folder = tmp_path_factory.mktemp("draw")
    shutil.copytree(demo / "archive", folder / "archive", ignore=lambda _, names: sorted(names)[1:])
    words = ["explain", str(folder / "archive"), str(folder / "out"), "--engine", "here", "--overlays", "all"]
    assert main([*words, "--model", str(demo / "models" / "hans64-poisoned")]) == ExitCode.DONE
    return folder / "out"


def pixels(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)), np.int16)


def test_pictures_are_those_of_the_run(drawn_out: Path, tmp_path: Path) -> None:
    assert main(["draw", str(drawn_out), "--to", str(tmp_path / "pictures")]) == ExitCode.DONE
    found = sorted(p.read_bytes() for p in (tmp_path / "pictures").rglob("*.jpg"))
    paths = camray.open_records(str(drawn_out)).to_table(columns=["overlay_path"])["overlay_path"].to_pylist()
    wanted = sorted((drawn_out / path).read_bytes() for path in paths)
    assert len(found) == len(wanted) == 60
    assert max(np.abs(pixels(a) - pixels(b)).max() for a, b in zip(found, wanted, strict=True)) <= 2


def test_the_condition_and_the_colours_are_those_asked_for(
    drawn_out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = camray.open_records(str(drawn_out)).to_table().to_pylist()
    wanted = sum(row["predicted_label"] == "disk" and row["confidence"] > 0.5 for row in table)
    asked = ["--where", "predicted_label = 'disk' and confidence > 0.5", "--colormap", "bone", "--json"]
    assert main(["draw", str(drawn_out), "--to", str(tmp_path / "bone"), *asked]) == ExitCode.DONE
    assert json.loads(capsys.readouterr().out)["drawn"] == wanted > 0
    assert len(list((tmp_path / "bone").rglob("*.jpg"))) == wanted


def test_a_file_that_could_not_be_read_is_a_record_without_a_picture(
    demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its row has no member; before, drawing all rows ended with a traceback."""
    (tmp_path / "archive").mkdir()
    shutil.copy(demo / "archive" / "hans64-00000.tar", tmp_path / "archive")
    (tmp_path / "archive" / "empty.tar").touch()
    words = ["explain", str(tmp_path / "archive"), str(tmp_path / "out"), "--engine", "here", "--limit", "3"]
    main([*words, "--model", str(demo / "models" / "hans64-poisoned")])
    capsys.readouterr()
    assert main(["draw", str(tmp_path / "out"), "--to", str(tmp_path / "to"), "--json"]) == ExitCode.DONE
    assert json.loads(capsys.readouterr().out)["none"] == 1
    words = [
        "draw",
        str(tmp_path / "out"),
        "--where",
        "status = 'failed'",
        "--sheet",
        str(tmp_path / "s.pdf"),
    ]
    assert main(words) == ExitCode.DONE


def test_a_sheet_has_every_picture(drawn_out: Path, tmp_path: Path) -> None:
    for name in ("worst.pdf", "worst.png"):
        assert (
            main(["draw", str(drawn_out), "--limit", "40", "--sheet", str(tmp_path / name)]) == ExitCode.DONE
        )
    assert (tmp_path / "worst.pdf").read_bytes().count(b"/Type /Page\n") == 2  # 35 on a page
    whole = np.asarray(Image.open(tmp_path / "worst.png").convert("L"))
    tops = list(range(12, whole.shape[0], (whole.shape[0] - 12) // 8))
    assert all(whole[y + 50, 12:236].std() > 0 for y in tops[:8])


def test_an_image_that_is_gone_is_drawn_as_heat_and_said(
    drawn_out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(drawn_out, tmp_path / "out"))
    (tar,) = (drawn_out.parent / "archive").glob("*.tar")
    content = tar.read_bytes()
    try:
        tar.unlink()
        assert main(["draw", str(copy), "--limit", "3", "--to", str(tmp_path / "heat")]) == ExitCode.DONE
    finally:
        tar.write_bytes(content)
    assert "3 of them show the heat alone" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--where", "no_such_column = 1", "--to", "NEW"], "--where"),
        (["--where", "exists(select * from read_text('/etc/passwd'))", "--to", "NEW"], "Permission Error"),
        (["--where", "true); drop table rows; --", "--to", "NEW"], "--where"),
        (["--where", "confidence > 2", "--to", "NEW"], "no record is chosen"),
        (["--sheet", "worst.gif"], "its ending says no form"),
        (["--to", "."], "is there already"),
        ([], "or --sheet says where"),
        (["--to", "NEW", "--colormap", "pink"], "colormap"),
    ],
)
def test_refused_in_a_line(
    options: list[str], said: str, drawn_out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").touch()
    assert main(["draw", str(drawn_out), *options]) == ExitCode.USAGE
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]
