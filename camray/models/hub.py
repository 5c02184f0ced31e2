"""Asking the Hugging Face hub: not at all, or once and briefly.

Its client retries half a minute for each file where there is no network. Here one short look decides: a hub
that does not answer is taken as away, and only what was fetched before is used.
"""

from __future__ import annotations

import socket
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlparse

from huggingface_hub import constants

_PATIENCE = 5.0  # seconds


@contextmanager
def offline() -> Iterator[None]:
    """Allow cached files only. The client's own switch is read at its import, so it is turned here."""
    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


@contextmanager
def asked_briefly() -> Iterator[None]:
    """Allow fetching where the hub answers; elsewhere cached files only."""
    if constants.HF_HUB_OFFLINE or answers():
        yield
        return
    with offline():
        yield


def answers() -> bool:
    """Tell whether the hub takes a connection; behind a proxy only the client itself can tell."""
    if urllib.request.getproxies().get("https"):
        return True
    place = urlparse(constants.ENDPOINT)
    try:
        socket.create_connection((place.hostname or "", place.port or 443), _PATIENCE).close()
    except OSError:
        return False
    return True
