"""Where bytes live: a folder on a local disk or in an object store, behind one small seam.

Paths and URIs (`s3://`, `gs://`, `file://`) resolve through pyarrow's file systems. A write is atomic: a
reader sees the whole file or none. On a local disk it is also durable: without the file's fsync a power loss
leaves an empty file under the final name, without the folder's the rename itself is lost.
"""

from __future__ import annotations

import errno
import os
import random
import re
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar
from urllib.parse import parse_qsl, quote

from pyarrow import BufferReader, NativeFile
from pyarrow import fs as pafs

from camray.errors import UsageError, printable, said_by

_T = TypeVar("_T")

SCHEMES = ("s3", "gs", "gcs", "file")
_COPY = "copy it to a disk, s3:// or gs://, or mount it"
_ELSEWHERE = {  # what people write, and what to do instead
    "hf": "`hf download OWNER/NAME --repo-type dataset --local-dir FOLDER`, then name FOLDER",
    "abfs": _COPY, "abfss": _COPY, "az": _COPY, "hdfs": _COPY,
    "http": "fetch it; a list of images may hold URLs (--allow-http)",
    "https": "fetch it; a list of images may hold URLs (--allow-http)",
}  # fmt: skip
PATIENCE_S = 120.0
"""How long a store may fail before the run gives up (exit 4) and waits for its next start."""
_LASTING = re.compile(
    r"ACCESS_DENIED|NO_SUCH_BUCKET|INVALID_ACCESS_KEY|SIGNATURE|status( code)?\W+(301|400|401|403|411)\b"
)
_SECRET_OPTIONS = ("secret", "token", "password", "signature", "credential", "access_key", "access-key")
_ANONYMOUS = "anonymous"
_FILE_MODE, _FOLDER_MODE = 0o644, 0o755  # at most, and less where the umask says so: nobody else may write


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of a listing. `path` is relative to the folder that was listed, POSIX."""

    path: str
    size_bytes: int
    version: str  # modification time in nanoseconds, as the store tells it


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder (or a single file's place), local or remote."""

    uri: str  # absolute local path, or scheme://…
    fs: pafs.FileSystem
    path: str  # the path inside `fs`

    @property
    def is_local(self) -> bool:
        """Whether this machine's own disk holds it."""
        return isinstance(self.fs, pafs.LocalFileSystem)

    def kind(self, relative: str = "") -> pafs.FileType:
        """Tell whether a path is a file, a directory, or not there."""
        return self.patiently(lambda: self.fs.get_file_info(self.at(relative)).type)

    def reach(self, field: str) -> pafs.FileType:
        """Ask for the place itself, the first time; `field` is the option that named it.

        Raises:
            UsageError: the store refuses, or has no such bucket.
        """
        try:
            kind = self.kind()
            if kind == pafs.FileType.NotFound and not self.is_local:
                self._refuse_no_bucket(field)
        except OSError as error:
            if not self.is_local and not _LASTING.search(said_by(error)):
                raise
            said = os.strerror(error.errno) if error.errno else said_by(error)
            why = f"{printable(self.uri, 160)}: {printable(said)}"
            fix = "check the bucket, its region, and the credentials in the environment"
            raise UsageError(field, why, "choose another folder" if self.is_local else fix) from None
        return kind

    def _refuse_no_bucket(self, field: str) -> None:
        bucket = self.path.strip("/").partition("/")[0]
        if self.fs.get_file_info(bucket).type == pafs.FileType.NotFound:
            raise UsageError(field, f"{self.uri}: there is no bucket {printable(bucket)!r}", "make it first")

    def exists(self, relative: str = "") -> bool:
        """Tell whether a path is there."""
        return bool(self.kind(relative) != pafs.FileType.NotFound)

    def at(self, relative: str) -> str:
        """Join a relative path inside this file system."""
        return f"{self.path.rstrip('/')}/{relative}" if relative else self.path

    def child_uri(self, relative: str) -> str:
        """Join a relative path to the URI, quoted where the store's URIs are parsed; a query stays last."""
        if not relative:
            return self.uri
        if self.is_local:
            return f"{self.uri.rstrip('/')}/{relative}"
        base, query, options = self.uri.partition("?")
        return f"{base.rstrip('/')}/{quote(relative)}{query}{options}"

    def parent(self) -> tuple[Folder, str]:
        """Give the folder that holds this file, and the file's name in it."""
        path, _, name = self.path.rpartition("/")
        if self.is_local:
            return Folder(path or "/", self.fs, path or "/"), name
        address, query, options = self.uri.partition("?")
        return Folder(address.rpartition("/")[0] + query + options, self.fs, path), name

    def entries(self, relative: str = "") -> Iterator[Entry]:
        """List files under a path, sorted by path; nothing where the path is not there."""
        base = self.at(relative).rstrip("/")
        selector = pafs.FileSelector(base, allow_not_found=True, recursive=True)
        listed = self.patiently(lambda: self.fs.get_file_info(selector))
        infos = [i for i in listed if i.type == pafs.FileType.File]
        for info in sorted(infos, key=lambda i: i.path):
            yield Entry(info.path.removeprefix(base).removeprefix("/"), info.size, str(info.mtime_ns))

    def names(self, relative: str = "") -> list[str]:
        """List the names of what is directly under a path, sorted, without a look at any of it."""
        if self.is_local:
            with suppress(FileNotFoundError):
                return sorted(os.listdir(self.at(relative)))
            return []
        selector = pafs.FileSelector(self.at(relative), allow_not_found=True)
        return sorted(i.base_name for i in self.patiently(lambda: self.fs.get_file_info(selector)))

    def open(self, relative: str = "") -> NativeFile:
        """Open a file for random access."""
        return self.fs.open_input_file(self.at(relative))

    def read_up_to(self, relative: str, limit: int) -> bytes:
        """Read a file's first `limit` bytes, once.

        Raises:
            ValueError: of a store, a key that no library opens as it is.
        """
        if not self.is_local and is_odd_key(relative):
            raise ValueError("its key has a part that is empty, . or .., which cannot be opened")
        with self.open(relative) as file:
            return bytes(file.read(limit))

    def read(self, relative: str) -> bytes:
        """Read a whole file."""
        return self.patiently(lambda: self._read_once(relative))

    def _read_once(self, relative: str) -> bytes:
        with self.open(relative) as file:
            return bytes(file.read())

    def write(self, relative: str, data: bytes) -> None:
        """Write a whole file atomically, and durably on a local disk."""
        self.write_all({relative: data})

    def write_all(self, files: Mapping[str, bytes]) -> None:
        """Write many files, each atomically; on a local disk all are durable on return."""
        if self.is_local:
            paths = {Path(self.at(relative)): data for relative, data in files.items()}
            for parent in {path.parent for path in paths}:
                refuse_links(Path(self.path), parent)
            _write_local(paths)
            return
        for relative, data in files.items():
            self.patiently(partial(self._write_once, relative, data))

    def create(self, relative: str, data: bytes) -> bool:
        """Make a file that is not there, and tell whether this call made it: of all who try, one does.

        Where the process ends amid it, a file on a local disk can be left empty.
        """
        if not self.is_local:
            return self.patiently(lambda: create_in_store(self.uri, self.at(relative), data))
        path = Path(self.at(relative))
        refuse_links(Path(self.path), path.parent)
        _make_folder(path.parent)
        try:
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, _FILE_MODE)
        except FileExistsError:
            return False
        with open(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(handle)
        _flush(path.parent)
        return True

    def _write_once(self, relative: str, data: bytes) -> None:
        with self.fs.open_output_stream(self.at(relative)) as stream:  # visible at close
            stream.write(data)

    def delete(self, relative: str) -> None:
        """Delete a file that is there."""
        if self.is_local:
            refuse_links(Path(self.path), Path(self.at(relative)).parent)
        self.fs.delete_file(self.at(relative))

    def flush(self, relatives: Iterable[str]) -> None:
        """Make files durable that another library wrote, those of them that are there, and their names.

        Without it a power loss within seconds leaves them there, and empty. A store has nothing to flush.
        """
        files = [Path(self.at(r)) for r in relatives if self.is_local and os.path.isfile(self.at(r))]
        for path in files:
            _flush(path)
        above = {folder for path in files for folder in path.parents if folder.is_relative_to(self.path)}
        for folder in sorted(above, reverse=True):  # each holds the names of what is in it
            _flush(folder)

    def patiently(self, action: Callable[[], _T]) -> _T:
        """Ask a store again until PATIENCE_S are over: each action is whole and harmless to repeat.

        Raises:
            OSError: it failed for so long, or says that it always will.
        """
        ends, wait_s = time.monotonic() + PATIENCE_S, 0.1
        while True:
            try:
                return action()
            except OSError as error:
                lasting = isinstance(error, FileNotFoundError | PermissionError) or _LASTING.search(
                    said_by(error)
                )
                if self.is_local or lasting or time.monotonic() + wait_s > ends:
                    raise
                time.sleep(wait_s * random.uniform(0.5, 1))
                wait_s = min(2 * wait_s, 8.0)


@dataclass(frozen=True, slots=True)
class _Held(Folder):
    """A file in memory."""

    data: bytes = b""

    def open(self, relative: str = "") -> NativeFile:
        return BufferReader(self.data)


def held(name: str, data: bytes) -> Folder:
    """Make a file of `data` a place to read from; `name` is what messages call it."""
    return _Held(name, pafs.LocalFileSystem(), name, data)


def create_in_store(uri: str, path: str, data: bytes) -> bool:
    """Make an object that is not there: one conditional request, by the library that Delta Lake stands on.

    Its settings are those of Delta Lake, from the environment.

    Raises:
        OSError: the store failed.
    """
    from obstore import put
    from obstore.exceptions import AlreadyExistsError, BaseError
    from obstore.store import GCSStore, S3Store

    bucket, _, key = path.partition("/")
    try:
        place = S3Store(bucket) if uri.startswith("s3:") else GCSStore(bucket)
        put(place, key, data, mode="create")
    except AlreadyExistsError:
        return False
    except BaseError as error:
        raise OSError(said_by(error)) from error
    return True


def open_folder(place: str, field: str) -> Folder:
    """Resolve a path or URI. `field` is the option to name when it cannot be resolved.

    Raises:
        UsageError: an unknown scheme, credentials in the URI, or a store that refuses the URI.
    """
    if "\0" in place:
        raise UsageError(field, printable(f"{place!r} holds a zero byte"), "give a path or a URI")
    scheme, separator, _ = place.partition("://")
    if not separator:
        return _local(Path(place).expanduser())
    check_uri(place, field)
    address, query, options = place.partition("://")[2].partition("?")
    try:
        fs, path = _file_system(place, scheme, "@" in address.partition("/")[0])
    except (OSError, ValueError) as error:
        raise UsageError(field, printable(f"{place}: {error}"), f"{scheme}://BUCKET/PATH") from None
    if isinstance(fs, pafs.LocalFileSystem):
        return _local(Path(path))
    return Folder(f"{scheme}://{address.rstrip('/')}{query}{options}", fs, path.rstrip("/"))


def check_uri(place: str, field: str) -> None:
    """Refuse a URI by its text alone: no store is asked.

    Raises:
        UsageError: an unknown scheme, no bucket, or credentials in the URI.
    """
    scheme, _, rest = place.partition("://")
    if scheme not in SCHEMES:
        fix = _ELSEWHERE.get(scheme, "") if field == "ARCHIVE" else ""
        fix = fix or f"use a path or {', '.join(SCHEMES)}"
        raise UsageError(field, f"scheme {scheme!r} is not supported", fix)
    if scheme != "file" and not rest.strip("/"):
        raise UsageError(field, f"{place} names no bucket", f"{scheme}://BUCKET/PATH")
    if has_empty_part(place):
        said = f"{printable(place)} has a part that is empty, . or .., between two slashes"
        raise UsageError(field, said, "leave it out")
    if scheme != "file" and "#" in rest:
        raise UsageError(field, f"{printable(place)}: what follows # would be left out", "write %23 for #")
    user, at, _ = rest.partition("?")[0].partition("/")[0].rpartition("@")
    if (at and user != _ANONYMOUS) or has_credentials(rest):
        raise UsageError(field, "credentials in the URI are refused", "set them in the environment")
    if at and field == "OUT":
        raise UsageError(field, "nobody writes without credentials", "leave out `anonymous@`")


def has_credentials(uri: str) -> bool:
    """Tell whether an option behind `?` is called as secrets are."""
    names = {name.lower() for name, _ in parse_qsl(uri.partition("?")[2], keep_blank_values=True)}
    return any(word in name for name in names for word in _SECRET_OPTIONS)


def _local(place: Path) -> Folder:
    path = os.path.normpath(place.absolute())  # one name for one place
    return Folder(path, pafs.LocalFileSystem(), path)


def has_empty_part(uri: str) -> bool:
    """Tell whether an object's address has a part that no library opens: a key may have one."""
    scheme, separator, rest = uri.partition("://")
    return bool(separator) and scheme != "file" and is_odd_key(rest.partition("?")[0].partition("/")[2])


def is_odd_key(key: str) -> bool:
    """Tell whether a key has a part that is empty, `.` or `..`: for `a/../b` Arrow opens another, `b`."""
    parts = key.rstrip("/").split("/")
    return parts != [""] and any(part in ("", ".", "..") for part in parts)


def _file_system(uri: str, scheme: str, is_anonymous: bool) -> tuple[pafs.FileSystem, str]:
    """Resolve a URI; `anonymous@` before the bucket, as Ray and Arrow write it, signs no request."""
    if not is_anonymous or scheme != "s3":
        fs, path = pafs.FileSystem.from_uri(uri)
        return fs, path
    fs, path = pafs.FileSystem.from_uri(uri.replace(f"{_ANONYMOUS}@", "", 1))
    given = dict(parse_qsl(uri.partition("?")[2]))
    options = {name: given[name] for name in ("scheme", "endpoint_override") if name in given}
    return pafs.S3FileSystem(anonymous=True, region=fs.region, **options), path


def _write_local(files: Mapping[Path, bytes]) -> None:
    """Write, flush and rename; one flush of each folder at the end, which is what a rename waits for."""
    parents = {path.parent for path in files}
    for parent in parents:
        _make_folder(parent)
    for path, data in files.items():
        temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
        try:
            # Never through a link that somebody put there.
            handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, _FILE_MODE)
            with open(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    for parent in parents:
        _flush(parent)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _make_folder(path: Path) -> None:
    if not path.is_dir():
        _make_folder(path.parent)
        path.mkdir(_FOLDER_MODE, exist_ok=True)
        if os.access(path.parent, os.R_OK):  # where not, somebody else's folder, one may write and not look
            _flush(path.parent)


def refuse_links(root: Path, path: Path) -> None:
    """Look at every folder from below `root` down to `path`: a link there would lead a write elsewhere.

    Raises:
        OSError: one of them is a link. `root` itself may be one, or lie behind one: its owner named it.
    """
    for folder in (path, *path.parents):
        if not folder.is_relative_to(root) or folder == root:
            return
        if folder.is_symlink():
            raise OSError(
                errno.ELOOP, f"{folder} is a link to {os.readlink(folder)!r}; camray writes only below OUT"
            )
