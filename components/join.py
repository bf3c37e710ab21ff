"""join: puts the shards of prepare together, on clusters where each was made by a pod of its own."""

from kfp import dsl

from components import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, packages_to_install=[], install_kfp_package=False)
def join(shards: dsl.Input[list[dsl.Dataset]], code_revision: str, dataset: dsl.Output[dsl.Dataset]):
    """One dataset of all shards.

    Args:
        shards: What the `prepare` tasks made.
        code_revision: Digest of the code, so that a change runs the step again.
        dataset: The prepared dataset.
    """
    from pathlib import Path

    from voiceflow.adapters.progress import StageProgress
    from voiceflow.stages.join import join as run

    StageProgress("join")("join shards", 0, len(shards))
    summary = run([Path(shard.path) for shard in shards], Path(dataset.path))
    dataset.metadata["data_revision"] = summary["revision"]
    dataset.metadata["splits"] = summary["splits"]
