"""A page on loopback, for as long as nobody ends it."""

from __future__ import annotations

import errno
import logging
import webbrowser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_log = logging.getLogger(__name__)


def server(page: str, port: int) -> ThreadingHTTPServer:
    """A server of ``page`` at http://127.0.0.1:``port``/ and of nothing else. Raises ValueError for a taken port."""
    body = page.encode()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = self.path.partition("?")[0] == "/"
            self.send_response(200 if found else 404)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(body) if found else 0))
            self.end_headers()
            if found:
                self.wfile.write(body)

        def log_message(self, format: str, *arguments: Any) -> None:
            _log.debug(format, *arguments)

    try:
        return ThreadingHTTPServer(("127.0.0.1", port), Handler)
    except OSError as error:
        why = "in use" if error.errno == errno.EADDRINUSE else f"not to be had ({error.strerror})"
        raise ValueError(f"--port: {port} is {why}; name another, like --port {port % 65535 + 1}") from None


def serve(page: str, port: int, browse: bool) -> None:
    """Show ``page`` until Ctrl-C. browse: open it in the browser, where there is one."""
    with server(page, port) as running:
        address = f"http://127.0.0.1:{running.server_port}"
        _log.info("%s is ready; Ctrl-C ends it", address)
        if browse:
            webbrowser.open(address)
        try:
            running.serve_forever()
        except KeyboardInterrupt:
            _log.info("ended")
