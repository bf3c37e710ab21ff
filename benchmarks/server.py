"""A server of its own for a measurement: started, waited for, stopped."""

import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

START_S = 600.0
"""Only a server that is broken takes so long, however busy the machine is."""


class Server:
    """`python -m serving.transformer`, or another module, on free ports.

    Args:
        arguments: Its flags.
        module: What is run.
        env: Beside the environment there is.
        path: Answers 200 once it is ready.
        ports: For HTTP and gRPC; by default two that are free.
    """

    def __init__(
        self,
        *arguments: str,
        module: str = "serving.transformer",
        env: dict[str, str] | None = None,
        path: str = "/health",
        ports: tuple[int, int] | None = None,
    ) -> None:
        self._settings: Any = (arguments, module, env, path)
        self.http_port, self.grpc_port = ports or (free_port(), free_port())
        self.log = Path(tempfile.mkstemp(prefix="voiceflow-server-", suffix=".log")[1])
        command = [sys.executable, "-m", module, "--model_name", "voiceflow-diarizer"]
        command += ["--http_port", str(self.http_port), "--grpc_port", str(self.grpc_port), *arguments]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **(env or {})})
        self._path = path

    @property
    def url(self) -> str:
        """Where its streams are."""
        return f"ws://127.0.0.1:{self.http_port}"

    def wait(self) -> None:
        """Until it is ready.

        Raises:
            RuntimeError: It ended, or is not ready in time; with the end of its log.
        """
        wait_for(self.process, f"http://127.0.0.1:{self.http_port}{self._path}", self.log, start_s=START_S)

    def stop(self, number: int = signal.SIGTERM, *, timeout_s: float = 40.0) -> float:
        """Send it a signal and wait; seconds until it was gone."""
        started_s = time.monotonic()
        if self.process.poll() is None:
            self.process.send_signal(number)
            try:
                self.process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        return time.monotonic() - started_s

    def again(self) -> "Server":
        """Another one on the same ports, once this one is gone."""
        arguments, module, env, path = self._settings
        return Server(*arguments, module=module, env=env, path=path, ports=(self.http_port, self.grpc_port))

    def metrics(self) -> dict[str, float]:
        """Prometheus samples by name with labels."""
        text = httpx.get(f"http://127.0.0.1:{self.http_port}/metrics", timeout=20).text
        rows = (line.rsplit(" ", 1) for line in text.splitlines() if line and line[0] != "#")
        return {name: float(value) for name, value in rows}

    def __enter__(self) -> "Server":
        self.wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self.log.unlink(missing_ok=True)


_given: set[int] = set()
"""Ports that `free_port` has given out in this process."""


def free_port(neighbours: int = 1) -> int:
    """The first of so many ports in a row that nothing listens on and nobody here was given, below those that connections
    get; workers of pytest-xdist have ranges of their own."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    first = 20_000 + 1_000 * (worker % 12)
    for port in random.SystemRandom().sample(range(first, first + 1_000 - neighbours), 1_000 - neighbours):
        row = range(port, port + neighbours)
        if not _given.intersection(row) and all(map(_is_free, row)):
            _given.update(row)
            return port
    raise AssertionError(f"no free port from {first} on")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            return False
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def wait_for(process: "subprocess.Popen[bytes]", url: str, log: Path, *, start_s: float) -> None:
    """Until a server answers 200.

    Raises:
        RuntimeError: It ended, or does not answer in time; with the end of its log.
    """
    deadline_s = time.monotonic() + start_s
    while time.monotonic() < deadline_s and process.poll() is None:
        try:
            if httpx.get(url).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.1)
    raise RuntimeError(f"{url} does not answer: {log.read_text(errors='replace')[-2000:]}")
