"""Measures how one voice varies in simulated conversations, for `voiceflow.checks.voices`, and how often two names of one
voice are told apart.

python -m benchmarks.voices [--dataset data/prepared] [--write]
"""

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np

import voiceflow.checks
from benchmarks.bad_data import every_second, most_heard
from voiceflow.checks.voices import WITHIN_FILE, Voices, alone, voice_vectors, within_class
from voiceflow.config import load_params
from voiceflow.stages.dataset import read_recordings, read_samples, read_turns
from voiceflow.timebase import SAMPLE_RATE_HZ

ENOUGH_S = 10.0


def recall(dataset: Path) -> dict[str, float]:
    """Of people with `ENOUGH_S` of speech under each of two names, how many are found, and how many pairs that are none."""
    config = load_params().validate_
    vectors: dict[str, dict[str, list]] = defaultdict(dict)
    planted = {}
    for row in read_recordings(dataset):
        samples, turns = read_samples(dataset, row), read_turns(dataset, row)
        for name, found in voice_vectors(samples, turns).items():
            vectors[name][row.name] = found
        if row.split == "recorded":
            continue
        speaker = most_heard(turns)
        twice = every_second(turns, speaker)
        names = (speaker, f"{speaker}-again")
        said = alone(samples, twice)
        if all(len(said.get(name, ())) >= ENOUGH_S * SAMPLE_RATE_HZ for name in names):
            planted[row.name] = {name: voice_vectors(samples, twice)[name] for name in names}
    voices = Voices(vectors)
    false = voices.same_in_recording(min_likeness=config.min_voice_likeness)
    false += voices.same_anywhere(min_score=config.min_voice_score)
    hits = 0
    for recording, names in planted.items():
        changed = dict(vectors)
        for name, found in names.items():
            changed[name] = {recording: found}
        pairs = Voices(changed).same_in_recording(min_likeness=config.min_voice_likeness)
        hits += any({pair.first, pair.second} == set(names) for pair in pairs)
    return {"planted": len(planted), "found": hits, "names": len(vectors), "false_pairs": len(false)}


def main() -> None:
    """Measure, and write the covariance if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", type=Path, default=Path("data/prepared"))
    parser.add_argument("--write", action="store_true", help="replace the covariance in the package")
    arguments = parser.parse_args()
    if arguments.write:
        groups = []
        vectors: dict[str, list] = defaultdict(list)
        for row in read_recordings(arguments.dataset, "train"):
            found = voice_vectors(read_samples(arguments.dataset, row), read_turns(arguments.dataset, row))
            for name, pieces in found.items():
                vectors[name] += pieces
        groups = [np.stack(found) for found in vectors.values()]
        np.save(Path(voiceflow.checks.__file__).with_name(WITHIN_FILE), within_class(groups).astype(np.float32))
    print(recall(arguments.dataset))


if __name__ == "__main__":
    main()
