"""join: the shards of prepare, each made by a process or a pod of its own, as one dataset."""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from voiceflow.errors import DataError
from voiceflow.stages.dataset import check_names, dataset_summary, read_recordings, read_summary, write_recordings
from voiceflow.unfinished import begin, finish


def join(shards: Sequence[Path], output: Path) -> dict[str, Any]:
    """Put the shards of a dataset together: the dataset that one process would have made.

    Returns:
        The content of prepare.json.

    Raises:
        DataError: A shard is missing, or of another config or revision, or a conversation is in two of them.
    """
    summaries = [read_summary(shard) for shard in shards]
    first: dict[str, Any] = summaries[0]
    for shard, summary in zip(shards, summaries, strict=True):
        if (summary["revision"], summary["config"]) != (first["revision"], first["config"]):
            raise DataError(f"{shard}: made of other data or by another config than {shards[0]}; make both again")
    parts = sorted(tuple(summary.get("shard", (0, 1))) for summary in summaries)
    if parts != [(number, len(shards)) for number in range(len(shards))]:
        told = ", ".join(f"{part} of {total}" for part, total in parts)
        raise DataError(f"expected all shards of the dataset, each once; got {told}")
    recordings = [(shard, recording) for shard in shards for recording in read_recordings(shard, all_of_them=True)]
    check_names([recording.name for _, recording in recordings], "shards")
    partial = begin(output, json.dumps([str(shard) for shard in shards]))
    for shard, recording in recordings:
        for path in (recording.audio, recording.rttm):
            (partial / path).parent.mkdir(parents=True, exist_ok=True)
            _link(shard / path, partial / path)
    joined = [recording for _, recording in recordings]
    write_recordings(partial, joined)
    summary = dataset_summary(first["config"], first["revision"], joined)
    (partial / "prepare.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    finish(partial, output)
    return summary


def _link(source: Path, target: Path) -> None:
    """The same file under another name, or a copy where that cannot be."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
