"""latency: times one model step on the device at hand; on a cluster that is a T4 node."""

from kfp import dsl

from components import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, packages_to_install=[], install_kfp_package=False)
def latency(
    config_json: str,
    provider: str,
    code_revision: str,
    exported: dsl.Input[dsl.Model],
    report: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
):
    """Measure p50, p95 and p99 by batch size and judge them; a refusal is recorded, not raised.

    Args:
        config_json: LatencyConfig.
        provider: cpu, cuda or tensorrt; the GPU ones time the fp16 file.
        code_revision: Digest of the code, so that a change runs the step again.
        exported: Output of export.
        report: latency.json.
        metrics: p99 by batch size.
    """
    import json
    from pathlib import Path

    import mlflow

    from voiceflow.adapters.progress import StageProgress
    from voiceflow.adapters.tracking import log_report, tracking_run
    from voiceflow.config import LatencyConfig, parse_config
    from voiceflow.stages.export import FILES
    from voiceflow.stages.latency import latency as run

    progress = StageProgress("latency")
    model = Path(exported.path) / FILES["int8" if provider == "cpu" else "fp16"]
    config = parse_config(LatencyConfig, config_json, name="latency")
    summary = run(config, model, Path(report.path), provider=provider, progress=progress)
    run_id = json.loads((Path(exported.path) / "run.json").read_text(encoding="utf-8"))["run_id"]
    with tracking_run(run_id):
        log_report("latency", summary)
        mlflow.log_artifact(str(Path(report.path) / "latency.json"), "exported")
    for batch, row in summary["batches"].items():
        metrics.log_metric(f"p99_ms_batch_{batch}", float(row["p99_ms"]))
    Path(metrics.path).write_text(json.dumps(summary["batches"]), encoding="utf-8")
