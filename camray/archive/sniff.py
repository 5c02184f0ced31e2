"""What bytes look like, by their first few: for messages that say more than "cannot read"."""

from __future__ import annotations

from collections.abc import Iterable

_TEXT_BYTES = frozenset(range(32, 127)) | {9, 10, 12, 13}
_BOMS = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")

_FORMATS = (
    (b"\xff\xd8\xff", "JPEG"), (b"\x89PNG\r\n\x1a\n", "PNG"), (b"GIF8", "GIF"), (b"BM", "BMP"),
    (b"II*\0", "TIFF"), (b"MM\0*", "TIFF"), (b"II+\0", "TIFF"), (b"MM\0+", "TIFF"),
)  # fmt: skip
_UNSUPPORTED = (
    (b"\xff\x0a", "JPEG XL"), (b"\0\0\0\x0cJXL ", "JPEG XL"),
    (b"\0\0\0\x0cjP  ", "JPEG 2000"), (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"%PDF", "PDF"), (b"%!PS", "EPS"), (b"\xc5\xd0\xd3\xc6", "EPS"), (b"8BPS", "PSD"),
    (b"\0\0\1\0", "ICO"), (b"v/1\1", "OpenEXR"), (b"#?RADIANCE", "Radiance HDR"), (b"SIMPLE  =", "FITS"),
    (b"DDS ", "DDS"), (b"qoif", "QOI"), (b"FORM", "IFF"), (b"P7\n", "PAM"), (b"PF\n", "colour PFM"),
)  # fmt: skip
_CONTAINERS = (
    (b"\x1f\x8b", "gzip"), (b"\x28\xb5\x2f\xfd", "Zstandard"), (b"BZh", "bzip2"), (b"\xfd7zXZ\0", "xz"),
    (b"7z\xbc\xaf\x27\x1c", "7-Zip"), (b"Rar!", "RAR"), (b"PK\3\4", "ZIP"), (b"PK\5\6", "ZIP"),
    (b"PAR1", "Parquet"), (b"PARE", "encrypted Parquet"), (b"\x89HDF\r\n", "HDF5"),
    (b"\x93NUMPY", "NumPy array"), (b"\x7fELF", "a program"),
    (b"version https://git-lfs", "a git-lfs pointer (run `git lfs pull`)"),
)  # fmt: skip


def looks_like(head: bytes) -> str:
    """Name what the first bytes (512 suffice) look like: `HTML`, `gzip`, `text`, ... or `unknown data`."""
    if not head:
        return "an empty file"
    named = unsupported_image(head) or supported_image(head)
    if named:
        return named
    if head[257:262] == b"ustar":
        return "tar"
    return _named(head, _CONTAINERS) or _text(head[:512]) or ("zeros" if not any(head) else "unknown data")


def is_packed(looks: str) -> bool:
    """Tell whether what `looks_like` says is a container of other files."""
    return looks == "tar" or looks in [name for _, name in _CONTAINERS]


def unsupported_image(head: bytes) -> str | None:
    """Name an image or document format that is decoded by an extra or never; None for all else."""
    if name := _named(head, _UNSUPPORTED):
        return name
    if head[128:132] == b"DICM":
        return "DICOM"
    brand = head[8:12]
    brands = head[8 : min(int.from_bytes(head[:4]), 256)]
    if head[4:8] == b"ftyp" and b"avif" not in brands and brand != b"avis":
        heic = brand in (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
        return "HEIC" if heic else "a video or MP4-like file"
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith(b"<svg") or (start.startswith((b"<?xml", b"<!doctype svg")) and b"<svg" in start):
        return "SVG"
    return None


def supported_image(head: bytes) -> str | None:
    """Name an image format that can be decoded, by its magic bytes."""
    if name := _named(head, _FORMATS):
        return name
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[4:8] == b"ftyp" and head[8:12] in (b"avif", b"avis", b"mif1", b"msf1"):
        return "AVIF"
    if head[:1] == b"P" and head[1:2] in b"123456Ff" and head[2:3].isspace():
        return "PPM"
    return None


def _named(head: bytes, magics: Iterable[tuple[bytes, str]]) -> str | None:
    return next((name for magic, name in magics if head.startswith(magic)), None)


def _text(head: bytes) -> str | None:
    if head.startswith(_BOMS):
        return "text"
    if any(byte not in _TEXT_BYTES and byte < 128 for byte in head):
        return None
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:  # a character cut at the end of the sample is fine
            return None
    start = head.lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "HTML"
    if start.startswith((b"<?xml", b"<")):
        return "XML"
    return "JSON" if start.startswith((b"{", b"[")) else "text"
