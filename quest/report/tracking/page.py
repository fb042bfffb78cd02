"""MLflow's own page, on this machine only, opened on the results."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import webbrowser

import click

from quest.report import tracking
from quest.report.tracking import store

HOST = "127.0.0.1"
_PATIENCE = 120  # seconds until a page that does not answer is given up
_QUIET = {
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # seven processes for what there is none of here
    "PYTHONWARNINGS": "ignore",  # for its developers
}
_log = logging.getLogger(__name__)


def serve(port: int, browser: bool) -> None:
    """Fill the store from ``results/``, serve it on loopback, say the address and open it; returns when that ends.

    Raises ValueError when the port is taken, when there are no results yet, when the store is a server, or when the
    page does not come.
    """
    uri = store.address()
    if uri.startswith(("http:", "https:")):
        raise ValueError(f"MLFLOW_TRACKING_URI is {uri}, a server with a page of its own; unset it for a local page")
    _require_free(port)
    address = f"http://{HOST}:{port}/{tracking.fill()}"
    _log.info("starting MLflow's page, some seconds; Ctrl-C ends it")
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", uri, "--host", HOST, "--port", str(port)]
    command += ["--workers", "1", "--uvicorn-opts", "--log-level error"]
    # A group of its own: its workers would outlive it.
    server = subprocess.Popen(command, env=os.environ | _QUIET, stdout=sys.stderr, start_new_session=True)
    try:
        _wait_until_ready(server, port)
        click.echo(address)
        if browser and _has_screen():
            webbrowser.open(address)
        _until_ended(server)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
            server.wait()


def _until_ended(server: subprocess.Popen[bytes]) -> None:
    server.wait()


def _has_screen() -> bool:
    """Whether a browser of this user has somewhere to open: without, a text browser would take the terminal."""
    return sys.platform != "linux" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def _wait_until_ready(server: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise ValueError(f"MLflow's page ended with exit code {server.returncode}; what it said stands above")
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://{HOST}:{port}/health", timeout=1):
            return
        time.sleep(0.2)
    raise ValueError(f"MLflow's page did not answer within {_PATIENCE} s; try again, or name another --port")


def _require_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            why = "in use" if error.errno == errno.EADDRINUSE else f"not to be had ({error.strerror})"
            raise ValueError(f"--port: {port} is {why}; name another, like --port {port % 65535 + 1}") from None
