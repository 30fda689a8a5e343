"""A server that a notebook starts and stops."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import deque
from contextlib import suppress
from threading import Thread
from types import TracebackType
from typing import Self

from cifar_ray.client import Client
from cifar_ray.config import default_storage, resolve_storage
from cifar_ray.errors import ResourceError, ServerError

_POLL_S = 0.3
_STOP_S = 30.0
_SHOWN_LINES = 5


class Server:
    """A running `cifar-ray serve`; stop it with `stop`, or use it as a context manager.

    Args:
        process: process of the command.
        port: port on which the server listens.

    Attributes:
        url: address of the page and the API.
        client: client of the server.
    """

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self._process = process
        self._lines: deque[str] = deque(maxlen=_SHOWN_LINES)
        self.url = f"http://127.0.0.1:{port}"
        self.client = Client(self.url)
        self._reader = Thread(target=self._read, daemon=True)
        self._reader.start()

    def stop(self) -> None:
        """Stop the server like Ctrl-C; after 30 s, kill it."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._reader.join(_STOP_S)

    def wait_until_ready(self, timeout_s: float) -> None:
        """Wait until the server has loaded a model.

        Raises:
            ResourceError: if the server ends, or is not ready within `timeout_s`.
        """
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                time.sleep(_POLL_S)  # so that the last lines of output arrive
                raise ResourceError(f"the server did not start: {' '.join(self._lines) or 'it said nothing'}")
            with suppress(ServerError):  # the server does not listen yet
                if self.client.ready():
                    return
            time.sleep(_POLL_S)
        raise ResourceError(f"the server was not ready within {timeout_s:g} s: {' '.join(self._lines)}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"<Server {self.url}: {'runs' if self._process.poll() is None else 'stopped'}>"

    def _repr_html_(self) -> str:
        """HTML in a notebook: a link to the server's page."""
        return f'<a href="{self.url}" target="_blank">{self.url}</a>' if self._process.poll() is None else repr(self)

    def _read(self) -> None:
        assert self._process.stdout is not None  # noqa: S101  (a pipe)
        with self._process.stdout as lines:
            self._lines.extend(line.strip() for line in lines)


def start_server(
    model: object = None, *, port: int = 8000, storage: str | os.PathLike[str] | None = None, timeout_s: float = 120.0
) -> Server:
    """Start a server in a separate process, and wait until it is ready.

    Args:
        model: a `Model`, `NAME` or `NAME@3`; default: the model that was promoted last.
        port: port to listen on.
        storage: path or URI of the store; default: the storage of `model`, else `$CIFAR_RAY_STORAGE`, else `./storage`.
        timeout_s: maximum time until the server is ready.

    Raises:
        ResourceError: if the server does not start; the message contains the last lines of its output.
    """
    reference = getattr(model, "reference", model)
    place = os.fspath(storage) if storage is not None else getattr(model, "storage", default_storage())
    command = [sys.executable, "-m", "cifar_ray.serve", *([str(reference)] if reference else []), "--port", str(port)]
    process = subprocess.Popen(  # noqa: S603  (our own command)
        [*command, "--storage", resolve_storage(place)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    server = Server(process, port)
    try:
        server.wait_until_ready(timeout_s)
    except BaseException:  # also Ctrl-C
        server.stop()
        raise
    return server
