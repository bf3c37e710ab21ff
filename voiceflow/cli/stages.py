"""`voiceflow stage NAME`: one stage on the paths of dvc.yaml; what DVC calls."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

import voiceflow
from voiceflow.cli.console import out, stage_progress
from voiceflow.config import Params, load_params

DATASET, REPORTS, MODELS = Path("data/prepared"), Path("reports"), Path(".voiceflow/models")


class Stage(StrEnum):
    """Stages that run on files alone; promote is `voiceflow promote`."""

    PREPARE = "prepare"
    VALIDATE = "validate"
    TRAIN = "train"
    EVALUATE = "evaluate"
    EXPORT = "export"
    LATENCY = "latency"


def stage(
    name: Annotated[Stage, typer.Argument(help="Which stage.")],
    profile: Annotated[str | None, typer.Option(help="Profile of params.yaml.")] = None,
    params: Annotated[Path | None, typer.Option(help="Another params.yaml.")] = None,
    dataset: Annotated[Path, typer.Option(help="The prepared dataset.")] = DATASET,
    models: Annotated[Path, typer.Option(help="Folder of trained and exported models.")] = MODELS,
    reports: Annotated[Path, typer.Option(help="Folder of reports.")] = REPORTS,
    trained: Annotated[
        Path | None, typer.Option(help="evaluate: a trained network; by default that of --models.")
    ] = None,
    provider: Annotated[str, typer.Option(help="latency: cpu, cuda or tensorrt.")] = "cpu",
) -> None:
    """Run one stage on the paths of dvc.yaml."""
    values = load_params(params, profile=profile)
    with stage_progress() as progress:
        result = _run(name, values, progress, dataset, models, reports, trained, provider)
    out.print_json(json.dumps(result))


def _run(
    name: Stage,
    values: Params,
    progress: Any,
    dataset: Path,
    models: Path,
    reports: Path,
    trained: Path | None,
    provider: str,
) -> Any:
    if name is Stage.PREPARE:
        from voiceflow.adapters.data_versions import revision_of, tracked_folders
        from voiceflow.stages.prepare import prepare

        folders = tracked_folders(values.prepare)
        places: dict[str, Any] = {name: Path(path) for name, path in folders.items()}
        summary = prepare(values.prepare, dataset, **places, revision=revision_of(folders), progress=progress)
        return summary["splits"]
    if name is Stage.VALIDATE:
        from voiceflow.stages.dataset import adopt_quarantine
        from voiceflow.stages.validate import require_valid, validate

        verdict = validate(values.validate_, dataset, reports / "validate", progress=progress)
        require_valid(verdict, reports / "validate" / "validate.html")
        adopt_quarantine(dataset, reports / "validate")
        return {"passed": verdict["passed"], "report": str(reports / "validate" / "validate.html")}
    if name is Stage.TRAIN:
        from voiceflow.stages.train import train

        def watch(metrics: Any) -> None:
            shown = "" if metrics.dev_der is None else f", dev DER {100 * metrics.dev_der:.1f} %"
            progress("train" + shown if shown else "train", round(1000 * metrics.progress), 1000)

        return train(
            values.train,
            values.model,
            values.decision,
            dataset,
            models / "trained",
            watch=watch,
            loading=lambda done, total: progress("read recordings", done, total),
        )
    if name is Stage.EVALUATE:
        from voiceflow.stages.evaluate import evaluate

        figures = evaluate(
            values.evaluate, trained or models / "trained", dataset, reports / "evaluate", progress=progress
        )
        return {"test": figures["test"]["overall"], "gate": figures["gate"]}
    if name is Stage.EXPORT:
        from voiceflow.adapters.data_versions import git_commit
        from voiceflow.stages.dataset import read_summary
        from voiceflow.stages.export import export

        return export(
            values.export,
            values.evaluate,
            models / "trained",
            dataset,
            models / "exported",
            version=voiceflow.__version__,
            data_revision=str(read_summary(dataset)["revision"]),
            git_commit=git_commit(),
            run_id="",
            progress=progress,
        )
    from voiceflow.stages.export import FILES
    from voiceflow.stages.latency import latency

    model = models / "exported" / FILES["int8" if provider == "cpu" else "fp16"]
    return latency(values.latency, model, reports / "latency", provider=provider, progress=progress)
