"""Say how far the start of a server is, and where it is once it answers: a process beside `serve run`, which prints neither."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import urllib.request
from collections.abc import Callable

_POLL_S, _TIMEOUT_S, _QUIET_S = 0.3, 5.0, 10.0


def announce(url: str, is_running: Callable[[], bool], pause: Callable[[float], None] = time.sleep) -> None:
    """Print a line every ten seconds until the server has a model to answer with, then its addresses.

    Args:
        url: address of the server.
        is_running: whether the server's process is alive; the wait ends with it.
        pause: waits for some seconds.
    """
    waited_s = 0.0
    while is_running():
        model = ready_model(url)
        if model is not None:
            print(describe(url, model), file=sys.stderr, flush=True)
            return
        pause(_POLL_S)
        if int(waited_s / _QUIET_S) < int((waited_s + _POLL_S) / _QUIET_S):
            print(f"starting Ray, the HTTP server and the model … {waited_s + _POLL_S:.0f} s", file=sys.stderr, flush=True)
        waited_s += _POLL_S


def ready_model(url: str) -> str | None:
    """The model that a server answers with, as `NAME@VERSION`; `None` if there is no server or no model yet."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # the server is on this machine
    try:
        with opener.open(f"{url}/ready", timeout=_TIMEOUT_S) as answer:
            found = json.load(answer)
        return f"{found['model']}@{found['version']}"
    except (OSError, ValueError, KeyError, TypeError):
        return None


def describe(url: str, model: str) -> str:
    """The block that ends the start of a server."""
    return (
        f"\nThe server is ready.\n"
        f"  page   {url}\n"
        f"  API    {url}/predict, described at {url}/docs\n"
        f"  model  {model}\n"
        f"  try    curl -F image=@PICTURE.jpg {url}/predict\n"
        f"  stop   Ctrl-C\n"
    )


def local_url(host: str, port: int) -> str:
    """Address at which this machine reaches a server that listens on `host`."""
    name = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104  (nothing listens)
    return f"http://{name}:{port}"


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server; this process ends with it
    parent = os.getppid()
    announce(sys.argv[1], lambda: os.getppid() == parent)
