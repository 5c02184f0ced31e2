"""Methods register themselves: each file of the folder is loaded, and a name is given once."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import camray.cam
from camray.cam import METHODS
from camray.cam.registry import method


def test_every_decorated_formula_of_the_folder_is_a_method() -> None:
    """Found by reading the files, not by importing them."""
    written = {
        call.args[0].value
        for file in Path(camray.cam.__file__).parent.glob("*.py")
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(node, ast.FunctionDef)
        for call in node.decorator_list
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "method"
        if call.args and isinstance(call.args[0], ast.Constant)
    }
    assert written == set(METHODS)
    assert all(entry.doc and entry.cost for entry in METHODS.values())


def test_a_name_is_given_once() -> None:
    before = METHODS["gradcam"]
    with pytest.raises(ValueError, match="two methods are called gradcam"):
        method("gradcam", needs="gradient", cost="1", doc="another")(lambda A, G: A)
    assert METHODS["gradcam"] is before
