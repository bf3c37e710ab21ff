"""prepare: from utterances to conversations with exact turns, and recorded ones as they are."""

import functools
import itertools
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from voiceflow.audio import file_digest, load_audio, write_flac
from voiceflow.config import PrepareConfig
from voiceflow.errors import DataError
from voiceflow.simulation.conversations import ConversationPlan, plan_conversations, simulate
from voiceflow.simulation.corpus import AUDIO_SUFFIXES, Utterance, read_corpus
from voiceflow.simulation.speech import Int16Array, Segment, load_vad, speaker_segments
from voiceflow.stages.dataset import Recording, write_recordings
from voiceflow.stages.workers import in_parallel
from voiceflow.timebase import SAMPLE_RATE_HZ, samples_to_seconds
from voiceflow.turns import read_rttm, speakers_in_order, to_rttm

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many are done, and of how many."""

MAX_SPEECH_S = 240.0
"""Speech read of one speaker at most: enough for any conversation."""


def split_speakers(speakers: Sequence[str], config: PrepareConfig) -> dict[str, list[str]]:
    """Divide speakers among train, dev and test; none is in two.

    Raises:
        DataError: Fewer than 8 speakers, so that no split could hold a conversation.
    """
    if len(speakers) < 8:
        raise DataError(f"{config.corpus}: expected at least 8 speakers to split, got {len(speakers)}")
    eligible = [name for name in speakers if not re.search(config.heldout_exclude, name)]
    if len(eligible) < 4:
        raise DataError(
            f"{config.corpus}: prepare.heldout_exclude leaves {len(eligible)} speakers to hold out; expected 4 or more"
        )
    shuffled = [str(name) for name in np.random.default_rng(config.seed).permutation(np.array(eligible))]
    num_held = max(2, round(len(eligible) * config.heldout_fraction))
    dev, test = shuffled[:num_held], shuffled[num_held : 2 * num_held]
    held = set(dev) | set(test)
    train = [name for name in speakers if name not in held]
    heard = np.random.default_rng((config.seed, 1)).permutation(len(train))[
        : max(8, round(config.train_share * len(train)))
    ]
    return {"train": [train[index] for index in sorted(heard)], "dev": sorted(dev), "test": sorted(test)}


def prepare(
    config: PrepareConfig,
    output: Path,
    *,
    corpus: Path,
    recorded: Path | None = None,
    revision: str,
    progress: Progress = lambda what, done, total: None,
) -> dict[str, Any]:
    """Write a dataset (see stages/dataset.py for its files).

    Args:
        config: What to make.
        output: Folder of the dataset; an older one there is replaced.
        corpus: Folder of utterances.
        recorded: Folder of audio and RTTM files with equal stems, or None.
        revision: Digest of the corpus, kept in prepare.json and later in the model file.
        progress: Called as work goes on.

    Returns:
        The content of prepare.json.

    Raises:
        DataError: A corpus that cannot be read, or is too small.
    """
    utterances = read_corpus(corpus)
    splits = split_speakers(list(utterances), config)
    plans = [
        plan
        for split, count in config.conversations.model_dump().items()
        for plan in plan_conversations(config, split, splits[split], count)
    ]
    if output.exists():
        shutil.rmtree(output)
    output.mkdir(parents=True)
    with tempfile.TemporaryDirectory(prefix="voiceflow-segments-") as scratch:
        plans = _extract_segments(config, utterances, splits, plans, Path(scratch), progress)
        # Sounds come from the voices of training alone.
        sound_speakers = tuple(sorted({name for plan in plans if plan.split == "train" for name in plan.speakers}))
        jobs = [(plan, config, Path(scratch), output, sound_speakers) for plan in plans]
        recordings = list(
            _track(
                in_parallel(_simulate_one, jobs, num_workers=config.num_workers, few=1), "simulate", len(jobs), progress
            )
        )
    if recorded is not None:
        recordings += [_take_recorded(path, output) for path in _recorded_audio(recorded)]
    write_recordings(output, recordings)
    summary = {
        "revision": revision,
        "seed": config.seed,
        "config": config.model_dump(mode="json"),
        "splits": {
            split: {
                "recordings": sum(recording.split == split for recording in recordings),
                "hours": round(sum(r.duration_s for r in recordings if r.split == split) / 3600, 3),
                "speakers": len({name for r in recordings if r.split == split for name in r.speakers}),
            }
            for split in ("train", "dev", "test", "recorded")
        },
    }
    (output / "prepare.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    return summary


def _extract_segments(
    config: PrepareConfig,
    utterances: dict[str, list[Utterance]],
    splits: dict[str, list[str]],
    plans: list[ConversationPlan],
    scratch: Path,
    progress: Progress,
) -> list[ConversationPlan]:
    """Cut the speech of all planned speakers; a speaker without speech is replaced by another."""
    needed = sorted({speaker for plan in plans for speaker in plan.speakers})
    jobs = [(speaker, utterances[speaker], scratch) for speaker in needed]
    silent = set()
    for speaker, num_segments in _track(
        in_parallel(_segment_one, jobs, num_workers=config.num_workers, few=1), "find speech", len(jobs), progress
    ):
        if num_segments == 0:
            silent.add(speaker)
    if not silent:
        return plans
    replaced = []
    for plan in plans:
        spare = (
            name
            for name in splits[plan.split]
            if name in set(needed) and name not in silent and name not in plan.speakers
        )
        chosen = [name if name not in silent else next(spare, None) for name in plan.speakers]
        kept = tuple(name for name in chosen if name is not None)
        if not kept:
            raise DataError(f"{config.corpus}: silero-vad finds no speech in any of {list(plan.speakers)}")
        replaced.append(ConversationPlan(plan.name, plan.split, plan.condition, kept, plan.seed))
    return replaced


_vad: Any = None


def _segment_one(speaker: str, utterances: list[Utterance], scratch: Path) -> tuple[str, int]:
    global _vad
    if _vad is None:
        _vad = load_vad()
    segments, sounds = speaker_segments(utterances, _vad, max_s=MAX_SPEECH_S)
    _save_pieces(scratch / speaker, [segment.samples_N for segment in segments])
    np.save(scratch / f"{speaker}.core.npy", [(segment.core_start, segment.core_end) for segment in segments])
    _save_pieces(scratch / f"{speaker}.sounds", sounds)
    return speaker, len(segments)


def _save_pieces(stem: Path, pieces: Sequence[Int16Array]) -> None:
    np.save(f"{stem}.bounds.npy", np.cumsum([0] + [len(piece) for piece in pieces]))
    np.save(f"{stem}.npy", np.concatenate(pieces) if pieces else np.zeros(0, np.int16))


def _load_pieces(stem: Path) -> list[Int16Array]:
    samples = np.load(f"{stem}.npy", mmap_mode="r")
    return [samples[start:end] for start, end in itertools.pairwise(np.load(f"{stem}.bounds.npy"))]


@functools.cache
def _recorded_sounds(scratch: Path, speakers: tuple[str, ...]) -> list[Int16Array]:
    return [piece for speaker in speakers for piece in _load_pieces(scratch / f"{speaker}.sounds")]


def _simulate_one(
    plan: ConversationPlan, config: PrepareConfig, scratch: Path, output: Path, sound_speakers: tuple[str, ...]
) -> Recording:
    segments = {
        speaker: [
            Segment(samples, int(start), int(end))
            for samples, (start, end) in zip(
                _load_pieces(scratch / speaker), np.load(scratch / f"{speaker}.core.npy"), strict=True
            )
        ]
        for speaker in plan.speakers
    }
    sounds = _recorded_sounds(scratch, sound_speakers) if plan.split == "train" else []
    conversation = simulate(plan, segments, config, sounds)
    audio, rttm = f"audio/{plan.split}/{plan.name}.flac", f"rttm/{plan.split}/{plan.name}.rttm"
    write_flac(output / audio, conversation.samples_N)
    (output / rttm).parent.mkdir(parents=True, exist_ok=True)
    (output / rttm).write_text(to_rttm(conversation.turns, plan.name), encoding="utf-8")
    return Recording(
        name=plan.name,
        split=plan.split,
        audio=audio,
        rttm=rttm,
        condition=plan.condition,
        speakers=speakers_in_order(conversation.turns),
        duration_s=samples_to_seconds(len(conversation.samples_N)),
        sample_rate_hz=SAMPLE_RATE_HZ,
        digest=file_digest(output / audio),
    )


def _recorded_audio(folder: Path) -> list[Path]:
    files = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in AUDIO_SUFFIXES]
    if not files:
        raise DataError(f"{folder}: expected recordings with RTTM files of the same stem, found no audio")
    return files


def _take_recorded(path: Path, output: Path) -> Recording:
    reference = path.with_suffix(".rttm")
    if not reference.is_file():
        raise DataError(f"{path}: expected its reference turns in {reference}, which is missing")
    by_name = read_rttm(reference)
    turns = by_name.get(path.stem, []) if len(by_name) != 1 else next(iter(by_name.values()))
    samples_N = load_audio(path)
    audio, rttm = f"audio/recorded/{path.stem}.flac", f"rttm/recorded/{path.stem}.rttm"
    write_flac(output / audio, samples_N)
    (output / rttm).parent.mkdir(parents=True, exist_ok=True)
    (output / rttm).write_text(to_rttm(turns, path.stem), encoding="utf-8")
    return Recording(
        name=path.stem,
        split="recorded",
        audio=audio,
        rttm=rttm,
        condition="recorded",
        speakers=speakers_in_order(turns),
        duration_s=samples_to_seconds(len(samples_N)),
        sample_rate_hz=SAMPLE_RATE_HZ,
        digest=file_digest(output / audio),
    )


def _track(results: Iterable[Any], what: str, total: int, progress: Progress) -> Iterator[Any]:
    for done, result in enumerate(results, start=1):
        progress(what, done, total)
        yield result
