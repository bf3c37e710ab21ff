"""`python -m benchmarks.kinds`: no rule of `validate` may call critical what `prepare` makes, of voices of every kind.

espeak-ng's voices as `voiceflow data synth` makes them, children, whispering, and voices of formants alone (klatt), which are dull;
in conversations of every condition, room, codec and style, from so many seeds.
"""

import argparse
import csv
import json
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from voiceflow.audio import write_flac
from voiceflow.config import Params, load_params
from voiceflow.simulation.voices import LANGUAGES, SENTENCES, find_espeak, speak, synthesise_corpus
from voiceflow.stages.dataset import read_recordings
from voiceflow.stages.prepare import prepare
from voiceflow.stages.validate import validate

PAUSE_SAMPLES = 4000
KLATT = ("klatt", "klatt2", "klatt3", "klatt4", "klatt5", "klatt6")


def special_voices() -> Iterator[tuple[str, str, list[str]]]:
    """Name, espeak-ng's voice and options of children, whispering and dull voices."""
    for number in range(8):
        language = LANGUAGES[number % len(LANGUAGES)]
        pitch, speed = ["-p", str(90 + number)], ["-s", str(120 + 5 * number)]
        yield f"child-{number}", f"{language}+f{1 + number % 5}", pitch + speed
        whisper = "whisperf" if number % 2 else "whisper"
        yield f"whisper-{number}", f"{language}+{whisper}", ["-p", str(30 + 5 * number), *speed]
        yield f"klatt-{number}", f"{language}+{KLATT[number % len(KLATT)]}", ["-p", str(10 + 10 * number), "-s", "140"]


def all_kinds(folder: Path, *, num_usual: int = 72, sentences_each: int = 12) -> None:
    """Two corpora in a folder: the usual voices, and special ones.

    Raises:
        PlatformError: espeak-ng is not installed.
    """
    synthesise_corpus(folder / "usual", num_speakers=num_usual, sentences_each=sentences_each, seed=20)
    program, special = find_espeak(), folder / "special"
    (special / "audio").mkdir(parents=True)

    def say(name: str, voice: str, options: list[str]) -> list[list[Any]]:
        pieces, rows, cursor = [], [], 0
        for sentence in SENTENCES[:sentences_each]:
            samples_N = speak(program, voice, sentence, *options)
            end = cursor + len(samples_N)
            rows.append([f"audio/{name}.flac", name, cursor / 16_000, end / 16_000, f"espeak-ng {name.split('-')[0]}"])
            pieces += [samples_N, np.zeros(PAUSE_SAMPLES, np.float32)]
            cursor = end + PAUSE_SAMPLES
        write_flac(special / "audio" / f"{name}.flac", np.concatenate(pieces) * np.float32(0.8))
        return rows

    with ThreadPoolExecutor() as executor:
        rows = [row for spoken in executor.map(lambda voice: say(*voice), special_voices()) for row in spoken]
    with (special / "utterances.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "speaker", "start_s", "end_s", "source"])
        writer.writerows(rows)


def measure(params: Params, seeds: range, *, corpus: Path, folder: Path) -> dict[str, Any]:
    """What the rules say of one dataset a seed: critical rows by rule, warnings, and what there was to look at."""
    critical: dict[str, list[str]] = defaultdict(list)
    warnings: Counter[str] = Counter()
    seen: dict[str, Counter[str]] = {"condition": Counter(), "style": Counter(), "voice": Counter()}
    num_recordings = 0
    for seed in seeds:
        dataset = folder / f"seed-{seed}"
        config = params.prepare.model_copy(update={"seed": seed, "recorded": None})
        prepare(config, dataset, corpus=corpus, revision="kinds")
        verdict = validate(params.validate_, dataset, folder / f"report-{seed}")
        for fault in verdict["faults"]:
            critical[fault["check"]] += [f"seed {seed}: {detail}" for detail in fault["details"]]
        warnings.update({warning["check"]: len(warning["rows"]) for warning in verdict["warnings"]})
        for row in read_recordings(dataset):
            num_recordings += 1
            seen["condition"][row.condition] += 1
            seen["style"][row.style or "held out"] += 1
            seen["voice"].update({name.split("-")[0] for name in row.speakers})
    return {
        "seeds": len(seeds),
        "recordings": num_recordings,
        "critical": dict(critical),
        "warnings": dict(warnings),
        **{name: dict(sorted(counts.items())) for name, counts in seen.items()},
    }


def main() -> None:
    """Measure and print; exits 1 where anything is critical."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--conversations", type=int, default=240, help="of training, from each seed")
    arguments = parser.parse_args()
    params = load_params(Path("params.yaml"))
    counts = params.prepare.conversations.model_copy(update={"train": arguments.conversations})
    params = params.model_copy(update={"prepare": params.prepare.model_copy(update={"conversations": counts})})
    with tempfile.TemporaryDirectory() as folder:
        all_kinds(Path(folder) / "corpus")
        found = measure(params, range(1, arguments.seeds + 1), corpus=Path(folder) / "corpus", folder=Path(folder))
    print(json.dumps(found, indent=2))
    raise SystemExit(bool(found["critical"]))


if __name__ == "__main__":
    main()
