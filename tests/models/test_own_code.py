"""Own code is what lies outside any installed distribution; nothing else travels."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from camray.models.own_code import collect_code

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
