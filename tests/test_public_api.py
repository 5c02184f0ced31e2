"""What `import camray` promises: few names, all there, all said, and nothing heavy loaded."""

import inspect
import subprocess
import sys

import camray


def test_few_names_sorted_and_all_there() -> None:
    assert list(camray.__all__) == sorted(set(camray.__all__))
    assert 0 < len(camray.__all__) <= 12
    for name in camray.__all__:
        assert getattr(camray, name) is not None


def test_no_public_name_is_left_out() -> None:
    def is_own(value: object) -> bool:
        return callable(value) and getattr(value, "__module__", "").startswith("camray")

    public = {name for name, value in vars(camray).items() if not name.startswith("_") and is_own(value)}
    assert public <= set(camray.__all__)


def test_every_name_says_what_it_is() -> None:
    for name in camray.__all__:
        value = getattr(camray, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert inspect.getdoc(value), name
    assert "archive" in (camray.__doc__ or "")


def test_import_is_light() -> None:
    code = "import sys, camray; from camray import *; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "ray", "timm", "cv2", "deltalake"} & set(done.stdout.split())


def test_version_is_a_version() -> None:
    assert [part.isdigit() for part in camray.__version__.split(".")[:2]] == [True, True]
