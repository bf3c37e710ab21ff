"""Reading corpora: utterances of single voices, and conversations with turns, from folders of any known shape.

utterances.csv                              path, speaker, start_s, end_s
<speaker>/<chapter>/*.flac                  as LibriSpeech has it
*supervisions*.jsonl* and *recordings*      lhotse's manifests
<split>/cuts.*.jsonl.gz, recording.*.tar    lhotse Shar, as `voiceflow data get` stores it; corpus.json says what it is
NAME.wav and NAME.rttm                      conversations

A folder of such folders is all of them together.
"""

import csv
import gzip
import io
import json
import tarfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from voiceflow.audio import FloatArray, load_audio
from voiceflow.errors import AudioFormatError, DataError
from voiceflow.turns import Turn, read_rttm

AUDIO_SUFFIXES = (".flac", ".wav", ".ogg", ".opus", ".mp3")
ABOUT = "corpus.json"
"""In a stored corpus: its name, kind, splits and what it was made of."""
UNSPLIT = "recorded"
"""Split of conversations that are in none: tested on, never trained on."""


@dataclass(frozen=True)
class AudioPlace:
    """Where the audio of a recording is: a file, or a member of a shard."""

    path: Path
    member: str = ""

    def __str__(self) -> str:
        return f"{self.path}:{self.member}" if self.member else str(self.path)

    def source(self) -> Path | bytes:
        """What `load_audio` and `read_file` take.

        Raises:
            AudioFormatError: The shard has no such member.
        """
        if not self.member:
            return self.path
        try:
            offset, size = _members(self.path)[self.member]
            with self.path.open("rb") as file:
                file.seek(offset)
                return file.read(size)
        except (OSError, KeyError, tarfile.TarError) as err:
            raise AudioFormatError(str(self), f"cannot be read from its shard ({type(err).__name__}: {err})") from err

    def load(self) -> FloatArray:
        """Mono float32 at 16 kHz, shape (N,)."""
        return load_audio(self.source(), name=str(self))


@lru_cache(maxsize=64)
def _members(path: Path) -> dict[str, tuple[int, int]]:
    """Where each member of a shard begins, and its size: shards are read in place."""
    with tarfile.open(path) as tar:
        return {entry.name: (entry.offset_data, entry.size) for entry in tar if entry.isfile()}


@dataclass(frozen=True)
class Utterance:
    """One span of one file in which one speaker talks."""

    place: AudioPlace
    speaker: str
    start_s: float = 0.0
    end_s: float | None = None
    """None: until the end of the file."""
    source: str = ""
    split: str = ""
    """train, dev or test, where the corpus says so."""


@dataclass(frozen=True)
class Conversation:
    """One recording of several people, and who speaks when."""

    name: str
    place: AudioPlace
    turns: tuple[Turn, ...] = ()
    turns_error: str = ""
    """Why the turns cannot be read, where they cannot."""
    split: str = UNSPLIT
    corpus: str = UNSPLIT
    declared_rate_hz: int | None = None
    stored_s: float | None = None
    """Length, where a manifest says it."""

    def duration_s(self) -> float:
        """Length of its audio, from the manifest or the file's header.

        Raises:
            AudioFormatError: The file cannot be read.
        """
        if self.stored_s is not None:
            return self.stored_s
        import soundfile

        source = self.place.source()
        try:
            return float(soundfile.info(io.BytesIO(source) if isinstance(source, bytes) else source).duration)
        except (OSError, RuntimeError) as err:
            raise AudioFormatError(str(self.place), f"its length cannot be read ({err})") from err


def read_utterances(folder: Path) -> dict[str, list[Utterance]]:
    """Utterances of each speaker, speakers sorted by id.

    Raises:
        DataError: No such folder, a malformed table, or no utterance in it.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such corpus; run `voiceflow data ensure`, or set prepare.corpus in params.yaml")
    by_speaker: dict[str, list[Utterance]] = defaultdict(list)
    for part in corpora_in(folder):
        for utterance in _utterances(part):
            by_speaker[utterance.speaker].append(utterance)
    if not by_speaker:
        raise DataError(
            f"{folder}: holds no utterances; expected utterances.csv, <speaker>/<chapter>/*.flac, a lhotse manifest, "
            "or a corpus of `voiceflow data get`"
        )
    return {speaker: by_speaker[speaker] for speaker in sorted(by_speaker)}


def read_conversations(folder: Path) -> list[Conversation]:
    """Conversations of a folder, sorted by name.

    An RTTM file that is missing or malformed is told in its conversation.

    Raises:
        DataError: No such folder, or no conversation in it.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder of conversations; run `voiceflow data ensure`")
    found = [conversation for part in corpora_in(folder) for conversation in _conversations(part)]
    if not found:
        raise DataError(
            f"{folder}: expected recordings with RTTM files of the same stem, lhotse manifests, or a corpus of "
            "`voiceflow data get`; found no audio"
        )
    return sorted(found, key=lambda conversation: conversation.name)


def read_sounds(folder: Path) -> list[AudioPlace]:
    """Recordings without speakers of a folder, sorted: noises, or impulse responses of rooms.

    Raises:
        DataError: No such folder, or no audio in it.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder of sounds; get one with `voiceflow data get musan` (or rirs)")
    places: list[AudioPlace] = []
    stored = [path.parent for path in folder.rglob(ABOUT)]
    for part in stored:
        places += [place for _, place, _ in _cuts(part)]
    for path in folder.rglob("*"):
        if path.suffix.lower() in AUDIO_SUFFIXES and not any(part in path.parents for part in stored):
            places.append(AudioPlace(path))
    if not places:
        raise DataError(f"{folder}: expected audio files, or a corpus of `voiceflow data get`; found none")
    return sorted(places, key=str)


def corpora_in(folder: Path) -> list[Path]:
    """The folder itself, or the corpora it holds, where it is a folder of them."""
    if _is_corpus(folder):
        return [folder]
    parts = [part for part in sorted(folder.iterdir()) if part.is_dir() and _is_corpus(part)]
    return parts or [folder]


def about(folder: Path) -> dict[str, Any]:
    """corpus.json of a stored corpus; empty where there is none.

    Raises:
        DataError: It is not JSON.
    """
    path = folder / ABOUT
    if not path.is_file():
        return {}
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as err:
        raise DataError(f"{path}: not JSON ({err}); get the corpus again with `voiceflow data get`") from err
    return found


def _is_corpus(folder: Path) -> bool:
    return (
        (folder / ABOUT).is_file()
        or (folder / "utterances.csv").is_file()
        or any(folder.glob("*supervisions*.jsonl*"))
        or any(folder.glob("*.rttm"))
    )


def shards_of(folder: Path) -> list[tuple[str, Path, Path]]:
    """Split, cuts and audio of each shard of a stored corpus."""
    shards = []
    for cuts in sorted(folder.glob("*/cuts.*.jsonl.gz")):
        number = cuts.name.split(".")[1]
        shards.append((cuts.parent.name, cuts, cuts.with_name(f"recording.{number}.tar")))
    return shards


def _cuts(folder: Path) -> Iterator[tuple[str, AudioPlace, dict[str, Any]]]:
    for split, cuts, audio in shards_of(folder):
        try:
            with gzip.open(cuts, "rt", encoding="utf-8") as file:
                for line in file:
                    cut = json.loads(line)
                    yield split, AudioPlace(audio, f"{cut['id']}.flac"), cut
        except (OSError, EOFError, ValueError, KeyError) as err:
            raise DataError(f"{cuts}: not a shard of cuts ({err}); get the corpus again") from err


def _utterances(folder: Path) -> Iterator[Utterance]:
    if (folder / "utterances.csv").is_file():
        yield from _read_table(folder / "utterances.csv")
    elif (folder / ABOUT).is_file():
        for split, place, cut in _cuts(folder):
            for spoken in cut["supervisions"]:
                end_s = spoken["start"] + spoken["duration"]
                yield Utterance(
                    place, spoken["speaker"], spoken["start"], end_s, folder.name, "" if split == UNSPLIT else split
                )
    elif any(folder.glob("*supervisions*.jsonl*")):
        for recording, spoken in _supervisions(folder):
            if spoken.speaker is not None:
                place = AudioPlace(_source(folder, recording))
                yield Utterance(place, spoken.speaker, spoken.start, spoken.end, folder.name)
    else:
        for path in sorted(folder.rglob("*")):
            parts = path.relative_to(folder).parts
            if path.suffix.lower() in AUDIO_SUFFIXES and len(parts) >= 2:
                yield Utterance(AudioPlace(path), parts[0], source=folder.name)


def _conversations(folder: Path) -> Iterator[Conversation]:
    if (folder / ABOUT).is_file():
        corpus = str(about(folder).get("name", folder.name))
        for split, place, cut in _cuts(folder):
            turns = tuple(
                sorted(
                    Turn(spoken["start"], round(spoken["start"] + spoken["duration"], 6), spoken["speaker"])
                    for spoken in cut["supervisions"]
                )
            )
            yield Conversation(cut["id"], place, turns, split=split, corpus=corpus, stored_s=cut["duration"])
    elif any(folder.glob("*supervisions*.jsonl*")):
        spoken_by: dict[str, list[Turn]] = defaultdict(list)
        recordings: dict[str, Any] = {}
        for recording, spoken in _supervisions(folder):
            recordings[recording.id] = recording
            if spoken.speaker is not None:
                spoken_by[recording.id].append(Turn(spoken.start, spoken.end, spoken.speaker))
        for name, recording in recordings.items():
            yield Conversation(
                name,
                AudioPlace(_source(folder, recording)),
                tuple(sorted(spoken_by[name])),
                declared_rate_hz=recording.sampling_rate,
                stored_s=recording.duration,
            )
    else:
        for path in sorted(folder.rglob("*")):
            if path.suffix.lower() in AUDIO_SUFFIXES:
                yield _with_rttm(path)


def _with_rttm(path: Path) -> Conversation:
    reference = path.with_suffix(".rttm")
    if not reference.is_file():
        problem = f"{path}: expected its reference turns in {reference}, which is missing"
        return Conversation(path.stem, AudioPlace(path), turns_error=problem)
    try:
        by_name = read_rttm(reference)
    except DataError as err:
        return Conversation(path.stem, AudioPlace(path), turns_error=str(err))
    turns = by_name.get(path.stem, []) if len(by_name) != 1 else next(iter(by_name.values()))
    return Conversation(path.stem, AudioPlace(path), tuple(turns))


def _read_table(path: Path) -> Iterator[Utterance]:
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
            place = AudioPlace(path.parent / row["path"])
            yield Utterance(place, row["speaker"], start_s, end_s, row.get("source") or "")


def _supervisions(folder: Path) -> Iterator[tuple[Any, Any]]:
    """Recording and supervision of each supervision of lhotse's manifests."""
    import lhotse

    recordings: dict[str, Any] = {}
    for path in sorted(folder.glob("*recordings*.jsonl*")):
        recordings |= {recording.id: recording for recording in lhotse.load_manifest(path)}
    for path in sorted(folder.glob("*supervisions*.jsonl*")):
        for supervision in lhotse.load_manifest(path):
            if supervision.recording_id not in recordings:
                raise DataError(f"{path}: {supervision.id} is of {supervision.recording_id}, which no manifest lists")
            yield recordings[supervision.recording_id], supervision


def _source(folder: Path, recording: Any) -> Path:
    source = Path(recording.sources[0].source)
    return source if source.is_absolute() else folder / source
