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
        evaluation: Output of evaluate.
        latency_report: Output of latency.
        report: promote.json, beside copies of the reports it judged.

    Returns:
        champion, challenger or nothing.
    """
    import json
    import shutil
    from pathlib import Path

    import mlflow

    from voiceflow.adapters.progress import StageProgress
    from voiceflow.adapters.registry import MlflowRegistry, log_report, tracking_run
    from voiceflow.config import EvaluateConfig, PromoteConfig, parse_config
    from voiceflow.stages.export import FILES
    from voiceflow.stages.promote import promote as run

    progress = StageProgress("promote")
    progress("compare with the champion", 0, 1)
    folder = Path(report.path)
    reports = {
        "evaluate": Path(evaluation.path) / "metrics.json",
        "export": Path(exported.path) / "export.json",
        "latency": Path(latency_report.path) / "latency.json",
    }
    run_id = json.loads((Path(exported.path) / "run.json").read_text(encoding="utf-8"))["run_id"]
    summary = run(
        parse_config(PromoteConfig, config_json, name="promote"),
        parse_config(EvaluateConfig, evaluate_json, name="evaluate"),
        Path(exported.path) / FILES["int8"],
        Path(dataset.path),
        reports,
        folder,
        MlflowRegistry(),
        run_id=run_id,
        accept_equal=accept_equal,
    )
    for name, path in reports.items():
        shutil.copyfile(path, folder / f"{name}.json")
    (folder / "inputs.json").write_text(
        json.dumps({"dataset": dataset.path, "exported": exported.path}), encoding="utf-8"
    )
    with tracking_run(run_id):
        mlflow.set_tag("becomes", summary["becomes"])
        log_report("promote", summary["comparison"])
        mlflow.log_artifact(str(folder / "promote.json"), "promote")
    progress("compare with the champion", 1, 1)
    progress.event("result", folder=str(folder))
    return summary["becomes"]
