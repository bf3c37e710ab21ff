"""A predictor elsewhere: one gRPC call a tick for all streams; another replica takes over a failed one."""

import asyncio
import logging
import os
import time

import grpc
import numpy as np
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub

from voiceflow.contract import ModelMetadata
from voiceflow.errors import ModelError, StreamError
from voiceflow.provenance import Provenance
from voiceflow.streaming.lanes import Batch

logger = logging.getLogger("voiceflow.predictor")
PREDICTOR_KEY = "VOICEFLOW_PREDICTOR_KEY"
"""Shown to predictors that ask for a key."""
CALL_TIMEOUT_S = 3.0
PATIENCE_S = 30.0
"""So long a step waits for some replica; meanwhile audio is kept, and clients see a pause."""
TRY_AGAIN_S = 0.05
MAX_MESSAGE_BYTES = 64 * 1024 * 1024
LASTING = (
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED,
)
"""What another try would end in as well, where all replicas say so: one that is stopping has unloaded its model."""


class RemotePredictor:
    """Replicas of a predictor over gRPC, Open Inference Protocol, raw tensor contents.

    They keep no state: a step that fails on one is asked of the next, with the same inputs.

    Args:
        hosts: ``name:port``, or several with commas between them.
        model_name: Name of the model there.
        patience_s: So long a step waits for some replica.
    """

    def __init__(self, hosts: str, model_name: str, *, patience_s: float = PATIENCE_S) -> None:
        self.patience_s = patience_s
        self.hosts = [host.strip() for host in hosts.split(",") if host.strip()]
        self.model_name = model_name
        self._options = [
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            # A replica that comes back is found within a second.
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1000),
            # A new channel is a new connection: behind one address are several replicas, and another one answers.
            ("grpc.use_local_subchannel_pool", 1),
        ]
        key = os.environ.get(PREDICTOR_KEY)
        self._key = (("authorization", f"Bearer {key}"),) if key else ()
        self._metadata: ModelMetadata | None = None
        self.provenance: Provenance | None = None
        """Where the model comes from, as the first replica said."""
        self._stubs: dict[str, GRPCInferenceServiceStub] = {}
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._known: set[str] = set()
        """Replicas that were asked which model they serve, and not lost since."""
        self._current = 0
        self.num_calls = 0
        """Batched calls made so far."""

    def metadata(self, *, timeout_s: float = 60.0) -> ModelMetadata:
        """Ask the predictor what it serves, waiting for one replica to come up.

        Raises:
            ModelError: None answers in time, or it serves something else.
        """
        deadline_s = time.monotonic() + timeout_s
        reason = "no host was given"
        while True:
            num_lasting = 0
            for host in self.hosts:
                with grpc.insecure_channel(host, options=self._options) as channel:
                    try:
                        stub = GRPCInferenceServiceStub(channel)
                        reply = stub.ModelInfer(self._question("metadata"), timeout=CALL_TIMEOUT_S, metadata=self._key)
                        self._metadata = ModelMetadata.model_validate_json(_text(reply))
                        self.provenance = self._ask_provenance(stub)
                        return self._metadata
                    except grpc.RpcError as err:
                        reason = f"{host}: {err.details()}"
                        num_lasting += err.code() in LASTING
            if num_lasting == len(self.hosts) or time.monotonic() > deadline_s:
                raise ModelError(f"the predictor does not answer for {self.model_name!r}: {reason}")
            time.sleep(0.2)

    async def score(self, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
        """One step of a batch: features (B, 640), state (B, N), look-ahead (B,).

        Raises:
            StreamError: `predictor_down`: no replica answered for `patience_s`.
        """
        deadline_s = time.monotonic() + self.patience_s
        request = pb.ModelInferRequest(model_name=self.model_name)
        for name, datatype, array in zip(
            ("features", "state", "lookahead_steps"), ("FP32", "FP32", "INT64"), batch, strict=True
        ):
            request.inputs.add(name=name, datatype=datatype, shape=array.shape)
            request.raw_input_contents.append(array.tobytes())
        refused: set[str] = set()
        """Replicas that take the step for wrong."""
        while True:
            host = self.hosts[self._current]
            try:
                reply = await self._ask(host, request)
                break
            except (grpc.RpcError, ModelError) as err:
                if isinstance(err, grpc.aio.AioRpcError) and err.code() is grpc.StatusCode.INVALID_ARGUMENT:
                    refused.add(host)
                    if len(refused) == len(self.hosts):
                        raise
                reason = err.details() if isinstance(err, grpc.aio.AioRpcError) else str(err)
                logger.warning("predictor %s failed: %s", host, reason)
                await self._forget(host)
                self._current = (self._current + 1) % len(self.hosts)
                if time.monotonic() > deadline_s:
                    raise StreamError("predictor_down", "no predictor answers; open another stream later") from err
                await asyncio.sleep(TRY_AGAIN_S)
        self.num_calls += 1
        activity, state = (
            np.frombuffer(raw, np.float32).reshape(tuple(output.shape))
            for raw, output in zip(reply.raw_output_contents, reply.outputs, strict=True)
        )
        return activity, state

    async def _ask(self, host: str, request: pb.ModelInferRequest) -> pb.ModelInferResponse:
        if host not in self._stubs:
            channel = self._channels[host] = grpc.aio.insecure_channel(host, options=self._options)
            self._stubs[host] = GRPCInferenceServiceStub(channel)
        stub = self._stubs[host]
        if host not in self._known:
            # A replica that was away may have come back with another model: states would mean nothing to it.
            reply = await stub.ModelInfer(self._question("metadata"), timeout=CALL_TIMEOUT_S, metadata=self._key)
            served = ModelMetadata.model_validate_json(_text(reply))
            self._metadata = self._metadata or served
            if served != self._metadata:
                raise ModelError(f"it serves {served.summary()}, not {self._metadata.summary()}")
            self._known.add(host)
        return await stub.ModelInfer(request, timeout=CALL_TIMEOUT_S, metadata=self._key)

    async def _forget(self, host: str) -> None:
        """Ask a replica over another connection next time, and which model it serves first."""
        self._known.discard(host)
        self._stubs.pop(host, None)
        if (channel := self._channels.pop(host, None)) is not None:
            await channel.close()

    def _ask_provenance(self, stub: GRPCInferenceServiceStub) -> Provenance | None:
        try:
            stated = _text(stub.ModelInfer(self._question("provenance"), timeout=CALL_TIMEOUT_S, metadata=self._key))
        except grpc.RpcError as err:
            if err.code() is not grpc.StatusCode.INVALID_ARGUMENT:
                raise
            return None  # a predictor of an earlier release: replicas are not replaced all at once
        return None if stated == b"null" else Provenance.model_validate_json(stated)

    def _question(self, about: str) -> pb.ModelInferRequest:
        request = pb.ModelInferRequest(model_name=self.model_name, id=about)
        entry = request.inputs.add(name=about, datatype="BYTES", shape=[1])
        entry.contents.bytes_contents.append(b"")
        return request


def _text(reply: pb.ModelInferResponse) -> bytes:
    raw_contents = reply.raw_output_contents
    text: bytes = raw_contents[0][4:] if raw_contents else reply.outputs[0].contents.bytes_contents[0]
    return text
