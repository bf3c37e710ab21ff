"""Voices that are held out for ever: models are chosen by some and judged on others, and none is ever trained on."""

import importlib.resources
from collections.abc import Mapping, Sequence
from functools import cache

import yaml

from voiceflow.corpora.read import Utterance


@cache
def _named() -> tuple[dict[str, str], dict[tuple[str, str], str]]:
    """Splits by name as our corpora have it, and by source and the name that the source gives."""
    text = importlib.resources.files("voiceflow.corpora").joinpath("heldout.yaml").read_text(encoding="utf-8")
    ours: dict[str, str] = {}
    theirs: dict[tuple[str, str], str] = {}
    for source, row in yaml.safe_load(text).items():
        for split in ("dev", "test"):
            ours |= {f"{row['prefix']}{name}": split for name in row[split]}
            theirs |= {(source.lower(), name): split for name in row[split]}
    return ours, theirs


def held_out(utterances: Mapping[str, Sequence[Utterance]]) -> dict[str, str]:
    """Which voices of a corpus are held out: ``dev`` or ``test`` by speaker.

    A voice is known by its name here, such as ``ls-150``, or by the one that its source gives it: speaker ``150`` of
    a corpus whose source begins with "LibriSpeech", or ``librispeech-150``, as `voiceflow data get` names it.

    Args:
        utterances: What `read_utterances` returned.
    """
    ours, theirs = _named()
    sources = {source for source, _ in theirs}
    found = {}
    for speaker, spans in utterances.items():
        split = ours.get(speaker)
        for source in sources:
            if split is None and spans[0].source.lower().startswith(source):
                split = theirs.get((source, speaker.removeprefix(f"{spans[0].source}-")))
        if split is not None:
            found[speaker] = split
    return found
