"""What changed between two versions of data: hours, speakers, overlap, conditions; what came, went, was relabelled."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from voiceflow.checks.measure import Item
from voiceflow.stages.dataset import items_in, read_recordings
from voiceflow.turns import Turn

MAX_TOLD = 8


@dataclass(frozen=True)
class Talk:
    """What is compared of a recording."""

    split: str
    condition: str
    length_s: float
    """As the manifest says; to the end of the last turn where it says nothing."""
    turns: tuple[Turn, ...]
    digest: str
    """Of its audio, where the manifest has one."""


def read_version(folder: Path) -> dict[str, Talk]:
    """Recordings of a version by name; the audio itself need not be there.

    Raises:
        DataError: Nothing that can be read.
    """
    lengths = {}
    if (folder / "recordings.jsonl").is_file():
        lengths = {row.name: row.duration_s for row in read_recordings(folder, all_of_them=True)}
    return {item.name: _talk(item, lengths.get(item.name)) for item in items_in(folder)}


def _talk(item: Item, length_s: float | None) -> Talk:
    ends = [turn.end_s for turn in item.turns if turn.end_s != float("inf")]
    length = max(ends, default=0.0) if length_s is None else length_s
    return Talk(item.split, item.condition, length, item.turns, item.declared_digest)


def figures_of(talks: Mapping[str, Talk]) -> dict[str, Any]:
    """Hours, speakers, overlap and conditions of a version."""
    speech_s = overlap_s = 0.0
    for talk in talks.values():
        one, more = _speech_s([turn for turn in talk.turns if turn.end_s != float("inf")])
        speech_s, overlap_s = speech_s + one, overlap_s + more
    hours = dict.fromkeys(sorted({talk.split for talk in talks.values()}), 0.0)
    for talk in talks.values():
        hours[talk.split] += talk.length_s / 3600
    return {
        "recordings": len(talks),
        "hours": {split: round(value, 4) for split, value in hours.items()},
        "speakers": len({turn.speaker for talk in talks.values() for turn in talk.turns}),
        "speech_hours": round(speech_s / 3600, 4),
        "overlap_share": round(overlap_s / speech_s, 4) if speech_s else 0.0,
        "conditions": dict(sorted(Counter(talk.condition for talk in talks.values()).items())),
    }


def _speech_s(turns: Sequence[Turn]) -> tuple[float, float]:
    """Seconds in which anybody speaks, and in which several do."""
    edges = sorted([(turn.start_s, 1) for turn in turns] + [(turn.end_s, -1) for turn in turns])
    speech_s = overlap_s = before_s = 0.0
    active = 0
    for at_s, change in edges:
        speech_s += (at_s - before_s) * (active > 0)
        overlap_s += (at_s - before_s) * (active > 1)
        before_s, active = at_s, active + change
    return speech_s, overlap_s


def compare_versions(before: Mapping[str, Talk], after: Mapping[str, Talk]) -> dict[str, Any]:
    """What is different: figures `before` and `after`, and names of recordings by what became of them."""
    both = sorted(set(before) & set(after))
    return {
        "before": figures_of(before),
        "after": figures_of(after),
        "added": sorted(set(after) - set(before)),
        "removed": sorted(set(before) - set(after)),
        "relabelled": [name for name in both if before[name].turns != after[name].turns],
        "other_audio": [name for name in both if before[name].digest != after[name].digest],
        "moved": [name for name in both if before[name].split != after[name].split],
    }


def describe_changes(changes: Mapping[str, Any]) -> list[str]:
    """The same in words, a line each; one line that says so where nothing has changed."""
    before, after = changes["before"], changes["after"]
    lines = []
    for name, unit in (("recordings", ""), ("speakers", ""), ("speech_hours", " h")):
        if before[name] != after[name]:
            lines.append(f"{name.replace('_', ' ')}: {before[name]}{unit} -> {after[name]}{unit}")
    if before["overlap_share"] != after["overlap_share"]:
        lines.append(
            f"overlap: {100 * before['overlap_share']:.1f} % -> {100 * after['overlap_share']:.1f} % of speech"
        )
    for what, unit in (("hours", " h"), ("conditions", "")):
        for key in sorted({*before[what], *after[what]}):
            old, new = before[what].get(key, 0), after[what].get(key, 0)
            if old != new:
                lines.append(f"{what} of {key}: {old}{unit} -> {new}{unit}")
    words = {
        "added": "added",
        "removed": "removed",
        "relabelled": "other turns",
        "other_audio": "other audio",
        "moved": "in another split",
    }
    for key, word in words.items():
        names = changes[key]
        if names:
            more = f" and {len(names) - MAX_TOLD} more" if len(names) > MAX_TOLD else ""
            lines.append(f"{word}: {len(names)} ({', '.join(names[:MAX_TOLD])}{more})")
    return lines or ["nothing has changed"]
