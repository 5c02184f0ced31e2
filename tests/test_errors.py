"""The exception tree: exit codes, one-line messages, a journey through pickle, untrusted text."""

import ast
import json
import pickle
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from camray import errors
from camray.errors import (
    ErrorCode,
    ExitCode,
    ImageError,
    ModelError,
    ShardError,
    Stage,
    UsageError,
    printable,
    redacted,
)

# The numbers are a promise to shell scripts: written out here, not read from the source.
EXIT_CODES = {
    "DONE": 0, "CRASH": 1, "USAGE": 2, "FAILURES_OVER_BUDGET": 3, "INCOMPLETE": 4, "GATE": 5, "EMPTY": 6,
    "LOCKED": 7, "INTERRUPTED": 130, "TERMINATED": 143,
}  # fmt: skip


def test_exit_codes_are_the_promised_numbers() -> None:
    assert {code.name: int(code) for code in ExitCode} == EXIT_CODES


def test_every_exit_code_says_what_it_means() -> None:
    meanings = [code.meaning for code in ExitCode]
    assert all(meanings)
    assert len(set(meanings)) == len(meanings)


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (errors.CamrayError, 1), (errors.UsageError, 2), (errors.ModelError, 2), (errors.IncompleteError, 4),
        (errors.EmptyArchiveError, 6), (errors.OutputLockedError, 7),
    ],
)  # fmt: skip
def test_each_class_has_its_exit_code(kind: type[errors.CamrayError], code: int) -> None:
    assert kind.exit_code == code


def test_codes_and_stages_are_plain_lower_case_words() -> None:
    for word in (*ErrorCode, *Stage):
        assert word == word.lower()
        assert word.replace("_", "").isalpha()
    assert len(set(ErrorCode)) == len(list(ErrorCode))


@pytest.mark.parametrize(
    "error",
    [
        UsageError("--model", "is odd", "another"),
        ModelError("--layer", "is odd"),
        ShardError(ErrorCode.SHARD_CORRUPT, "at byte 7"),
        ImageError(ErrorCode.EMPTY_FILE, "0 bytes"),
        errors.OutputLockedError("held"),
        errors.IncompleteError("stopped"),
        errors.EmptyArchiveError("nothing"),
    ],
)
def test_errors_survive_the_way_between_processes(error: errors.CamrayError) -> None:
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is type(error)
    assert str(back) == str(error)
    assert vars(back) == vars(error)


def test_usage_error_names_field_problem_and_fix_in_one_line() -> None:
    assert str(UsageError("--seed", "is odd", "give 0")) == "--seed: is odd. Fix: give 0"
    assert str(UsageError("--seed", "is odd")) == "--seed: is odd"


@given(st.text(st.characters(exclude_categories=[])))
def test_printable_text_is_one_harmless_line(text: str) -> None:
    safe = printable(text)
    assert len(safe) <= 300
    assert len(safe.splitlines()) <= 1
    safe.encode("utf-8")  # no lone surrogate is left
    assert not {unicodedata.category(c) for c in safe} & {"Cc", "Cf", "Cs", "Zl", "Zp", "Co", "Cn"}


@given(st.text(st.characters(categories=["L", "N", "P", "S"]), max_size=300))
def test_printable_leaves_harmless_text_alone(text: str) -> None:
    assert printable(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\nb", "a\\nb"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("evil\u202egpj.exe", "evil\\u202egpj.exe"),
        ("\udc80", "\\udc80"),
    ],
)
def test_printable_escapes_what_moves_the_cursor(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_printable_cuts_long_text_with_a_mark() -> None:
    assert printable("x" * 301) == "x" * 299 + "…"
    assert printable("x" * 12, 10) == "x" * 9 + "…"


def test_every_refusal_names_a_fix() -> None:
    """Field, problem, fix: read from the code, so that no rare refusal is forgotten."""
    package = Path(__file__).resolve().parent.parent / "camray"
    refusals = [
        (file.name, call)
        for file in sorted(package.rglob("*.py"))
        for call in ast.walk(ast.parse(file.read_text()))
        if isinstance(call, ast.Call) and getattr(call.func, "id", "") in ("UsageError", "ModelError")
    ]
    assert len(refusals) > 100
    lacking = [f"{name}:{call.lineno}" for name, call in refusals if len(call.args) < 3]
    assert not lacking


SECRET = "wJalrXUtnFEMIK7MDENG"


@pytest.mark.parametrize(
    "text",
    [
        f"s3://AKIAIOSFODNN7EXAMPLE:{SECRET}@bucket/x",
        f"https://h/x?X-Amz-Signature={SECRET}&X-Amz-Credential={SECRET}",
        f"?sig={SECRET}&sp=r",
        f"AWS_SECRET_ACCESS_KEY={SECRET}",
        f'{{"session_token": "{SECRET}", "n": 1}}',
        f"Authorization: Bearer {SECRET}",
        f"password={SECRET}",
        f"hf_{SECRET}abc",
    ],
)
def test_what_looks_like_a_credential_is_never_told(text: str) -> None:
    for safe in (redacted(text), printable(text)):
        assert SECRET not in safe
        assert "AKIA" not in safe
    assert redacted(redacted(text)) == redacted(text)


@pytest.mark.parametrize(
    "text",
    ["s3://bucket/a@b?region=eu-west-1", "tokens: the attention of 196 patches", "user@host", "signal=9"],
)
def test_what_is_no_credential_is_left_alone(text: str) -> None:
    assert redacted(text) == text


def test_json_stays_json_without_its_secrets() -> None:
    text = json.dumps({"args": {"api_key": SECRET, "depth": 3}, "uri": f"s3://u:{SECRET}@b/x"})
    assert json.loads(redacted(text)) == {"args": {"api_key": "…", "depth": 3}, "uri": "s3://…@b/x"}


def test_long_untrusted_text_is_told_at_once() -> None:
    """An image as text in the place of a name: a search that looks back from every letter takes hours."""
    for text in ("a" * 2_000_000, "secret" * 300_000, "password-" * 200_000, "x://" * 500_000):
        assert len(printable(text)) == 300
    assert "hidden" not in printable("my-secret-" + "k" * 60 + "=hidden, " + "a" * 400)
