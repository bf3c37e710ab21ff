"""`make frozen`: the 240 held-out conversations, and the seven real excerpts, that every DER of a release is of; made again
by the very code, parameters and pinned libraries of 0.1.0, in a git worktree and an environment of their own, and compared
with the digests in benchmarks/frozen/.

Whatever becomes of the simulator, `make acceptance PART=model` reads these files. The 32 conversations that thresholds of
baselines are tuned on come with them. Where a processor rounds otherwise than ours did, audio may differ in its last bits:
then it is held to 1e-3 of full scale at the samples in heldout-samples.npy, and that is told. Turns and plans must be the same.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from voiceflow.errors import PlatformError
from voiceflow.stages.dataset import Recording, read_recordings, read_turns
from voiceflow.timebase import LOOKAHEAD_STEPS_BY_LATENCY_S

COMMIT = "cba5236fbd98e3290d50098acf03432b9d5100fd"
"""0.1.0."""
PROFILE = "acceptance"
TABLE = Path(__file__).parent / "frozen" / "heldout.json"
SAMPLES = "heldout-samples.npy"
"""Beside the table."""
HOME = Path(".voiceflow/frozen")
DATASET = HOME / "heldout"
NUM_SAMPLES = 256
"""So many samples of each recording are kept, drawn by its name."""
MAX_DIFFERENCE = 1e-3
"""Of full scale, at those samples, where audio is not the same to the bit."""
SETTING = {
    "scored": "first labels told, no collar, overlap included",
    "latency_s": sorted(LOOKAHEAD_STEPS_BY_LATENCY_S),
    "splits": {"dev": "thresholds of baselines", "test": "DER", "recorded": "DER of real excerpts, never trained on"},
}
PLANS = """
import json, sys
from pathlib import Path
from voiceflow.config import load_params
from voiceflow.corpora.read import read_utterances
from voiceflow.simulation.conversations import plan_conversations
from voiceflow.stages.prepare import split_speakers
config = load_params(Path("params.yaml"), profile=sys.argv[1]).prepare
splits = split_speakers(list(read_utterances(Path(config.corpus))), config)
plans = [plan for split in ("dev", "test")
         for plan in plan_conversations(config, split, splits[split], getattr(config.conversations, split))]
print(json.dumps({plan.name: [plan.condition, plan.speakers, plan.seed, plan.away_s] for plan in plans}))
"""
"""Runs with the code of 0.1.0."""

NO_DATA = (
    "held-out conversations are made of data/speech and data/meetings, which are not to be had here; set VOICEFLOW_SHARED to a "
    "folder with them, or put DVC's remote of a machine that has them into .voiceflow/dvc-remote"
)

Say = Callable[[str], None]
Row = dict[str, Any]


def heldout_set(say: Say = print) -> Path:
    """Folder of the frozen dataset; it is made, and compared with its digests, where that has not been done yet.

    Raises:
        PlatformError: It cannot be made here, or is not what was frozen.
    """
    stamp = DATASET.with_name("heldout.checked")
    table = hashlib.sha256(TABLE.read_bytes()).hexdigest()
    if not (DATASET / "recordings.jsonl").is_file():
        make(say)
    elif stamp.is_file() and stamp.read_text(encoding="utf-8") == table:
        return DATASET
    found = compare(DATASET)
    say(found.sentence)
    if found.faults:
        raise PlatformError(
            f"{DATASET} is not what was frozen: {'; '.join(found.faults[:5])}; delete {HOME} and try again"
        )
    stamp.write_text(table, encoding="utf-8")
    return DATASET


def make(say: Say) -> None:
    """Make the dataset with the code of 0.1.0.

    Raises:
        PlatformError: That commit, its libraries or its data cannot be had.
    """
    remote = Path(".voiceflow/dvc-remote").resolve()
    shared = Path(os.environ.get("VOICEFLOW_SHARED", "../shared")).resolve()
    # Before gigabytes are installed for it.
    if not any(place.is_dir() for place in (shared / "data" / "speech", remote)):
        raise PlatformError(NO_DATA)
    tree = (HOME / "code").resolve()
    if not (tree / "params.yaml").is_file():
        say(f"a git worktree of 0.1.0 in {tree}")
        _run(["git", "worktree", "prune"])
        _run(["git", "worktree", "add", "--quiet", "--force", "--detach", str(tree), COMMIT])
    say("its libraries, as it pinned them (2.5 GB, about 3 minutes)")
    _run(["make", "--no-print-directory", "setup", f"PYTHON={sys.executable}", "VENV=.venv"], cwd=tree)
    python = str(tree / ".venv" / "bin" / "python")
    say("its data")
    _run(
        [python, "-m", "dvc", "remote", "add", "--quiet", "--local", "--force", "--default", "here", str(remote)],
        cwd=tree,
    )
    _run([python, "-m", "voiceflow.cli", "data", "ensure"], cwd=tree, env={"VOICEFLOW_SHARED": str(shared)})
    if not (tree / "data" / "speech").is_dir() or not (tree / "data" / "meetings").is_dir():
        raise PlatformError(NO_DATA)
    if changed := _run(["git", "status", "--porcelain", "-uno", "data"], cwd=tree).split():
        say(f"{', '.join(changed[1::2])}: another version than 0.1.0 pins; the digests will tell whether that matters")
    say("32 conversations to choose by, 240 to judge by")
    _run([python, "-m", "voiceflow.cli", "stage", "prepare", "--profile", PROFILE], cwd=tree)
    made = tree / "data" / "prepared"
    (made / "plans.json").write_text(_run([python, "-c", PLANS, PROFILE], cwd=tree), encoding="utf-8")
    for kind in ("audio", "rttm"):
        shutil.rmtree(made / kind / "train")
    lines = (made / "recordings.jsonl").read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if json.loads(line)["split"] != "train"]
    (made / "recordings.jsonl").write_text("\n".join(kept) + "\n", encoding="utf-8")
    shutil.rmtree(DATASET, ignore_errors=True)
    shutil.move(made, DATASET)


def _run(command: list[str], *, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> str:
    clean = {
        name: value for name, value in os.environ.items() if name not in ("VOICEFLOW_HOME", "MAKEFLAGS", "MAKELEVEL")
    }
    done = subprocess.run(command, cwd=cwd, env=clean | dict(env or {}), capture_output=True, text=True, check=False)
    if done.returncode:
        hint = "; a shallow clone lacks it: `git fetch --unshallow`" if command[:2] == ["git", "worktree"] else ""
        raise PlatformError(f"{' '.join(command[:4])} failed: {(done.stderr or done.stdout).strip()[-600:]}{hint}")
    return done.stdout


@dataclass
class Comparison:
    """A dataset beside the digests of the frozen one."""

    faults: list[str] = field(default_factory=list)
    num_recordings: int = 0
    num_rounded: int = 0
    """Whose audio is the same within `MAX_DIFFERENCE`, but not to the bit."""
    largest: float = 0.0
    """Difference of full scale among those."""

    @property
    def sentence(self) -> str:
        """What was found."""
        if self.faults:
            return f"{self.num_recordings} recordings, {len(self.faults)} faults: {'; '.join(self.faults[:5])}"
        if self.num_rounded:
            return (
                f"{self.num_recordings} recordings as frozen; the audio of {self.num_rounded} differs in its last bits, as it "
                f"does on another processor (at most {self.largest:.1e} of full scale)"
            )
        return f"{self.num_recordings} recordings as frozen, to the bit"


def compare(folder: Path, table: Path = TABLE) -> Comparison:
    """Compare plans, turns and audio with what was frozen."""
    frozen = {row["name"]: row for row in json.loads(table.read_text(encoding="utf-8"))["recordings"]}
    samples = dict(zip(frozen, np.load(table.with_name(SAMPLES)), strict=True))
    found = Comparison()
    recordings = {recording.name: recording for recording in read_recordings(folder, all_of_them=True)}
    found.faults += [f"{name} is missing" for name in sorted(set(frozen) - set(recordings))]
    found.faults += [f"{name} is new" for name in sorted(set(recordings) - set(frozen))]
    plans = json.loads((folder / "plans.json").read_text(encoding="utf-8"))
    for name in sorted(set(frozen) & set(recordings)):
        row, kept = describe(folder, recordings[name], plans.get(name))
        found.num_recordings += 1
        wrong = [key for key in frozen[name] if key != "audio" and row[key] != frozen[name][key]]
        found.faults += [f"{name}: another {key}" for key in wrong]
        if row["audio"] != frozen[name]["audio"]:
            difference = float(np.abs(kept.astype(np.float64) - samples[name]).max()) / 32768.0
            if difference > MAX_DIFFERENCE:
                found.faults.append(f"{name}: other audio ({difference:.1e} of full scale)")
            else:
                found.num_rounded += 1
                found.largest = max(found.largest, difference)
    return found


def describe(folder: Path, recording: Recording, plan: Any) -> tuple[Row, np.ndarray]:
    """Digests of a recording, and the samples of it that are kept."""
    pcm16_N = soundfile.read(folder / recording.audio, dtype="int16")[0]
    turns = [[turn.start_s, turn.end_s, turn.speaker] for turn in read_turns(folder, recording)]
    row = {
        "name": recording.name,
        "split": recording.split,
        "condition": recording.condition,
        "speakers": recording.speakers,
        "plan": plan,
        "num_samples": len(pcm16_N),
        "turns": hashlib.sha256(json.dumps(turns).encode()).hexdigest(),
        "audio": hashlib.sha256(pcm16_N.astype("<i2").tobytes()).hexdigest(),
    }
    at = np.random.default_rng(zlib.crc32(recording.name.encode())).integers(0, len(pcm16_N), NUM_SAMPLES)
    return row, pcm16_N[at]


def write(folder: Path, table: Path = TABLE) -> None:
    """Freeze what is there: once, for a release."""
    plans = json.loads((folder / "plans.json").read_text(encoding="utf-8"))
    rows, samples = zip(
        *(describe(folder, one, plans.get(one.name)) for one in read_recordings(folder, all_of_them=True)), strict=True
    )
    table.parent.mkdir(exist_ok=True)
    head = json.dumps({"commit": COMMIT, "profile": PROFILE, "setting": SETTING}, indent=1)[1:-2]
    lines = ",\n".join(f"  {json.dumps(row)}" for row in rows)
    table.write_text(f'{{{head},\n "recordings": [\n{lines}\n ]\n}}\n', encoding="utf-8")
    np.save(table.with_name(SAMPLES), np.stack(samples))


def main() -> None:
    """Make, or compare, and tell."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="take what is there for the frozen set from now on")
    arguments = parser.parse_args()
    try:
        if arguments.write:
            make(print)
            write(DATASET)
        print(heldout_set())
    except PlatformError as err:
        sys.exit(f"error: {err}")


if __name__ == "__main__":
    main()
