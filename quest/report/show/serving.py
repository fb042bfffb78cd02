"""A page on loopback, for as long as nobody ends it."""

from __future__ import annotations

import errno
import logging
import webbrowser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast

_log = logging.getLogger(__name__)


class PageServer(ThreadingHTTPServer):
    """Answers http://127.0.0.1:``port``/ with ``page``, which may be set later, and nothing else.

    The port is taken at once. Raises ValueError where it cannot be had.
    """

    page = ""

    def __init__(self, port: int):
        try:
            super().__init__(("127.0.0.1", port), _Handler)
        except OSError as error:
            why = "in use" if error.errno == errno.EADDRINUSE else f"not to be had ({error.strerror})"
            raise ValueError(f"--port: {port} is {why}; name another, like --port {port % 65535 + 1}") from None

    def show(self, browse: bool) -> None:
        """Answer until Ctrl-C. browse: open the page in the browser, where there is one."""
        address = f"http://127.0.0.1:{self.server_port}"
        _log.info("%s is ready; Ctrl-C ends it", address)
        if browse:
            webbrowser.open(address)
        try:
            self.serve_forever()
        except KeyboardInterrupt:
            _log.info("ended")


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        found = self.path.partition("?")[0] == "/"
        body = cast(PageServer, self.server).page.encode() if found else b""
        self.send_response(200 if found else 404)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        _log.debug(format, *arguments)
