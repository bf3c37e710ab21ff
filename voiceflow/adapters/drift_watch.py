"""Looks for drift again and again: tells Prometheus, and trains when Alertmanager asks for it."""

import json
import logging
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from voiceflow.errors import PlatformError, VoiceflowError
from voiceflow.stages.drift import describe

logger = logging.getLogger("voiceflow.drift")
ALERT = "VoiceflowDrift"
"""The alert of Prometheus's rules that training answers to."""
MAX_BODY_BYTES = 1 << 20
RETRY_S = 6 * 3600.0


class Exposition:
    """The last verdict as Prometheus metrics."""

    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry, Gauge

        self.registry = CollectorRegistry()

        def gauge(name: str, what: str, *labels: str) -> Gauge:
            return Gauge(f"voiceflow_drift_{name}", what, labels, registry=self.registry)

        self._drifted = gauge("detected", "Whether live streams have drifted.", "slice")
        self._distance = gauge("distance", "Distance to the reference, in its standard deviations.", "statistic")
        self._p_value = gauge("p_value", "Of the Kolmogorov-Smirnov test.", "statistic")
        self._streams = gauge("streams", "Streams that were compared.")
        self._checked = gauge("checked_timestamp_seconds", "When that was.")
        self._failed = gauge("check_failed", "Whether the last look failed.")

    def tell(self, verdict: Mapping[str, Any]) -> None:
        """A look was made."""
        self._drifted.clear()
        self._drifted.labels(verdict["slice"]["name"] if verdict["slice"] else "").set(verdict["drifted"])
        for row in verdict["columns"]:
            self._distance.labels(row["name"]).set(row["distance"])
            self._p_value.labels(row["name"]).set(row["p_value"])
        self._streams.set(verdict["num_streams"])
        self._checked.set(time.time())
        self._failed.set(0)

    def tell_failed(self) -> None:
        """A look could not be made."""
        self._failed.set(1)


def push(gateway: str, verdict: Mapping[str, Any]) -> None:
    """Tell a Pushgateway.

    Raises:
        PlatformError: It cannot be reached.
    """
    from prometheus_client import push_to_gateway

    exposition = Exposition()
    exposition.tell(verdict)
    try:
        push_to_gateway(gateway, job="voiceflow-drift", registry=exposition.registry)
    except OSError as err:
        raise PlatformError(f"the Pushgateway at {gateway} does not answer ({err})") from err


class Watch:
    """Looks, and what came of it.

    Args:
        look: Compares once.
        command: What trains for a verdict; None for nothing.
        say: Told what happens.
    """

    def __init__(
        self,
        look: Callable[[], dict[str, Any]],
        command: Callable[[dict[str, Any]], list[str]] | None,
        say: Callable[[str], None],
    ) -> None:
        self._look = look
        self._command = command
        self._say = say
        self.exposition = Exposition()
        self.verdict: dict[str, Any] | None = None
        self._trained_for: tuple[str, str] | None = None
        """Model and slice of the last training."""
        self._begun_s = -RETRY_S
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def look(self) -> None:
        """Compare once; what goes wrong is told, and the next look comes."""
        try:
            verdict = self._look()
        except VoiceflowError as err:
            self.exposition.tell_failed()
            self._say(f"no look: {err}")
            return
        if self.verdict is None or describe(verdict) != describe(self.verdict):
            self._say(describe(verdict))
        self.verdict = verdict
        self.exposition.tell(verdict)

    def alerted(self, message: Mapping[str, Any]) -> str:
        """Alertmanager says that alerts fire or are over; what is done about it.

        Training starts once for a model and slice, and not while another one is under way; one that failed, or whose
        model was refused, is tried again after `RETRY_S`.
        """
        firing = [
            alert
            for alert in message.get("alerts", [])
            if alert.get("status") == "firing" and alert.get("labels", {}).get("alertname") == ALERT
        ]
        if not firing:
            return "nothing to do"
        with self._lock:
            if self.verdict is None or not self.verdict["drifted"]:
                return "no drift any more"
            if self._command is None:
                return "training is off; see --retrain"
            if self._process is not None and self._process.poll() is None:
                return "training is under way"
            about = (str(self.verdict["model"]), str(self.verdict["slice"]["name"]))
            is_refused = self._process is not None and self._process.returncode != 0
            waited_s = time.monotonic() - self._begun_s
            if about == self._trained_for and not (is_refused and waited_s >= RETRY_S):
                return "trained for that already; see `voiceflow history`"
            self._trained_for, self._begun_s = about, time.monotonic()
            self._say(f"training for {about[1]}: {describe(self.verdict)}")
            self._process = subprocess.Popen(self._command(self.verdict))
            return "training"


def watch_drift(
    look: Callable[[], dict[str, Any]],
    command: Callable[[dict[str, Any]], list[str]] | None,
    *,
    every_s: float,
    port: int,
    say: Callable[[str], None],
) -> None:
    """Look every so many seconds until interrupted; GET /metrics and POST /alerts meanwhile.

    Raises:
        PlatformError: The port is taken.
    """
    watch = Watch(look, command, say)
    try:
        server = ThreadingHTTPServer(("", port), _handler(watch))
    except OSError as err:
        raise PlatformError(f"port {port} cannot be had ({err.strerror}); pass another --port") from err
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        while True:
            watch.look()
            time.sleep(every_s)
    finally:
        server.shutdown()


def _handler(watch: Watch) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

            if self.path == "/metrics":
                self._answer(200, generate_latest(watch.exposition.registry), CONTENT_TYPE_LATEST)
            elif self.path == "/health":
                self._answer(200, b"ok\n")
            else:
                self._answer(404, b"expected /metrics, /health, or POST /alerts\n")

        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            if self.path != "/alerts" or length > MAX_BODY_BYTES:
                self._answer(404, b"expected POST /alerts of Alertmanager's webhook\n")
                return
            try:
                message = json.loads(self.rfile.read(length))
                done = watch.alerted(message)
            except (ValueError, AttributeError) as err:
                self._answer(400, f"expected the JSON of Alertmanager's webhook ({err})\n".encode())
                return
            logger.info("alert: %s", done)
            self._answer(200, f"{done}\n".encode())

        def _answer(self, status: int, body: bytes, kind: str = "text/plain") -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    return Handler
