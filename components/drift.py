"""drift: compares live streams with the champion's reference; trains where they have drifted, if so asked."""

from kfp import dsl

from components import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, packages_to_install=[], install_kfp_package=False)
def drift(
    config_json: str,
    statistics: str,
    reference: str,
    report: dsl.Output[dsl.HTML],
    verdict: dsl.Output[dsl.Artifact],
) -> str:
    """Compare the last streams with the reference and log the report to MLflow.

    Args:
        config_json: DriftConfig.
        statistics: Folder or redis:// address that servers write to.
        reference: A file of statistics to compare with; empty for those logged with the champion.
        report: Evidently's page.
        verdict: Folder of drift.json and what else was written.

    Returns:
        `drifted`, `calm` or `too few`.
    """
    import shutil
    from pathlib import Path

    from voiceflow.adapters.drift_report import EvidentlyComparer
    from voiceflow.adapters.progress import StageProgress
    from voiceflow.adapters.references import champion_reference, log_drift, read_reference
    from voiceflow.adapters.stream_log import stream_log_at
    from voiceflow.config import DriftConfig, parse_config
    from voiceflow.stages.drift import PAGE
    from voiceflow.stages.drift import drift as run

    progress = StageProgress("drift")
    config = parse_config(DriftConfig, config_json, name="drift")
    model, digest, normal = ("", "", read_reference(Path(reference))) if reference else champion_reference()
    rows = stream_log_at(statistics).last(config.window_streams, digest=digest)
    folder = Path(verdict.path)
    found = run(config, normal, rows, folder, EvidentlyComparer(), model=model)
    if found["enough"]:
        shutil.copyfile(folder / PAGE, report.path)
        if not reference:
            log_drift(found, folder)
    progress.event("result", drifted=found["drifted"], folder=str(folder))
    verdict.metadata["slice"] = found["slice"]["name"] if found["slice"] else ""
    if not found["enough"]:
        return "too few"
    return "drifted" if found["drifted"] else "calm"
