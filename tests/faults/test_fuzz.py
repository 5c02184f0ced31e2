"""Images and archives damaged at random, by seed: every one ends in a record or an error, and in good time.

`make faults` draws CAMRAY_FUZZ_IMAGES (20,000) images through the decoder process and CAMRAY_FUZZ_ARCHIVES
(400) archives; the quick suite a few of each.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import random
import tarfile
import time
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from camray.archive.listing import list_archive
from camray.archive.members import read_members
from camray.config import ArchiveConfig, InputSpec
from camray.errors import ErrorCode, ImageError, ShardError, UsageError
from camray.image.guarded import GuardedDecoder, Limits, memory_limit
from camray.records import Shard

IMAGES = int(os.environ.get("CAMRAY_FUZZ_IMAGES", "20000"))
ARCHIVES = int(os.environ.get("CAMRAY_FUZZ_ARCHIVES", "400"))
SPEC = InputSpec(32, 32, (36, 36), "center", "bilinear", (0.5,) * 3, (0.5,) * 3)
MAX_PIXELS = 4_000_000
SLOW_S = 10.0


def mutated(data: bytes, chance: random.Random) -> bytes:
    """Damage bytes in one to four places: flips, blocks, cuts, repeats, absurd lengths."""
    out = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(max(1, len(out)))
        size = chance.choice((1, 2, 4, 16, 64))
        match chance.randrange(7):
            case 0:
                out[at : at + 1] = bytes([chance.randrange(256)])
            case 1:
                out[at : at + size] = chance.randbytes(size)
            case 2:
                del out[at : at + size]
            case 3:
                out[at:at] = out[at : at + size] * chance.randint(1, 4)
            case 4:
                out[at : at + size] = bytes([chance.choice((0, 0xFF, 0x7F, 0x80))]) * size
            case 5:
                del out[at:]
            case _:
                if out:
                    out[at % len(out)] ^= 1 << chance.randrange(8)
    return bytes(out)


def pictures() -> list[bytes]:
    """One small image of each kind that is decoded."""
    rng = np.random.default_rng(0)
    rgb = Image.fromarray(rng.integers(0, 256, (40, 48, 3), np.uint8))
    ways = [
        (rgb, "JPEG", {}), (rgb, "JPEG", {"progressive": True}), (rgb.convert("L"), "JPEG", {}),
        (rgb.convert("CMYK"), "JPEG", {}), (rgb, "PNG", {}), (rgb.convert("RGBA"), "PNG", {}),
        (rgb.convert("P"), "PNG", {}), (rgb.convert("I;16"), "PNG", {}), (rgb.convert("P"), "GIF", {}),
        (rgb, "BMP", {}), (rgb, "TIFF", {}), (rgb, "TIFF", {"compression": "tiff_lzw"}),
        (rgb, "TIFF", {"compression": "jpeg"}), (rgb.convert("F"), "TIFF", {}), (rgb, "WEBP", {}),
        (rgb, "WEBP", {"lossless": True}), (rgb, "PPM", {}), (rgb, "AVIF", {}),
        (rgb, "GIF", {"save_all": True, "append_images": [rgb.rotate(90)]}),
    ]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = 6
    found = []
    for image, kind, options in [*ways, (rgb, "JPEG", {"exif": exif})]:
        data = io.BytesIO()
        image.save(data, kind, **options)
        found.append(data.getvalue())
    return found + tiffs_and_extras()


def tiffs_and_extras() -> list[bytes]:
    """One small TIFF of each kind that camray reads by itself, and one file of each format of an extra."""
    import imagecodecs
    import pillow_heif
    import tifffile

    rng = np.random.default_rng(1)
    deep, small = (
        rng.integers(0, top, (3, 40, 48)).astype(kind) for top, kind in ((65536, "u2"), (256, "u1"))
    )
    flat = np.ascontiguousarray(np.moveaxis(small, 0, -1))
    ways: list[tuple[object, dict[str, object]]] = [
        (deep, {"photometric": "rgb", "planarconfig": "separate"}),
        (deep.astype("u4"), {"photometric": "rgb", "planarconfig": "separate", "compression": "zlib"}),
        (
            deep[0],
            {
                "photometric": "miniswhite",
                "compression": "lzw",
                "predictor": True,
                "bigtiff": True,
                "byteorder": ">",
            },
        ),
        (deep[0].astype("f8"), {"photometric": "minisblack", "compression": "packbits", "tile": (16, 16)}),
        (deep[0] >> 4, {"photometric": "minisblack", "bitspersample": 12}),
        (
            deep[0].astype("f4"),
            {"photometric": "minisblack", "compression": "zstd", "predictor": 3, "byteorder": ">"},
        ),
        (small[0], {"photometric": "palette", "colormap": rng.integers(0, 256, (3, 256)).astype("u2")}),
    ]
    found = []
    for values, options in ways:
        out = io.BytesIO()
        tifffile.imwrite(out, values, metadata=None, **options)
        found.append(out.getvalue())
    heic = io.BytesIO()
    pillow_heif.from_pillow(Image.fromarray(flat)).save(heic)
    found += [imagecodecs.jpeg2k_encode(flat, level=0), imagecodecs.jpegxl_encode(flat), heic.getvalue()]
    return found


def fuzz_images(count: int) -> Counter[str]:
    originals, verdicts = pictures(), Counter[str]()
    guard = GuardedDecoder(MAX_PIXELS, Limits(cpu_s=SLOW_S, wall_s=60))
    neighbour = originals[4]
    expected = guard.decode(neighbour, SPEC).pixels.tobytes()
    first = guard._process
    assert first is not None
    slowest = 0.0
    for seed in range(count):
        chance = random.Random(seed)
        content = mutated(chance.choice(originals), chance)
        started = time.perf_counter()
        try:
            guard.decode(content, SPEC)
            verdicts["ok"] += 1
        except ImageError as error:
            verdicts[str(error.code) if error.message.isprintable() else "not printable"] += 1
        slowest = max(slowest, time.perf_counter() - started)
        if seed % 50 == 0:
            assert guard.decode(neighbour, SPEC).pixels.tobytes() == expected, (
                f"seed {seed} changed its neighbour"
            )
    status = dict(line.split(":\t") for line in Path(f"/proc/{first.pid}/status").read_text().splitlines())
    peak = int(status["VmPeak"].split()[0]) * 1024
    memory = f"{peak / 2**20:.0f} MiB of address space, {status['VmHWM'].strip()} resident"
    print(f"{count} images: {dict(verdicts)}; slowest {slowest:.2f} s; peak {memory}")
    assert not verdicts["not printable"]
    assert guard._process is first, "the decoder ended"
    assert peak <= memory_limit(MAX_PIXELS)
    guard.close()
    return verdicts


def test_images_short() -> None:
    assert fuzz_images(600).total() == 600


@pytest.mark.faults
def test_images() -> None:
    verdicts = fuzz_images(IMAGES)
    assert verdicts.total() == IMAGES
    assert not verdicts[ErrorCode.WORKER_CRASHED]
    assert not verdicts[ErrorCode.DECODE_TIMEOUT]


# ── archives ─────────────────────────────────────────────────────────────────────────────────────

MEMBERS, KINDS = 12, 13
Packed = dict[str, tuple[str, bytes, dict[str, bytes]]]  # kind -> format, file, content by name


def packed() -> Packed:
    content = {f"{i:02d}.png": random.Random(i).randbytes(700 + i) for i in range(MEMBERS)}
    found: Packed = {}
    for kind, form in (
        ("ustar", tarfile.USTAR_FORMAT),
        ("gnu", tarfile.GNU_FORMAT),
        ("pax", tarfile.PAX_FORMAT),
    ):
        data = io.BytesIO()
        with tarfile.open(fileobj=data, mode="w", format=form) as tar:
            for name, body in content.items():
                info = tarfile.TarInfo(name)
                info.size = len(body)
                info.pax_headers = {"comment": "x" * 30} if kind == "pax" else {}
                tar.addfile(info, io.BytesIO(body))
        found[kind] = ("tar", data.getvalue(), content)
    tar, zstd = found["ustar"][1], pa.BufferOutputStream()
    with pa.CompressedOutputStream(zstd, "zstd") as file:
        file.write(tar)
    found["tar.gz"] = ("tar", gzip.compress(tar, mtime=0), content)
    found["tar.bz2"] = ("tar", bz2.compress(tar), content)
    found["tar.xz"] = ("tar", lzma.compress(tar), content)
    found["tar.zst"] = ("tar", zstd.getvalue().to_pybytes(), content)
    table = "file_name,label\n" + "".join(f"{name},x\n" for name in content)
    for kind, method in (
        ("zip", zipfile.ZIP_STORED), ("zip deflated", zipfile.ZIP_DEFLATED), ("zip bzip2", zipfile.ZIP_BZIP2),
        ("zip lzma", zipfile.ZIP_LZMA), ("zip with metadata", zipfile.ZIP_DEFLATED),
    ):  # fmt: skip
        data = io.BytesIO()
        with zipfile.ZipFile(data, "w", method) as archive:
            for name, body in content.items():
                archive.writestr(name, body)
            if kind == "zip with metadata":
                archive.writestr("metadata.csv", table)
        found[kind] = ("zip", data.getvalue(), content)
    sink = io.BytesIO()
    rows = pa.table({"image": pa.array(content.values(), pa.binary()), "name": list(content)})
    pq.write_table(rows, sink, row_group_size=5, write_page_checksum=True)
    found["parquet"] = ("parquet", sink.getvalue(), content)
    return found


def is_planned(folder: Path) -> bool:
    """Plan a folder of one archive: it is listed, or refused in one line."""
    try:
        return bool(list_archive(ArchiveConfig(str(folder))).shards)
    except UsageError as error:
        return str(error).isprintable()


def one_archive(kind: str, made: tuple[str, bytes, dict[str, bytes]], seed: int, folder: Path) -> str:
    """Read one damaged archive; give what became of it."""
    chance = random.Random(f"{kind}/{seed}")
    form, whole, content = made
    data = mutated(whole, chance)
    path = folder / f"a.{form}"
    path.write_bytes(data)
    shard = Shard(str(path), form, len(data), "")  # type: ignore[arg-type]
    assert is_planned(folder)
    started, members, verdict = time.monotonic(), [], "read to its end"
    try:
        for member in read_members(shard, ArchiveConfig(image_column="image" if form == "parquet" else None)):
            members.append(member)
    except ShardError as error:
        verdict = str(error.code) if error.message.isprintable() else "not printable"
    assert verdict != "not printable"
    assert time.monotonic() - started < SLOW_S, f"{kind} {seed}: too slow"
    assert [m.index for m in members] == list(range(len(members))), f"{kind} {seed}"
    if verdict == "read to its end" and data != whole:
        assert len(members) >= MEMBERS, f"{kind} {seed}: read short in silence"
    changed = sum(m.content is not None and content.get(m.name) not in (None, m.content) for m in members)
    assert changed <= 4, f"{kind} {seed}: {changed} members are not what they were"
    return verdict


def fuzz_archives(count: int, folder: Path) -> None:
    for kind, made in packed().items():
        (folder / kind).mkdir()
        seeds = range(count // KINDS + 1)
        verdicts = Counter(one_archive(kind, made, seed, folder / kind) for seed in seeds)
        print(f"{kind}: {dict(verdicts)}")


def test_archives_short(tmp_path: Path) -> None:
    fuzz_archives(70, tmp_path)


@pytest.mark.faults
def test_archives(tmp_path: Path) -> None:
    fuzz_archives(ARCHIVES, tmp_path)


@pytest.mark.faults
def test_sabotage_of_the_strict_reader_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.faults import sabotage

    monkeypatch.setattr(sabotage.members, "read_tar", sabotage.members.read_tar)  # put back afterwards
    sabotage.apply("tar by the standard library")
    with pytest.raises((AssertionError, tarfile.TarError)):
        fuzz_archives(ARCHIVES, tmp_path)
