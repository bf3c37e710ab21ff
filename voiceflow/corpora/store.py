"""A corpus on disk as lhotse Shar: shards of FLAC at 16 kHz with their cuts, made in parallel, one by one.

<folder>/corpus.json                            what it is; written last: without it the corpus is not whole
<folder>/<split>/cuts.000000.jsonl.gz           cuts with supervisions
<folder>/<split>/recording.000000.tar           their audio
"""

import gzip
import hashlib
import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from voiceflow.audio import resample
from voiceflow.corpora.description import Corpus
from voiceflow.corpora.read import ABOUT, UNSPLIT
from voiceflow.corpora.recipes import Parts
from voiceflow.errors import DataError
from voiceflow.timebase import SAMPLE_RATE_HZ
from voiceflow.unfinished import begin, finish
from voiceflow.workers import in_parallel

SHARD_S = 3600.0
"""Audio in one shard, about; a speaker's utterances are never in two."""


def store_corpus(
    corpus: Corpus,
    parts: Parts,
    folder: Path,
    *,
    revision: str,
    num_workers: int = 0,
    shard_s: float = SHARD_S,
    progress: Callable[[str, int, int | None], None] = lambda what, done, total: None,
) -> dict[str, Any]:
    """Write a corpus into shards; shards of a run that was cut off are kept.

    Args:
        corpus: What it is.
        parts: Cuts of its recipe, by part.
        folder: Where it goes; an older version there is replaced when the new one is whole.
        revision: Digest of what it is made of.
        num_workers: Processes; 0 takes all cores. The bytes do not depend on it.
        shard_s: Audio in one shard, about.
        progress: Called after each shard.

    Returns:
        The content of corpus.json.

    Raises:
        DataError: Nothing in it, or the disk is full.
    """
    plan = _plan(corpus, parts, shard_s)
    if not plan:
        raise DataError(f"{corpus.name}: none of its parts {sorted(parts)} is among its splits {sorted(corpus.splits)}")
    state = hashlib.sha256(json.dumps([revision, corpus.model_dump(mode="json"), shard_s]).encode()).hexdigest()
    try:
        partial = begin(folder, state)
        jobs = [(cuts, corpus, str(partial / split), number) for split, number, cuts in plan]
        totals = []
        for done, total in enumerate(in_parallel(_write_shard, jobs, num_workers=num_workers, few=1), start=1):
            totals.append(total)
            progress(f"store {corpus.name}", done, len(jobs))
    except OSError as err:
        raise DataError(
            f"{folder}: cannot be written ({err.strerror or err}); shards that are whole are kept, run the command "
            "again to go on"
        ) from err
    splits: dict[str, dict[str, Any]] = {}
    for (split, _, _), total in zip(plan, totals, strict=True):
        row = splits.setdefault(split, {"recordings": 0, "hours": 0.0, "speakers": set()})
        row["recordings"] += total["recordings"]
        row["hours"] += total["hours"]
        row["speakers"] |= set(total["speakers"])
    for row in splits.values():
        row["hours"] = round(row["hours"], 4)
        row["num_speakers"] = len(row.pop("speakers"))
    summary = {
        "name": corpus.name,
        "title": corpus.title,
        "kind": corpus.kind,
        "licence": corpus.licence,
        "source": corpus.source,
        "made_of": revision,
        "splits": splits,
    }
    (partial / ABOUT).write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    finish(partial, folder)
    return summary


def _plan(corpus: Corpus, parts: Parts, shard_s: float) -> list[tuple[str, int, list[Any]]]:
    """Split, number and cuts of each shard."""
    by_split: dict[str, list[Any]] = {}
    for part in sorted(parts):
        split = corpus.splits.get(part) if corpus.splits else UNSPLIT  # voices without splits are divided by `prepare`
        if split is not None:
            by_split.setdefault(split, []).extend(parts[part])
    plan = []
    for split, cuts in sorted(by_split.items()):
        cuts.sort(key=lambda cut: (_speaker(cut) if corpus.kind == "voices" else "", cut.id))
        shards: list[list[Any]] = [[]]
        length_s = 0.0
        for index, cut in enumerate(cuts):
            may_end = corpus.kind != "voices" or index == 0 or _speaker(cut) != _speaker(cuts[index - 1])
            if shards[-1] and length_s >= shard_s and may_end:
                shards.append([])
                length_s = 0.0
            shards[-1].append(cut)
            length_s += cut.duration
        plan += [(split, number, shard) for number, shard in enumerate(shards) if shard]
    return plan


def _speaker(cut: Any) -> str:
    return str(cut.supervisions[0].speaker) if cut.supervisions else ""


def _write_shard(cuts: Iterable[Any], corpus: Corpus, folder: str, number: int) -> dict[str, Any]:
    """One shard; nothing where it is whole already. Returns what is in it."""
    from lhotse.shar import SharWriter

    target = Path(folder)
    name = f"{number:06d}"
    final = target / f"cuts.{name}.jsonl.gz"
    if final.is_file():
        return _total(final)
    scratch = target / f".writing-{name}"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    with SharWriter(str(scratch), fields={"recording": "flac"}, shard_size=1_000_000_000) as writer:
        for cut in cuts:
            writer.write(_as_we_keep_it(cut, corpus))
    (scratch / "recording.000000.tar").rename(target / f"recording.{name}.tar")
    # gzip writes the time into its header; the same cuts shall be the same bytes.
    with gzip.open(scratch / "cuts.000000.jsonl.gz", "rb") as file:
        text = file.read()
    repacked = scratch / "cuts.gz"
    with repacked.open("wb") as raw, gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0) as packed:
        packed.write(text)
    repacked.replace(final)
    shutil.rmtree(scratch)
    return _total(final)


def _total(cuts: Path) -> dict[str, Any]:
    speakers: set[str] = set()
    num_recordings, length_s = 0, 0.0
    with gzip.open(cuts, "rt", encoding="utf-8") as file:
        for line in file:
            cut = json.loads(line)
            num_recordings += 1
            length_s += cut["duration"]
            speakers |= {spoken["speaker"] for spoken in cut["supervisions"]}
    return {"recordings": num_recordings, "hours": length_s / 3600, "speakers": sorted(speakers)}


def _as_we_keep_it(cut: Any, corpus: Corpus) -> Any:
    """A cut whose audio is mono at 16 kHz and in memory, and whose speakers have names of their own."""
    from lhotse import MonoCut, MultiCut, SupervisionSegment

    samples_CN = cut.load_audio()
    mono_N = samples_CN[corpus.channel] if corpus.channel is not None else samples_CN.mean(axis=0)
    mono_N = resample(mono_N, cut.sampling_rate)
    # lhotse numbers cuts of recordings; mixed ones have names of their own.
    own_name = cut.recording.id if isinstance(cut, MonoCut | MultiCut) else cut.id
    name = f"{corpus.name}-{own_name}"
    duration_s = len(mono_N) / SAMPLE_RATE_HZ
    supervisions = []
    for index, spoken in enumerate(sorted(cut.supervisions, key=lambda spoken: (spoken.start, spoken.id))):
        speaker = f"{name}-{spoken.speaker}" if corpus.speakers == "recording" else f"{corpus.name}-{spoken.speaker}"
        length_s = min(spoken.duration, duration_s - spoken.start)
        if length_s > 0:
            supervisions.append(
                SupervisionSegment(f"{name}-{index}", name, round(spoken.start, 6), round(length_s, 6), speaker=speaker)
            )
    recording, about = _recording(name, mono_N), {"corpus": corpus.name}
    return MonoCut(name, 0.0, duration_s, 0, supervisions=supervisions, recording=recording, custom=about)


def _recording(name: str, mono_N: Any) -> Any:
    import io

    import soundfile
    from lhotse import Recording

    file = io.BytesIO()
    soundfile.write(file, mono_N, SAMPLE_RATE_HZ, format="WAV", subtype="FLOAT")
    return Recording.from_bytes(file.getvalue(), recording_id=name)
