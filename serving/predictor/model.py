"""A KServe model that scores one step of many streams; it keeps no state between calls."""

import uuid

import numpy as np
from kserve import InferInput, InferOutput, InferRequest, InferResponse, Model
from kserve.errors import InvalidInput

from voiceflow.adapters.registry import served_model
from voiceflow.provenance import Provenance
from voiceflow.runtime import StepModel

METADATA, PROVENANCE = "metadata", "provenance"
"""Asked for as an input's name; answered with JSON."""


class StepPredictor(Model):
    """Serves a model file.

    Inputs: features [B, 640] or [B, 1, 640] and state [B, N] (FP32), lookahead_steps [B] (INT64).
    Outputs: activity [B, S] and new_state [B, N] (FP32). A request whose only input is named
    `metadata` is answered with the file's metadata as JSON bytes, so that a transformer needs no file.

    Args:
        name: Name on the wire.
        model_uri: ``pretrained``, a path, or models:/voiceflow-diarizer@champion.
        provider: ``cpu``, ``cuda`` or ``tensorrt``.
        model: The file, where it is loaded already.
        provenance: Where it comes from, where that is known.
    """

    def __init__(
        self,
        name: str,
        model_uri: str,
        *,
        provider: str = "cpu",
        model: StepModel | None = None,
        provenance: Provenance | None = None,
    ) -> None:
        super().__init__(name)
        self.model_uri = model_uri
        self.provider = provider
        self.model = model
        self.provenance = provenance

    def load(self) -> bool:
        """Load and check the file; KServe calls readiness from the result."""
        path, self.provenance = served_model(self.model_uri, provider=self.provider)
        self.model = StepModel(path, provider=self.provider)
        self.ready = True
        return True

    async def predict(self, payload: InferRequest, headers=None, response_headers=None) -> InferResponse:
        """Score one batch."""
        if not isinstance(payload, InferRequest):
            raise InvalidInput("expected an Open Inference Protocol (v2) request with features, state, lookahead_steps")
        assert self.model is not None
        # The protocol lets clients leave the id out; replies must have one.
        reply_id = payload.id or uuid.uuid4().hex
        inputs = {entry.name: entry for entry in payload.inputs}
        metadata = self.model.metadata
        about = {METADATA: metadata, PROVENANCE: self.provenance}
        if len(inputs) == 1 and not inputs.keys().isdisjoint(about):
            (asked,) = inputs
            told = about[asked]
            output = InferOutput(asked, [1], "BYTES")
            text = b"null" if told is None else told.model_dump_json().encode()
            output.set_data_from_numpy(np.array([text], object), binary_data=False)
            return InferResponse(reply_id, self.name, [output])
        missing = {"features", "state", "lookahead_steps"} - set(inputs)
        if missing:
            raise InvalidInput(f"expected inputs features, state and lookahead_steps; missing {sorted(missing)}")
        features = _array(inputs["features"], np.float32)
        state = _array(inputs["state"], np.float32)
        lookahead = _array(inputs["lookahead_steps"], np.int64)
        if features.ndim == 3:
            features = features[:, 0]
        batch = len(features)
        expected = {
            "features": (batch, metadata.step_features),
            "state": (batch, metadata.state_dims),
            "lookahead_steps": (batch,),
        }
        for (name, shape), array in zip(expected.items(), (features, state, lookahead), strict=True):
            if array.shape != shape:
                raise InvalidInput(f"expected {name} of shape {shape}, got {array.shape}")
        if batch == 0 or lookahead.min() < 0 or lookahead.max() > max(metadata.lookahead_steps):
            raise InvalidInput(
                f"expected a batch of at least 1 and look-aheads of 0 to {max(metadata.lookahead_steps)}"
            )
        outputs = []
        for name, array in zip(("activity", "new_state"), self.model.step(features, state, lookahead), strict=True):
            output = InferOutput(name, list(array.shape), "FP32")
            # REST clients get JSON; gRPC carries raw tensors.
            output.set_data_from_numpy(array, binary_data=payload.from_grpc)
            outputs.append(output)
        return InferResponse(reply_id, self.name, outputs)


def _array(entry: InferInput, dtype: type) -> np.ndarray:
    return np.ascontiguousarray(entry.as_numpy(), dtype)
