"""Joins a Ray cluster, or starts a Ray for this run alone: on loopback, with a token of its own; quiet.

Its head or its raylet gone, Ray ends the driver's process without a word. A thread looks after both and stops
the run before that, so that it ends with its own last line.
"""

from __future__ import annotations

import errno
import os
import secrets
import select
import socket
import struct
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray._private import ray_constants
from ray._private.authentication.authentication_token_setup import (  # type: ignore[attr-defined]
    AuthenticationTokenLoader,
)
from ray._private.authentication.authentication_utils import is_token_auth_enabled
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as NodeAffinity

from camray.errors import IncompleteError, UsageError, printable, said_by
from camray.flow.stopping import handlers_kept, stop_for
from camray.storage import Folder

_ray_worker: Any = ray._private.worker
SECOND_TRY_S = 10.0  # between two tries to start Ray
# So long without its head, and Ray ends this process; a head that starts anew may be away for half of it.
_RECONNECT = "RAY_gcs_rpc_server_reconnect_timeout_s"
_QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": "critical"}
# Of the second try; otherwise 30, 10 and 5 s.
_MORE_PATIENCE = {
    "RAY_gcs_server_port_wait_time_s": "120",
    "RAY_raylet_start_wait_time_s": "120",
    "RAY_gcs_rpc_server_connect_timeout_s": "60",
}
_NO_PLACE = (None, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)


def connect(out: Folder | None = None) -> tuple[float, float]:
    """Join the cluster named by RAY_ADDRESS, else start Ray on this machine; give its CPUs and GPUs.

    Raises:
        UsageError: no such cluster, one of other versions, one whose nodes do not share `out`; or no place
            for Ray's own files.
        IncompleteError: Ray does not start on this machine.
    """
    if not ray.is_initialized():
        _ray_worker.print_to_stdstream = _unsaid  # what raylets tell every driver, on its standard output
        with _native_stderr_closed(), handlers_kept():
            _join(address) if (address := os.environ.get("RAY_ADDRESS")) else _start()
        threading.Thread(target=_look_after_ray, name="camray-ray", daemon=True).start()
    if out is not None and out.is_local:
        _refuse_unshared(Path(out.path))
    resources = ray.cluster_resources()
    return resources.get("CPU", 1.0), resources.get("GPU", 0.0)


def _unsaid(*_: Any, **__: Any) -> None:
    """Print nothing: Ray's own words are in its logs."""


def logs_of_ray() -> str:
    """Name the folder on this machine in which Ray keeps its own words; they stay when it has ended."""
    return str(_ray_worker._global_node.get_logs_dir_path())


def open_to_others() -> str:
    """Say who may run code in this Ray because it asks for no token; nothing where it does."""
    asked: Any = ray.remote(num_cpus=0)(is_token_auth_enabled).remote()
    if ray.get(asked):
        return ""
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        return "RAY_AUTH_MODE=disabled: every user of this machine may run code in this run's Ray"
    who = "whoever reaches its ports may run code there"
    return printable(f"the cluster at {address} asks for no token: {who}")


def _join(address: str) -> None:
    AuthenticationTokenLoader.instance().reset_cache()  # an earlier Ray's of this process
    try:
        ray.init(**_QUIET)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        said = said_by(error)
        versions = "version" in said.lower()
        fix = "the address of a running cluster" + " with the same versions of Python and Ray" * versions
        if "token" in said.lower():
            fix = "export RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or ~/.ray/auth_token as the cluster has it"
        raise UsageError("RAY_ADDRESS", printable(f"{address}: {said}"), fix) from None


def _start() -> None:
    """Start Ray here; where a busy machine makes it give up, once more after a pause, with more patience."""
    _check_loopback()
    for pause_s in (SECOND_TRY_S, 0.0):
        try:
            with _for_this_run_alone():
                ray.init(address="local", include_dashboard=False, **_QUIET)
            return
        except Exception as error:  # noqa: BLE001 - what Ray raises here has no class of its own
            ray.shutdown()
            why = printable(said_by(error), 160)
            lost = isinstance(error, ConnectionError)
            if isinstance(error, OSError) and not lost and error.errno in _NO_PLACE:
                fix = "export RAY_TMPDIR=FOLDER (a short path that you may write), or --engine here"
                raise UsageError("TMPDIR", f"no place for Ray's files: {why}", fix) from None
        time.sleep(pause_s)
        for name, value in _MORE_PATIENCE.items():
            os.environ.setdefault(name, value)
    fix = "the same command when the machine is less busy, or --engine here"
    raise IncompleteError(f"Ray does not start on this machine: {why}. Fix: {fix}")


def _check_loopback() -> None:
    """Refuse a machine whose loopback is down: there Ray waits for ever."""
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            socket.create_connection(server.getsockname(), timeout=10).close()
    except OSError as error:
        why = f"127.0.0.1 does not answer ({error})"
        raise UsageError("the network", why, "ip link set lo up, or --engine here") from None


@contextmanager
def _for_this_run_alone() -> Iterator[None]:
    """Let a Ray that starts within the body listen on loopback only, and know no token but its own.

    Ray would listen on every interface, and keep its token in a file of HOME that others may read.
    """
    given = {
        "RAY_AUTH_TOKEN": os.environ.get("RAY_AUTH_TOKEN") or secrets.token_hex(32),
        ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR: "0",  # on Linux, too, it means: loopback is enough
    }
    before = {name: os.environ.get(name) for name in given}
    is_cluster, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False  # read at import
    os.environ.update(given)
    AuthenticationTokenLoader.instance().reset_cache()
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = is_cluster
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _look_after_ray() -> None:
    """Stop the run when the raylet has ended, or the head has not answered for too long."""
    patience_s = float(os.environ.get(_RECONNECT) or 60) / 2
    node: Any = _ray_worker._global_node
    raylet, seen = _listener(node.raylet_socket_name), time.monotonic()
    while _ray_worker._global_node is node:
        if select.select([raylet], [], [], 1.0)[0]:
            return stop_for("Ray's raylet on this machine has ended (killed, or a lack of memory)")
        if _listens(node.gcs_address):
            seen = time.monotonic()
        elif time.monotonic() - seen > patience_s:
            return stop_for(f"Ray's head at {node.gcs_address} has not answered for {patience_s:.0f} s")
    return os.close(raylet)


def _listener(path: str) -> int:
    """Open the process that listens at a local socket; the descriptor can be read once it has ended."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.connect(path)
        about = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return os.pidfd_open(struct.unpack("3i", about)[0])


def _listens(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except OSError:
        return False
    return True


def _refuse_unshared(out: Path) -> None:
    """Refuse a folder that is on this machine's own disk while other nodes would write there, too."""
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    if len(nodes) < 2:
        return
    folder = next(p for p in (out, *out.parents) if p.exists())

    def sees(path: str) -> bool:
        return os.path.exists(path)

    look: Any = ray.remote(num_cpus=0, max_retries=0)(sees)
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".camray-probe-") as probe:
        looks = [
            look.options(scheduling_strategy=NodeAffinity(n, soft=True)).remote(probe.name) for n in nodes
        ]
        seen = ray.get(looks)
    if not all(seen):
        blind = f"{seen.count(False)} of {len(nodes)} nodes of the cluster do not see {folder}"
        raise UsageError("OUT", blind, "a shared disk, or s3:// or gs://")


@contextmanager
def _native_stderr_closed() -> Iterator[None]:
    """Keep Ray's C++ start-up notices off the screen; its errors still come as exceptions.

    The level set here also hides a notice that every actor pool logs (ray#53727).
    """
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    stderr, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)
