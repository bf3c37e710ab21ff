"""The prepared dataset on disk: what `prepare` writes and every later stage reads.

recordings.jsonl        one Recording a line, sorted by name
prepare.json            seed, corpus revision, counts
audio/<split>/*.flac    mono, 16 kHz, 16 bit
rttm/<split>/*.rttm     exact turns
"""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from voiceflow.audio import FloatArray, load_audio
from voiceflow.checks.measure import VOICES, Item
from voiceflow.config import Section
from voiceflow.corpora.read import UNSPLIT, AudioPlace, about, corpora_in, read_conversations, read_utterances
from voiceflow.errors import DataError, VoiceflowError
from voiceflow.simulation.acoustics import CONDITIONS, HEADSET
from voiceflow.turns import Turn, read_rttm

SPLITS = ("train", "dev", "test", "recorded")
QUARANTINE = "quarantine.json"
"""In the report of `validate`: recordings that are kept out, with the checks that say so."""


class Recording(Section):
    """One recording with reference turns."""

    name: str
    split: str
    """train, dev or test (simulated, or of a corpus with splits), or recorded (real, never trained on)."""
    audio: str
    """Path of the audio, relative to the dataset."""
    rttm: str
    condition: str
    """close, room, far, telephone, headset (train only), or recorded."""
    speakers: list[str]
    duration_s: float
    sample_rate_hz: int
    digest: str
    """SHA-256 of the audio file."""
    style: str = ""
    """How people take turns in it, of prepare.variety.styles; "" where it was not simulated for training."""


def write_recordings(folder: Path, recordings: Iterable[Recording]) -> None:
    """Write recordings.jsonl, sorted by split and name."""
    ordered = sorted(recordings, key=lambda recording: (SPLITS.index(recording.split), recording.name))
    lines = "".join(recording.model_dump_json() + "\n" for recording in ordered)
    (folder / "recordings.jsonl").write_text(lines, encoding="utf-8")


def read_recordings(folder: Path, split: str | None = None, *, all_of_them: bool = False) -> list[Recording]:
    """The recordings of a dataset, or of one split, less those in quarantine.

    Args:
        folder: The dataset.
        split: One of `SPLITS`, or None for all.
        all_of_them: Those in quarantine as well.

    Raises:
        DataError: No dataset there, or a malformed line.
    """
    path = folder / "recordings.jsonl"
    if not path.is_file():
        raise DataError(f"{path} is missing; run `voiceflow stage prepare` or `dvc repro prepare` first")
    kept_out = frozenset() if all_of_them else read_quarantine(quarantine_path(folder))
    recordings = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            recordings.append(Recording.model_validate_json(line))
        except ValidationError as err:
            raise DataError(f"{path}, line {number}: {err}") from err
    return [row for row in recordings if (split is None or row.split == split) and row.name not in kept_out]


def is_simulated(recording: Recording) -> bool:
    """Whether a recording was simulated; real ones are of the split ``recorded``, or called by their corpus."""
    return recording.split != "recorded" and recording.condition in (*CONDITIONS, HEADSET)


def quarantine_path(folder: Path) -> Path:
    """Beside a dataset: which of its recordings are kept out."""
    return folder.with_name(f"{folder.name}.{QUARANTINE}")


def adopt_quarantine(folder: Path, report: Path) -> None:
    """Keep out of a dataset what `validate` has refused, for all that read it from now on."""
    quarantine_path(folder).write_text((report / QUARANTINE).read_text(encoding="utf-8"), encoding="utf-8")


def read_quarantine(path: Path) -> frozenset[str]:
    """Names of recordings that are kept out; none where there is no such file.

    Raises:
        DataError: It is not JSON.
    """
    try:
        return frozenset(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return frozenset()
    except ValueError as err:
        raise DataError(f"{path}: not JSON ({err}); run `voiceflow stage validate` again") from err


def dataset_items(folder: Path) -> list[Item]:
    """All recordings of a dataset as `validate` looks at them, turns that cannot be read as their error."""
    items = []
    for recording in read_recordings(folder, all_of_them=True):
        turns: list[Turn] = []
        problem = ""
        try:
            turns = read_turns(folder, recording)
        except VoiceflowError as err:
            problem = str(err)
        items.append(
            Item(
                name=recording.name,
                place=AudioPlace(folder / recording.audio),
                split=recording.split,
                condition=recording.condition,
                turns=tuple(turns),
                turns_error=problem,
                is_made=is_simulated(recording),
                declared_rate_hz=recording.sample_rate_hz,
                declared_speakers=tuple(recording.speakers),
                declared_digest=recording.digest,
            )
        )
    return items


def items_in(folder: Path) -> list[Item]:
    """All recordings of any folder that can be read: a dataset, conversations, or utterances of single voices.

    Raises:
        DataError: None of them.
    """
    if (folder / "recordings.jsonl").is_file():
        return dataset_items(folder)
    if kind_of(folder) == "voices":
        return _utterance_items(folder)
    return [
        Item(
            name=conversation.name,
            place=conversation.place,
            split=conversation.split,
            condition=conversation.corpus,
            turns=conversation.turns,
            turns_error=conversation.turns_error,
            declared_rate_hz=conversation.declared_rate_hz,
        )
        for conversation in read_conversations(folder)
    ]


def kind_of(folder: Path) -> Literal["voices", "conversations"]:
    """Whether a folder holds utterances of single voices, or conversations: the latter have RTTM files, or say so.

    Raises:
        DataError: No such folder.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; expected recordings with RTTM files, utterances, or a dataset")
    told = {about(part).get("kind") for part in corpora_in(folder)} - {None}
    if told:
        return "voices" if told == {"voices"} else "conversations"
    is_table = any((part / "utterances.csv").is_file() for part in corpora_in(folder))
    return "conversations" if not is_table and any(folder.rglob("*.rttm")) else "voices"


def _utterance_items(folder: Path) -> list[Item]:
    """One item a file: its utterances are its turns."""
    turns: dict[AudioPlace, list[Turn]] = defaultdict(list)
    splits: dict[AudioPlace, str] = {}
    for speaker, utterances in read_utterances(folder).items():
        for utterance in utterances:
            splits[utterance.place] = utterance.split
            if utterance.end_s is not None:
                turns[utterance.place].append(Turn(utterance.start_s, utterance.end_s, speaker))
            else:
                turns[utterance.place].append(Turn(0.0, math.inf, speaker))
    return [
        Item(
            name=place.member or place.path.relative_to(folder).as_posix(),
            place=place,
            split=split or UNSPLIT,
            condition=VOICES,
            turns=tuple(sorted(turns[place])),
        )
        for place, split in splits.items()
    ]


def read_turns(folder: Path, recording: Recording) -> list[Turn]:
    """Reference turns of a recording; empty if its RTTM holds none."""
    return read_rttm(folder / recording.rttm).get(recording.name, [])


def read_samples(folder: Path, recording: Recording) -> FloatArray:
    """Audio of a recording, mono float32 at 16 kHz, shape (N,)."""
    return load_audio(folder / recording.audio)


def dataset_summary(config: dict[str, Any], revision: str, recordings: Sequence[Recording]) -> dict[str, Any]:
    """The content of prepare.json: what a dataset was made by and of, and how much is in each split."""
    return {
        "revision": revision,
        "seed": config["seed"],
        "config": config,
        "splits": {
            split: {
                "recordings": sum(recording.split == split for recording in recordings),
                "hours": round(sum(r.duration_s for r in recordings if r.split == split) / 3600, 3),
                "speakers": len({name for r in recordings if r.split == split for name in r.speakers}),
            }
            for split in SPLITS
        },
    }


def check_names(names: Iterable[str], where: str) -> None:
    """Every recording of a dataset has a name of its own.

    Raises:
        DataError: Two have one name.
    """
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(f"{where}: two conversations are called {min(twice)}; rename one of them")


def read_summary(folder: Path) -> dict[str, Any]:
    """prepare.json: seed, corpus revision and counts."""
    path = folder / "prepare.json"
    if not path.is_file():
        raise DataError(f"{path} is missing; run `voiceflow stage prepare` first")
    summary: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return summary
