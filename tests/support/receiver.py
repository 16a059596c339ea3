"""A receiver of webhooks."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = tuple[int, dict[str, str], bytes]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 100


class Receiver:
    """A web server in threads that keeps what it gets and answers as it is told."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.answers: list[Answer] = []
        self.meanwhile: Any = None
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1

            def do_POST(self) -> None:
                length = int(self.headers["content-length"])
                body = self.rfile.read(length)
                if len(body) < length:  # who asked has died in the middle
                    self.close_connection = True
                    return
                headers = {key.lower(): value for key, value in self.headers.items()}
                status, sent, answer = outer.receive(self.path, headers, body)
                self.send_response(status)
                for name, text in sent.items():
                    self.send_header(name, text)
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            do_GET = do_POST

            def log_message(self, format: str, *args: Any) -> None: ...

        self.server = _Server(("127.0.0.1", 0), Handler)
        self.server.handle_error = lambda *_: None  # type: ignore[method-assign]  # who asked has gone
        self.port = self.server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/hook"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def receive(self, path: str, headers: dict[str, str], body: bytes) -> Answer:
        """Keeps a request, and says what to answer."""
        self.requests.append((path, headers, body))
        if self.meanwhile is not None:
            self.meanwhile()
        return self.answers.pop(0) if self.answers else (200, {}, b"thanks")

    def __enter__(self) -> Receiver:
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.socket.close()
