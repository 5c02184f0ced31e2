"""`camray serve OUT`: read OUT, listen on loopback, say the address.

Flows in: a place. Flows out: one line with the address of each token, until it is interrupted.
"""

from __future__ import annotations

import json
import socket
import sys
import time

from camray.errors import ExitCode, UsageError, printable, said_by
from camray.ledger.out import open_out

LOOPBACK = "127.0.0.1"


def serve(place: str, port: int, may_review: bool, as_json: bool) -> ExitCode:
    """Serve the pages of OUT until SIGINT or SIGTERM.

    Raises:
        UsageError: the extra is missing, OUT holds no records or cannot be reviewed, the port is taken.
    """
    try:
        import duckdb  # noqa: F401
        import uvicorn

        from camray.serve.answers import read_summaries
        from camray.serve.app import application
        from camray.serve.current import Current
    except ModuleNotFoundError as error:
        raise UsageError(
            "camray serve", f"{error.name} is not installed", "pip install 'camray[serve]'"
        ) from None

    started = time.monotonic()
    out, _ = open_out(place)
    if may_review and not read_summaries(out):
        raise UsageError("--review", "there are no verdicts to decide on", "camray audit ARCHIVE OUT first")
    listening = _listen(port)
    current = Current(out, may_review)
    address = f"http://{LOOPBACK}:{listening.getsockname()[1]}/"

    def say(token: str) -> None:
        url = f"{address}?token={token}"
        print(json.dumps({"url": url}) if as_json else url, flush=True)

    if not as_json:
        took = time.monotonic() - started
        how = "decisions are saved to OUT/qa-inbox" if may_review else "read-only; --review to decide"
        print(f"camray serve: {current().rows.total:,} records read in {took:.1f} s; {how}", file=sys.stderr)
        print("each address opens one browser; the next one is printed then. Ctrl-C ends it", file=sys.stderr)
    settings = uvicorn.Config(
        application(current, say), log_level="warning", server_header=False, lifespan="off"
    )
    try:
        uvicorn.Server(settings).run(sockets=[listening])
    finally:
        current.close()
    return ExitCode.DONE


def _listen(port: int) -> socket.socket:
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((LOOPBACK, port))
        listening.listen()
    except (OSError, OverflowError) as error:
        raise UsageError(
            "--port", printable(f"{port}: {said_by(error)}"), "leave it out: any free one"
        ) from None
    return listening
