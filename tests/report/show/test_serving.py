"""The page on loopback."""

from __future__ import annotations

import threading
import urllib.error
import urllib.request
from contextlib import closing

import pytest

from quest.report.show.serving import PageServer


def test_the_page_and_nothing_else_is_served_on_loopback():
    with PageServer(0) as running:
        running.page = "<p>größer</p>"
        threading.Thread(target=running.serve_forever, daemon=True).start()
        host, port = running.server_address[:2]
        assert host == "127.0.0.1"
        with closing(urllib.request.urlopen(f"http://127.0.0.1:{port}/?x")) as answer:
            assert answer.read().decode() == "<p>größer</p>"
            assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/results")
        running.shutdown()


def test_a_port_that_is_taken_is_named():
    with PageServer(0) as running, pytest.raises(ValueError, match=r"--port: \d+ is in use; name another, like --port"):
        PageServer(running.server_port)
