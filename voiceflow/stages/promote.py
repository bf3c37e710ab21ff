"""promote: register a model with its evidence, compare it with the champion, move aliases."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from voiceflow.audio import file_digest
from voiceflow.config import EvaluateConfig, PromoteConfig
from voiceflow.contract import read_metadata
from voiceflow.errors import ModelError
from voiceflow.gates import Compared, Verdict, compare, decide
from voiceflow.metrics import summarise
from voiceflow.runtime import StepModel, pretrained_path
from voiceflow.stages.scoring import SplitScores, errors_s, held_out, slices_of

REQUIRED_GATES = ("der", "parity", "int8", "size", "latency")


class Registry(Protocol):
    """Where versions and aliases live; adapters/registry.py has it on MLflow."""

    def version_of(self, alias: str) -> str | None:
        """Version that an alias points at, or None."""
        ...

    def register(self, files: dict[str, Path], *, tags: dict[str, str], run_id: str | None) -> str:
        """Add a version with these files (name to path) and return its number."""
        ...

    def set_alias(self, alias: str, version: str) -> None:
        """Point an alias at a version."""
        ...

    def download(self, version: str) -> Path:
        """Folder with the files of a version."""
        ...

    def find_digest(self, digest: str) -> str | None:
        """Version whose model file has this digest, or None."""
        ...


def ensure_champion(registry: Registry) -> str:
    """On a registry without a champion, register the weights that ship in the package as champion.

    Returns:
        The champion's version.
    """
    champion = registry.version_of("champion")
    if champion is not None:
        return champion
    version = registry.register(
        {"diarizer.onnx": pretrained_path()}, tags=_tags(pretrained_path(), "pretrained"), run_id=None
    )
    registry.set_alias("champion", version)
    return version


def promote(
    config: PromoteConfig,
    evaluation: EvaluateConfig,
    model_path: Path,
    dataset: Path,
    reports: dict[str, Path],
    output: Path,
    registry: Registry,
    *,
    run_id: str | None = None,
    accept_equal: bool = False,
) -> dict[str, Any]:
    """Decide what a model becomes, and do it; writes promote.json.

    The champion and the challenger are both streamed over the test split of `dataset`, so the
    comparison is paired. Gates must have been passed by exactly this file.

    Args:
        config: Margin and bootstrap.
        evaluation: Latency of the comparison and size of slices that count.
        model_path: The ONNX file that would be served.
        dataset: Output of `prepare`.
        reports: JSON reports with verdicts: evaluate, export, latency.
        output: Folder of promote.json.
        registry: Where versions and aliases live.
        run_id: MLflow run that made the model.
        accept_equal: Let a model that is not worse, but not better, become champion.

    Returns:
        The content of promote.json.
    """
    gates = read_gates(reports, file_digest(model_path))
    before = ensure_champion(registry)
    overall, slices, ders = _compare(config, evaluation, registry.download(before), model_path, dataset)
    decision = decide(gates, overall, slices, accept_equal=accept_equal)
    digest = file_digest(model_path)
    version = registry.find_digest(digest)
    if version is None:
        files = {"diarizer.onnx": model_path} | {f"{name}.json": path for name, path in reports.items()}
        version = registry.register(files, tags=_tags(model_path, decision.becomes), run_id=run_id)
    if version == before:
        decision = type(decision)("nothing", ["this very file is the champion already"])
    elif decision.becomes == "champion":
        registry.set_alias("previous", before)
        registry.set_alias("champion", version)
    elif decision.becomes == "challenger":
        registry.set_alias("challenger", version)
    summary = {
        "version": version,
        "digest": digest,
        "becomes": decision.becomes,
        "reasons": decision.reasons,
        "champion": registry.version_of("champion"),
        "champion_before": before,
        "accept_equal": accept_equal,
        "der": ders,
        "comparison": {"overall": asdict(overall)} | {name: asdict(value) for name, value in slices.items()},
        "gates": [gate.as_dict() for gate in gates],
    }
    output.mkdir(parents=True, exist_ok=True)
    (output / "promote.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    return summary


def read_gates(reports: dict[str, Path], digest: str) -> list[Verdict]:
    """All verdicts of the reports; a gate that nobody judged counts as refused.

    Raises:
        ModelError: The export report is about another file.
    """
    gates: list[Verdict] = []
    for name, path in reports.items():
        report = json.loads(path.read_text(encoding="utf-8"))
        if name == "export" and digest not in {row["digest"] for row in report["files"].values()}:
            raise ModelError(f"{path} tells of other files than the one with digest {digest[:12]}; export again")
        verdicts = report.get("gates") or [report["gate"]]
        gates += [Verdict(row["gate"], row["passed"], row["reasons"], row["figures"]) for row in verdicts]
    judged = {gate.gate for gate in gates}
    return gates + [
        Verdict(name, False, ["not judged: its report is missing"]) for name in REQUIRED_GATES if name not in judged
    ]


def _compare(
    config: PromoteConfig, evaluation: EvaluateConfig, champion: Path, model_path: Path, dataset: Path
) -> tuple[Compared, dict[str, Compared], dict[str, float]]:
    recordings = held_out(dataset)
    scores = {
        name: SplitScores(dataset, recordings, StepModel(path), latency_s=evaluation.latency_s).scores
        for name, path in (("champion", champion / "diarizer.onnx"), ("challenger", model_path))
    }

    def compared(names: list[str]) -> Compared:
        reference = [scores["champion"][name].reference_s for name in names]
        return compare(errors_s(scores["champion"], names), errors_s(scores["challenger"], names), reference, config)

    slices = {
        name: compared(members)
        for name, members in slices_of(recordings).items()
        if len(members) >= evaluation.min_slice_recordings
    }
    ders = {name: summarise(rows.values())["der"] for name, rows in scores.items()}
    return compared([recording.name for recording in recordings]), slices, ders


def _tags(model_path: Path, outcome: str) -> dict[str, str]:
    metadata = read_metadata(model_path)
    return {
        "digest": file_digest(model_path),
        "model_version": metadata.version,
        "precision": metadata.precision,
        "data_revision": metadata.data_revision,
        "git_commit": metadata.git_commit,
        "contract_version": str(metadata.contract_version),
        "decision": outcome,
        "der": json.dumps(metadata.der),
    }
