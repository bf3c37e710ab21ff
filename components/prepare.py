"""prepare: checks the data out of DVC at a revision and makes the dataset."""

from kfp import dsl

from components import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, packages_to_install=[], install_kfp_package=False)
def prepare(
    data_repo: str,
    data_rev: str,
    corpus: str,
    recorded: str,
    data_revision: str,
    config_json: str,
    code_revision: str,
    dataset: dsl.Output[dsl.Dataset],
):
    """Make conversations from a corpus that DVC tracks.

    Args:
        data_repo: Git repository (URL or path) whose .dvc files name the data.
        data_rev: Git revision in it; empty for the working tree.
        corpus: Tracked path of the utterances.
        recorded: Tracked path of recorded conversations; empty for none.
        data_revision: Expected digests; another version is refused.
        config_json: PrepareConfig.
        code_revision: Digest of the code, so that a change runs the step again.
        dataset: The prepared dataset.
    """
    import tempfile
    from pathlib import Path

    from voiceflow.adapters.data_versions import fetch
    from voiceflow.adapters.progress import StageProgress
    from voiceflow.config import PrepareConfig, parse_config
    from voiceflow.errors import DataError
    from voiceflow.stages.prepare import prepare as run

    progress = StageProgress("prepare")
    with tempfile.TemporaryDirectory(prefix="voiceflow-data-") as folder:
        progress("check out data", 0, 1)
        digests = [
            fetch(data_repo, path, Path(folder) / name, rev=data_rev or None)
            for name, path in (("corpus", corpus), ("recorded", recorded))
            if path
        ]
        if "+".join(digests) != data_revision:
            raise DataError(f"expected data revision {data_revision}, the repository has {'+'.join(digests)}")
        summary = run(
            parse_config(PrepareConfig, config_json, name="prepare"),
            Path(dataset.path),
            corpus=Path(folder) / "corpus",
            recorded=Path(folder) / "recorded" if recorded else None,
            revision=data_revision,
            progress=progress,
        )
    dataset.metadata["data_revision"] = data_revision
    dataset.metadata["splits"] = summary["splits"]
