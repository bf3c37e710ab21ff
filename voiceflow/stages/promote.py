"""promote: judge a model beside the champion and, if it passes, register it with its evidence and move aliases."""

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from voiceflow.audio import file_digest
from voiceflow.config import EvaluateConfig, PromoteConfig
from voiceflow.contract import MODEL_FILE, ModelMetadata, read_metadata
from voiceflow.errors import ModelError, PlatformError
from voiceflow.gates import Decision, Verdict, decide
from voiceflow.provenance import BILL, PROVENANCE, Provenance, state_provenance
from voiceflow.runtime import pretrained_path
from voiceflow.stages.card import write_card
from voiceflow.stages.judging import Candidate, judge
from voiceflow.stages.trial import Progress, Trial, as_tables

MAX_WHY = 2000
"""Characters of a reason in the log: it has to fit into a tag of MLflow."""


class Registry(Protocol):
    """Where versions and aliases live; adapters/registry.py has it on MLflow."""

    def version_of(self, alias: str) -> str | None:
        """Version that an alias points at, or None."""
        ...

    def num_versions(self) -> int:
        """How many there are."""
        ...

    def register(self, folder: Path, *, tags: Mapping[str, str], run_id: str | None) -> str:
        """Add a version with the files of a folder and return its number."""
        ...

    def set_alias(self, alias: str, version: str | None) -> None:
        """Point an alias at a version, or at none."""
        ...

    def tags_of(self, version: str) -> dict[str, str]:
        """What was written down about a version."""
        ...

    def download(self, version: str) -> Path:
        """Folder with the files of a version."""
        ...

    def find_digest(self, digest: str) -> str | None:
        """Newest version whose model file has this digest, or None."""
        ...

    def moving(self, entry: Mapping[str, str]) -> AbstractContextManager[Callable[[], None]]:
        """Nobody else moves aliases inside; if the block fails, now or in a crash, they are put back.

        What it yields is called when all is done: from then on nothing is put back.
        """
        ...

    def record(self, entry: Mapping[str, str]) -> None:
        """Add an entry to the log of who did what."""
        ...


class Deployment(Protocol):
    """What runs, where that is written down; adapters/gitops.py has it as manifests in git."""

    def check(self, version: str) -> None:
        """Raise what would stand in the way of `written`."""
        ...

    def written(self, version: str, digest: str, why: str) -> AbstractContextManager[Any]:
        """Name a version; if the block fails, all is as it was."""
        ...


Sign = Callable[[Path], None]
Bill = Callable[[Provenance, Mapping[str, float]], str]


def ensure_champion(registry: Registry) -> str:
    """On an empty registry, register the weights that ship in the package as champion.

    Returns:
        The champion's version.

    Raises:
        ModelError: There are versions, but none is champion.
    """
    champion = registry.version_of("champion")
    if champion is not None:
        return champion
    if registry.num_versions():
        raise ModelError(
            "the registry has versions but no champion: it was deleted, or its alias; "
            "name one with `voiceflow rollback --to VERSION`"
        )
    path = pretrained_path()
    with tempfile.TemporaryDirectory() as folder:
        shutil.copyfile(path, Path(folder) / MODEL_FILE)
        version = registry.register(Path(folder), tags=_tags(read_metadata(path), file_digest(path)), run_id=None)
    registry.set_alias("champion", version)
    registry.record(log_entry("begin", "", version, "the weights that ship in the package", by="voiceflow"))
    return version


def promote(
    config: PromoteConfig,
    evaluation: EvaluateConfig,
    candidate: Candidate,
    dataset: Path,
    output: Path,
    registry: Registry,
    *,
    by: str,
    deployment: Deployment | None = None,
    sign: Sign | None = None,
    bill: Bill | None = None,
    accept_equal: bool = False,
    dry_run: bool = False,
    progress: Progress = lambda what, done, total: None,
) -> dict[str, Any]:
    """Decide what a model becomes, and do it; writes promote.json, card.md, card.json and plots.

    Nothing is registered or moved for a model that is refused; the refusal is in the log.

    Args:
        config: Margins, bootstrap and bounds.
        evaluation: Latency of the comparison and size of slices that count.
        candidate: The file that would be served, with its reports.
        dataset: Output of `prepare`.
        output: Folder of the results.
        registry: Where versions and aliases live.
        by: Who promotes.
        deployment: Where it is written down what runs; None for nowhere.
        sign: Signs a folder.
        bill: Makes the bill of materials from provenance and DER by slice.
        accept_equal: Let a model that is not worse, but not better, become champion.
        dry_run: Judge, and do nothing.
        progress: Called as work goes on.

    Returns:
        The content of promote.json.

    Raises:
        PlatformError: The registry is gone, or somebody else was first; nothing is left half done.
    """
    before = ensure_champion(registry)
    if deployment is not None:
        deployment.check(before)  # what lies elsewhere than the champion is not looked for
    digest = file_digest(candidate.model)
    champion = registry.download(before) / MODEL_FILE
    gates, metadata, trial = judge(config, evaluation, candidate, digest, dataset, champion, progress)
    if trial is None:
        decision = Decision("nothing", [f"gate {gate.gate}: {reason}" for gate in gates for reason in gate.reasons])
    else:
        decision = decide(gates, trial.overall, trial.slices, accept_equal=accept_equal)
    version = candidate.version or registry.find_digest(digest)
    if version == before and decision.becomes != "nothing":
        decision = Decision("nothing", ["this very file is the champion already"])
    summary = _summary(digest, gates, metadata, trial, decision)
    summary |= {"version": version, "champion": before, "champion_before": before, "accept_equal": accept_equal}
    for stale in ("card.md", "card.json"):
        (output / stale).unlink(missing_ok=True)
    if trial is not None:
        latency = candidate.reports.get("latency")
        write_card(summary, json.loads(latency.read_text(encoding="utf-8")) if latency else {}, output)
    entry = log_entry("promote", before, version or "", "; ".join(decision.reasons), by=by) | {"digest": digest}
    if dry_run:
        pass
    elif decision.becomes == "nothing":
        registry.record(entry | {"action": "refuse"})
    else:
        assert metadata is not None
        is_unsigned = sign is not None and version is not None and registry.tags_of(version).get("signed") != "true"
        if version is None or (is_unsigned and candidate.version is None):
            stated = state_provenance(
                metadata,
                digest=digest,
                files={MODEL_FILE: digest} | {name: file_digest(path) for name, path in candidate.files.items()},
                params=[config.model_dump(mode="json"), evaluation.model_dump(mode="json")],
                gates=gates,
                made_at=entry["when"],
                made_by=by,
            )
            tags = _tags(metadata, digest) | {"signed": str(sign is not None).lower()}
            version = _register(registry, candidate, stated, output, tags, sign, bill)
        _move(registry, deployment, decision, entry | {"to": version}, version, before)
        summary |= {"version": version, "champion": version if decision.becomes == "champion" else before}
    output.mkdir(parents=True, exist_ok=True)
    (output / "promote.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    return summary


def _summary(
    digest: str, gates: Sequence[Verdict], metadata: ModelMetadata | None, trial: Trial | None, decision: Decision
) -> dict[str, Any]:
    """What was found out about a candidate, for promote.json and the card."""
    summary: dict[str, Any] = {
        "digest": digest,
        "becomes": decision.becomes,
        "reasons": decision.reasons,
        "metadata": None if metadata is None else metadata.model_dump(),
        "gates": [gate.as_dict() for gate in gates],
        "der": {},
        "slices": {},
        "by_latency": {},
        "comparison": {},
    }
    if trial is not None:
        compared = {"overall": trial.overall} | trial.slices
        summary["der"] = {name: trial.figures[name]["overall"]["der"] for name in ("champion", "candidate")}
        summary["slices"] = as_tables(trial.figures)
        summary["by_latency"] = trial.by_latency
        summary["comparison"] = {name: asdict(value) for name, value in compared.items()}
    return summary


def rollback(
    registry: Registry, *, to: str | None, why: str, by: str, deployment: Deployment | None = None
) -> dict[str, str]:
    """Make the previous champion, or a version, champion again; no gate is asked.

    Args:
        registry: Where versions and aliases live.
        to: Version; None for the one before.
        why: Goes into the log.
        by: Who does it.
        deployment: Where it is written down what runs.

    Returns:
        `champion` and `champion_before`.

    Raises:
        ModelError: There is nothing to go back to.
    """
    before = registry.version_of("champion") or ""
    version = to or registry.version_of("previous")
    if version is None:
        raise ModelError(
            "there is no previous champion to go back to; name a version with --to (see `voiceflow history`)"
        )
    if version == before:
        raise ModelError(f"version {version} is the champion already")
    digest = registry.tags_of(version).get("digest", "")
    entry = log_entry("rollback", before, version, why, by=by) | {"digest": digest}
    _move(registry, deployment, Decision("champion", [why]), entry, version, before)
    return {"champion": version, "champion_before": before}


def settle(
    registry: Registry, version: str, before: str, why: str, *, by: str, deployment: Deployment | None = None
) -> None:
    """Make a challenger that proved itself on live streams champion; its gates were passed when it was registered.

    Args:
        registry: Where aliases live.
        version: The challenger; where it is champion already there is nothing to do.
        before: The champion that it was compared with.
        why: Goes into the log.
        by: Who does it.
        deployment: Where it is written down what runs; None for nowhere.

    Raises:
        PlatformError: Another one became champion meanwhile.
    """
    if registry.version_of("champion") == version:
        return
    entry = log_entry("rollout", before, version, why, by=by) | {"digest": registry.tags_of(version).get("digest", "")}
    _move(registry, deployment, Decision("champion", [why]), entry, version, before)


def _move(
    registry: Registry,
    deployment: Deployment | None,
    decision: Decision,
    entry: Mapping[str, str],
    version: str,
    before: str,
) -> None:
    """Aliases, manifests and the log, all or none."""
    is_champion = decision.becomes == "champion"
    if deployment is not None and is_champion:
        deployment.check(version)
    with registry.moving(entry) as done:
        now = registry.version_of("champion") or ""
        if now != before:
            raise PlatformError(
                f"the champion was version {before or 'none'} when this was judged and is {now or 'none'} now; "
                "nothing was changed: run it again"
            )
        written: AbstractContextManager[Any] = nullcontext()
        if deployment is not None and is_champion:
            written = deployment.written(version, entry["digest"], entry["why"])
        with written:
            if is_champion:
                if before:
                    registry.set_alias("previous", before)
                if registry.version_of("challenger") == version:
                    registry.set_alias("challenger", None)
                # Last, for this is what everybody looks at.
                registry.set_alias("champion", version)
            else:
                registry.set_alias("challenger", version)
            done()
        registry.record({**entry, "becomes": decision.becomes})


def _register(
    registry: Registry,
    candidate: Candidate,
    stated: Provenance,
    output: Path,
    tags: Mapping[str, str],
    sign: Sign | None,
    bill: Bill | None,
) -> str:
    """Register the file with everything that is known of it, signed as a whole."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = {MODEL_FILE: candidate.model, **candidate.files}
        for target, path in {**files, **{f"{name}.json": path for name, path in candidate.reports.items()}}.items():
            shutil.copyfile(path, folder / target)
        for target in ("card.md", "card.json", "plots"):
            source = output / target
            if source.is_dir():
                shutil.copytree(source, folder / target)
            elif source.is_file():
                shutil.copyfile(source, folder / target)
        (folder / PROVENANCE).write_text(stated.model_dump_json(indent=2) + "\n", encoding="utf-8")
        if bill is not None:
            der = json.loads(tags["der"])
            (folder / BILL).write_text(bill(stated, der), encoding="utf-8")
        if sign is not None:
            sign(folder)
        return registry.register(folder, tags=tags, run_id=candidate.run_id)


def _tags(metadata: ModelMetadata, digest: str) -> dict[str, str]:
    return {
        "digest": digest,
        "model_version": metadata.version,
        "precision": metadata.precision,
        "data_revision": metadata.data_revision,
        "git_commit": metadata.git_commit,
        "contract_version": str(metadata.contract_version),
        "der": json.dumps(metadata.der),
    }


def log_entry(action: str, before: str, to: str, why: str, *, by: str) -> dict[str, str]:
    """An entry for `Registry.record`: who did what, from which version to which, when and why."""
    when = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {"action": action, "from": before, "to": to, "why": why[:MAX_WHY], "by": by, "when": when}
