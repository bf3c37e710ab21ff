"""What is seen of a server under load: dashboards against a real Prometheus, logs, spans."""

import asyncio
import json
import os
import re
import shutil
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import httpx
import pytest
from prometheus_client import generate_latest

from benchmarks.rollouts import prometheus as scraping
from serving.clients.stream import StreamClient
from tests.conftest import REPO, eventually
from tests.e2e.test_streams import url
from voiceflow.adapters.drift_watch import Exposition

pytestmark = pytest.mark.e2e
DASHBOARDS = sorted((REPO / "manifests" / "components" / "monitoring" / "dashboards").glob("*.json"))


def panels():
    for path in DASHBOARDS:
        board = json.loads(path.read_text())
        for panel in board["panels"]:
            for target in panel["targets"]:
                yield board["title"], panel["title"], target["expr"]


@pytest.fixture
def prometheus(tmp_path, start_server):
    """A Prometheus that scrapes a server of two workers; its address and the server's port."""
    if shutil.which("prometheus") is None:
        pytest.skip("Prometheus is missing: apt-get install prometheus")
    server, _ = start_server("serving.transformer", "--workers", "2")
    with scraping(tmp_path, server) as address:
        yield address, server


async def drive(port, talk, *, streams, speed=1.0):
    async def one():
        client = StreamClient(url(port), speed=speed)
        return [message async for message in client.run(talk)], client

    return await asyncio.gather(*(one() for _ in range(streams)))


def test_every_query_of_every_dashboard_has_data_under_load(prometheus, talk):
    address, server = prometheus

    def empty():
        found = []
        for board, panel, expr in panels():
            # A drift watch tells of drift: benchmarks/drift_loop.py. Nothing failed and nothing was refused: a counter
            # by code has no series before its first count.
            if "voiceflow_drift_" in expr or "refusals" in expr:
                continue
            reply = httpx.get(f"{address}/api/v1/query", params={"query": expr}, timeout=60).json()
            assert reply["status"] == "success", (board, panel, reply)
            if not reply["data"]["result"]:
                found.append((board, panel, expr))
        return found

    assert len(DASHBOARDS) == 4
    asyncio.run(drive(server, talk, streams=8, speed=0.0))
    eventually(lambda: not empty(), "data for every query")


def test_every_metric_of_the_dashboards_is_one_that_is_exported(server):
    text = httpx.get(f"http://127.0.0.1:{server}/metrics", follow_redirects=True).text
    text += generate_latest(Exposition().registry).decode()
    known = set(re.findall(r"^# TYPE (\S+)", text, re.M))
    for _, _, expr in panels():
        for name in re.findall(r"\b(?:voiceflow|inference|websocket)_\w+", expr):
            base = re.sub(r"_(bucket|sum|count)$", "", name)
            assert {base, name, re.sub(r"_total$", "", name)} & known, name


def test_logs_are_json_and_name_the_stream(start_server, talk):
    port, _ = start_server("serving.transformer")
    [(_, client)] = asyncio.run(drive(port, talk, streams=1, speed=0.0))

    def of_it():
        lines = Path(start_server.logs[-1]).read_text().splitlines()
        whole = [line for line in lines if line[:1] == "{" and line[-1:] == "}"]
        rows = [json.loads(line) for line in whole]
        return [row for row in rows if row.get("stream") == client.started["session_id"]]

    eventually(lambda: len(of_it()) >= 2, "the end of the stream in the log")
    mine = of_it()
    assert [row["message"] for row in mine] == ["stream opened", "stream ended"]
    assert mine[1]["audio_s"] == pytest.approx(len(talk) / 16_000)


def test_spans_go_to_the_exporter_that_is_set(start_server, talk):
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    received = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self):
            received.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments):
            pass

    collector = HTTPServer(("127.0.0.1", 0), Collector)
    Thread(target=collector.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{collector.server_port}"
    port, _ = start_server("serving.transformer", env={**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": address})
    [(_, client)] = asyncio.run(drive(port, talk, streams=1, speed=0.0))
    eventually(lambda: received, "a span")
    collector.shutdown()
    [batch] = ExportTraceServiceRequest.FromString(received[0]).resource_spans
    [span] = batch.scope_spans[0].spans
    attributes = {row.key: row.value.string_value for row in span.attributes}
    assert attributes["stream"] == client.started["session_id"]
    assert [event.name for event in span.events] == ["opened", "ended"]
