"""Twelve faults as they happen in practice, planted into a prepared dataset, each in recordings of its own."""

import shutil
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import soundfile
import soxr

from voiceflow.audio import FloatArray, file_digest
from voiceflow.simulation.acoustics import CONDITIONS
from voiceflow.stages.dataset import Recording, read_recordings, read_samples, read_turns, write_recordings
from voiceflow.timebase import SAMPLE_RATE_HZ
from voiceflow.turns import Turn, to_rttm


class Planter:
    """A copy of a dataset, and what was done to it.

    Args:
        clean: A dataset without faults.
        folder: Where the copy goes; it must not exist.
        split: Whose recordings are spoilt.
    """

    def __init__(self, clean: Path, folder: Path, *, split: str = "test") -> None:
        shutil.copytree(clean, folder)
        self.folder = folder
        self.rows = {row.name: row for row in read_recordings(folder)}
        self._free = [row for row in self.rows.values() if row.split == split]
        self._free.sort(key=lambda row: (-CONDITIONS.index(row.condition), -len(row.speakers)))
        self.planted: dict[str, list[str]] = {}
        """Rows, or parts of their names, by the check that must name them."""

    def take(self) -> Recording:
        """A recording that has no fault yet: as near, and with as few speakers, as there are."""
        return self._free.pop()

    def take_talkative(self, num_speakers: int | None = None) -> Recording:
        """The one of them, with so many speakers, in which one person says most."""

        def said_s(row: Recording) -> float:
            turns = self.turns(row)
            speaker = most_heard(turns)
            return sum(turn.duration_s for turn in turns if turn.speaker == speaker)

        row = max((row for row in self._free if num_speakers in (None, len(row.speakers))), key=said_s)
        self._free.remove(row)
        return row

    def write(self, row: Recording, samples: FloatArray, rate_hz: int = SAMPLE_RATE_HZ) -> None:
        """Other audio for a recording, as if it had been prepared so; shape (N,) or (N, channels)."""
        soundfile.write(self.folder / row.audio, samples, rate_hz, format="FLAC", subtype="PCM_16")
        self.rows[row.name] = row.model_copy(update={"digest": file_digest(self.folder / row.audio)})

    def write_turns(self, row: Recording, turns: list[Turn]) -> None:
        """Other turns for a recording."""
        (self.folder / row.rttm).write_text(to_rttm(turns, row.name), encoding="utf-8")

    def samples(self, row: Recording) -> FloatArray:
        """Audio of a recording."""
        return read_samples(self.folder, row)

    def turns(self, row: Recording) -> list[Turn]:
        """Turns of a recording."""
        return read_turns(self.folder, row)

    def done(self) -> None:
        """Write the manifest."""
        write_recordings(self.folder, self.rows.values())


def _wrong_channel(planter: Planter) -> None:
    row = planter.take_talkative(num_speakers=2)
    # A call of two channels: the turns are of one side, the audio is the other's.
    side = most_heard(planter.turns(row))
    samples = planter.samples(row).copy()
    own = [turn for turn in planter.turns(row) if turn.speaker == side]
    for turn in own:
        samples[int(turn.start_s * 16_000) : int(turn.end_s * 16_000)] *= np.float32(0.01)
    planter.write(row, samples)
    planter.write_turns(row, own)
    planter.rows[row.name] = planter.rows[row.name].model_copy(update={"speakers": [side]})
    planter.planted["wrong_channel"] = [row.name]


def _narrow_band(planter: Planter) -> None:
    row = planter.take()
    low = soxr.resample(planter.samples(row), 16_000, 8_000)
    planter.write(row, soxr.resample(low, 8_000, 16_000))
    planter.planted["narrow_band"] = [row.name]


def _dc_offset(planter: Planter) -> None:
    row = planter.take()
    planter.write(row, np.clip(planter.samples(row) + np.float32(0.05), -1.0, 1.0))
    planter.planted["dc_offset"] = [row.name]


def _clipping_runs(planter: Planter) -> None:
    row = planter.take()
    samples = planter.samples(row)
    # Clipped by a bad preamplifier, then made quieter: no sample is near full scale.
    most = float(np.quantile(np.abs(samples), 0.995))
    planter.write(row, np.clip(samples, -most, most) * np.float32(0.3 / most))
    planter.planted["clipping_runs"] = [row.name]


def _digital_silence(planter: Planter) -> None:
    row = planter.take()
    samples = planter.samples(row).copy()
    turn = max(planter.turns(row), key=lambda turn: turn.duration_s)
    middle = (turn.start_s + turn.end_s) / 2
    samples[int((middle - 0.25) * 16_000) : int((middle + 0.25) * 16_000)] = 0.0
    planter.write(row, samples)
    planter.planted["digital_silence"] = [row.name]


def _codec_artefacts(planter: Planter) -> None:
    row = planter.take()
    file = planter.folder / "coded.mp3"
    samples = planter.samples(row)
    soundfile.write(file, samples, 16_000, format="MP3", subtype="MPEG_LAYER_III", compression_level=0.8)
    coded, _ = soundfile.read(file, dtype="float32")
    file.unlink()
    planter.write(row, coded[: len(samples)])
    planter.planted["codec_artefacts"] = [row.name]


def _label_drift(planter: Planter) -> None:
    row = planter.take()
    # Clocks that differ: the last turns are 0.6 s late.
    rate = 1.0 + 0.6 / row.duration_s
    moved = [replace(turn, start_s=turn.start_s * rate, end_s=turn.end_s * rate) for turn in planter.turns(row)]
    moved = [turn for turn in moved if turn.start_s < row.duration_s]
    planter.write_turns(row, [replace(turn, end_s=min(turn.end_s, row.duration_s)) for turn in moved])
    planter.planted["label_drift"] = [row.name]


def _two_names(planter: Planter) -> None:
    row = planter.take_talkative()
    speaker = most_heard(planter.turns(row))
    planter.write_turns(row, every_second(planter.turns(row), speaker))
    planter.rows[row.name] = row.model_copy(update={"speakers": [*row.speakers, f"{speaker}-again"]})
    planter.planted["voice_under_two_names"] = [speaker, f"{speaker}-again"]


def most_heard(turns: list[Turn]) -> str:
    """Who speaks longest."""
    heard_s: dict[str, float] = {}
    for turn in turns:
        heard_s[turn.speaker] = heard_s.get(turn.speaker, 0.0) + turn.duration_s
    return max(heard_s, key=lambda name: heard_s[name])


def every_second(turns: list[Turn], speaker: str) -> list[Turn]:
    """The turns, every second one of a speaker under another name."""
    number = 0
    renamed = []
    for turn in turns:
        number += turn.speaker == speaker
        is_other = turn.speaker == speaker and number % 2 == 0
        renamed.append(replace(turn, speaker=f"{speaker}-again") if is_other else turn)
    return renamed


def _milliseconds(planter: Planter) -> None:
    row = planter.take()
    scaled = [replace(turn, start_s=turn.start_s * 1e3, end_s=turn.end_s * 1e3) for turn in planter.turns(row)]
    planter.write_turns(row, scaled)
    planter.planted["annotation_units"] = [row.name]


def _own_overlap(planter: Planter) -> None:
    row = planter.take()
    turns = planter.turns(row)
    longest = max(turns, key=lambda turn: turn.duration_s)
    again = replace(longest, start_s=longest.start_s + longest.duration_s / 2, end_s=longest.end_s)
    planter.write_turns(row, [*turns, again])
    planter.planted["speaker_overlaps_itself"] = [row.name]


def _leaked_speaker(planter: Planter) -> None:
    row = planter.take()
    train = next(name for name in planter.rows.values() if name.split == "train")
    leaked, own = train.speakers[0], row.speakers[0]
    planter.write_turns(
        row, [replace(turn, speaker=leaked) if turn.speaker == own else turn for turn in planter.turns(row)]
    )
    renamed = [leaked if name == own else name for name in row.speakers]
    planter.rows[row.name] = row.model_copy(update={"speakers": renamed})
    planter.planted["speaker_in_two_splits"] = [leaked]


def _near_duplicate(planter: Planter) -> None:
    row, original = planter.take(), planter.take()
    samples = planter.samples(original)
    cut = SAMPLE_RATE_HZ  # begins a second later, is quieter, went through a codec
    file = planter.folder / "copy.ogg"
    soundfile.write(file, samples[cut:] * np.float32(0.6), 16_000, format="OGG", subtype="OPUS", compression_level=0.95)
    coded, _ = soundfile.read(file, dtype="float32")
    file.unlink()
    planter.write(row, coded)
    moved = [
        replace(turn, start_s=max(0.0, turn.start_s - 1.0), end_s=turn.end_s - 1.0) for turn in planter.turns(original)
    ]
    planter.write_turns(row, [turn for turn in moved if turn.duration_s > 0.1])
    kept = {turn.speaker for turn in moved if turn.duration_s > 0.1}
    planter.rows[row.name] = planter.rows[row.name].model_copy(update={"speakers": sorted(kept)})
    planter.planted["near_duplicate"] = [row.name, original.name]


FAULTS: dict[str, Callable[[Planter], None]] = {
    "wrong_channel": _wrong_channel,
    "narrow_band": _narrow_band,
    "dc_offset": _dc_offset,
    "clipping_runs": _clipping_runs,
    "digital_silence": _digital_silence,
    "codec_artefacts": _codec_artefacts,
    "label_drift": _label_drift,
    "voice_under_two_names": _two_names,
    "annotation_units": _milliseconds,
    "speaker_overlaps_itself": _own_overlap,
    "speaker_in_two_splits": _leaked_speaker,
    "near_duplicate": _near_duplicate,
}
"""By the name of the check that must find it."""


def plant_all(clean: Path, folder: Path, faults: Iterable[str] = tuple(FAULTS)) -> dict[str, list[str]]:
    """A copy of a dataset with the faults named; rows by the check that must name them."""
    planter = Planter(clean, folder)
    for name in faults:
        FAULTS[name](planter)
    planter.done()
    return planter.planted
