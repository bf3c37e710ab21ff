"""`python -m benchmarks.parts`: CPU microseconds a stream-second of each part of a server, in one process without sockets.

What a server takes beside these (`make bench`: server_us_per_stream_second) is sockets, the event loop and waiting
for other processes' caches.
"""

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from serving.api.conversation import Conversation, new_id
from serving.transformer.engine import Engine, Stream
from serving.transformer.variants import Variant, Variants
from voiceflow.config import load_params
from voiceflow.runtime import StepModel, pretrained_path
from voiceflow.split import Served
from voiceflow.streaming.lanes import Lanes
from voiceflow.streaming.session import StreamSettings
from voiceflow.timebase import SAMPLE_RATE_HZ

PACKET_S = 0.1


class _Listener:
    """Takes messages and counts their bytes."""

    num_bytes = 0

    def say(self, message: bytes) -> None:
        """See `conversation.Listener`."""
        self.num_bytes += len(message)

    def all_said(self) -> None:
        """See `conversation.Listener`."""

    def gone(self, error: Exception) -> None:
        """See `conversation.Listener`."""
        raise error


def _no_other(served: Served, role: str) -> Variant:
    raise NotImplementedError("there is one model here")


def _each(works: list[Callable[..., Any]], *arguments: Any) -> None:
    for work in works:
        work(*arguments)


def measure(*, streams: int = 500, seconds: float = 6.0, max_batch: int = 64) -> dict[str, float]:
    """Microseconds a stream-second: packets in, features, the model's step, decisions, messages out."""
    model, config = StepModel(pretrained_path()), load_params().streaming
    engine = Engine.local(model, config)
    variants = Variants(Variant(Served(uri="pretrained"), engine, "champion"), config, load=_no_other)
    lanes = Lanes(model.metadata)
    listener = _Listener()
    talks = {}
    for _ in range(streams):
        stream = Stream(lanes.open(StreamSettings(), keep_s=600.0), engine)
        talks[stream.session.row] = Conversation(new_id(), stream, variants, ack=True, listener=listener)
    size = round(PACKET_S * SAMPLE_RATE_HZ)
    rng = np.random.default_rng(0)
    envelope = np.repeat(rng.random(60) > 0.4, size)
    noise = (rng.standard_normal(len(envelope)) * 1600 * envelope).astype("<i2").tobytes()
    spent = dict.fromkeys(("packets", "features", "model", "decisions", "messages"), 0.0)

    def timed(part: str, work: Callable[[], Any]) -> Any:
        started_s = time.process_time()
        result = work()
        spent[part] += time.process_time() - started_s
        return result

    for index in range(round(seconds / PACKET_S)):
        start = index * size * 2 % len(noise)
        packet = noise[start : start + size * 2]
        timed("packets", partial(_each, [talk.receive_audio for talk in talks.values()], packet, index * PACKET_S))
        while (batch := timed("features", partial(lanes.gather, max_batch=max_batch))) is not None:
            answers = timed("model", partial(model.step, *batch))
            scored = timed("decisions", partial(lanes.scatter, *answers))
            timed("messages", partial(_each, [talks[lane.row].scored for lane in scored]))
    told = {part: round(1e6 * value / streams / seconds, 1) for part, value in spent.items()}
    return {**told, "all": round(sum(told.values()), 1)}


def main() -> None:
    """Print the parts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=500)
    print(json.dumps(measure(streams=parser.parse_args().streams)))


if __name__ == "__main__":
    main()
