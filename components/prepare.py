"""prepare: checks the data out of DVC at a revision and makes the dataset."""

from kfp import dsl

from components import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, packages_to_install=[], install_kfp_package=False)
def prepare(
    data_repo: str,
    data_rev: str,
    corpus: str,
    recorded: str,
    noises: str,
    rooms: str,
    data_revision: str,
    config_json: str,
    code_revision: str,
    shard: int,
    num_shards: int,
    dataset: dsl.Output[dsl.Dataset],
):
    """Make one shard of the conversations from a corpus that DVC tracks.

    Args:
        data_repo: Git repository (URL or path) whose .dvc files name the data.
        data_rev: Git revision in it; empty for the working tree.
        corpus: Tracked path of the utterances.
        recorded: Tracked path of recorded conversations; empty for none.
        noises: Tracked path of recordings without speech; empty for none.
        rooms: Tracked path of recorded impulse responses; empty for none.
        data_revision: Expected digests; another version is refused.
        config_json: PrepareConfig.
        code_revision: Digest of the code, so that a change runs the step again.
        shard: Which part of the conversations, from 0.
        num_shards: Of how many.
        dataset: That part of the prepared dataset.
    """
    import tempfile
    from pathlib import Path

    from voiceflow.adapters.data_versions import fetch, joined_revision
    from voiceflow.adapters.progress import StageProgress
    from voiceflow.config import PrepareConfig, parse_config
    from voiceflow.errors import DataError
    from voiceflow.stages.prepare import prepare as run

    progress = StageProgress("prepare")
    with tempfile.TemporaryDirectory(prefix="voiceflow-data-") as folder:
        progress("check out data", 0, 1)
        asked = {"corpus": corpus, "recorded": recorded, "noises": noises, "rooms": rooms}
        places = {name: Path(folder) / name for name, path in asked.items() if path}
        digests = {name: fetch(data_repo, asked[name], place, rev=data_rev or None) for name, place in places.items()}
        if joined_revision(digests) != data_revision:
            raise DataError(f"expected data revision {data_revision}, the repository has {joined_revision(digests)}")
        summary = run(
            parse_config(PrepareConfig, config_json, name="prepare"),
            Path(dataset.path),
            **places,
            revision=data_revision,
            shard=(int(shard), int(num_shards)),
            progress=progress,
        )
    dataset.metadata["data_revision"] = data_revision
    dataset.metadata["splits"] = summary["splits"]
