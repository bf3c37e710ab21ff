"""KServe's gRPC server on an address of our choice, asking for keys."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from kserve.protocol.grpc import grpc_predict_v2_pb2_grpc
from kserve.protocol.grpc.interceptors import ExceptionToStatusInterceptor, LoggingInterceptor
from kserve.protocol.grpc.server import GRPCServer
from kserve.protocol.grpc.servicer import InferenceServicer

from serving.api.access import Access
from serving.api.guard import GrpcGuard

MAX_MESSAGE_BYTES = 64 * 1024 * 1024


class GuardedServer(GRPCServer):
    """As KServe's own, whose `start` knows neither an address nor other interceptors.

    Args:
        access: Knows the keys; by default those of the environment.
        host: Where it listens; by default everywhere.
    """

    def __init__(self, *arguments: Any, access: Access | None = None, host: str = "", **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._access = Access.from_environment() if access is None else access
        self._host = host

    async def start(self, max_workers: int) -> None:
        """Answer until stopped."""
        self._server = grpc.aio.server(
            ThreadPoolExecutor(max_workers=max_workers),
            interceptors=(GrpcGuard(self._access), LoggingInterceptor(), ExceptionToStatusInterceptor()),
            options=[
                ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
                ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ],
        )
        servicer = InferenceServicer(self._data_plane, self._model_repository_extension)
        grpc_predict_v2_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, self._server)
        host = f"[{self._host or '::'}]" if ":" in self._host or not self._host else self._host
        self._server.add_insecure_port(f"{host}:{self._port}")
        await self._server.start()
        await self._server.wait_for_termination()
