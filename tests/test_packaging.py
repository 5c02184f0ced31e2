"""What a user installs: everything the package needs, nothing else, and a version that agrees everywhere."""

from __future__ import annotations

import email
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

import camray

ROOT = Path(__file__).resolve().parents[1]
BUILD = """
import sys
from setuptools import build_meta
print(getattr(build_meta, f"build_{sys.argv[1]}")(sys.argv[2]))
"""

DEMO = ("camray/demo/archive", "camray/demo/model")  # links to folders of demo/


def tracked(*where: str) -> set[str]:
    """Files that belong to the project: committed, or new and not ignored."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *where]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("not a git checkout")
    return {name for name in done.stdout.splitlines() if (ROOT / name).is_file()}


def build(kind: str, source: Path, to: Path) -> Path:
    """Build in `source` with the installed setuptools, as an isolated build would."""
    done = subprocess.run(
        [sys.executable, "-c", BUILD, kind, str(to)], cwd=source, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return to / done.stdout.split()[-1]


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The sdist of a copy of the tree, and the wheel of the unpacked sdist."""
    folder = tmp_path_factory.mktemp("packages")
    for name in (*tracked(), *DEMO):
        (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / "source" / name, follow_symlinks=False)
    sdist = build("sdist", folder / "source", folder)
    with tarfile.open(sdist) as tar:
        tar.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    return sdist, build("wheel", unpacked, folder)


def test_the_wheel_holds_the_package_and_nothing_else(packages: tuple[Path, Path]) -> None:
    names = set(zipfile.ZipFile(packages[1]).namelist())
    info = f"camray-{camray.__version__}.dist-info/"
    bundled = {f"{link}/{path.name}" for link in DEMO for path in (ROOT / link).iterdir()}
    assert len(bundled) >= 8
    assert {n for n in names if not n.startswith(info)} == tracked("camray") | bundled
    assert "camray/py.typed" in names
    for room in ("audit", "compare", "serve"):
        assert {n for n in names if n.startswith(f"camray/{room}/pages/")}
    assert f"{info}licenses/LICENSE" in names


def test_the_wheel_says_what_it_is(packages: tuple[Path, Path]) -> None:
    wheel = zipfile.ZipFile(packages[1])
    info = f"camray-{camray.__version__}.dist-info/"
    said = email.message_from_bytes(wheel.read(f"{info}METADATA"))
    assert (said["Name"], said["Version"]) == ("camray", camray.__version__)
    assert said["License-Expression"] == "Apache-2.0"
    assert set(said.get_all("Provides-Extra") or ()) == {
        "dicom",
        "tiff",
        "codecs",
        "docs",
        "heif",
        "serve",
        "captum",
        "transformers",
        "open-clip",
        "smp",
        "yolo",
        "dev",
    }
    assert "camray = camray.cli.main:main" in wheel.read(f"{info}entry_points.txt").decode()
    assert said["Description-Content-Type"] == "text/markdown"


def test_the_sdist_is_enough_to_build_from(packages: tuple[Path, Path]) -> None:
    with tarfile.open(packages[0]) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    wanted = {"LICENSE", "README.md", "CHANGELOG.md", "CITATION.cff", "SECURITY.md", "constraints.txt"}
    assert tracked("camray") | wanted <= names
    assert packages[0].stat().st_size < 4 * 2**20


def test_one_version_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert project["version"] == citation["version"] == camray.__version__
    assert project["license"] == citation["license"] == "Apache-2.0"
    for page in ("Dockerfile", "rayjob.yaml", "raycronjob.yaml", "cluster.yaml"):
        assert f"camray:{project['version']}" in (ROOT / "deploy" / page).read_text(), page
    assert "Apache License" in (ROOT / "LICENSE").read_text()


def test_everything_that_is_imported_is_declared() -> None:
    """A module at the top of an import outside of the standard library belongs to a dependency."""
    import ast

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {
        name.partition("[")[0].partition(">")[0].partition("=")[0] for name in project["dependencies"]
    }
    declared |= {
        n.partition(">")[0]
        for k in ("dicom", "tiff", "captum", "transformers", "serve", "open-clip", "yolo")
        for n in project["optional-dependencies"][k]
    }
    own_names = {"PIL": "pillow", "cv2": "opencv-python-headless", "open_clip": "open_clip_torch"}
    used = set()
    for path in (ROOT / "camray").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            used |= {name.partition(".")[0] for name in names}
    foreign = {own_names.get(n, n) for n in used - set(sys.stdlib_module_names) - {"camray"}}
    assert foreign <= declared
