"""A torch network that takes one step of many streams at a time, as an exported model does."""

import numpy as np
import numpy.typing as npt
import torch

from voiceflow.contract import ModelMetadata
from voiceflow.models.diarizer import Diarizer

FloatArray = npt.NDArray[np.float32]


class TorchStep:
    """A torch network behind the interface of `runtime.StepModel`, for models that are not exported yet."""

    def __init__(self, net: Diarizer, metadata: ModelMetadata) -> None:
        self.net = net.eval()
        self.metadata = metadata

    @torch.inference_mode()
    def step(
        self, features_BF: FloatArray, state_BN: FloatArray, lookahead_B: npt.NDArray[np.int64]
    ) -> tuple[FloatArray, FloatArray]:
        """See `runtime.StepModel.step`."""
        activity, state = self.net(
            torch.from_numpy(features_BF[:, None]), torch.from_numpy(state_BN), torch.from_numpy(lookahead_B)
        )
        return activity[:, 0].numpy(), state.numpy()
