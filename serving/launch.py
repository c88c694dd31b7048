"""Starting the service as a process of its own, and waiting until it answers."""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

from features.errors import Refused
from training.bundle import load_champion

WORKSPACE_VARIABLE = "TIERCAST_WORKSPACE"
SERVICE = "serving.service:Tiercast"


def serve(
    workspace: Path, host: str = "127.0.0.1", port: int = 3000, log: IO[bytes] | None = None
) -> subprocess.Popen[bytes]:
    """Starts the service of `workspace` and returns its process; `terminate()` on it ends all of it.

    `log` takes what it writes, by default our own output. Raises ReleaseNotFound or BundleError when no verified
    release could answer, Refused when the port is taken.
    """
    load_champion(workspace)
    address = "127.0.0.1" if host == "localhost" else host  # BentoML takes numbers only
    require_free(address, port)
    command = [sys.executable, "-m", "bentoml", "serve", SERVICE, "--host", address, "--port", str(port)]
    home = Path(__file__).resolve().parent.parent  # where the package `serving` is found, installed or not
    output = subprocess.STDOUT if log else None
    return subprocess.Popen(command, cwd=home, env=_environment(workspace), stdout=log, stderr=output)


@contextlib.contextmanager
def running(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """The process for the length of a `with`: afterwards it has ended, asked first and then made to."""
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def free_port(preferred: int, host: str = "127.0.0.1") -> int:
    """`preferred` where nobody listens on it, else a port that the system picks."""
    try:
        require_free(host, preferred)
    except Refused:
        with socket.socket() as probe:
            probe.bind((host, 0))
            return int(probe.getsockname()[1])
    return preferred


def _environment(workspace: Path) -> dict[str, str]:
    held = workspace.resolve()
    ours = {WORKSPACE_VARIABLE: str(held), "BENTOML_DO_NOT_TRACK": "True"}
    # Two OpenMP threads that spin while they wait slow each other down, and a request is a few rows.
    defaults = {"BENTOML_HOME": str(held / "bentoml"), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    return defaults | dict(os.environ) | ours


def require_free(host: str, port: int) -> None:
    """Raises Refused when the port is taken: the answers of a stranger there would be taken for ours."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise Refused(
                f"cannot listen on {host} port {port}: {error.strerror}; choose another with --port"
            ) from None


def wait_until_ready(
    url: str, process: subprocess.Popen[bytes], path: str = "/readyz", timeout_seconds: float = 120
) -> None:
    """Returns once the server at `url` answers 200 under `path`; raises Refused when it ends or time runs out."""
    deadline = time.monotonic() + timeout_seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise Refused(f"the server ended with code {process.returncode} before it was ready; its output says why")
        if _is_ready(url, path):
            return
        time.sleep(0.1)
    raise Refused(f"the server was not ready within {timeout_seconds:g} seconds; its output says why")


def _is_ready(url: str, path: str) -> bool:
    """Asked directly: urllib would follow the proxies of the environment even to this machine."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=2)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
