"""evaluate: DER in true streaming mode, and the DER gate's verdict."""

from kfp import dsl

from components import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, packages_to_install=[], install_kfp_package=False)
def evaluate(
    config_json: str,
    code_revision: str,
    trained: dsl.Input[dsl.Model],
    dataset: dsl.Input[dsl.Dataset],
    validation: dsl.Input[dsl.Artifact],
    evaluation: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
):
    """Score the trained network; a gate that refuses is recorded, not raised.

    Args:
        config_json: EvaluateConfig.
        code_revision: Digest of the code, so that a change runs the step again.
        trained: Output of train.
        dataset: Output of prepare.
        validation: Report of validate, with the recordings that are kept out.
        evaluation: metrics.json, tables, hypotheses and plots.
        metrics: Headline figures.
    """
    import json
    from pathlib import Path

    import mlflow

    from voiceflow.adapters.progress import StageProgress
    from voiceflow.adapters.tracking import log_report, tracking_run
    from voiceflow.config import EvaluateConfig, parse_config
    from voiceflow.stages.dataset import adopt_quarantine
    from voiceflow.stages.evaluate import evaluate as run

    progress = StageProgress("evaluate")
    adopt_quarantine(Path(dataset.path), Path(validation.path))
    folder = Path(evaluation.path)
    config = parse_config(EvaluateConfig, config_json, name="evaluate")
    figures = run(config, Path(trained.path), Path(dataset.path), folder, progress=progress)
    run_id = json.loads((Path(trained.path) / "run.json").read_text(encoding="utf-8"))["run_id"]
    with tracking_run(run_id):
        log_report("evaluate", figures)
        mlflow.log_artifacts(str(folder / "plots"), "figures")
        mlflow.log_artifact(str(folder / "metrics.json"), "evaluate")
        mlflow.log_artifact(str(folder / "recordings.csv"), "evaluate")
    for name, value in figures["test"]["overall"].items():
        metrics.log_metric(name, float(value))
    Path(metrics.path).write_text(json.dumps(figures["test"]["overall"]), encoding="utf-8")
