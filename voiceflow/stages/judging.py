"""Judging a candidate: is it the file it is said to be, what do reports and probes say, how does it do in a trial."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from voiceflow.config import EvaluateConfig, PromoteConfig
from voiceflow.contract import ModelMetadata, read_metadata
from voiceflow.errors import DataError, ModelError
from voiceflow.gates import Verdict, device_gate
from voiceflow.runtime import StepModel
from voiceflow.stages.trial import Progress, Trial, probe, try_out

REQUIRED_GATES = ("parity", "int8", "size", "latency")
"""Of reports; the rest is judged here."""


@dataclass(frozen=True)
class Candidate:
    """A model file and what is known of it."""

    model: Path
    reports: dict[str, Path]
    """JSON reports with verdicts: export, latency."""
    files: dict[str, Path] = field(default_factory=dict)
    """Further files that a version carries, the one for GPUs, by name."""
    digest: str = ""
    """SHA-256 written down when it was exported or registered; empty where nobody did."""
    version: str | None = None
    run_id: str | None = None


def judge(
    config: PromoteConfig,
    evaluation: EvaluateConfig,
    candidate: Candidate,
    digest: str,
    dataset: Path,
    champion: Path,
    progress: Progress,
) -> tuple[list[Verdict], ModelMetadata | None, Trial | None]:
    """All verdicts on a candidate; the trial only of a file that is the one written down, loads and behaves.

    Args:
        config: Margins and bounds.
        evaluation: Latency of the comparison, and the DER gate.
        candidate: The file, with its reports.
        digest: Of the file as it lies here.
        dataset: Output of `prepare`.
        champion: The model file to compare with.
        progress: Called as work goes on.
    """
    reasons = []
    if candidate.digest and candidate.digest != digest:
        reasons.append(
            f"the file has digest {digest[:16]}, but {candidate.digest[:16]} was written down when it was made: "
            "it was changed since"
        )
    gates = [Verdict("integrity", not reasons, reasons, {"digest": digest})]
    try:
        metadata = read_metadata(candidate.model)
        model = StepModel(candidate.model)
    except ModelError as err:
        return [*gates, Verdict("contract", False, [str(err)])], None, None
    gates += [Verdict("contract", True), *read_gates(candidate.reports, digest, config)]
    if reasons:
        return gates, metadata, None
    progress("probe the file", 0, 4)
    gates.append(probe(model, dataset))
    if not gates[-1].passed:
        return gates, metadata, None
    trial = try_out(config, evaluation, StepModel(champion), model, dataset, progress=progress)
    return [*gates, *trial.gates], metadata, trial


def read_gates(reports: Mapping[str, Path], digest: str, config: PromoteConfig) -> list[Verdict]:
    """Verdicts of the reports; one of another file, or that nobody judged, counts as refused.

    Raises:
        DataError: A report that is no JSON.
    """
    gates: list[Verdict] = []
    digests: set[str] = {digest}
    for name in ("export", "latency"):
        path = reports.get(name)
        if path is None or not path.is_file():
            continue
        try:
            report = json.loads(path.read_text(encoding="utf-8"))
            verdicts = [Verdict(row["gate"], row["passed"], row["reasons"], row["figures"]) for row in report["gates"]]
            told = {row["digest"] for row in report["files"].values()} if name == "export" else {report["digest"]}
        except (ValueError, KeyError, TypeError) as err:
            raise DataError(f"{path}: not a report of {name} ({err!r}); run the stage again") from err
        if not told & digests:
            wrong = f"its results are of the file {min(told)[:16]}, not of {digest[:16]}: run the {name} stage again"
            verdicts = [Verdict(verdict.gate, False, [wrong]) for verdict in verdicts]
        elif name == "export":
            digests |= told  # a GPU times the fp16 file of the same export
        else:
            gates.append(device_gate(str(report.get("device", "")), config))
        gates += verdicts
    judged = {gate.gate for gate in gates}
    return gates + [
        Verdict(name, False, ["not judged: its report is missing"]) for name in REQUIRED_GATES if name not in judged
    ]
