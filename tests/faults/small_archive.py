"""A small archive whose generator knows what must come out: the oracle of the fault tests.

Every image is one colour; its class is its red value. Some members are damaged, some are no images, one shard
is cut in the middle. No code of camray takes part.
"""

from __future__ import annotations

import io
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

CUT = "shard-5.tar"


@dataclass(frozen=True)
class Expected:
    """What a record must say."""

    status: str
    error_code: str | None = None
    predicted_class: int | None = None


Oracle = dict[tuple[str, str], Expected]  # (shard file, member) -> record


def _image(red: int) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (8, 8), (red, 7, 9)).save(data, "PNG")
    return data.getvalue()


def _members(number: int, count: int) -> list[tuple[str, bytes, Expected]]:
    found: list[tuple[str, bytes, Expected]] = []
    for i in range(count):
        red = (number * 37 + i) % 256
        if i % 10 == 4:
            found.append((f"{number}-{i:03d}.png", b"", Expected("failed", "empty_file")))
        elif i % 10 == 7:
            found.append((f"{number}-{i:03d}.bin", b"notes", Expected("skipped", "not_an_image_name")))
        else:
            found.append((f"{number}-{i:03d}.png", _image(red), Expected("ok", None, red)))
    return found


def make(folder: Path, shards: int = 6, members: int = 10, first: int = 0) -> Oracle:
    """Write the shards, numbered from `first`; number 5 is cut behind its seventh member."""
    folder.mkdir(parents=True, exist_ok=True)
    oracle: Oracle = {}
    for number in range(first, first + shards):
        made = _members(number, members)
        if number % 3 == 1:
            path = folder / f"shard-{number}.zip"
            with zipfile.ZipFile(path, "w") as archive:
                for name, data, _ in made:
                    archive.writestr(name, data)
        else:
            path = folder / f"shard-{number}.tar"
            ends = []
            with tarfile.open(path, "w") as tar:
                for name, data, _ in made:
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
                    ends.append(tar.offset)
            if path.name == CUT:
                made = made[:7]
                path.write_bytes(path.read_bytes()[: ends[6] + 100])  # inside a header
        oracle |= {(path.name, name): expected for name, _, expected in made}
    return oracle
