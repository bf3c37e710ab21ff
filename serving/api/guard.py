"""What each path and method of the HTTP and gRPC ports asks for: nothing, a key, or an admin key.

Streams ask for themselves (serving/api/native.py and its neighbours): their clients are told on the WebSocket.
"""

import logging
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from urllib.parse import parse_qsl

import grpc
import orjson
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from serving.api.access import ADMIN_KEYS, API_KEYS, Access, credential
from serving.errors import http_status, told, wire_code
from voiceflow.errors import StreamError

logger = logging.getLogger("voiceflow.access")
METRICS_ASK = "VOICEFLOW_METRICS_ASK"
"""Set to 1, /metrics asks for a key as well."""
OPEN_PATHS = ("/", "/health", "/ready", "/console", "/v1/model", "/v2/health/live", "/v2/health/ready")
OPEN_CALLS = ("ServerLive", "ServerReady", "ModelReady")
SERVICE = "/inference.GRPCInferenceService/"
LOOPBACK = ("127.0.0.1", "::1", "localhost")


class Needs(StrEnum):
    """What a request has to show."""

    NOTHING = "nothing"
    KEY = "a key"
    ADMIN = "an admin key"


def needs_of_path(path: str) -> Needs:
    """Of HTTP, whatever the method; what nobody has heard of asks for a key."""
    if path.startswith("/v2/repository/"):
        return Needs.ADMIN
    if path == "/metrics":
        return Needs.KEY if os.environ.get(METRICS_ASK) == "1" else Needs.NOTHING
    parts = path.split("/")
    is_ready = parts[:3] == ["", "v2", "models"] and parts[-1] == "ready"
    is_listed = parts[:3] == ["", "v1", "models"] and len(parts) <= 4 and ":" not in parts[-1]
    return Needs.NOTHING if path in OPEN_PATHS or is_ready or is_listed else Needs.KEY


def needs_of_call(method: str) -> Needs:
    """Of gRPC: ``/inference.GRPCInferenceService/ModelInfer``."""
    name = method.removeprefix(SERVICE)
    if name.startswith("Repository"):
        return Needs.ADMIN
    return Needs.NOTHING if name in OPEN_CALLS else Needs.KEY


def check(access: Access, needs: Needs, shown: str | None) -> None:
    """Let a request pass.

    Raises:
        StreamError: `not_authorised`, or `forbidden` where only admins may, or nobody.
    """
    if needs is Needs.ADMIN:
        access.check_admin(shown)
    elif needs is Needs.KEY:
        access.check(shown)


@dataclass
class HttpGuard:
    """ASGI middleware that asks for what `needs_of_path` says.

    Args:
        app: What is guarded.
        access: Knows the keys.
    """

    app: ASGIApp
    access: Access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it."""
        if scope["type"] == "http":
            query = dict(parse_qsl(scope["query_string"].decode("latin-1")))
            try:
                check(self.access, needs_of_path(scope["path"]), credential(Headers(scope=scope), query))
            except StreamError as err:
                body = orjson.dumps({"error": {"code": wire_code(err), "message": told(err)}})
                headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
                await send({"type": "http.response.start", "status": http_status(err), "headers": headers})
                await send({"type": "http.response.body", "body": body})
                return
        await self.app(scope, receive, send)


class GrpcGuard(grpc.aio.ServerInterceptor):
    """Asks for what `needs_of_call` says, shown as ``authorization: Bearer KEY`` in the metadata.

    Args:
        access: Knows the keys.
    """

    def __init__(self, access: Access) -> None:
        self.access = access

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler:
        """Pass the call on, or answer it."""
        metadata = {
            name: value for name, value in handler_call_details.invocation_metadata or () if name[-4:] != "-bin"
        }
        try:
            check(self.access, needs_of_call(handler_call_details.method), credential(metadata, {}))
        except StreamError as err:
            is_forbidden = err.code == "forbidden"
            status = grpc.StatusCode.PERMISSION_DENIED if is_forbidden else grpc.StatusCode.UNAUTHENTICATED
            message = told(err)

            async def refuse(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
                await context.abort(status, message)

            return grpc.unary_unary_rpc_method_handler(refuse)
        return await continuation(handler_call_details)


def tell_what_is_open(access: Access, host: str, http_port: int, grpc_port: int) -> None:
    """Warn of what anybody who reaches the ports may do."""
    if host in LOOPBACK:
        return
    where = f"{host or '::'}, ports {http_port} and {grpc_port}"
    if not access.asks:
        logger.warning(
            "open to everybody who reaches %s: streams, inference, metrics; %s or VOICEFLOW_JWT_KEY asks for keys",
            where,
            API_KEYS,
        )
    elif needs_of_path("/metrics") is Needs.NOTHING:
        logger.warning("open to everybody who reaches %s: /metrics; %s=1 asks for a key", where, METRICS_ASK)
    if access.admins:
        logger.warning("models can be loaded and unloaded at %s with a key of %s", where, ADMIN_KEYS)
