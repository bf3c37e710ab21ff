"""DVC and git: which data, which code, and how they get here."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from voiceflow.adapters.home import shared
from voiceflow.config import PrepareConfig
from voiceflow.corpora.read import ABOUT, AUDIO_SUFFIXES
from voiceflow.errors import DataError, PlatformError
from voiceflow.simulation.voices import synthesise_corpus

SYNTHETIC = "data/synthetic"
SHARED_SOURCES = {"data/speech": "data/speech", "data/meetings": "data/meeting-excerpts"}
"""Where tracked folders come from when neither DVC's cache nor its remote has them: below $VOICEFLOW_SHARED."""
SYNTHETIC_SPEAKERS, SYNTHETIC_SENTENCES, SYNTHETIC_SEED = 72, 12, 20


PLACES = ("corpus", "recorded", "noises", "rooms")
"""Folders that `prepare` reads, as params.yaml and the pipeline call them; all but the corpus may be missing."""


@dataclass(frozen=True)
class DataVersion:
    """Data that is here, and what version of it."""

    folders: dict[str, str]
    """Paths by the names of `PLACES`, of those that there are."""
    revision: str
    """DVC's digests of all of them; the data revision in MLflow, in cache keys and in model files."""


def dvc(*arguments: str) -> str:
    """Run a DVC command in this environment and return what it printed.

    Raises:
        PlatformError: With DVC's own words.
    """
    result = subprocess.run([sys.executable, "-m", "dvc", *arguments], capture_output=True, text=True, check=False)
    if result.returncode != 0:
        said = (result.stderr or result.stdout).strip()
        raise PlatformError(f"`dvc {' '.join(arguments)}` failed: {said}")
    return result.stdout


def _ensure_corpora(folder: Path, say: Callable[[str], None]) -> bool:
    """Have every tracked corpus of a folder in the workspace.

    Raises:
        PlatformError: One is neither here nor in the remote.
    """
    for pointer in sorted(folder.glob("*.dvc")):
        if not pointer.with_suffix("").is_dir():
            dvc("pull", str(pointer), "--quiet")
            say(f"{pointer.with_suffix('')}: pulled from the DVC remote")
    return True


def pointers_of(path: str, repo: Path = Path()) -> list[Path]:
    """The .dvc file of a tracked path, or those of the corpora in it, where it is a folder of corpora.

    Raises:
        DataError: The path is not tracked.
    """
    pointer = repo / f"{path}.dvc"
    pointers = [pointer] if pointer.is_file() else sorted((repo / path).glob("*.dvc"))
    if not pointers:
        raise DataError(f"{pointer} is missing: track the data with `dvc add {path}`, or run `voiceflow data ensure`")
    return pointers


def digest_of(path: str, repo: Path = Path()) -> str:
    """DVC's digest of a tracked path, from its .dvc file; of several corpora each with its name.

    Raises:
        DataError: The path is not tracked.
    """
    return _joined({pointer: pointer.read_text(encoding="utf-8") for pointer in pointers_of(path, repo)}, path)


def _joined(pointers: Mapping[Path, str], path: str) -> str:
    digests = {pointer.stem: str(yaml.safe_load(text)["outs"][0]["md5"]) for pointer, text in pointers.items()}
    if list(digests) == [Path(path).name]:
        return next(iter(digests.values()))
    return ",".join(f"{name}:{digest}" for name, digest in sorted(digests.items()))


def revision_of(folders: Mapping[str, str], repo: Path = Path()) -> str:
    """The data revision: the digests of the folders that `prepare` reads, by the names of `PLACES`."""
    return joined_revision({name: digest_of(path, repo) for name, path in folders.items()})


def joined_revision(digests: Mapping[str, str]) -> str:
    """One revision of several digests; noises and rooms are told by their names."""
    return "+".join(
        digests[name] if name in ("corpus", "recorded") else f"{name}={digests[name]}"
        for name in PLACES
        if name in digests
    )


def tracked_folders(config: PrepareConfig, repo: Path = Path()) -> dict[str, str]:
    """What the configured folders are called, less noises and rooms that nobody has put there yet.

    Raises:
        DataError: The corpus or the recordings are not tracked, or noises or rooms that are there.
    """
    folders = {"corpus": config.corpus} | ({"recorded": config.recorded} if config.recorded else {})
    for path in folders.values():
        pointers_of(path, repo)
    for name, sounds in (("noises", config.noises), ("rooms", config.rooms)):
        if sounds:
            _refuse_untracked(repo / sounds)
        if sounds and ((repo / f"{sounds}.dvc").is_file() or list((repo / sounds).glob("*.dvc"))):
            folders[name] = sounds
    return folders


def _refuse_untracked(folder: Path) -> None:
    """Sounds that no pointer names would be used under a revision that does not tell of them."""
    if folder.with_name(f"{folder.name}.dvc").is_file():
        return
    tracked = {pointer.stem for pointer in folder.glob("*.dvc")}
    for root, _, names in os.walk(folder, followlinks=True):
        below = Path(root).relative_to(folder).parts
        for name in names:
            is_sound = Path(name).suffix.lower() in AUDIO_SUFFIXES or name == ABOUT
            if is_sound and (below[0] if below else name) not in tracked:
                raise DataError(
                    f"{Path(root) / name} is not tracked by DVC: run `dvc add {folder}/FOLDER`, or take it away"
                )


def track(path: Path, say: Callable[[str], None]) -> None:
    """Have DVC track a folder and put it into its remote; says so where there is no DVC here.

    Raises:
        PlatformError: DVC cannot.
    """
    if not Path(".dvc").is_dir():
        say(f"{path}: not versioned, for this is no DVC repository (`dvc init` makes one)")
        return
    dvc("add", str(path), "--quiet")
    try:
        dvc("push", f"{path}.dvc", "--quiet")
        say(f"{path}: version {digest_of(str(path))[:12]}, in the DVC remote; commit {path}.dvc")
    except PlatformError as err:
        say(f"{path}: version {digest_of(str(path))[:12]}; the DVC remote cannot be reached, push it later ({err})")


def ensure_data(config: PrepareConfig, say: Callable[[str], None]) -> DataVersion:
    """Have the configured data in the workspace and in the DVC remote; fall back to the embedded voices.

    Looks in the workspace, DVC's cache and remote, then $VOICEFLOW_SHARED. Where the corpus is in none of
    them, voices are made with espeak-ng; recorded conversations are then left out.

    Args:
        config: Names the folders.
        say: Told what was done, one sentence a call.
    """
    if _ensure_tracked(config.corpus, say):
        recorded = config.recorded if config.recorded and _ensure_tracked(config.recorded, say) else None
        folders = tracked_folders(config.model_copy(update={"recorded": recorded}))
        for name in ("noises", "rooms"):
            if name in folders:
                _ensure_tracked(folders[name], say)
        return DataVersion(folders, revision_of(folders))
    if not Path(SYNTHETIC).is_dir():
        say(f"{config.corpus} is nowhere to be had: making {SYNTHETIC_SPEAKERS} voices with espeak-ng in {SYNTHETIC}")
        partial = Path(f"{SYNTHETIC}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        synthesise_corpus(
            partial, num_speakers=SYNTHETIC_SPEAKERS, sentences_each=SYNTHETIC_SENTENCES, seed=SYNTHETIC_SEED
        )
        partial.rename(SYNTHETIC)
    if not Path(f"{SYNTHETIC}.dvc").is_file():
        dvc("add", SYNTHETIC, "--quiet")
        dvc("push", f"{SYNTHETIC}.dvc", "--quiet")
    say(f"using the embedded espeak-ng voices in {SYNTHETIC}: figures on them say little about real speech")
    folders = {"corpus": SYNTHETIC}
    return DataVersion(folders, revision_of(folders))


def _ensure_tracked(path: str, say: Callable[[str], None]) -> bool:
    """Whether a tracked folder is in the workspace now, at its recorded version where it has one."""
    pointer = Path(f"{path}.dvc")
    if Path(path).is_dir() and pointer.is_file():
        return True
    if not pointer.is_file() and list(Path(path).glob("*.dvc")):
        return _ensure_corpora(Path(path), say)
    if pointer.is_file():
        try:
            dvc("pull", str(pointer), "--quiet")
            say(f"{path}: pulled from the DVC remote")
            return True
        except PlatformError:
            shutil.rmtree(path, ignore_errors=True)
    folder = shared()
    source = folder / SHARED_SOURCES[path] if folder and path in SHARED_SOURCES else None
    if not Path(path).is_dir():
        if source is None or not source.is_dir():
            return False
        shutil.copytree(source, path)
    before = digest_of(path) if pointer.is_file() else None
    dvc("add", path, "--quiet")
    dvc("push", str(pointer), "--quiet")
    after = digest_of(path)
    changed = before is not None and before != after
    say(
        f"{path}: taken from $VOICEFLOW_SHARED, version {after[:12]}"
        + (" (differs from the one in git)" if changed else "")
    )
    return True


def fetch(repo: str, path: str, output: Path, *, rev: str | None) -> str:
    """Check out a tracked path of a DVC repository into `output`, whatever the workspace holds.

    Returns:
        DVC's digest of what was fetched.

    Raises:
        PlatformError: No such repository, revision or path, or its remote cannot be reached.
    """
    arguments = ["get", repo, path, "--out", str(output), "--force", "--quiet"] + (["--rev", rev] if rev else [])
    dvc(*arguments)
    if rev or not Path(repo).is_dir():
        return _digest_at(repo, path, rev)
    return digest_of(path, Path(repo))


def _digest_at(repo: str, path: str, rev: str | None) -> str:
    """`digest_of` in a repository at a revision."""
    from dvc.api import DVCFileSystem

    files = DVCFileSystem(repo, rev=rev)
    names = [f"{path}.dvc"] if files.exists(f"{path}.dvc") else sorted(files.glob(f"{path}/*.dvc"))
    return _joined({Path(name): files.read_text(name) for name in names}, path)


def fetch_labels(path: str, output: Path, *, rev: str) -> None:
    """All of a tracked path at a git revision of this repository into a folder; audio as empty files.

    Raises:
        PlatformError: No such revision or path, or DVC's cache and remote do not have it.
    """
    from dvc.api import DVCFileSystem

    try:
        files = DVCFileSystem(".", rev=rev)
        names = list(files.find(path))
        for name in names:
            target = output / Path(name).relative_to(path)
            target.parent.mkdir(parents=True, exist_ok=True)
            if Path(name).suffix.lower() in (*AUDIO_SUFFIXES, ".tar"):
                target.touch()
            else:
                files.get_file(name, str(target))
    except Exception as err:  # dvc, its storages and git raise errors of their own
        raise PlatformError(f"{path} at {rev} cannot be had from git and DVC: {err}; `dvc fetch` may help") from err
    if not names:
        raise PlatformError(f"{path} at {rev}: nothing is tracked there")


def data_commit(folders: Mapping[str, str]) -> str:
    """The last commit that changed which versions of these folders are used: it stays while other things change.

    Raises:
        PlatformError: No git here, or a pointer is not committed as it is.
    """
    pointers = [str(pointer) for path in folders.values() for pointer in pointers_of(path)]
    found = _git("log", "-1", "--format=%h", "--abbrev=12", "--", *pointers)
    changed = _git("status", "--porcelain", "--", *pointers)
    if not found or changed:
        raise PlatformError(
            f"expected {', '.join(pointers)} to be committed, so that pods can fetch that version; run `git commit` "
            "and `git push`, or pass --data-rev"
        )
    return found


def _git(*arguments: str) -> str:
    """What git says; "" where it fails."""
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def git_commit() -> str:
    """Commit of the code, with ``+changes`` if the working tree has any; ``unknown`` outside git.

    $VOICEFLOW_GIT_COMMIT comes first: images carry it, and `voiceflow run` gives it to its steps.
    """
    commit = os.environ.get("VOICEFLOW_GIT_COMMIT")
    if commit:
        return commit[:12] if re.fullmatch("[0-9a-f]{40}", commit) else commit
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        dirty = subprocess.run(
            ["git", "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head[:12] + ("+changes" if dirty.strip() else "")


def code_revision() -> str:
    """Digest of the library's and the components' sources: a step is run again when they change."""
    package = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256()
    skipped = {"cli", "__pycache__"}
    files = [
        path for path in package.rglob("*") if path.is_file() and not skipped & set(path.relative_to(package).parts)
    ]
    files += sorted((package.parent / "components").glob("*.py"))
    for path in sorted(files):
        digest.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]
