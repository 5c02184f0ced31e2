"""`metadata.csv`, `.jsonl` or `.parquet` beside the images of a folder, as Hugging Face's image folders have.

Its `file_name` column is relative to its own folder. What it says of a file becomes the file's note. As in
that library, a file it names gets no label from its folder. A file called so without that column is no
metadata and stays what it is for the listing.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable
from dataclasses import replace

from camray.archive.annotations import Annotation
from camray.archive.lists import read_list, tidy
from camray.archive.rows import has_column
from camray.config import ArchiveConfig
from camray.storage import Entry, Folder, open_folder

NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
_COLUMN = "file_name"

Said = dict[str, Annotation]


def read_metadata(folder: Folder, entries: Iterable[Entry], config: ArchiveConfig) -> tuple[Said, set[str]]:
    """Read every metadata file among `entries`: what they say by path, and which files they are.

    Raises:
        UsageError: naming the file, the line and what is wrong there.
    """
    said: Said = {}
    used = set()
    config = replace(config, image_column=None)
    for entry in entries:
        where, _, name = entry.path.rpartition("/")
        place = open_folder(folder.child_uri(entry.path), "ARCHIVE")
        if name not in NAMES or not has_column(place, _COLUMN):
            continue
        used.add(entry.path)
        for path, annotation in read_list(place, config, (_COLUMN,)).found.items():
            mask = annotation.mask and posixpath.join(where, annotation.mask)
            said[tidy(posixpath.join(where, path))] = replace(annotation, mask=mask)
    return said, used
