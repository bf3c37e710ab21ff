"""train: trains the network and logs the run to MLflow."""

from kfp import dsl

from components import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, packages_to_install=[], install_kfp_package=False)
def train(
    config_json: str,
    model_json: str,
    decision_json: str,
    data_revision: str,
    code_revision: str,
    reason: str,
    dataset: dsl.Input[dsl.Dataset],
    validation: dsl.Input[dsl.Artifact],
    trained: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
):
    """Train on the dataset's train split, stop by its dev split.

    Args:
        config_json: TrainConfig.
        model_json: ModelConfig.
        decision_json: DecisionConfig to start from.
        data_revision: DVC revision of the data.
        code_revision: Digest of the code, so that a change runs the step again.
        reason: Why this run was started; a tag of the MLflow run.
        dataset: Output of prepare.
        validation: Report of validate, with the recordings that are kept out.
        trained: Weights, thresholds, learning curve, and run.json with the MLflow run.
        metrics: Summary figures.
    """
    import json
    from pathlib import Path

    import mlflow

    from voiceflow.adapters.data_versions import git_commit
    from voiceflow.adapters.progress import StageProgress
    from voiceflow.adapters.tracking import log_report, tracking_run
    from voiceflow.config import DecisionConfig, ModelConfig, TrainConfig, parse_config
    from voiceflow.stages.dataset import adopt_quarantine
    from voiceflow.stages.train import train as run

    progress = StageProgress("train")
    adopt_quarantine(Path(dataset.path), Path(validation.path))
    config = parse_config(TrainConfig, config_json, name="train")
    folder = Path(trained.path)

    def watch(step):
        if step.step % 10 == 0 or step.dev_der is not None:
            mlflow.log_metrics({f"train/{name}": value for name, value in step.losses.items()}, step=step.step)
            mlflow.log_metric("train/audio_s_per_s", step.audio_s_per_s, step=step.step)
        if step.dev_der is not None:
            mlflow.log_metric("train/dev_der", step.dev_der, step=step.step)
        told = f"train, dev DER {100 * step.dev_der:.1f} %" if step.dev_der is not None else "train"
        progress(told, round(1000 * step.progress), 1000)

    with tracking_run(name="training") as active:
        mlflow.set_tags({"data_revision": data_revision, "git_commit": git_commit(), "code_revision": code_revision})
        if reason:
            mlflow.set_tag("reason", reason)
        for prefix, text in (("train", config_json), ("model", model_json)):
            mlflow.log_params({f"{prefix}.{name}": value for name, value in json.loads(text).items()})
        summary = run(
            config,
            parse_config(ModelConfig, model_json, name="model"),
            parse_config(DecisionConfig, decision_json, name="decision"),
            Path(dataset.path),
            folder,
            watch=watch,
            loading=lambda done, total: progress("read recordings", done, total),
        )
        log_report("train/summary", summary)
        mlflow.log_artifact(str(folder / "curve.png"), "figures")
        mlflow.log_artifact(str(folder / "curve.csv"))
        (folder / "run.json").write_text(json.dumps({"run_id": active.info.run_id}), encoding="utf-8")
    for name in ("dev_frame_der", "training_minutes", "steps"):
        metrics.log_metric(name, float(summary[name]))
    Path(metrics.path).write_text(json.dumps(summary), encoding="utf-8")
