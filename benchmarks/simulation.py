"""How much faster than real time training conversations are made on one core, and whether memory stays.

python -m benchmarks.simulation [--corpus data/speech] [--conversations 100] [--json FILE]
"""

import argparse
import json
import statistics
import time
from itertools import islice
from pathlib import Path
from typing import Any

import psutil

from benchmarks.items import sized
from voiceflow.config import load_params
from voiceflow.corpora.read import read_utterances
from voiceflow.simulation.conversations import endless_plans
from voiceflow.simulation.simulator import Simulator
from voiceflow.simulation.speech import load_vad, speaker_segments
from voiceflow.simulation.stock import make_stock
from voiceflow.stages.prepare import split_speakers

VOICES, MAX_SPEECH_S = sized(60, tiny=8), 60.0
ROUNDS = sized(5, tiny=2)
WARMUP = 10


def measure(corpus: Path, number: int) -> dict[str, Any]:
    """Times real time on one core, medians of rounds, and memory after each round."""
    config = load_params().prepare.model_copy(update={"num_workers": 1})
    utterances = read_utterances(corpus)
    vad = load_vad()
    voices: dict[str, Any] = {}
    for speaker in split_speakers(utterances, config)["train"]:
        segments, _ = speaker_segments(utterances[speaker], vad, max_s=MAX_SPEECH_S)
        if sum(segment.core_end - segment.core_start for segment in segments) > 5 * 16_000:
            voices[speaker] = segments
        if len(voices) == VOICES:
            break
    started_s = time.process_time()
    stock = make_stock(config)
    stock_s = time.process_time() - started_s
    simulator = Simulator(config, stock)
    plans = endless_plans(config, "train", sorted(voices))
    for _ in simulator.conversations(islice(plans, WARMUP), voices):
        pass
    process = psutil.Process()
    before_mb = process.memory_info().rss / 1e6
    rates, memory_mb = [], []
    for _ in range(ROUNDS):
        started_s = time.process_time()
        for _ in simulator.conversations(islice(plans, number), voices):
            pass
        rates.append(number * config.conversation_s / (time.process_time() - started_s))
        memory_mb.append(round(process.memory_info().rss / 1e6 - before_mb, 1))
    return {
        "times_real_time_per_core": round(statistics.median(rates)),
        "least": round(min(rates)),
        "conversations": ROUNDS * number,
        "hours": round(ROUNDS * number * config.conversation_s / 3600, 1),
        "stock_cpu_s": round(stock_s, 1),
        "memory_growth_mb_by_round": memory_mb,
        "opus_share": config.variety.opus_share,
        "telephone_share": config.conditions.telephone,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path, default=None, help="by default prepare.corpus")
    parser.add_argument("--conversations", type=int, default=100, help="in each round")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found = measure(arguments.corpus or Path(load_params().prepare.corpus), arguments.conversations)
    for name, value in found.items():
        print(f"{name:28} {value}")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
