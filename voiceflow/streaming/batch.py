"""Whole recordings, streamed side by side through the code that serves live streams."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from voiceflow.contract import ModelMetadata
from voiceflow.errors import StreamError
from voiceflow.streaming.lane import Lane
from voiceflow.streaming.lanes import Lanes
from voiceflow.streaming.session import StreamSettings, Voice
from voiceflow.streaming.statistics import StreamStatistics
from voiceflow.turns import Turn

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]


class Scorer(Protocol):
    """Whatever scores a batch: `runtime.StepModel` here, a predictor over gRPC elsewhere."""

    metadata: ModelMetadata

    def step(
        self, features_BF: FloatArray, state_BN: FloatArray, lookahead_B: IntArray
    ) -> tuple[FloatArray, FloatArray]:
        """See `runtime.StepModel.step`."""
        ...


def diarize(
    recordings: Sequence[FloatArray],
    scorer: Scorer,
    *,
    latency_s: float,
    max_speakers: int | None = None,
    max_batch: int = 64,
    packet_samples: int = 16_000,
    enrolled: Sequence[Voice] = (),
) -> list[list[Turn]]:
    """Final turns of whole recordings, streamed side by side through the code that serves live streams.

    Args:
        recordings: Mono float32 audio at 16 kHz, shape (N,) each.
        scorer: The model.
        latency_s: 0.32, 0.64 or 1.04.
        max_speakers: Most speakers to tell apart in each; None for as many as the model can.
        max_batch: Streams in one step.
        packet_samples: Audio given to a stream at once.
        enrolled: Speakers known by name.
    """
    settings = StreamSettings("pcm_f32le", latency_s=latency_s, max_speakers=max_speakers, enrolled=tuple(enrolled))
    sessions = stream_recordings(recordings, scorer, settings, max_batch=max_batch, packet_samples=packet_samples)
    return [session.turns for session in sessions]


def enrol(
    recordings: Mapping[str, FloatArray], scorer: Scorer, *, latency_s: float = 1.04
) -> tuple[list[Voice], dict[str, str]]:
    """Voices of speakers from a recording of each alone.

    Args:
        recordings: Mono float32 audio at 16 kHz by label; 5 s or more of speech is best.
        scorer: The model.
        latency_s: Any that is served; voices can be used at every latency.

    Returns:
        Voices in the order of `recordings`, and why others were refused, by label.
    """
    settings = StreamSettings("pcm_f32le", latency_s=latency_s, max_speakers=1)
    voices, refused = [], {}
    sessions = stream_recordings(list(recordings.values()), scorer, settings)
    for label, session in zip(recordings, sessions, strict=True):
        try:
            voices.append(session.voice(label))
        except StreamError as err:
            refused[label] = str(err)
    return voices, refused


def stream_recordings(
    recordings: Sequence[FloatArray],
    scorer: Scorer,
    settings: StreamSettings,
    *,
    max_batch: int = 64,
    packet_samples: int = 16_000,
    watched: bool = False,
) -> list[Lane]:
    """The closed streams of whole recordings, side by side; arguments as for `diarize`.

    Args:
        watched: Whether statistics are counted, for `Lane.statistics`.
    """
    lanes = Lanes(scorer.metadata, capacity=max(1, len(recordings)))
    streams = [lanes.open(settings) for _ in recordings]
    for stream in streams if watched else ():
        stream.watch()
    sent = [0] * len(recordings)
    waiting = list(range(len(recordings)))
    while waiting:
        for index in waiting[:max_batch]:
            stream = streams[index]
            if not stream.has_work:
                packet = recordings[index][sent[index] : sent[index] + packet_samples]
                sent[index] += len(packet)
                if len(packet):
                    stream.receive_samples(packet)
                else:
                    stream.close()
        batch = lanes.gather(max_batch=max_batch)
        if batch is not None:
            lanes.scatter(*scorer.step(*batch))
        waiting = [index for index in waiting if not streams[index].is_done]
    return streams


def stream_statistics(
    recordings: Sequence[FloatArray], scorer: Scorer, *, latency_s: float, max_batch: int = 64
) -> list[StreamStatistics]:
    """What each recording sounds like as a live stream; arguments as for `diarize`."""
    settings = StreamSettings("pcm_f32le", latency_s=latency_s)
    streams = stream_recordings(recordings, scorer, settings, max_batch=max_batch, watched=True)
    return [stream.statistics() for stream in streams]
