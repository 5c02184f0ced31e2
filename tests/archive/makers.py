"""Archives and images made byte by byte, so that no test takes camray's own output for the truth."""

import io
import tarfile
from pathlib import Path

from PIL import Image

from camray.archive.members import read_members
from camray.config import ArchiveConfig, InputSpec
from camray.errors import ErrorCode, ShardError
from camray.records import Shard

CONFIG = ArchiveConfig()
BLOCK = 512
END = bytes(2 * BLOCK)


def spec(size=224, resize=256, mode="center", interpolation="bicubic", fill=(0, 0, 0)):
    height, width = size if isinstance(size, tuple) else (size, size)
    resize = resize if isinstance(resize, tuple) else (resize, resize)
    return InputSpec(height, width, resize, mode, interpolation, (0.5,) * 3, (0.5,) * 3, fill)


def encoded(image, fmt="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, fmt, **options)
    return buffer.getvalue()


def png(shade=0):
    return encoded(Image.new("RGB", (8, 8), (shade % 256, shade // 256 % 256, 7)))


def header(name=b"a.jpg", size=b"00000000000\0", flag=b"0", magic=b"ustar\x0000", prefix=b"", chksum=None):
    """One 512-byte tar header, field by field as POSIX lays it out."""
    block = bytearray(BLOCK)
    block[0 : len(name[:100])] = name[:100]
    block[100:108] = b"0000644\0"
    block[108:116] = block[116:124] = b"0000000\0"
    block[124 : 124 + len(size)] = size
    block[136:148] = b"00000000000\0"
    block[148:156] = b" " * 8
    block[156:157] = flag
    block[257 : 257 + len(magic)] = magic
    block[345 : 345 + len(prefix)] = prefix
    block[148:156] = b"%06o\0 " % sum(block) if chksum is None else chksum
    return bytes(block)


def octal(size):
    return b"%011o\0" % size


def padded(data):
    return data + bytes(-len(data) % BLOCK)


def entry(name, data=b"", flag=b"0", **fields):
    return header(name, octal(len(data)), flag, **fields) + padded(data)


def tar_of(members, **options):
    """A tar by the standard library, from (name, bytes) pairs."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", **options) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def shard_of(path: Path, fmt, **fields):
    return Shard(str(path), fmt, path.stat().st_size, str(path.stat().st_mtime_ns), **fields)


def read(tmp_path, data, fmt="tar", config=CONFIG, wanted=None, selection=None):
    """Write a shard, read it: (members, error code or None, message)."""
    path = tmp_path / f"shard.{fmt}"
    path.write_bytes(data)
    members, code, message = [], None, ""
    args = (wanted,) if wanted else ()
    try:
        for member in read_members(shard_of(path, fmt, selection=selection), config, *args):
            members.append(member)
    except ShardError as error:
        code, message = ErrorCode(error.code), error.message
    return members, code, message
