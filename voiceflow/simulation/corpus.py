"""Reading corpora: a table of utterances, a LibriSpeech-style tree, or a lhotse manifest."""

import csv
import hashlib
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from voiceflow.errors import DataError

AUDIO_SUFFIXES = (".flac", ".wav", ".ogg", ".opus", ".mp3")


@dataclass(frozen=True)
class Utterance:
    """One span of one file in which one speaker talks."""

    path: Path
    speaker: str
    start_s: float = 0.0
    end_s: float | None = None
    """None: until the end of the file."""
    source: str = ""


def read_corpus(folder: Path) -> dict[str, list[Utterance]]:
    """Utterances of each speaker, speakers sorted by id.

    The kind is found by what lies in the folder: ``utterances.csv``; lhotse's
    ``*supervisions*.jsonl*`` beside ``*recordings*.jsonl*``; otherwise a tree of audio files
    below ``<speaker>/<chapter>/``.

    Raises:
        DataError: No such folder, a malformed table, or no utterance in it.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such corpus; run `voiceflow data ensure`, or set prepare.corpus in params.yaml")
    if (folder / "utterances.csv").is_file():
        utterances = _read_table(folder / "utterances.csv")
    elif list(folder.glob("*supervisions*.jsonl*")):
        utterances = _read_lhotse(folder)
    else:
        utterances = _read_tree(folder)
    by_speaker: dict[str, list[Utterance]] = defaultdict(list)
    for utterance in utterances:
        by_speaker[utterance.speaker].append(utterance)
    if not by_speaker:
        raise DataError(
            f"{folder}: holds no utterances; expected utterances.csv, <speaker>/<chapter>/*.flac, or a lhotse manifest"
        )
    return {speaker: by_speaker[speaker] for speaker in sorted(by_speaker)}


def _read_table(path: Path) -> list[Utterance]:
    utterances = []
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        missing = {"path", "speaker", "start_s", "end_s"} - set(rows.fieldnames or ())
        if missing:
            raise DataError(f"{path}: expected columns path, speaker, start_s, end_s; missing {sorted(missing)}")
        for number, row in enumerate(rows, start=2):
            try:
                start_s, end_s = float(row["start_s"]), float(row["end_s"])
            except (TypeError, ValueError) as err:
                raise DataError(f"{path}, line {number}: start_s and end_s must be seconds, got {row}") from err
            if not 0.0 <= start_s < end_s:
                raise DataError(f"{path}, line {number}: expected 0 <= start_s < end_s, got {start_s} and {end_s}")
            utterances.append(
                Utterance(path.parent / row["path"], row["speaker"], start_s, end_s, row.get("source") or "")
            )
    return utterances


def _read_tree(folder: Path) -> list[Utterance]:
    return [
        Utterance(path, path.relative_to(folder).parts[0], source=folder.name)
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in AUDIO_SUFFIXES and len(path.relative_to(folder).parts) >= 2
    ]


def _read_lhotse(folder: Path) -> list[Utterance]:
    import lhotse

    recordings, supervisions = (sorted(folder.glob(f"*{kind}*.jsonl*"))[0] for kind in ("recordings", "supervisions"))
    by_id = {recording.id: recording for recording in lhotse.load_manifest(recordings)}
    utterances = []
    for supervision in lhotse.load_manifest(supervisions):
        if supervision.speaker is None:
            continue
        source = Path(by_id[supervision.recording_id].sources[0].source)
        path = source if source.is_absolute() else folder / source
        utterances.append(Utterance(path, supervision.speaker, supervision.start, supervision.end, folder.name))
    return utterances


def corpus_digest(folder: Path) -> str:
    """SHA-256 over the names and bytes of every file of a corpus: its revision where DVC is absent."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0")
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
