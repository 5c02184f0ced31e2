"""The protections around the decoder taken out, one each: its own tests must notice."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest
from PIL import ImageFile

from camray.image import guarded
from camray.image.guarded import GuardedDecoder, Limits
from tests.image import bad_codecs, test_decode, test_guarded
from tests.image.test_guarded import misled

__all__ = ["misled"]
pytestmark = pytest.mark.faults


def test_without_a_process_of_its_own_a_crash_ends_the_worker() -> None:
    child = os.fork()
    if child == 0:
        bad_codecs.misbehave(b"P6abort.")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGABRT


def test_without_a_limit_of_cpu_time(monkeypatch: pytest.MonkeyPatch, misled: GuardedDecoder) -> None:
    monkeypatch.setattr(test_guarded, "FRUGAL", Limits(cpu_s=10**6, wall_s=3))
    with pytest.raises(AssertionError):
        test_guarded.test_endless_work_is_cut_by_cpu_time(misled)


def test_without_a_limit_by_the_clock(monkeypatch: pytest.MonkeyPatch, misled: GuardedDecoder) -> None:
    test_guarded.still_works(misled)
    endless = Limits(wall_s=10**6)
    ended: list[object] = []
    ask = threading.Thread(target=lambda: ended.append(test_guarded.failure(misled, b"P6sleep.", endless)))
    ask.start()
    time.sleep(3)  # the test allows 0.3 s, twice
    assert not ended
    for _ in range(2):
        assert misled._process is not None
        misled._process.kill()
        time.sleep(3)
    ask.join(60)


def test_with_the_environment_of_its_parent(monkeypatch: pytest.MonkeyPatch, misled: GuardedDecoder) -> None:
    real = guarded._environment
    monkeypatch.setattr(guarded, "_environment", lambda: {**os.environ, **real()})
    with pytest.raises(AssertionError):
        test_guarded.test_no_secret_is_in_its_environment(misled, monkeypatch)


def test_with_cut_images_taken_for_whole_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(AssertionError):
        test_decode.test_every_cut_is_a_typed_error_or_the_whole_picture("JPEG")
