"""What each path, method and port asks for where keys are set; and that nobody changes a model where none are."""

import asyncio
import contextlib
import json
import os
import re

import grpc
import httpx
import pytest
import websockets
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub

from serving.api.http import HttpApi
from serving.transformer.front import STREAM_PATHS
from tests.conftest import PATIENCE_S, REPO
from tests.e2e.test_streams import START

pytestmark = pytest.mark.e2e
KEY, ADMIN = "key-0123456789abcdef", "admin-0123456789abcdef"
KEYS = {"VOICEFLOW_API_KEYS": f"ann:{KEY}", "VOICEFLOW_ADMIN_KEYS": f"ada:{ADMIN}"}
MODEL = "voiceflow-diarizer"
REFUSED = (401, 403)
REFUSED_CALLS = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)


@pytest.fixture(scope="module")
def guarded(start_server):
    """HTTP and gRPC ports of a server with keys."""
    return start_server("serving.transformer", env=os.environ | KEYS)


def bearer(key):
    return {"authorization": f"Bearer {key}"} if key else {}


def needs(passes):
    """What is asked for, by trying: with nothing, with a key, with an admin key."""
    for name, key in (("nothing", ""), ("a key", KEY), ("an admin key", ADMIN)):
        if passes(key):
            return name
    return "what nobody has"


def paths_of(port):
    """All (method, path) of the HTTP port: KServe's, by its own description, and ours."""
    described = httpx.get(f"http://127.0.0.1:{port}/openapi.json", headers=bearer(KEY), timeout=PATIENCE_S).json()[
        "paths"
    ]
    theirs = {(method.upper(), path) for path, methods in described.items() for method in methods}
    ours = {
        (method, route.path) for route in HttpApi(None).routes() for method in (route.methods or {"GET"}) - {"HEAD"}
    }
    return sorted(theirs | ours | {("GET", "/openapi.json")}, key=lambda row: row[::-1])


def http_needs(port, method, path):
    address = f"http://127.0.0.1:{port}" + path.format(model_name=MODEL, model_version="1")

    def passes(key):
        answer = httpx.request(method, address, headers=bearer(key), timeout=PATIENCE_S)
        return answer.status_code not in REFUSED

    return needs(passes)


def call_needs(channel, name):
    method = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods_by_name[name]
    request = getattr(pb, method.input_type.name)()
    if "name" in method.input_type.fields_by_name:
        request.name = MODEL
    if "model_name" in method.input_type.fields_by_name:
        request.model_name = MODEL

    def passes(key):
        try:
            getattr(GRPCInferenceServiceStub(channel), name)(
                request, metadata=tuple(bearer(key).items()), timeout=PATIENCE_S
            )
        except grpc.RpcError as err:
            return err.code() not in REFUSED_CALLS
        return True

    return needs(passes)


def stream_needs(port, path):
    def passes(key):
        async def speak():
            async with websockets.connect(f"ws://127.0.0.1:{port}{path}", additional_headers=bearer(key)) as socket:
                first = START if path == "/v1/stream" else {"type": "audio_chunk", "data": [0.0]}
                with contextlib.suppress(websockets.ConnectionClosed):  # it may be refused before it says anything
                    await socket.send(json.dumps(first))
                return json.loads(await socket.recv())

        return asyncio.run(speak()).get("code") not in ("not_authorised", "bad_token")

    return "a ticket of /v1/live" if path == "/v1/live/stream" else needs(passes)


def documented():
    """The table of docs/streams.md."""
    text = (REPO / "docs" / "streams.md").read_text().split("## What each path asks for")[1].split("\n## ")[0]
    return re.findall(r"^\| `(\w+) ([^`]+)` \| (\w+) \| ([^|]+) \|$", text, re.MULTILINE)


def test_each_path_asks_for_what_the_docs_say(guarded):
    http, grpc_port = guarded
    rows = [("WS", path, "HTTP", stream_needs(http, path)) for path in STREAM_PATHS]
    # What unloads the model comes last.
    paths = sorted(paths_of(http), key=lambda row: "repository" in row[1])
    rows += [(method, path, "HTTP", http_needs(http, method, path)) for method, path in paths]
    with grpc.insecure_channel(f"127.0.0.1:{grpc_port}") as channel:
        for method in pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods:
            rows.append(("CALL", method.name, "gRPC", call_needs(channel, method.name)))
    assert documented() == rows, "\n".join(f"| `{way} {path}` | {port} | {asks} |" for way, path, port, asks in rows)


def test_metrics_ask_for_a_key_where_that_is_wanted(start_server):
    http, _ = start_server("serving.transformer", env=os.environ | KEYS | {"VOICEFLOW_METRICS_ASK": "1"})
    assert http_needs(http, "GET", "/metrics") == "a key"
    assert http_needs(http, "GET", "/health") == "nothing"


def test_without_keys_nothing_changes_the_model(start_server):
    http, grpc_port = start_server("serving.transformer")
    for what in ("load", "unload"):
        answer = httpx.post(f"http://127.0.0.1:{http}/v2/repository/models/{MODEL}/{what}", timeout=PATIENCE_S)
        assert answer.status_code == 403
        assert "VOICEFLOW_ADMIN_KEYS" in answer.json()["error"]["message"]
    with grpc.insecure_channel(f"127.0.0.1:{grpc_port}") as channel:
        stub = GRPCInferenceServiceStub(channel)
        for call, request in (
            (stub.RepositoryModelUnload, pb.RepositoryModelUnloadRequest(model_name=MODEL)),
            (stub.RepositoryModelLoad, pb.RepositoryModelLoadRequest(model_name=MODEL)),
        ):
            with pytest.raises(grpc.RpcError) as refused:
                call(request, timeout=PATIENCE_S)
            assert refused.value.code() == grpc.StatusCode.PERMISSION_DENIED
        assert stub.ModelReady(pb.ModelReadyRequest(name=MODEL), timeout=PATIENCE_S).ready


def test_a_predictor_asks_for_keys_and_a_transformer_shows_its_own(start_server):
    rest, predictor = start_server("serving.predictor", path="/v2/health/ready", env=os.environ | KEYS)
    assert http_needs(rest, "POST", "/v2/models/{model_name}/infer") == "a key"
    assert http_needs(rest, "POST", "/v2/repository/models/{model_name}/load") == "an admin key"
    flags = ("--predictor_host", f"127.0.0.1:{predictor}")
    http, _ = start_server("serving.transformer", *flags, env=os.environ | {"VOICEFLOW_PREDICTOR_KEY": KEY})
    assert stream_needs(http, "/v1/stream") == "nothing"
