"""Serves metrics over HTTP, whoever asks and however slowly: few threads, and none for long.

A client that connects and says nothing would otherwise keep a thread for ever, and enough of them the daemon from
starting its decoders.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app

MOST = 8
"""Clients served at once. Others are turned away."""

TIMEOUT_S = 10.0
"""How long one may keep silent, or not read."""


class _Handler(WSGIRequestHandler):
    timeout = TIMEOUT_S

    def log_message(self, format: str, *args: Any) -> None:
        """The log is for what becomes of images."""


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    address_family = socket.AF_INET

    def __init__(self, address: tuple[str, int]) -> None:
        self._free = threading.BoundedSemaphore(MOST)
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        """Without asking for the host's name, which may take long."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that is gone is nobody's trouble."""


class _Server6(_Server):
    address_family = socket.AF_INET6


def start(port: int, address: str, registry: CollectorRegistry) -> tuple[int, Callable[[], None]]:
    """Answer at ``http://address:port/metrics`` from now on: the port taken, and what ends it.

    Raises:
        OSError: nothing can listen there.
    """
    family, *_, where = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    server = (_Server6 if family == socket.AF_INET6 else _Server)((str(where[0]), int(where[1])))
    server.set_app(make_wsgi_app(registry))
    thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
    thread.start()

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return server.server_port, stop
