"""A watchdog for heartbeats: an HTTP server that counts who asks for its secret path."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Watchdog(ThreadingHTTPServer):
    """Counts who asks for its secret path; `answer` is the status that it gives."""

    def __init__(self, port: int = 0) -> None:
        heard = self.heard = []  # type: list[str]
        self.answer = 200
        watchdog = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                heard.append(self.path)
                self.send_response(watchdog.answer)
                self.end_headers()
                self.wfile.write(b"OK")

            def log_message(self, *_: object) -> None:
                pass

        super().__init__(("127.0.0.1", port), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/ping/hunter2-secret"

    def end(self) -> None:
        self.shutdown()
        self.server_close()
