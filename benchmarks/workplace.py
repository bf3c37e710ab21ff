"""A repository like ours, but small: espeak-ng voices, short conversations, a training of seconds, bounds that fit them."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import yaml

from voiceflow.simulation.voices import synthesise_corpus

REPO = Path(__file__).parent.parent
PROFILE = "loop"
"""Its only profile."""
TALK_S = 20.0


def small_repository(folder: Path, *, env: Mapping[str, str]) -> None:
    """Make a git and DVC repository with tracked voices, a remote beside it, and params.yaml.

    Args:
        folder: Where to.
        env: Environment of its commands, beside this process'.
    """
    (folder / "data").mkdir(parents=True)
    synthesise_corpus(folder / "data" / "voices", num_speakers=24, sentences_each=6, seed=5)
    values = yaml.safe_load((REPO / "params.yaml").read_text(encoding="utf-8"))
    values["prepare"] |= {
        "corpus": "data/voices",
        "recorded": None,
        "conversation_s": TALK_S,
        "heldout_fraction": 0.25,
    }
    values["prepare"] |= {"conversations": {"train": 24, "dev": 24, "test": 32}, "heldout_exclude": "^$"}
    values["prepare"]["num_speakers_weights"] = [0.0, 0.6, 0.4]
    values["prepare"]["variety"]["stock_size"] = 4
    values["validate"]["min_speakers"] = {"train": 8, "dev": 2, "test": 2}
    # All espeak-ng voices say the same few sentences.
    values["validate"]["severity"]["near_duplicate"] = "warning"
    values["drift"] |= {"sample_share": 1.0, "window_streams": 48, "min_streams": 40}
    # Synthetic voices are not what the shipped weights were made for, and twenty seconds not a meeting.
    values["evaluate"] |= {"max_der": 0.8, "max_der_per_slice": 0.95, "max_flips_per_minute": 60.0}
    values["export"]["max_int8_der_difference"] = 0.05
    values["promote"] |= {"long_stream_s": 120.0, "long_from_s": 60.0, "max_long_loss": 0.5}
    values["promote"] |= {"max_flips_factor": 10.0, "flips_slack_per_minute": 20.0, "max_slowdown": 100.0}
    values["latency"] |= {"repeats": 20, "warmup": 3, "min_streams_per_core": 1.0}
    values["latency"]["max_p99_ms"] = {"cpu": {"1": 5_000.0, "32": 5_000.0}}
    values["latency"]["max_usd_per_1000_stream_hours"] = 1_000.0
    loop = {"steps": 30, "batch_size": 8, "chunk_s": 10.0, "long_chunk_s": 18.0, "warmup_steps": 5}
    loop |= {"evaluate_every_steps": 15, "checkpoint_every_steps": 15, "learning_rate": 2e-5, "num_noises": 2}
    values["profiles"] = {PROFILE: {"train": {**loop, "init_from": "pretrained", "teacher_forcing": 0.3}}}
    (folder / "params.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    dvc = [sys.executable, "-m", "dvc"]
    for command in (
        ["git", "init", "-q", "-b", "main"],
        ["git", "config", "user.email", "loop@example.org"],
        ["git", "config", "user.name", "loop"],
        [*dvc, "init", "-q"],
        [*dvc, "remote", "add", "-q", "-d", "local", str(folder.with_name("remote"))],
        [*dvc, "add", "-q", "data/voices"],
        [*dvc, "push", "-q"],
        ["git", "add", "."],
        ["git", "commit", "-q", "-m", "data"],
    ):
        subprocess.run(command, check=True, cwd=folder, env=os.environ | dict(env), capture_output=True)
