"""An S3 server in memory (moto's) for tests: `python s3_server.py` prints its port, then does what lines on stdin say.

`away` closes the port, `busy` answers everything with SlowDown, `back` serves again what there was. It ends with its stdin.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable, Iterable
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import BaseWSGIServer, make_server

SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"


def main() -> None:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    backend = DomainDispatcherApplication(create_backend_app)
    lock = threading.Lock()
    is_busy = False

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if not is_busy:
            with lock:  # moto checks the condition of a put and writes in two steps; S3 does both in one
                return list(backend(environ, start_response))
        start_response("503 Slow Down", [("Content-Type", "application/xml"), ("Content-Length", str(len(SLOW_DOWN)))])
        return [SLOW_DOWN]

    def serve(port: int) -> BaseWSGIServer:
        server = make_server("127.0.0.1", port, app, threaded=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return server

    server = serve(0)
    port = server.port
    print(port, flush=True)
    is_away = False
    for line in sys.stdin:
        command = line.strip()
        if command == "away":
            server.shutdown()
            server.server_close()
        elif is_away:
            server = serve(port)
        is_away, is_busy = command == "away", command == "busy"
        print(command, flush=True)
    os._exit(0)  # not waiting for connections


if __name__ == "__main__":
    main()
