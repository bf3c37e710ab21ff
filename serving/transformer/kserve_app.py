"""KServe's server, on sockets that the front passes on: health, metadata, metrics, REST and gRPC inference."""

import argparse
import asyncio
import socket
from collections.abc import Sequence
from typing import Any

from starlette.routing import BaseRoute

from serving.api.access import Access
from serving.api.guard import HttpGuard
from voiceflow.provenance import Provenance
from voiceflow.runtime import StepModel

GRACE_S = 10


class KServe:
    """KServe's application and gRPC server in this process's event loop.

    `ModelServer.start` would make a loop and a listener of its own; its parts are used one by one instead.

    Args:
        arguments: Of the command line.
        model: What REST and gRPC inference run; None where the model is on a predictor.
        routes: Ours, beside KServe's.
        access: Knows the keys.
        provenance: Where the model comes from, where that is known.
    """

    def __init__(
        self,
        arguments: argparse.Namespace,
        model: StepModel | None,
        routes: Sequence[BaseRoute],
        access: Access,
        *,
        provenance: Provenance | None = None,
    ) -> None:
        from serving.predictor.lean import import_kserve

        import_kserve()  # before the next lines would bring all of it
        from kserve import Model, ModelServer
        from kserve.model_server import app

        from serving.predictor.model import StepPredictor

        app.router.routes.extend(routes)
        app.add_middleware(HttpGuard, access=access)
        self._server = ModelServer(
            http_port=arguments.http_port, grpc_port=arguments.grpc_port, enable_latency_logging=False
        )
        self._served: Model = Model(arguments.model_name)
        if model is not None:
            self._served = StepPredictor(arguments.model_name, arguments.model, model=model, provenance=provenance)
        self._served.ready = True
        self._server.register_model(self._served)
        self._access, self._host = access, arguments.host
        self._tasks: list[asyncio.Task[Any]] = []

    def serve(self, model: StepModel | None, provenance: Provenance | None) -> None:
        """Answer with another model from now on, where models are in this process."""
        if model is not None and hasattr(self._served, "model"):
            self._served.model, self._served.provenance = model, provenance

    async def start(self) -> None:
        """Begin to answer."""
        from kserve.protocol.rest.server import RESTServer

        from serving.predictor.grpc_server import GuardedServer

        server = self._server
        rest = RESTServer(
            "kserve.model_server:app", server.dataplane, server.model_repository_extension, server.http_port
        )
        rest.create_application()
        self._uvicorn = rest._server
        self._config = rest.config
        self._config.load()
        self._uvicorn.lifespan = self._config.lifespan_class(self._config)
        await self._uvicorn.startup(sockets=[])
        self._tasks.append(asyncio.create_task(self._uvicorn.main_loop()))
        self._grpc = GuardedServer(
            server.grpc_port,
            server.dataplane,
            server.model_repository_extension,
            {},
            grace_period=GRACE_S,
            access=self._access,
            host=self._host,
        )
        self._tasks.append(asyncio.create_task(self._grpc.start(server.max_threads)))

    def take(self, sock: socket.socket) -> None:
        """Serve HTTP on a connection that was accepted elsewhere."""
        loop = asyncio.get_running_loop()
        task = loop.create_task(self._connect(loop, sock))
        self._tasks.append(task)
        task.add_done_callback(self._tasks.remove)

    async def _connect(self, loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
        try:
            await loop.connect_accepted_socket(self._protocol, sock)
        except OSError:
            sock.close()

    def _protocol(self) -> asyncio.Protocol:
        protocol: asyncio.Protocol = self._config.http_protocol_class(
            config=self._config, server_state=self._uvicorn.server_state, app_state=self._uvicorn.lifespan.state
        )
        return protocol

    async def stop(self) -> None:
        """Answer what was asked, and stop."""
        self._uvicorn.should_exit = True
        await self._grpc.stop()
        await self._uvicorn.shutdown(sockets=[])
