"""One local Ray for the session, the bundled archive, and the shared data where it is there."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("CAMRAY_SHARED_DATA", ROOT.parent / "shared" / "data"))


def pytest_runtest_setup() -> None:
    """One thread of torch, or CAMRAY_TEST_THREADS: small networks gain nothing from more, and wait."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(int(os.environ.get("CAMRAY_TEST_THREADS", "1")))


@pytest.fixture(autouse=True)
def _no_ray_by_chance(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Ray of other tests in this process is none of a test that does not ask for it."""
    if "local_ray" not in request.fixturenames and "camray.job.run" in sys.modules:
        monkeypatch.setattr("camray.job.run._is_ray_up", lambda: False)


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """Start one local Ray: 2 CPUs, small object store."""
    import ray

    from camray.flow.cluster import _native_stderr_closed

    with _native_stderr_closed():
        ray.init(
            address="local", num_cpus=2, object_store_memory=200 * 2**20,
            include_dashboard=False, log_to_driver=False, logging_level="error",
        )  # fmt: skip
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def demo() -> Path:
    """The bundled archive and models."""
    return ROOT / "demo"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real images and weights; they cannot be shipped, so their tests run only beside them."""
    if not SHARED.is_dir():
        pytest.skip(f"no shared data at {SHARED}")
    return SHARED


@pytest.fixture
def explain(tmp_path: Path) -> Callable[..., object]:
    """Run `camray explain` in this process (or on the session's Ray: `run__engine="ray"`); its Outcome."""
    from camray.flow.progress import Reporter
    from camray.job import run
    from camray.options import load

    def go(archive: Path | str, out: Path | str, model: Path | str, **settings: object) -> object:
        named: dict[str, object] = {"archive.path": str(archive), "out": str(out), "model.name": str(model)}
        named["run.engine"] = "here"
        named |= {name.replace("__", "."): value for name, value in settings.items()}
        return run.explain(load(None, named), Reporter())

    return go
