"""The engine's step on a predictor elsewhere: one gRPC call a batch."""

import grpc
import numpy as np
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub

from voiceflow.contract import ModelMetadata
from voiceflow.errors import ModelError
from voiceflow.streaming.lanes import Batch

CALL_TIMEOUT_S = 10.0
MAX_MESSAGE_BYTES = 64 * 1024 * 1024


class RemotePredictor:
    """A predictor over gRPC, Open Inference Protocol, raw tensor contents.

    Args:
        host: ``name:port``.
        model_name: Name of the model there.
    """

    def __init__(self, host: str, model_name: str) -> None:
        self.host = host
        self.model_name = model_name
        self._options = [
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ]
        self._stub: GRPCInferenceServiceStub | None = None
        self.num_calls = 0
        """Batched calls made so far."""

    def metadata(self, *, timeout_s: float = 60.0) -> ModelMetadata:
        """Ask the predictor what it serves, waiting for it to come up.

        Raises:
            ModelError: It does not answer in time, or serves something else.
        """
        request = pb.ModelInferRequest(model_name=self.model_name, id="metadata")
        entry = request.inputs.add(name="metadata", datatype="BYTES", shape=[1])
        entry.contents.bytes_contents.append(b"")
        with grpc.insecure_channel(self.host, options=self._options) as channel:
            try:
                reply = GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=timeout_s, wait_for_ready=True)
            except grpc.RpcError as err:
                raise ModelError(
                    f"predictor at {self.host} does not answer for {self.model_name!r}: {err.details()}"
                ) from err
        if reply.raw_output_contents:
            raw = reply.raw_output_contents[0][4:]
        else:
            raw = reply.outputs[0].contents.bytes_contents[0]
        return ModelMetadata.model_validate_json(raw)

    async def score(self, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
        """One step of a batch: features (B, 640), state (B, N), look-ahead (B,)."""
        if self._stub is None:
            self._stub = GRPCInferenceServiceStub(grpc.aio.insecure_channel(self.host, options=self._options))
        request = pb.ModelInferRequest(model_name=self.model_name)
        for name, datatype, array in zip(
            ("features", "state", "lookahead_steps"), ("FP32", "FP32", "INT64"), batch, strict=True
        ):
            request.inputs.add(name=name, datatype=datatype, shape=array.shape)
            request.raw_input_contents.append(array.tobytes())
        reply = await self._stub.ModelInfer(request, timeout=CALL_TIMEOUT_S)
        self.num_calls += 1
        activity, state = (
            np.frombuffer(raw, np.float32).reshape(tuple(output.shape))
            for raw, output in zip(reply.raw_output_contents, reply.outputs, strict=True)
        )
        return activity, state
