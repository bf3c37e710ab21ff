import json
import shutil

import numpy as np
import pytest
import soundfile
import yaml

from benchmarks.frozen import TABLE, compare, write
from tests.conftest import REPO


@pytest.fixture
def frozen(dataset, tmp_path):
    """A copy of a small dataset, and the table of what it was."""
    folder = tmp_path / "heldout"
    shutil.copytree(dataset, folder)
    (folder / "plans.json").write_text(json.dumps({"test-00000": ["close", ["a"], [1, 2, 0], None]}))
    write(folder, tmp_path / "heldout.json")
    return folder, tmp_path / "heldout.json"


def change(folder, name, what):
    path = folder / "audio" / "test" / f"{name}.flac"
    samples = soundfile.read(path, dtype="int16")[0]
    soundfile.write(path, what(samples), 16_000, subtype="PCM_16")


def test_the_same_conversations_are_the_same_to_the_bit(frozen):
    found = compare(*frozen)
    assert found.faults == []
    assert found.sentence == "10 recordings as frozen, to the bit"


def test_last_bits_may_differ_and_that_is_told(frozen):
    change(frozen[0], "test-00001", lambda samples: samples + np.int16(3))
    found = compare(*frozen)
    assert found.faults == []
    assert "the audio of 1 differs in its last bits" in found.sentence


def test_other_audio_turns_plans_and_missing_recordings_are_faults(frozen):
    folder, table = frozen
    change(folder, "test-00001", lambda samples: (samples * 0.9).astype(np.int16))
    rttm = folder / "rttm" / "test" / "test-00002.rttm"
    _, *rest = rttm.read_text().splitlines()
    rttm.write_text("\n".join(rest) + "\n")
    (folder / "plans.json").write_text(json.dumps({"test-00000": ["close", ["b"], [1, 2, 0], None]}))
    lines = (folder / "recordings.jsonl").read_text().splitlines()
    (folder / "recordings.jsonl").write_text("\n".join(line for line in lines if "test-00003" not in line) + "\n")
    faults = compare(folder, table).faults
    assert len(faults) == 4
    for fault in ("test-00003 is missing", "test-00000: another plan", "test-00002: another turns"):
        assert fault in faults
    assert any(fault.startswith("test-00001: other audio") for fault in faults)


def test_who_is_frozen_is_held_out():
    """Speakers of the frozen conversations never enter training."""
    named = yaml.safe_load((REPO / "voiceflow" / "corpora" / "heldout.yaml").read_text())
    rows = json.loads(TABLE.read_text())["recordings"]
    assert len([row for row in rows if row["split"] == "test"]) == 240
    for split in ("dev", "test"):
        held = {f"{source['prefix']}{name}" for source in named.values() for name in source[split]}
        assert {speaker for row in rows if row["split"] == split for speaker in row["speakers"]} <= held
