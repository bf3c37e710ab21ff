"""ONNX Runtime sessions: one model step for a batch of streams, without torch."""

import importlib.metadata
import importlib.resources
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from voiceflow.contract import ModelMetadata, read_metadata
from voiceflow.errors import ModelError

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}


def check_onnxruntime() -> None:
    """Refuse an environment with both onnxruntime and onnxruntime-gpu.

    The two packages write the same folder, so whichever came last has won in part.

    Raises:
        ModelError: Naming the fix.
    """
    installed = {
        (distribution.metadata["Name"] or "").lower().replace("_", "-")
        for distribution in importlib.metadata.distributions()
    }
    if {"onnxruntime", "onnxruntime-gpu"} <= installed:
        raise ModelError(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other; run "
            "`pip uninstall -y onnxruntime onnxruntime-gpu`, then install one: "
            "`pip install onnxruntime` (CPU) or `pip install onnxruntime-gpu` (CUDA, TensorRT)"
        )


def pretrained_path() -> Path:
    """The model that ships in the package."""
    return Path(str(importlib.resources.files("voiceflow.pretrained").joinpath("diarizer.onnx")))


class StepModel:
    """A model file, ready to score steps.

    Args:
        path: A file that meets the contract.
        provider: ``cpu``, ``cuda`` or ``tensorrt``.
        served: See `contract.read_metadata`.
        num_threads: Threads of ONNX Runtime; one is best for many streams on few cores.

    Raises:
        ModelError: The file or the provider is not usable here.
        ContractError: The file breaks a clause.
    """

    def __init__(self, path: Path, *, provider: str = "cpu", num_threads: int = 1, served: bool = True) -> None:
        check_onnxruntime()
        import onnxruntime

        self.path = path
        self.provider = provider
        self.metadata: ModelMetadata = read_metadata(path, served=served)
        if provider not in PROVIDERS:
            raise ModelError(f"expected a provider of {sorted(PROVIDERS)}, got {provider!r}")
        available = onnxruntime.get_available_providers()
        if PROVIDERS[provider] not in available:
            raise ModelError(
                f"provider {provider!r} is not available here (have {available}); "
                "install the `gpu` extra on a machine with an NVIDIA driver, or use --provider cpu"
            )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Streams end and go quiet; denormal numbers would make silence the slowest audio.
        options.add_session_config_entry("session.set_denormal_as_zero", "1")
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session: Any = onnxruntime.InferenceSession(
                str(path),
                options,
                providers=[PROVIDERS[provider], *([] if provider == "cpu" else ["CPUExecutionProvider"])],
            )
        except Exception as err:  # a class of its own for every kind of failure
            said = str(err).strip().splitlines()[0][:300]
            raise ModelError(f"{path}: ONNX Runtime {onnxruntime.__version__} cannot load it ({said})") from err

    def initial_state(self, max_speakers: int | None = None) -> FloatArray:
        """State of one stream that has not begun, shape (N,).

        Args:
            max_speakers: Most speakers that may be told apart; None for as many as the model can.
        """
        return initial_state(self.metadata, max_speakers)

    def step(
        self, features_BF: FloatArray, state_BN: FloatArray, lookahead_B: IntArray
    ) -> tuple[FloatArray, FloatArray]:
        """Score one step of B streams.

        Args:
            features_BF: Shape (B, 640), float32.
            state_BN: Shape (B, N), float32.
            lookahead_B: Steps of look-ahead, shape (B,), int64.

        Returns:
            Activities in [0, 1], shape (B, S), that answer the step `lookahead` back; and the new state.
        """
        given = {"features": features_BF[:, None, :], "state": state_BN, "lookahead_steps": lookahead_B}
        activity_B1S, new_state_BN = self._session.run(None, given)
        return activity_B1S[:, 0, :], new_state_BN


def initial_state(metadata: ModelMetadata, max_speakers: int | None = None) -> FloatArray:
    """See `StepModel.initial_state`; needs only what the model file says of itself."""
    state_N = np.zeros(metadata.state_dims, np.float32)
    if max_speakers is not None:
        state_N[metadata.state_offset("blocked")] = max(0, metadata.num_slots - max_speakers)
    return state_N
