"""export: ONNX files that meet the contract, with parity and int8 gates."""

from kfp import dsl

from components import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, packages_to_install=[], install_kfp_package=False)
def export(
    config_json: str,
    evaluate_json: str,
    version: str,
    data_revision: str,
    code_revision: str,
    trained: dsl.Input[dsl.Model],
    dataset: dsl.Input[dsl.Dataset],
    validation: dsl.Input[dsl.Artifact],
    exported: dsl.Output[dsl.Model],
):
    """Write fp32, int8 and fp16 files and export.json.

    Args:
        config_json: ExportConfig.
        evaluate_json: EvaluateConfig: the latency at which DER is measured.
        version: Semantic version of the model.
        data_revision: DVC revision of the data.
        code_revision: Digest of the code, so that a change runs the step again.
        trained: Output of train.
        dataset: Output of prepare.
        validation: Report of validate, with the recordings that are kept out.
        exported: The files and export.json.
    """
    import json
    from pathlib import Path

    import mlflow

    from voiceflow.adapters.data_versions import git_commit
    from voiceflow.adapters.progress import StageProgress
    from voiceflow.adapters.tracking import log_report, tracking_run
    from voiceflow.config import EvaluateConfig, ExportConfig, parse_config
    from voiceflow.stages.dataset import adopt_quarantine
    from voiceflow.stages.export import export as run

    progress = StageProgress("export")
    adopt_quarantine(Path(dataset.path), Path(validation.path))
    run_id = json.loads((Path(trained.path) / "run.json").read_text(encoding="utf-8"))["run_id"]
    summary = run(
        parse_config(ExportConfig, config_json, name="export"),
        parse_config(EvaluateConfig, evaluate_json, name="evaluate"),
        Path(trained.path),
        Path(dataset.path),
        Path(exported.path),
        version=version,
        data_revision=data_revision,
        git_commit=git_commit(),
        run_id=run_id,
        progress=progress,
    )
    with tracking_run(run_id):
        log_report("export", summary)
        mlflow.log_artifacts(exported.path, "exported")
    (Path(exported.path) / "run.json").write_text(json.dumps({"run_id": run_id}), encoding="utf-8")
