"""An archive by somebody who means harm: whatever he controls says script, formula, terminal code and SQL.

Names of members, folders and files; sidecars, metadata, labels; EXIF, XMP and comments of images; XML; the
names, types and values of Parquet. Each text holds MARK, by which the checkers know it again.
"""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, PngImagePlugin

MARK = "planted"
FORGED = f"FORGED {MARK} exit 0: done"
"""A line that no log may begin with: only a line break in a name puts it there."""

INJECTIONS = (
    f"<script>{MARK}()</script>", f'"><img src=x onerror={MARK}()>', f"'><svg onload={MARK}()>",
    f"</script><script>{MARK}()//", f"javascript:{MARK}()", f"{{{{{MARK}()}}}}", f"${{{MARK}()}}",
    f"`{MARK}`", f"]]>{MARK}<!--", f"--><script>{MARK}()</script>",
    f'=HYPERLINK("http://{MARK}")', f"+{MARK}()", f"-{MARK}()", f"@SUM({MARK})", f"\t={MARK}", f"\r={MARK}",
    f"a\r={MARK}", f"a\n={MARK}", f"a;={MARK}", f"a,={MARK}", f'a"\n={MARK}', f"\uff1d{MARK}",
    f"\x1b[2J\x1b]0;{MARK}\x07", f"\x9b31m{MARK}", f"a\x08\x08{MARK}", f"\u202e{MARK}\u2066",
    f"a\u2028{MARK}", f"a\n{FORGED}", f"a\r\n{FORGED}", f"a\x85{FORGED}",
    f"'; drop table canary; -- {MARK}", f"') ; drop table canary; -- {MARK}",
    f'"; drop table canary; -- {MARK}', f"$${MARK}$$", f"a}} {MARK} 1\n{FORGED}", f'a",{MARK}="1',
    f"%s%n{MARK}", f"$(touch {MARK})", f"|{MARK}",
    f"../../{MARK}", f"/etc/{MARK}", f"C:\\{MARK}", f"\ud800{MARK}", f"{MARK}\x7f",
)  # fmt: skip


def pixels(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (32, 32, 3), np.uint8))


def encoded(image: Image.Image, fmt: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, fmt, **options)
    return file.getvalue()


def speaking_images() -> dict[str, bytes]:
    """Images whose metadata speaks, and things called images that are none."""
    text = f"<script>{MARK}()</script>\x1b[31m={MARK}\n{FORGED}"
    exif = Image.Exif()
    for tag in (0x010E, 0x010F, 0x0110, 0x0131, 0x013B, 0x8298, 0x9C9B):
        exif[tag] = text if tag != 0x9C9B else text.encode("utf-16-le")
    xmp = f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a onload="{MARK}()">{MARK}</a></x:xmpmeta>'.encode()
    said = PngImagePlugin.PngInfo()
    said.add_text("Comment", text)
    said.add_itxt("XML:com.adobe.xmp", xmp.decode())
    entity = (
        f'<?xml version="1.0"?><!DOCTYPE s [<!ENTITY e SYSTEM "file:///etc/hostname">]><svg>{MARK}&e;</svg>'
    )
    return {
        "exif.jpg": encoded(pixels(1), "JPEG", exif=exif, xmp=xmp, comment=text.encode()),
        "text.png": encoded(pixels(2), "PNG", pnginfo=said),
        "comment.gif": encoded(pixels(3), "GIF", comment=text.encode()[:200]),
        "described.tif": encoded(pixels(4), "TIFF", description=f"<script>{MARK}()</script>={MARK}"),
        "exif.webp": encoded(pixels(5), "WEBP", exif=exif.tobytes(), xmp=xmp),
        "entity.svg": entity.encode(), "entity.jpg": entity.encode(),
        "page.jpg": f"<html><script>{MARK}()</script>".encode(),
        "cut.jpg": encoded(pixels(6), "JPEG", comment=text.encode())[:900],
        f"={MARK}.pnm": f"P6\n# {text}\n9 9 255\n".encode(),
    }  # fmt: skip


def tar_shard() -> bytes:
    """Names, and labels by sidecar; links whose targets speak as well."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for i, text in enumerate(INJECTIONS):
            stem = f"{i:03d}-{text}".replace("\ud800", "\x01").replace(".", "_")
            for ending, data in (
                ("png", encoded(pixels(i), "PNG")),
                ("json", json.dumps({"label": text, "caption": text if i % 3 else None}).encode()),
            ):
                info = tarfile.TarInfo(f"{stem}.{ending}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
            link = tarfile.TarInfo(f"link-{stem}.png")
            link.type, link.linkname = tarfile.SYMTYPE, "../../etc/passwd"
            tar.addfile(link)
    return buffer.getvalue()


def zip_shard() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.comment = f"<script>{MARK}()</script>".encode()
        for i, text in enumerate(INJECTIONS):
            name = f"{i:03d}{text}".replace("\ud800", "\x01").replace("\\", "|") + ".png"
            file.writestr(name, encoded(pixels(100 + i), "PNG") if i % 4 else text.encode("utf-8", "replace"))
            file.writestr(f"{name[:-4]}.txt", text.encode("utf-8", "replace"))
    return buffer.getvalue()


def parquet_shard() -> bytes:
    texts = [text.replace("\ud800", "\x01") for text in INJECTIONS]
    named = {"huggingface": json.dumps({"info": {"features": {"class": {"names": texts}}}})}
    table = pa.table(
        {
            "image": [encoded(pixels(200 + i), "PNG") if i % 5 else None for i in range(len(texts))],
            "file_name": texts,
            "class": list(range(len(texts))),
            f"<script>{MARK}()</script>\x1b[31m\n{FORGED}": pa.array(texts).dictionary_encode(),
        }
    ).replace_schema_metadata(named)
    file = io.BytesIO()
    pq.write_table(table, file)
    return file.getvalue()


def write_pack(folder: Path) -> Path:
    """Write the archive, and give its folder."""
    folder.mkdir(parents=True)
    (folder / f"=1+1;<script>{MARK}()<\u2044script>.tar").write_bytes(tar_shard())
    (folder / f"'; drop table canary; -- {MARK}.zip").write_bytes(zip_shard())
    (folder / f"\x1b[31m{MARK}.parquet").write_bytes(parquet_shard())
    (folder / f"a\n{FORGED}.tar").write_bytes(tar_shard()[:70_000])  # cut: the shard's own row speaks
    (folder / f"<img src=x onerror={MARK}()>.zip").write_bytes(b"PK\3\4" + MARK.encode() * 20)
    loose = folder / f'"><svg onload={MARK}()>'
    loose.mkdir()
    rows = ["file_name,label,mask"]
    for i, (name, data) in enumerate(speaking_images().items()):
        (loose / name).write_bytes(data)
        cell = INJECTIONS[i].replace('"', '""')
        rows.append(f'"{name}","{cell}","{cell if i % 4 == 3 else ""}"')
    for i, text in enumerate(INJECTIONS):
        name = f"{i:03d} {text}.png".replace("/", "\u2044").replace("\ud800", "\udcff")
        (loose / name).write_bytes(encoded(pixels(300 + i), "PNG"))
        (loose / f"{name[:-4]}.txt").write_bytes(text.encode("utf-8", "replace"))
    (loose / "metadata.csv").write_text("\n".join(rows), "utf-8", newline="")
    return folder
