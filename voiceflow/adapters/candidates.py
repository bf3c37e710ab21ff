"""What `voiceflow promote` is given: a version, a run, or the files that lie here."""

import json
from pathlib import Path

from voiceflow.adapters.registry import MODEL_NAME, MlflowRegistry
from voiceflow.contract import HALF_FILE, MODEL_FILE, REFERENCE_FILE
from voiceflow.errors import ModelError
from voiceflow.stages.export import FILES
from voiceflow.stages.judging import Candidate

REPORTS = ("export", "latency")


def find_candidate(registry: MlflowRegistry, named: str | None, *, models: Path, reports: Path) -> Candidate:
    """A candidate by what a user calls it.

    Args:
        registry: Where versions and runs live.
        named: A version, ``models:/voiceflow-diarizer@challenger`` or ``.../3``, a run id; None for local files.
        models: Folder of trained and exported models, for local files.
        reports: Folder of reports, for local files.

    Raises:
        ModelError: No such thing.
    """
    if named is None:
        return _exported(models / "exported", reports / "latency" / "latency.json")
    if named.startswith(f"models:/{MODEL_NAME}"):
        which = named.removeprefix(f"models:/{MODEL_NAME}")
        version = registry.version_of(which[1:]) if which.startswith("@") else which.lstrip("/")
        if not version:
            raise ModelError(f"{named}: no such version; see `voiceflow history`")
        return _registered(registry, version)
    if named.isdigit():
        return _registered(registry, named)
    folder = registry.download_run(named)
    return _exported(folder, folder / "latency.json", run_id=named)


def _registered(registry: MlflowRegistry, version: str) -> Candidate:
    tags = registry.tags_of(version)
    folder = registry.download(version)
    paths = {name: folder / f"{name}.json" for name in REPORTS}
    return Candidate(
        folder / MODEL_FILE,
        {name: path for name, path in paths.items() if path.is_file()},
        digest=tags.get("digest", ""),
        version=version,
    )


def _exported(folder: Path, latency: Path, *, run_id: str | None = None) -> Candidate:
    model, export = folder / FILES["int8"], folder / "export.json"
    if not model.is_file():
        raise ModelError(f"{model} is missing; run `voiceflow stage export` first, or name a version or a run")
    paths = {"export": export, "latency": latency}
    beside = {HALF_FILE: folder / FILES["fp16"], REFERENCE_FILE: folder / REFERENCE_FILE}
    recorded = ""
    if export.is_file():
        recorded = str(json.loads(export.read_text(encoding="utf-8"))["files"]["int8"]["digest"])
    return Candidate(
        model,
        {name: path for name, path in paths.items() if path.is_file()},
        {name: path for name, path in beside.items() if path.is_file()},
        digest=recorded,
        run_id=run_id,
    )
