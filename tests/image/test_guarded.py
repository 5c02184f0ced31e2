"""A decoder that crashes, hangs, eats memory or lies costs one image; the next one is decoded as ever."""

import os
import signal
import struct
import time
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from camray.errors import ErrorCode, ImageError
from camray.image.decode import decode, upright
from camray.image.guarded import GuardedDecoder, Limits, memory_limit
from camray.records import Boxes
from tests.archive.makers import encoded, spec
from tests.image import bad_codecs

MAX = 1_000_000
SPEC = spec(32, 36)
HASTY = Limits(wall_s=0.3)
FRUGAL = Limits(cpu_s=0.2, wall_s=60)


def photo(width=60, height=50, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


@pytest.fixture(scope="module")
def guard():
    held = GuardedDecoder(MAX)
    yield held
    held.close()


@pytest.fixture(scope="module")
def misled():
    """A decoder whose codec does what the image says."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(Path(__file__).resolve().parents[2])
        held = GuardedDecoder(MAX, module="tests.image.bad_codecs")
        yield held
        held.close()


def failure(held, content, limits=Limits()):  # noqa: B008
    before, held.limits = held.limits, limits
    try:
        with pytest.raises(ImageError) as caught:
            held.decode(content, SPEC)
    finally:
        held.limits = before
    assert caught.value.message.isprintable()
    return caught.value.code, caught.value.message


def same(found, plain):
    for got, wanted in ((found.pixels, plain.pixels), (found.mask, plain.mask)):
        assert np.array_equal(got, wanted)
    rest = [replace(d, pixels=None, mask=None) for d in (found, plain)]
    assert rest[0] == rest[1]


def test_the_same_as_without_the_process(guard):
    for content in (
        encoded(photo(), "JPEG"),
        encoded(photo(7, 900)),
        encoded(photo().convert("I;16"), "TIFF"),
    ):
        same(guard.decode(content, SPEC), decode(content, SPEC, MAX))
        assert np.array_equal(guard.upright(content), upright(content, MAX))


def test_boxes_and_masks_come_through(guard):
    content, mask = encoded(photo()), encoded(Image.new("L", (60, 50), 9))
    boxes = Boxes(((6.0, 5.0, 30.0, 25.0), (0.0, 0.0, 60.0, 50.0)), in_pixels=True)
    found = guard.decode(memoryview(content), SPEC, boxes, mask)
    same(found, decode(content, SPEC, MAX, boxes, mask))
    assert found.mask.min() == 255
    assert found.boxes == ((0.1, 0.1, 0.5, 0.5), (0.0, 0.0, 1.0, 1.0))
    for bad in (b"no image", b""):
        with pytest.raises(ImageError, match="mask: "):
            guard.decode(content, SPEC, boxes, bad)


def test_a_bad_image_keeps_its_own_code(guard):
    assert failure(guard, b"") == (ErrorCode.EMPTY_FILE, "0 bytes")
    assert failure(guard, b"<html>")[0] == ErrorCode.NOT_AN_IMAGE
    assert failure(guard, encoded(Image.new("1", (1001, 1000))))[0] == ErrorCode.TOO_MANY_PIXELS


def still_works(held):
    content = encoded(photo(seed=1))
    same(held.decode(content, SPEC), decode(content, SPEC, MAX))


@pytest.mark.parametrize(("order", "said"), [(b"P6segv..", "SIGSEGV"), (b"P6abort.", "SIGABRT")])
def test_a_crash_is_one_failed_image(misled, order, said):
    code, message = failure(misled, order)
    assert (code, said in message) == (ErrorCode.WORKER_CRASHED, True)
    still_works(misled)


def test_endless_work_is_cut_by_cpu_time(misled):
    still_works(misled)
    assert failure(misled, b"P6spin..", FRUGAL) == (ErrorCode.DECODE_TIMEOUT, "more than 0.2 s of CPU time")
    still_works(misled)


@pytest.mark.parametrize("order", [b"P6sleep.", b"P6stop.."])
def test_a_hang_is_cut_by_the_clock(misled, order):
    assert failure(misled, order, HASTY) == (ErrorCode.DECODE_TIMEOUT, "no answer for 0.3 s, 2 times")
    still_works(misled)


def test_a_crash_that_does_not_repeat_costs_nothing(misled, tmp_path):
    """A process killed from outside, by the kernel's memory killer say, blames no image."""
    (tmp_path / "m").touch()
    code, message = failure(misled, b"P6once.." + str(tmp_path / "m").encode())
    assert (code, message) == (ErrorCode.NOT_AN_IMAGE, "looks like text")  # once the decoder gets to see it
    still_works(misled)
    os.kill(misled._process.pid, signal.SIGKILL)
    os.waitid(os.P_PID, misled._process.pid, os.WEXITED | os.WNOWAIT)
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
    misled.close()
    _, message = failure(misled, b"P6env...")
    assert message == "ValueError: nothing secret"
    proc = Path(f"/proc/{misled._process.pid}/environ")
    assert not proc.exists() or b"canary" not in proc.read_bytes()


@pytest.mark.parametrize("order", [b"P6long..", *bad_codecs.LIES])
def test_an_answer_that_breaks_the_rules_is_a_crash(misled, order):
    code, _ = failure(misled, order)
    assert code == ErrorCode.WORKER_CRASHED
    still_works(misled)


def test_a_process_that_cannot_start_blames_no_image():
    with pytest.raises(RuntimeError, match="does not start: exit code 1"):
        GuardedDecoder(MAX, module="camray.no_such_module").decode(b"x", SPEC)


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


def test_a_jpeg_of_endless_scans_is_cut(guard):
    still_works(guard)
    content = progressive_bomb(900, 3000)
    assert len(content) < 10_000_000
    assert failure(guard, content, FRUGAL) == (ErrorCode.DECODE_TIMEOUT, "more than 0.2 s of CPU time")
    still_works(guard)


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
