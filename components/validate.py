"""validate: refuses bad data, which stops the pipeline."""

from kfp import dsl

from components import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, packages_to_install=[], install_kfp_package=False)
def validate(config_json: str, code_revision: str, dataset: dsl.Input[dsl.Dataset], report: dsl.Output[dsl.Artifact]):
    """Check a dataset and write validate.json and validate.html.

    Args:
        config_json: ValidateConfig.
        code_revision: Digest of the code, so that a change runs the step again.
        dataset: Output of prepare.
        report: Folder of the reports.
    """
    from pathlib import Path

    from voiceflow.adapters.progress import StageProgress
    from voiceflow.config import ValidateConfig, parse_config
    from voiceflow.stages.validate import require_valid
    from voiceflow.stages.validate import validate as run

    progress = StageProgress("validate")
    folder = Path(report.path)
    config = parse_config(ValidateConfig, config_json, name="validate")
    verdict = run(config, Path(dataset.path), folder, progress=progress)
    progress.event("result", passed=verdict["passed"], report=str(folder / "validate.html"))
    require_valid(verdict, folder / "validate.html")
