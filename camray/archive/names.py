"""What a file or member is, going by its name alone: image, sidecar, other or junk; or a table of rows."""

from __future__ import annotations

import re
from typing import Literal

NameKind = Literal["image", "sidecar", "other", "junk"]

TABLE_ENDINGS = ("csv", "tsv", "txt", "jsonl", "ndjson", "parquet")

_IMAGE = frozenset((
    "jpg", "jpeg", "jpe", "jfif", "jif", "mpo", "png", "apng", "webp", "gif", "bmp", "dib", "tif", "tiff",
    "ppm", "pgm", "pbm", "pnm", "pfm", "avif", "avifs", "heic", "heif", "jp2", "j2k", "jpf", "jpx", "jxl",
    "svg", "ico", "tga", "dcm", "dicom", "ima", "psd", "exr", "hdr", "dng", "cr2", "nef", "arw",
))  # fmt: skip
_SIDECAR = frozenset(("cls", "txt", "json"))
_JUNK = frozenset((
    "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx", "network trash folder",
    "temporary items", "@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "@sharebin",
    "@tmp", "@__thumb", "$recycle.bin", "system volume information", "~snapshot",
    "lost+found", "lost.dir", "__pycache__",
))  # fmt: skip
"""What file managers, NAS systems, bins and repairs of file systems leave behind, in lower case."""
_REPAIRED = re.compile(r"found[.]\d{3}")
_PACKED = frozenset((
    "7z", "rar", "zip", "tar", "gz", "tgz", "bz2", "xz", "zst", "lz4", "lzma", "z", "cab", "iso", "dmg",
    "h5", "hdf5", "npz", "lmdb", "mdb", "tfrecord", "tfrecords", "arrow", "beton",
))  # fmt: skip
_PART = re.compile(r"[.](zip|7z|tar|rar|tgz|gz|bz2|xz|zst)[.]\d+$", re.IGNORECASE)
"""One of the parts that a packed file was cut into."""

_SPLITS = frozenset((
    "train", "training", "val", "valid", "validation", "dev", "test", "testing", "eval", "evaluation",
))  # fmt: skip


def name_kind(name: str, arrays: bool = False) -> NameKind:
    """Tell what a name promises; `name` may hold folders. `arrays`: files of NumPy arrays are images, too.

    An image is a known image extension (whether or not it can be decoded: that gets a code later) or no
    extension at all. Junk is what other programs leave behind, and whatever is hidden.
    """
    return "junk" if junk_part(name) else _kind_by_extension(name, arrays)


def _kind_by_extension(name: str, arrays: bool) -> NameKind:
    extension = extension_of(name)
    if _PART.search(name):
        return "other"
    if extension in _IMAGE or not extension or (arrays and extension == "npy"):
        return "image"
    return "sidecar" if extension in _SIDECAR else "other"


def file_kind(path: str, arrays: bool = False) -> NameKind:
    """Tell what a loose file's name promises, whatever its folders are called, and though it may be hidden.

    A walk has left hidden ones out already, and a list or an `--include` has named them.
    """
    name = path.rpartition("/")[2]
    is_left_over = name.lower() in _JUNK or name.startswith("._")
    return "junk" if is_left_over else _kind_by_extension(name, arrays)


def may_hold_images(name: str) -> bool:
    """Tell whether a name promises many files in one, or one of its parts."""
    extension = extension_of(name)
    return extension in _PACKED or bool(_PART.search(name) or re.fullmatch(r"[zr]\d\d", extension))


def is_web(path: str) -> bool:
    """Tell whether a path of a list is for a web server."""
    return path.lower().startswith(("http://", "https://"))


def class_folder(path: str) -> str | None:
    """Give the class a file's first folder names; a split (`train/cat/1.jpg`) is no class."""
    first, *deeper = path.split("/")[:-1] or [""]
    return (deeper[0] if deeper and first.lower() in _SPLITS else first) or None


def junk_part(name: str) -> str:
    """Give the first component of a path that is hidden or another program's left-over; empty without one."""
    return next((part for part in name.split("/") if _is_junk(part)), "")


def _is_junk(part: str) -> bool:
    name = part.lower()
    return (
        name in _JUNK or bool(_REPAIRED.fullmatch(name)) or (part.startswith(".") and part not in (".", ".."))
    )


def extension_of(name: str) -> str:
    """Give the lower-case extension without its dot; empty where there is none.

    What follows the last dot is an extension only when it looks like one: 1-8 letters and digits, not
    digits alone (`scan.0001` has none).
    """
    base = name.rpartition("/")[2]
    stem, dot, extension = base.rpartition(".")
    looks_right = extension.isascii() and extension.isalnum() and len(extension) <= 8
    if not dot or not stem or not looks_right or extension.isdigit():
        return ""
    return extension.lower()


def stem_of(name: str) -> str:
    """Give the name, folders included, without its extension and dot."""
    extension = extension_of(name)
    return name[: -len(extension) - 1] if extension else name


def table_ending(name: str) -> str:
    """Give the ending that makes a file a table of rows; empty for any other."""
    last = name.rpartition("/")[2].rpartition(".")[2].lower()
    return last if last in TABLE_ENDINGS and "." in name else ""
