"""Own code is what lies outside any installed distribution; nothing else travels."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from camray.errors import ModelError
from camray.models.own_code import collect_code, load_object

NET = "from torch import nn\nimport heavy\n\nclass Net(nn.Module):\n    pass\n"


def install(folder: Path, name: str, text: str, record: bool = True) -> None:
    """Lay a package as an installer does: its code and a dist-info with a RECORD, or a top_level.txt."""
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text(text)
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    if record:
        (info / "RECORD").write_text(f"{name}/__init__.py,,\n{info.name}/METADATA,,\n{info.name}/RECORD,,\n")
    else:
        (info / "top_level.txt").write_text(f"{name}\n")


@pytest.mark.parametrize("record", [True, False])
def test_a_package_on_pythonpath_that_is_a_distribution_is_no_own_code(
    record: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "layered_net", NET, record)
    install(tmp_path, "heavy", "raise SystemExit('its sources were run')", record)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert collect_code("layered_net:Net").files == {}


def test_own_code_beside_distributions_travels_without_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder on PYTHONPATH holds both a file of one's own and what `pip install --target` put there."""
    install(tmp_path, "heavy", "x = 1")
    (tmp_path / "my_net.py").write_text(NET + "import my_part\n")
    (tmp_path / "my_part.py").write_text("y = 2\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert sorted(collect_code("my_net:Net").files) == ["my_net.py", "my_part.py"]
    assert sorted(collect_code(f"{tmp_path}/my_net.py:Net").files) == ["my_net.py", "my_part.py"]


def test_an_editable_install_is_own_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its distribution lies elsewhere and holds none of its files: a worker would not have them."""
    (tmp_path / "src" / "edited").mkdir(parents=True)
    (tmp_path / "src" / "edited" / "__init__.py").write_text("class Net: ...\n")
    info = tmp_path / "site" / "edited-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: edited\nVersion: 1.0\n")
    (info / "RECORD").write_text("__editable__.edited.pth,,\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.syspath_prepend(str(tmp_path / "src"))
    assert sorted(collect_code("edited:Net").files) == ["edited/__init__.py"]


def test_torch_and_timm_are_installed_wherever_they_lie() -> None:
    """In a fresh process whose interpreter knows no paths of its own."""
    code = (
        "import sysconfig; sysconfig.get_paths = lambda *a, **k: {}\n"
        "from camray.models.own_code import collect_code\n"
        "assert collect_code('timm.models.resnet:resnet18').files == {}\n"
        "assert collect_code('torch.nn:Linear').files == {}\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("marked", [True, False], ids=["__init__.py", "no __init__.py"])
def test_a_file_of_a_package_is_imported_as_its_part(marked: bool, tmp_path: Path) -> None:
    """A researcher's repository: `from .blocks import width`, which a file imported alone cannot."""
    package = tmp_path / "repo" / "models"
    package.mkdir(parents=True)
    (package / "net.py").write_text("from .blocks import width\ndef make(): return width\n", "utf-8-sig")
    (package / "blocks.py").write_text("width = 7\n")
    if marked:
        (package / "__init__.py").write_text("from .net import make\n")
        (tmp_path / "repo" / "__init__.py").write_text("")
        assert load_object(collect_code(f"{package}/__init__.py:make"))() == 7
    code = collect_code(f"{package}/net.py:make")
    assert code.module == ("repo.models.net" if marked else "models.net")
    assert load_object(code)() == 7


def test_a_file_with_a_byte_order_mark_that_prints_and_one_that_exits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a model prints stays out of results (--json); a script that parses options ends no command."""
    (tmp_path / "net.py").write_text("print('made')\nclass Net: ...\n", "utf-8-sig")
    load_object(collect_code(f"{tmp_path}/net.py:Net"))
    assert capsys.readouterr() == ("", "made\n")
    (tmp_path / "script.py").write_text("class Net: ...\nraise SystemExit(2)\n")
    with pytest.raises(ModelError, match=r"script cannot be imported: SystemExit: 2"):
        load_object(collect_code(f"{tmp_path}/script.py:Net"))


@pytest.mark.parametrize("name", ["folder", "book.ipynb"])
def test_a_path_that_is_no_python_file_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "__init__.py").write_text("class Net: ...\n")
    with pytest.raises(ModelError, match=r"is no Python file. Fix: give path/to/file.py:ClassName"):
        collect_code(f"{tmp_path}/{name}:Net")
