"""What a servable model file must be: the ONNX contract, checked before anything loads it."""

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from voiceflow.config import DecisionConfig, Section
from voiceflow.errors import ContractError, ModelError
from voiceflow.features import STEP_FEATURES
from voiceflow.timebase import LOOKAHEAD_STEPS_BY_LATENCY_S, SAMPLE_RATE_HZ, STEP_SAMPLES

CONTRACT_VERSION = 1
METADATA_KEY = "voiceflow"
MAX_SIZE_MB = 10.0
MODEL_FILE, HALF_FILE = "diarizer.onnx", "diarizer.fp16.onnx"
REFERENCE_FILE = "reference.jsonl"
"""Beside a model: statistics of the streams that it was judged on."""
"""In the folder of a version: what CPUs serve, and what GPUs do where it is there."""
MAX_STATE_KIB = 64.0
MAX_OPSET = 22
"""Of the ONNX domain: what every runtime that we serve with understands."""
INPUTS = ("features", "state", "lookahead_steps")
OUTPUTS = ("activity", "new_state")


class StatePart(Section):
    """One part of the flat state vector."""

    name: str
    size: int
    """Number of float32 values."""


class ModelMetadata(Section):
    """What the file says of itself, as JSON under the metadata key `voiceflow`."""

    contract_version: int
    name: str
    version: str
    """Semantic version of the model."""
    precision: str
    """fp32, int8 or fp16."""
    sample_rate_hz: int
    step_samples: int
    """Audio of one step."""
    step_features: int
    """Features of one step: 8 frames of 80 log-mel values."""
    lookahead_steps: list[int]
    """Look-aheads it was trained for."""
    num_slots: int
    """Speakers told apart at once; a further voice goes to the slot most like it."""
    state: list[StatePart]
    """Parts of the state vector in their order."""
    data_revision: str
    git_commit: str
    run_id: str
    der: dict[str, float]
    """Strict DER by slice, as fractions, at the headline latency."""
    decision: DecisionConfig
    """Thresholds that go with these weights; they win over any configuration."""

    @property
    def state_dims(self) -> int:
        """Float32 values in the state of one stream."""
        return sum(part.size for part in self.state)

    def state_offset(self, name: str) -> int:
        """Index of a part's first value in the state vector."""
        offset = 0
        for part in self.state:
            if part.name == name:
                return offset
            offset += part.size
        raise ValueError(f"expected a state part of {[part.name for part in self.state]}, got {name!r}")

    @property
    def embedding_dims(self) -> int:
        """Float32 values of one voice."""
        return next(part.size for part in self.state if part.name == "profiles") // self.num_slots

    def summary(self) -> dict[str, Any]:
        """The `model` object of answers."""
        return {"name": self.name, "version": self.version, "precision": self.precision}


def read_metadata(path: Path, *, served: bool = True) -> ModelMetadata:
    """Check a file against every clause and return its metadata.

    Args:
        path: The file.
        served: False for an fp32 file that served ones are judged by, which may be larger than those.

    Raises:
        ModelError: No such file, or not ONNX.
        ContractError: Naming the clause that fails.
    """
    import onnx

    if not path.is_file():
        raise ModelError(f"{path}: no such model file")
    size_mb = path.stat().st_size / 1e6
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as err:  # protobuf raises its own DecodeError
        raise ModelError(f"{path}: not an ONNX file ({type(err).__name__})") from err
    return check_model(model, size_mb=size_mb, served=served)


def check_model(model: Any, *, size_mb: float, served: bool = True) -> ModelMetadata:
    """The same for a loaded onnx.ModelProto."""
    properties = {entry.key: entry.value for entry in model.metadata_props}
    if METADATA_KEY not in properties:
        raise ContractError("metadata", f"a JSON property {METADATA_KEY!r}", f"properties {sorted(properties)}")
    try:
        metadata = ModelMetadata.model_validate_json(properties[METADATA_KEY])
    except ValidationError as err:
        raise ContractError("metadata", "all fields of ModelMetadata", err.errors()[0]["loc"]) from err
    _expect("contract_version", CONTRACT_VERSION, metadata.contract_version)
    _expect("sample_rate_hz", SAMPLE_RATE_HZ, metadata.sample_rate_hz)
    _expect("step_samples", STEP_SAMPLES, metadata.step_samples)
    _expect("step_features", STEP_FEATURES, metadata.step_features)
    _expect("lookahead_steps", sorted(LOOKAHEAD_STEPS_BY_LATENCY_S.values()), sorted(metadata.lookahead_steps))
    if any(tensor.data_location == 1 for tensor in model.graph.initializer):
        raise ContractError("weights", "all weights inside the file", "external data")
    if served and size_mb > MAX_SIZE_MB:
        raise ContractError("size", f"at most {MAX_SIZE_MB} MB", f"{size_mb:.2f} MB")
    opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)
    if opset > MAX_OPSET:
        raise ContractError("opset", f"at most {MAX_OPSET}", opset)
    state_kib = metadata.state_dims * 4 / 1024
    if state_kib > MAX_STATE_KIB:
        raise ContractError("state size", f"at most {MAX_STATE_KIB} KiB", f"{state_kib:.1f} KiB")
    shapes = {value.name: _shape(value) for value in [*model.graph.input, *model.graph.output]}
    _expect("inputs", list(INPUTS), [value.name for value in model.graph.input])
    _expect("outputs", list(OUTPUTS), [value.name for value in model.graph.output])
    expected = {
        "features": (1, metadata.step_features),
        "state": (metadata.state_dims,),
        "lookahead_steps": (),
        "activity": (1, metadata.num_slots),
        "new_state": (metadata.state_dims,),
    }
    for name, tail in expected.items():
        if not isinstance(shapes[name][0], str):
            raise ContractError(f"batch of {name}", "a dynamic first dimension", shapes[name][0])
        _expect(f"shape of {name}", tail, shapes[name][1:])
    return metadata


def _expect(clause: str, expected: object, actual: object) -> None:
    if expected != actual:
        raise ContractError(clause, expected, actual)


def _shape(value: Any) -> tuple[Any, ...]:
    return tuple(dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim)
