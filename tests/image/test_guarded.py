"""A decoder that crashes, hangs, eats memory or lies costs one image; the next one is decoded as ever."""

import os
import signal
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from camray.errors import ErrorCode, ImageError
from camray.image import guarded
from camray.image.decode import decode, upright
from camray.image.guarded import GuardedDecoder, memory_limit
from camray.image.regions import regions_of
from camray.records import Geometry
from tests.archive.makers import encoded, spec

MAX = 1_000_000
PLAIN = {"boxes": None, "boxes_in_pixels": None, "mask": None}
SPEC = spec(32, 36)


def photo(width=60, height=50, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


@pytest.fixture
def guard():
    held = GuardedDecoder(MAX)
    yield held
    held.close()


@pytest.fixture
def misled(monkeypatch):
    """A decoder whose codec does what the image says; short limits."""
    monkeypatch.setattr(guarded, "_MODULE", "tests.archive.bad_codecs")
    monkeypatch.chdir(Path(__file__).resolve().parents[2])
    held = GuardedDecoder(MAX, cpu_s=0.5, wall_s=8.0)
    yield held
    held.close()


def failure(held, content):
    with pytest.raises(ImageError) as caught:
        held.to_input(content, PLAIN, SPEC)
    assert caught.value.message.isprintable()
    return caught.value.code, caught.value.message


def test_the_same_pixels_as_without_the_process(guard):
    for content in (
        encoded(photo(), "JPEG"),
        encoded(photo(7, 900)),
        encoded(photo().convert("I;16"), "TIFF"),
    ):
        found, plain = guard.to_input(content, PLAIN, SPEC), decode(content, SPEC, MAX)
        assert found["pixels"] == plain.pixels.tobytes()
        assert Geometry(*(found[f] for f in Geometry.__slots__)) == plain.geometry
        assert (found["format"], found["pixel_rule"]) == (plain.format, plain.pixel_rule)
        assert np.array_equal(guard.upright(content), upright(content, MAX))


def test_boxes_and_masks_come_through(guard):
    content, mask = encoded(photo()), encoded(Image.new("L", (60, 50), 9))
    box = {"x0": 6.0, "y0": 5.0, "x1": 30.0, "y1": 25.0}
    item = {"boxes": [box], "boxes_in_pixels": True, "mask": mask}
    found = guard.to_input(content, item, SPEC)
    assert found["mask"] == regions_of(item, decode(content, SPEC, MAX).geometry, SPEC, MAX)["mask"]
    assert set(found["mask"]) == {255}
    assert found["boxes"] == [{"x0": 0.1, "y0": 0.1, "x1": 0.5, "y1": 0.5}]
    with pytest.raises(ImageError, match="mask: "):
        guard.to_input(content, item | {"mask": b"no image"}, SPEC)


def test_a_bad_image_keeps_its_own_code(guard):
    assert failure(guard, b"") == (ErrorCode.EMPTY_FILE, "0 bytes")
    assert failure(guard, b"<html>")[0] == ErrorCode.NOT_AN_IMAGE
    assert failure(guard, encoded(Image.new("1", (1001, 1000))))[0] == ErrorCode.TOO_MANY_PIXELS


def still_works(held):
    content = encoded(photo(seed=1))
    assert held.to_input(content, PLAIN, SPEC)["pixels"] == decode(content, SPEC, MAX).pixels.tobytes()


@pytest.mark.parametrize(("order", "said"), [(b"P6segv..", "SIGSEGV"), (b"P6abort.", "SIGABRT")])
def test_a_crash_is_one_failed_image(misled, order, said):
    code, message = failure(misled, order)
    assert (code, said in message) == (ErrorCode.WORKER_CRASHED, True)
    still_works(misled)


def test_endless_work_is_cut_by_cpu_time(misled):
    started = time.monotonic()
    assert failure(misled, b"P6spin..") == (ErrorCode.DECODE_TIMEOUT, "more than 0.5 s of CPU time")
    assert time.monotonic() - started < 60
    still_works(misled)


@pytest.mark.parametrize("order", [b"P6sleep.", b"P6stop.."])
def test_a_hang_is_cut_by_the_clock(monkeypatch, misled, order):
    still_works(misled)
    misled._socket.settimeout(0.5)
    misled._wall_s = 4.0
    assert failure(misled, order) == (ErrorCode.DECODE_TIMEOUT, "no answer for 4 s, 2 times")
    still_works(misled)


def test_a_crash_that_does_not_repeat_costs_nothing(misled, tmp_path):
    """A process killed from outside, by the kernel's memory killer say, blames no image."""
    (tmp_path / "m").touch()
    code, message = failure(misled, b"P6once.." + str(tmp_path / "m").encode())
    assert (code, message) == (ErrorCode.NOT_AN_IMAGE, "looks like text")  # once the decoder gets to see it
    still_works(misled)
    os.kill(misled._process.pid, signal.SIGKILL)
    time.sleep(0.1)
    still_works(misled)


def test_memory_is_bounded(misled):
    assert memory_limit(MAX) < 2**34
    assert failure(misled, b"P6eat...") == (ErrorCode.CORRUPT_IMAGE, "no memory")
    still_works(misled)


def test_no_file_is_written_and_nothing_printed(misled, tmp_path, capfd):
    code, _ = failure(misled, b"P6file.." + str(tmp_path / "x").encode())
    assert code in (ErrorCode.CORRUPT_IMAGE, ErrorCode.WORKER_CRASHED)
    assert not (tmp_path / "x").exists() or (tmp_path / "x").stat().st_size == 0
    failure(misled, b"P6chat..")
    assert capfd.readouterr() == ("", "")


def test_no_secret_is_in_its_environment(misled, monkeypatch):
    for name in ("AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "RAY_AUTH_TOKEN", "MY_OWN"):
        monkeypatch.setenv(name, "canary-7261")
    _, message = failure(misled, b"P6env...")
    assert message == "ValueError: nothing secret"
    proc = Path(f"/proc/{misled._process.pid}/environ")
    assert not proc.exists() or b"canary" not in proc.read_bytes()


def test_an_answer_that_breaks_the_rules_is_a_crash(misled):
    code, _ = failure(misled, b"P6lie...")
    assert code == ErrorCode.WORKER_CRASHED
    still_works(misled)


def test_a_process_that_cannot_start_blames_no_image(monkeypatch):
    monkeypatch.setattr(guarded, "_MODULE", "camray.no_such_module")
    with pytest.raises(RuntimeError, match="does not start: exit code 1"):
        GuardedDecoder(MAX).to_input(b"x", PLAIN, SPEC)


def test_it_ends_with_its_parent(guard):
    still_works(guard)
    process = guard._process
    guard._socket.close()
    assert process.wait(20) == 0


def progressive_bomb(side, scans):
    """A small JPEG that is honest about its size and asks for as many passes over it as it has scans."""
    data = encoded(Image.new("L", (side, side), 90), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * scans + data[-2:]


def test_a_jpeg_of_endless_scans_is_cut(monkeypatch):
    held = GuardedDecoder(10**7, cpu_s=1.0)
    content = progressive_bomb(3000, 3000)
    assert len(content) < 10_000_000
    assert failure(held, content) == (ErrorCode.DECODE_TIMEOUT, "more than 1 s of CPU time")
    still_works(held)
    held.close()


def test_a_bomb_by_its_header_costs_nothing(guard):
    def chunk(kind, data):
        body = kind + data
        return struct.pack("!I", len(data)) + body + struct.pack("!I", zlib.crc32(body))

    for side in (2**15, 2**20, 2**31 - 1):
        head = struct.pack("!IIBBBBB", side, side, 8, 2, 0, 0, 0)
        data = zlib.compress(bytes(100_000))
        content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
        started = time.process_time()
        assert failure(guard, content)[0] == ErrorCode.TOO_MANY_PIXELS
        assert time.process_time() - started < 0.5
    still_works(guard)
