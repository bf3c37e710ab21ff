"""prepare: from utterances to conversations with exact turns, and recorded ones as they are."""

import functools
import hashlib
import json
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from voiceflow import rhythm, simulation
from voiceflow.audio import FloatArray, file_digest, write_flac
from voiceflow.config import PrepareConfig
from voiceflow.corpora import heldout
from voiceflow.corpora.read import (
    UNSPLIT,
    AudioPlace,
    Conversation,
    Utterance,
    read_conversations,
    read_sounds,
    read_utterances,
)
from voiceflow.errors import DataError
from voiceflow.simulation.conversations import ConversationPlan, plan_conversations
from voiceflow.simulation.heldout import simulate
from voiceflow.simulation.simulator import Simulator
from voiceflow.simulation.speech import Segment, load_vad, speaker_segments
from voiceflow.simulation.stock import load_pieces, load_stock, make_stock, save_pieces
from voiceflow.stages.dataset import Recording, check_names, dataset_summary, quarantine_path, write_recordings
from voiceflow.timebase import SAMPLE_RATE_HZ, samples_to_seconds
from voiceflow.turns import Turn, speakers_in_order, to_rttm, turns_within
from voiceflow.unfinished import begin, finish
from voiceflow.workers import in_parallel

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many are done, and of how many."""

MADE_SPLITS = ("train", "dev", "test")
HELD_OUT = ("dev", "test")
MAX_SPEECH_S = 240.0
"""Speech read of one speaker at most: enough for any conversation."""


DONE = "done.jsonl"
"""While a dataset is made: what of it is whole."""
STOCK = "stock"
MAX_BREATHING = 40
"""So many voices lend the sounds between their words to all training conversations."""
MIN_PIECE_S = 10.0
"""What is left at the end of a conversation that is cut into pieces, if it is shorter, is not used."""


def split_speakers(utterances: Mapping[str, Sequence[Utterance]], config: PrepareConfig) -> dict[str, list[str]]:
    """Divide speakers among train, dev and test; none is in two.

    Voices of `corpora.heldout` are in their split whatever comes with them, and the rest of a source that has such
    voices for both splits trains. Then come splits that corpora have of their own; other speakers are drawn.

    Args:
        utterances: Those of each speaker.
        config: Seed and shares.

    Raises:
        DataError: Fewer than 8 speakers, so that no split could hold a conversation.
    """
    if len(utterances) < 8:
        raise DataError(f"{config.corpus}: expected at least 8 speakers to split, got {len(utterances)}")
    known = heldout.held_out(utterances)
    in_split = {split: {utterances[name][0].source for name in known if known[name] == split} for split in HELD_OUT}
    divided = in_split["dev"] & in_split["test"]
    declared = {name: spans[0].split for name, spans in utterances.items() if spans[0].split} | known
    fixed = {split: [name for name in utterances if declared.get(name) == split] for split in MADE_SPLITS}
    speakers = [name for name in utterances if name not in declared]
    eligible = [
        name
        for name in speakers
        if utterances[name][0].source not in divided and not re.search(config.heldout_exclude, name)
    ]
    held: dict[str, list[str]] = {"dev": [], "test": []}
    if not (fixed["dev"] and fixed["test"]) or len(eligible) >= 8:
        if len(eligible) < 4:
            raise DataError(
                f"{config.corpus}: prepare.heldout_exclude leaves {len(eligible)} speakers to hold out; "
                "expected 4 or more"
            )
        shuffled = [str(name) for name in np.random.default_rng(config.seed).permutation(np.array(eligible))]
        num_held = max(2, round(len(eligible) * config.heldout_fraction))
        held = {"dev": sorted(shuffled[:num_held]), "test": sorted(shuffled[num_held : 2 * num_held])}
    drawn = {*held["dev"], *held["test"]}
    train = [name for name in speakers if name not in drawn]
    heard = np.random.default_rng((config.seed, 1)).permutation(len(train))[
        : max(8, round(config.train_share * len(train)))
    ]
    return {
        "train": [train[index] for index in sorted(heard)] + fixed["train"],
        "dev": held["dev"] + fixed["dev"],
        "test": held["test"] + fixed["test"],
    }


def prepare(
    config: PrepareConfig,
    output: Path,
    *,
    corpus: Path,
    recorded: Path | None = None,
    noises: Path | None = None,
    rooms: Path | None = None,
    revision: str,
    shard: tuple[int, int] = (0, 1),
    progress: Progress = lambda what, done, total: None,
) -> dict[str, Any]:
    """Write a dataset (see stages/dataset.py for its files).

    Args:
        config: What to make.
        output: Folder of the dataset; an older one there is replaced.
        corpus: Folder of utterances, or of such corpora.
        recorded: Folder of conversations, or of such corpora, or None. Those of a corpus with splits are trained on,
            chosen by and tested on accordingly, the first two in pieces; others are only tested on.
        noises: Folder of recordings without speech; training conversations have them beside made ones.
        rooms: Folder of recorded impulse responses, likewise.
        revision: Digest of the corpus, kept in prepare.json and later in the model file.
        shard: Which part of the conversations is made, and of how many; `stages.join` puts them together.
        progress: Called as work goes on.

    Returns:
        The content of prepare.json.

    Raises:
        DataError: A corpus that cannot be read, or is too small.
        ValueError: No such shard.
    """
    if not 0 <= shard[0] < shard[1]:
        raise ValueError(f"expected a shard from 0 to {shard[1] - 1}, got {shard[0]}")
    utterances = read_utterances(corpus)
    splits = split_speakers(utterances, config)
    plans = [
        plan
        for split, count in config.conversations.model_dump().items()
        for plan in plan_conversations(config, split, splits[split], count)
    ]
    sounds = _Sounds(read_sounds(noises) if noises else [], read_sounds(rooms) if rooms else [])
    values = config.model_dump(mode="json", exclude={"num_workers"})
    given = [recorded is not None, noises is not None, rooms is not None]
    made_of = json.dumps([revision, values, given, shard, _sources()])
    try:
        partial = begin(output, hashlib.sha256(made_of.encode()).hexdigest())
        talks = _readable(recorded)[shard[0] :: shard[1]] if recorded else []
        recordings = _make(config, utterances, splits, plans, shard, sounds, partial, talks, progress)
    except OSError as err:
        raise DataError(
            f"{output}: cannot be written ({err.strerror or err}); what is whole is kept, "
            "run the command again to go on"
        ) from err
    summary = dataset_summary(config.model_dump(mode="json"), revision, recordings)
    if shard != (0, 1):
        summary["shard"] = list(shard)
    (partial / "prepare.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    quarantine_path(output).unlink(missing_ok=True)
    finish(partial, output)
    return summary


@dataclass(frozen=True)
class _Sounds:
    """Recordings without speech that training conversations are made of beside voices."""

    noises: list[AudioPlace]
    rooms: list[AudioPlace]


def _breathing(plans: Sequence[ConversationPlan]) -> list[str]:
    """Voices of training whose breaths all shards have."""
    speakers = dict.fromkeys(name for plan in plans if plan.split == "train" for name in plan.speakers)
    return sorted(list(speakers)[:MAX_BREATHING])


def _sources() -> list[str]:
    """Digests of the code that makes conversations: what other code has left is not gone on with."""
    paths = [*sorted(Path(simulation.__file__).parent.glob("*.py")), Path(rhythm.__file__), Path(__file__)]
    paths += [Path(heldout.__file__), Path(heldout.__file__).with_suffix(".yaml")]
    return [file_digest(path) for path in paths]


def _make(
    config: PrepareConfig,
    utterances: dict[str, list[Utterance]],
    splits: dict[str, list[str]],
    plans: list[ConversationPlan],
    shard: tuple[int, int],
    sounds: _Sounds,
    output: Path,
    talks: list[Conversation],
    progress: Progress,
) -> list[Recording]:
    """Audio, turns and manifest of a shard; recordings that an earlier run has made are kept."""
    done = _done(output)
    with (
        (output / DONE).open("w", encoding="utf-8") as ledger,
        tempfile.TemporaryDirectory(prefix="voiceflow-segments-") as folder,
    ):

        def keep(key: str, recordings: list[Recording]) -> None:
            done[key] = recordings
            rows = [recording.model_dump(mode="json") for recording in recordings]
            ledger.write(json.dumps({"key": key, "recordings": rows}) + "\n")
            ledger.flush()

        for key, recordings in list(done.items()):
            keep(key, recordings)
        scratch = Path(folder)
        breathing = _breathing(plans)
        plans = _extract_segments(
            config, utterances, splits, plans, plans[shard[0] :: shard[1]], breathing, scratch, progress
        )
        plans = [plan for plan in plans if plan.name not in done]
        if any(plan.split == "train" for plan in plans):
            breaths = [piece for speaker in breathing for piece in load_pieces(scratch / f"{speaker}.sounds")]
            make_stock(config, breaths=breaths, noises=sounds.noises, rooms=sounds.rooms, progress=progress).save(
                scratch / STOCK
            )
        jobs = [(plan, config, scratch, output) for plan in plans]
        made = in_parallel(_simulate_one, jobs, num_workers=config.num_workers, few=1)
        for plan, recording in zip(plans, _track(made, "simulate", len(jobs), progress), strict=True):
            keep(plan.name, [recording])
        talks = [talk for talk in talks if f"recorded {talk.name}" not in done]
        taken = in_parallel(
            _take_recorded, [(talk, config.conversation_s, output) for talk in talks], num_workers=config.num_workers
        )
        for talk, pieces in zip(talks, _track(taken, "take recorded", len(talks), progress), strict=True):
            keep(f"recorded {talk.name}", pieces)
    recordings = [recording for pieces in done.values() for recording in pieces]
    write_recordings(output, recordings)
    (output / DONE).unlink()
    return recordings


def _done(output: Path) -> dict[str, list[Recording]]:
    """What an earlier run has written down, as far as its files are what they were."""
    done: dict[str, list[Recording]] = {}
    path = output / DONE
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            entry = json.loads(line)
        except ValueError:
            break  # the run ended while it wrote this line
        recordings = [Recording.model_validate(row) for row in entry["recordings"]]
        if all(_is_whole(output, recording) for recording in recordings):
            done[entry["key"]] = recordings
    return done


def _is_whole(output: Path, recording: Recording) -> bool:
    audio = output / recording.audio
    return audio.is_file() and (output / recording.rttm).is_file() and file_digest(audio) == recording.digest


def _extract_segments(
    config: PrepareConfig,
    utterances: dict[str, list[Utterance]],
    splits: dict[str, list[str]],
    all_plans: list[ConversationPlan],
    plans: list[ConversationPlan],
    breathing: Sequence[str],
    scratch: Path,
    progress: Progress,
) -> list[ConversationPlan]:
    """Cut the speech of the speakers of a shard's plans; one without speech is replaced by another of all plans."""
    needed = sorted({speaker for plan in plans for speaker in plan.speakers} | set(breathing))
    jobs = [(speaker, utterances[speaker], scratch) for speaker in needed]
    found = in_parallel(_segment_one, jobs, num_workers=config.num_workers, few=1)
    speaks: dict[str, bool] = {name: num > 0 for name, num in _track(found, "find speech", len(jobs), progress)}

    def has_speech(name: str) -> bool:
        if name not in speaks:  # planned in another shard alone
            speaks[name] = bool(_segment_one(name, utterances[name], scratch)[1])
        return speaks[name]

    candidates = {speaker for plan in all_plans for speaker in plan.speakers}
    replaced = []
    for plan in plans:
        spare = (
            name for name in splits[plan.split] if name in candidates and name not in plan.speakers and has_speech(name)
        )
        chosen = [name if has_speech(name) else next(spare, None) for name in plan.speakers]
        kept = tuple(name for name in chosen if name is not None)
        if not kept:
            raise DataError(f"{config.corpus}: silero-vad finds no speech in any of {list(plan.speakers)}")
        replaced.append(replace(plan, speakers=kept))
    return replaced


_vad: Any = None


def _segment_one(speaker: str, utterances: list[Utterance], scratch: Path) -> tuple[str, int]:
    global _vad
    if _vad is None:
        _vad = load_vad()
    segments, sounds = speaker_segments(utterances, _vad, max_s=MAX_SPEECH_S)
    save_pieces(scratch / speaker, [segment.samples_N for segment in segments])
    np.save(scratch / f"{speaker}.core.npy", [(segment.core_start, segment.core_end) for segment in segments])
    save_pieces(scratch / f"{speaker}.sounds", sounds)
    return speaker, len(segments)


@functools.lru_cache(maxsize=1)
def _simulator(config_json: str, stock: Path) -> Simulator:
    return Simulator(PrepareConfig.model_validate_json(config_json), load_stock(stock))


def _simulate_one(plan: ConversationPlan, config: PrepareConfig, scratch: Path, output: Path) -> Recording:
    segments = {
        speaker: [
            Segment(samples, int(start), int(end))
            for samples, (start, end) in zip(
                load_pieces(scratch / speaker), np.load(scratch / f"{speaker}.core.npy"), strict=True
            )
        ]
        for speaker in plan.speakers
    }
    if plan.split == "train":
        conversation = _simulator(config.model_dump_json(), scratch / STOCK).make(plan, segments)
    else:
        conversation = simulate(plan, segments, config)
    samples_N, turns = conversation.samples_N, conversation.turns
    return _write(plan.name, plan.split, plan.condition, samples_N, turns, output, style=conversation.style)


def _readable(folder: Path) -> list[Conversation]:
    """The conversations of a folder.

    Raises:
        DataError: One has no turns that can be read, or two have one name.
    """
    conversations = read_conversations(folder)
    for conversation in conversations:
        if conversation.turns_error:
            raise DataError(conversation.turns_error)
    check_names([conversation.name for conversation in conversations], str(folder))
    return conversations


def _take_recorded(conversation: Conversation, piece_s: float, output: Path) -> list[Recording]:
    """A conversation as it was recorded; in pieces where it is trained on or chosen by."""
    samples_N = conversation.place.load()
    turns = list(conversation.turns)
    split = conversation.split
    condition = conversation.corpus if split != UNSPLIT else UNSPLIT
    if split not in ("train", "dev"):
        return [_write(conversation.name, split, condition, samples_N, turns, output)]
    size = int(piece_s * SAMPLE_RATE_HZ)
    pieces = []
    for number, start in enumerate(range(0, len(samples_N), size)):
        piece_N = samples_N[start : start + size]
        inside = turns_within(turns, samples_to_seconds(start), samples_to_seconds(start + len(piece_N)))
        if inside and len(piece_N) >= MIN_PIECE_S * SAMPLE_RATE_HZ:
            name = f"{conversation.name}-{number:04d}"
            pieces.append(_write(name, split, condition, piece_N, inside, output))
    return pieces


def _write(
    name: str,
    split: str,
    condition: str,
    samples_N: FloatArray,
    turns: Sequence[Turn],
    output: Path,
    *,
    style: str = "",
) -> Recording:
    audio, rttm = f"audio/{split}/{name}.flac", f"rttm/{split}/{name}.rttm"
    write_flac(output / audio, samples_N)
    (output / rttm).parent.mkdir(parents=True, exist_ok=True)
    (output / rttm).write_text(to_rttm(turns, name), encoding="utf-8")
    return Recording(
        name=name,
        split=split,
        audio=audio,
        rttm=rttm,
        condition=condition,
        speakers=speakers_in_order(turns),
        duration_s=samples_to_seconds(len(samples_N)),
        sample_rate_hz=SAMPLE_RATE_HZ,
        digest=file_digest(output / audio),
        style=style,
    )


def _track(results: Iterable[Any], what: str, total: int, progress: Progress) -> Iterator[Any]:
    for done, result in enumerate(results, start=1):
        progress(what, done, total)
        yield result
