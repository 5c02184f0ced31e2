"""What can go wrong, named once.

    CamrayError                     everything camray raises on purpose
    ├── UsageError                  a bad option or config value; nothing was written     exit 2
    │   └── ModelError              a model, checkpoint, layer or class that cannot work  exit 2
    ├── EmptyArchiveError           no image to explain                                   exit 6
    ├── OutputLockedError           another run holds OUT                                 exit 7
    ├── IncompleteError             stopped before the end; the same command resumes      exit 4
    ├── ShardError                  one shard could not be read to its end: a record
    └── ImageError                  one image could not be explained: a record

The strings of `ErrorCode` and `Stage` are the same in the record, the log, the run summary and the docs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import IntEnum, StrEnum
from html import escape


class ExitCode(IntEnum):
    """What a run says to the shell. The last output line repeats it, as `ray job submit` gives 0/1."""

    DONE = 0
    CRASH = 1
    USAGE = 2
    FAILURES_OVER_BUDGET = 3
    INCOMPLETE = 4
    GATE = 5
    EMPTY = 6
    LOCKED = 7
    INTERRUPTED = 130
    TERMINATED = 143

    @property
    def meaning(self) -> str:
        """One line for --help, run.json and the last line of output."""
        return _EXIT_MEANING[self]


_EXIT_MEANING = {
    ExitCode.DONE: "done",
    ExitCode.CRASH: "crash: a bug; please report it",
    ExitCode.USAGE: "bad usage or config; nothing was written",
    ExitCode.FAILURES_OVER_BUDGET: "done, but more failures than --max-failed allows",
    ExitCode.INCOMPLETE: "incomplete; the same command resumes",
    ExitCode.GATE: "a check, audit or drift gate fired",
    ExitCode.EMPTY: "the archive holds no image",
    ExitCode.LOCKED: "another run holds OUT",
    ExitCode.INTERRUPTED: "interrupted (SIGINT); the same command resumes",
    ExitCode.TERMINATED: "terminated (SIGTERM); the same command resumes",
}


class Stage(StrEnum):
    """Where in the flow an image failed."""

    READ = "read"
    DECODE = "decode"
    EXPLAIN = "explain"
    SINK = "sink"


class ErrorCode(StrEnum):
    """Why a member or a shard has no explanation."""

    # the shard
    SHARD_EMPTY = "shard_empty"  # no member at all
    SHARD_TRUNCATED = "shard_truncated"  # ends before its end-of-archive mark
    SHARD_CORRUPT = "shard_corrupt"  # a header is damaged; what follows cannot be trusted
    SHARD_UNREADABLE = "shard_unreadable"  # not the format its name says
    SHARD_CHANGED = "shard_changed"  # not the size or version that was listed
    SHARD_READ_FAILED = "shard_read_failed"  # the store failed, or it is gone, or no permission
    # the member, not opened
    NOT_A_FILE = "not_a_file"  # link, device, sparse entry
    NOT_AN_IMAGE_NAME = "not_an_image_name"  # the extension is of something else
    NO_PIXELS = "no_pixels"  # opened, but by its kind no image: a DICOM report, a presentation state
    MEMBER_TOO_LARGE = "member_too_large"  # more encoded bytes than allowed
    MEMBER_UNREADABLE = "member_unreadable"  # missing, no file, encrypted, bad checksum
    MEMBER_READ_FAILED = "member_read_failed"  # no permission now, or the disk or the store failed
    # the image
    EMPTY_FILE = "empty_file"
    NOT_AN_IMAGE = "not_an_image"
    FORMAT_NOT_ALLOWED = "format_not_allowed"
    TOO_MANY_PIXELS = "too_many_pixels"
    TRUNCATED_IMAGE = "truncated_image"
    CORRUPT_IMAGE = "corrupt_image"
    NONFINITE_PIXELS = "nonfinite_pixels"
    NO_SUCH_FRAME = "no_such_frame"  # fewer frames than `--frames N` asks for
    DECODE_TIMEOUT = "decode_timeout"  # the decoder worked on it beyond all reason, or hung
    # the model
    BAD_TARGET = "bad_target"  # the class asked for is unknown for this member
    NONFINITE_OUTPUT = "nonfinite_output"  # NaN or infinity in logits
    WORKER_CRASHED = "worker_crashed"  # this image ended the decoder, or its worker process, again and again
    MODEL_FAILED = "model_failed"


PASSING_ERRORS = frozenset(
    {ErrorCode.SHARD_CHANGED, ErrorCode.SHARD_READ_FAILED, ErrorCode.MEMBER_READ_FAILED}
)
"""What the next run may not meet, for a disk or a store said it: permission, I/O, a timeout, an outage.

A shard that ends so is not committed, and the next run tries again. Of a committed one, members that failed
so are tried by each plan; where one can be read again, its shard is done anew. Every other error is of the
bytes themselves, and sealed until they change.
"""


class CamrayError(Exception):
    """Everything camray raises on purpose."""

    exit_code = ExitCode.CRASH


class UsageError(CamrayError):
    """A bad option, config value or input place. Raised before anything is written."""

    exit_code = ExitCode.USAGE

    def __init__(self, field: str, problem: str, fix: str = "") -> None:
        self.field, self.problem, self.fix = field, problem, fix
        super().__init__(field, problem, fix)

    def __str__(self) -> str:
        return f"{self.field}: {self.problem}" + (f". Fix: {self.fix}" if self.fix else "")


class ModelError(UsageError):
    """A model, checkpoint, target layer or class that cannot work."""


class EmptyArchiveError(CamrayError):
    """The archive holds nothing to explain."""

    exit_code = ExitCode.EMPTY


class OutputLockedError(CamrayError):
    """Another live run holds OUT."""

    exit_code = ExitCode.LOCKED


class IncompleteError(CamrayError):
    """The run stopped before its end; what is committed stays, the same command resumes."""

    exit_code = ExitCode.INCOMPLETE


class _CodedError(CamrayError):
    """What becomes a record: `code` and `message` are its columns."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        self.code, self.message = code, message
        super().__init__(code, message)

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


class ShardError(_CodedError):
    """A shard that cannot be read to its end. Becomes a record; members before it are kept."""


class ImageError(_CodedError):
    """An image that cannot be explained. Becomes a failed record; its neighbours go on."""


_SECRETS = (
    (re.compile(r"(?<=://)[^/\s\"'@]*@"), "…@"),  # user:password@ of a URI
    (re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|\bhf_[A-Za-z0-9]{20,}|\bgh[opsu]_[A-Za-z0-9]{20,}"), "…"),
    (re.compile(r"(?i)\b(bearer\s+)[\w.~+/=-]{8,}"), r"\1…"),
    (
        re.compile(  # name=value, or "name": "value"
            r"(?i)((?:secret|password|passwd|token|signature|credential|access_?key|api_?key)[\w-]{0,64}|\bsig)"
            r"(=|\"\s*:\s*\")[^\s&,;\"'}\\]{4,}"
        ),
        r"\1\2…",
    ),
)


def redacted(text: str) -> str:
    """Take out what looks like a credential: passwords in URIs, cloud keys, tokens, signatures."""
    for pattern, stand_in in _SECRETS:
        text = pattern.sub(stand_in, text)
    return text


def printable(text: str, limit: int = 300) -> str:
    r"""Make untrusted text safe for a terminal or a log: one line, no control or bidi characters, no secrets.

    Characters outside the printable set become `\xNN` or `\uNNNN`; longer text is cut with `…`.
    """
    safe = in_one_line(redacted(text[: limit + 65536])[: limit + 1])
    return safe if len(safe) <= limit else safe[: limit - 1] + "…"


def html_list(lines: Iterable[str]) -> str:
    """Give lines as a list of HTML, for a notebook."""
    return "<ul>" + "".join(f"<li>{escape(printable(line))}</li>" for line in lines) + "</ul>"


def in_one_line(text: str) -> str:
    r"""Show what is no character to look at, line breaks too, as `\xNN` or `\uNNNN`; nothing is cut."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def said_by(error: BaseException) -> str:
    """Give what a library said, in one line, without the colours and the functions that Delta Lake adds."""
    plain = re.sub("\x1b\\[[0-9;]*m", "", str(error))
    return " ".join(re.split(r"\n\s*0: ", plain)[0].split())


def no_model(why: str) -> IncompleteError:
    """Say that a worker is of no use; the remedy that an error of camray's names is the driver's."""
    said = printable(why.partition(". Fix: ")[0])
    fix = "give workers what this machine has: packages, files, memory"
    return IncompleteError(f"a worker could not load the model: {said}. Fix: {fix}")


def in_a_line(error: Exception) -> str:
    """Say what camray raised, or what a store or a disk raised before there was a run to end."""
    if isinstance(error, CamrayError):
        return str(error)
    return said_by(error) + ". Fix: try again when the store or disk answers"
