"""From the files of a corpus, as its publisher lays them out, to lhotse's cuts by part: lhotse's recipes, where there
are some."""

import contextlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from voiceflow.corpora.read import AUDIO_SUFFIXES, read_conversations, read_utterances
from voiceflow.errors import DataError

Parts = dict[str, Any]
"""A lhotse CutSet, or a list of cuts, by part."""


def _cuts(manifests: Mapping[str, Any]) -> Parts:
    """Cuts of lhotse's manifests; a recording is one cut with all its supervisions."""
    from lhotse import CutSet

    return {
        part: CutSet.from_manifests(found["recordings"], found.get("supervisions"))
        for part, found in manifests.items()
        if len(found["recordings"])
    }


def _ami(raw: Path, *, mic: str, partition: str = "full-corpus-asr") -> Parts:
    from lhotse.recipes.ami import prepare_ami

    return _cuts(prepare_ami(raw, raw / "annotations", mic=mic, partition=partition))


def _voxconverse(raw: Path) -> Parts:
    from lhotse import Recording, RecordingSet, SupervisionSegment, SupervisionSet

    from voiceflow.turns import read_rttm

    # The archives as they come; lhotse's recipe expects them rearranged.
    places = {"dev": raw / "dev" / "audio", "test": raw / "test" / "voxconverse_test_wav"}
    manifests = {}
    for part, folder in places.items():
        recordings, segments = [], []
        for path in sorted(folder.glob("*.wav")):
            reference = next(iter(sorted(raw.glob(f"annotations/*/{part}/{path.stem}.rttm"))), None)
            if reference is None:
                raise DataError(f"{path}: has no RTTM among the annotations of {part}")
            recordings.append(Recording.from_file(path, recording_id=path.stem))
            for number, turn in enumerate(read_rttm(reference).get(path.stem, [])):
                segments.append(
                    SupervisionSegment(
                        id=f"{path.stem}-{number}",
                        recording_id=path.stem,
                        start=turn.start_s,
                        duration=round(turn.duration_s, 6),
                        speaker=turn.speaker,
                    )
                )
        manifests[part] = {
            "recordings": RecordingSet.from_recordings(recordings),
            "supervisions": SupervisionSet.from_segments(segments),
        }
    return _cuts(manifests)


def _librispeech(raw: Path) -> Parts:
    from lhotse.recipes.librispeech import prepare_librispeech

    return _cuts(prepare_librispeech(raw / "LibriSpeech"))


def _ali_meeting(raw: Path, *, mic: str) -> Parts:
    from lhotse.recipes.ali_meeting import prepare_ali_meeting

    return _cuts(prepare_ali_meeting(raw, mic=mic))


def _dihard3(raw: Path, *, dev: str, test: str) -> Parts:
    from lhotse.recipes.dihard3 import prepare_dihard3

    return _cuts(prepare_dihard3(raw / dev, raw / test, uem_manifest=False))


def _callhome(raw: Path, *, audio: str, rttm: str) -> Parts:
    from lhotse.recipes.callhome_english import prepare_callhome_english

    return _cuts({"all": prepare_callhome_english(raw / audio, rttm_dir=raw / rttm, absolute_paths=True)})


def _voxceleb(raw: Path) -> Parts:
    from lhotse.recipes.voxceleb import prepare_voxceleb

    roots = {f"voxceleb{number}_root": raw / f"voxceleb{number}" for number in (1, 2)}
    return _cuts(prepare_voxceleb(**{name: root for name, root in roots.items() if root.is_dir()}))


def _librispeech_mix(raw: Path, *, librispeech: str) -> Parts:
    """Utterances of LibriSpeech laid over each other at the delays that the lists say.

    Source:
        Kanda et al., Serialized Output Training for End-to-End Overlapped Speech Recognition, 2020: LibriSpeechMix.
    """
    from lhotse import MonoCut, Recording, SupervisionSegment

    home = raw.parent / librispeech / "LibriSpeech"
    parts: Parts = {}
    for listing in sorted(raw.glob("*.jsonl")):
        cuts = []
        for line in listing.read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            mixed: Any = None
            for wav, delay_s in zip(entry["wavs"], entry["delays"], strict=True):
                path = (home / wav).with_suffix(".flac")
                recording = Recording.from_file(path, recording_id=path.stem)
                spoken = SupervisionSegment(
                    path.stem, path.stem, 0.0, recording.duration, speaker=path.stem.split("-")[0]
                )
                cut = MonoCut(path.stem, 0.0, recording.duration, 0, supervisions=[spoken], recording=recording)
                mixed = cut if mixed is None else mixed.mix(cut, offset_other_by=delay_s)
            mixed.id = entry["id"].replace("/", "-")
            cuts.append(mixed)
        parts[listing.stem] = cuts
    return parts


def _folder(raw: Path, *, only: Sequence[str] = ("*",), without: Sequence[str] = ()) -> Parts:
    """Files of sound without labels, such as MUSAN's and the rooms of RIRS.

    Args:
        raw: The corpus.
        only: Patterns of paths below it, each beginning with a slash, that are taken.
        without: Patterns of those that are not.
    """
    from lhotse import CutSet, Recording, RecordingSet

    files = {
        path: path.relative_to(raw).as_posix()
        for path in sorted(raw.rglob("*"))
        if path.suffix.lower() in AUDIO_SUFFIXES
    }
    files = {
        path: name
        for path, name in files.items()
        if any(fnmatch(f"/{name}", pattern) for pattern in only)
        and not any(fnmatch(f"/{name}", pattern) for pattern in without)
    }
    names = {path: "-".join(Path(name).with_suffix("").parts) for path, name in files.items()}
    recordings = RecordingSet.from_recordings(Recording.from_file(path, recording_id=names[path]) for path in files)
    return {"all": CutSet.from_manifests(recordings)} if files else {}


def _conversations(raw: Path, *, without: Sequence[str] = ()) -> Parts:
    """Recordings with RTTM files, or lhotse manifests: any folder of conversations that we read."""
    cuts = []
    for conversation in read_conversations(raw):
        if conversation.turns_error and conversation.name not in without:
            raise DataError(conversation.turns_error)
        if conversation.name not in without:
            spans = [(turn.start_s, turn.duration_s, turn.speaker) for turn in conversation.turns]
            cuts.append(_whole(conversation.place.path, conversation.name, spans))
    return {"all": cuts}


def _utterances(raw: Path, *, without: Sequence[str] = ()) -> Parts:
    """Utterances of single voices: any folder of them that we read; a file is a cut."""
    spans: dict[Path, list[tuple[float, float | None, str]]] = {}
    for speaker, utterances in read_utterances(raw).items():
        for spoken in utterances:
            length_s = None if spoken.end_s is None else spoken.end_s - spoken.start_s
            spans.setdefault(spoken.place.path, []).append((spoken.start_s, length_s, speaker))
    names = {path: path.relative_to(raw).as_posix() for path in spans}
    cuts = [
        _whole(path, "-".join(Path(names[path]).with_suffix("").parts), found)
        for path, found in spans.items()
        if names[path] not in without
    ]
    return {"all": cuts}


def _whole(path: Path, name: str, spans: Sequence[tuple[float, float | None, str]]) -> Any:
    """A file as a cut; spans are start, length (None: to the end) and speaker."""
    from lhotse import MonoCut, MultiCut, Recording, SupervisionSegment

    recording = Recording.from_file(path, recording_id=name)
    spoken = [
        SupervisionSegment(
            f"{name}-{number}", name, start_s, recording.duration if length_s is None else length_s, speaker=speaker
        )
        for number, (start_s, length_s, speaker) in enumerate(spans)
    ]
    channels = recording.channel_ids
    if len(channels) > 1:
        return MultiCut(name, 0.0, recording.duration, channels, supervisions=spoken, recording=recording)
    return MonoCut(name, 0.0, recording.duration, channels[0], supervisions=spoken, recording=recording)


RECIPES: dict[str, Callable[..., Parts]] = {
    "ami": _ami,
    "voxconverse": _voxconverse,
    "librispeech": _librispeech,
    "librispeechmix": _librispeech_mix,
    "ali_meeting": _ali_meeting,
    "dihard3": _dihard3,
    "callhome": _callhome,
    "voxceleb": _voxceleb,
    "sounds": _folder,
    "conversations": _conversations,
    "utterances": _utterances,
}


def names_of(which: str) -> list[str]:
    """A list that files are downloaded for, one a name.

    Raises:
        DataError: No such list.
    """
    if which == "ami_meetings":
        from lhotse.recipes.ami import MEETINGS

        return [meeting for meetings in MEETINGS.values() for meeting in meetings]
    raise DataError(f"no list {which!r} of names to download; expected ami_meetings")


def read_parts(recipe: str, raw: Path, options: Mapping[str, Any]) -> Parts:
    """Cuts of a corpus by part.

    Raises:
        DataError: The recipe does not know this layout, with its own words.
    """
    try:
        # lhotse's own bars, a line for each corpus part, would break ours.
        with contextlib.redirect_stderr(io.StringIO()):
            parts = RECIPES[recipe](raw, **options)
    except KeyError as err:
        raise DataError(f"no recipe {err}; expected one of {', '.join(RECIPES)}") from err
    except DataError:
        raise
    except Exception as err:  # recipes assert, and raise whatever they meet in files
        raise DataError(
            f"{raw}: not laid out as the {recipe} corpus is ({type(err).__name__}: {err}); see its page"
        ) from err
    if not parts:
        raise DataError(f"{raw}: the {recipe} recipe found no recordings there")
    return parts
