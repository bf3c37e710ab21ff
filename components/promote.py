"""promote: registers the model and moves aliases by gates and the comparison with the champion."""

from kfp import dsl

from components import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, packages_to_install=[], install_kfp_package=False)
def promote(
    config_json: str,
    evaluate_json: str,
    accept_equal: bool,
    exported: dsl.Input[dsl.Model],
    dataset: dsl.Input[dsl.Dataset],
    validation: dsl.Input[dsl.Artifact],
    evaluation: dsl.Input[dsl.Artifact],
    latency_report: dsl.Input[dsl.Artifact],
    report: dsl.Output[dsl.Artifact],
) -> str:
    """Decide what the model becomes; a refusal is recorded, not raised.

    Args:
        config_json: PromoteConfig.
        evaluate_json: EvaluateConfig.
        accept_equal: Let a model that is not worse, but not better, become champion.
        exported: Output of export.
        dataset: Output of prepare.
        validation: Report of validate, with the recordings that are kept out.
        evaluation: Output of evaluate.
        latency_report: Output of latency.
        report: promote.json, beside copies of the reports it judged.

    Returns:
        champion, challenger or nothing.
    """
    import json
    import os
    import shutil
    from pathlib import Path

    import mlflow

    from voiceflow.adapters.bom import model_bom
    from voiceflow.adapters.progress import StageProgress
    from voiceflow.adapters.registry import MlflowRegistry
    from voiceflow.adapters.signing import SIGN_VARIABLE, sign_folder
    from voiceflow.adapters.tracking import log_report, tracking_run
    from voiceflow.config import EvaluateConfig, PromoteConfig, parse_config
    from voiceflow.contract import HALF_FILE
    from voiceflow.stages.dataset import adopt_quarantine
    from voiceflow.stages.export import FILES
    from voiceflow.stages.judging import Candidate
    from voiceflow.stages.promote import promote as run

    progress = StageProgress("promote")
    adopt_quarantine(Path(dataset.path), Path(validation.path))
    folder = Path(report.path)
    reports = {
        "export": Path(exported.path) / "export.json",
        "latency": Path(latency_report.path) / "latency.json",
    }
    run_id = json.loads((Path(exported.path) / "run.json").read_text(encoding="utf-8"))["run_id"]
    key = os.environ.get(SIGN_VARIABLE)
    summary = run(
        parse_config(PromoteConfig, config_json, name="promote"),
        parse_config(EvaluateConfig, evaluate_json, name="evaluate"),
        Candidate(
            Path(exported.path) / FILES["int8"],
            reports,
            {HALF_FILE: Path(exported.path) / FILES["fp16"]},
            digest=json.loads(reports["export"].read_text(encoding="utf-8"))["files"]["int8"]["digest"],
            run_id=run_id,
        ),
        Path(dataset.path),
        folder,
        MlflowRegistry(),
        by=f"pipeline run {run_id[:8]}",
        sign=(lambda bundle: sign_folder(bundle, Path(key))) if key else None,
        bill=lambda stated, der: model_bom(stated, der=der, licence="MIT"),
        accept_equal=accept_equal,
        progress=progress,
    )
    for name, path in (reports | {"evaluate": Path(evaluation.path) / "metrics.json"}).items():
        shutil.copyfile(path, folder / f"{name}.json")
    (folder / "inputs.json").write_text(
        json.dumps({"dataset": dataset.path, "exported": exported.path}), encoding="utf-8"
    )
    with tracking_run(run_id):
        mlflow.set_tag("becomes", summary["becomes"])
        log_report("promote", summary["comparison"])
        for name in ("promote.json", "card.md", "card.json"):
            if (folder / name).is_file():
                mlflow.log_artifact(str(folder / name), "promote")
        if (folder / "plots").is_dir():
            mlflow.log_artifacts(str(folder / "plots"), "promote/plots")
    progress.event("result", folder=str(folder))
    return summary["becomes"]
