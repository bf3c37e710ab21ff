"""The training pipeline: prepare (in shards) > join > validate > train > evaluate > export > latency > promote.

Steps are cached by their arguments. `data_revision` and `code_revision` are among them, so that a
step runs again when data or code have changed, and only then (which is why the commit is not: steps look it
up themselves); promote always runs, since it depends
on what is champion now.
"""

from kfp import dsl, kubernetes

from components.evaluate import evaluate
from components.export import export
from components.join import join
from components.latency import latency
from components.prepare import prepare
from components.promote import promote
from components.train import train
from components.validate import validate


def _on_t4(task: dsl.PipelineTask) -> dsl.PipelineTask:
    task.set_accelerator_type("nvidia.com/gpu").set_accelerator_limit(1)
    kubernetes.add_node_selector(task, "cloud.google.com/gke-accelerator", "nvidia-tesla-t4")
    kubernetes.add_toleration(task, key="nvidia.com/gpu", operator="Exists", effect="NoSchedule")
    return task


@dsl.pipeline(name="voiceflow-training", description="From versioned data to a promoted streaming diarizer.")
def training(
    data_repo: str,
    data_revision: str,
    code_revision: str,
    prepare_json: str,
    validate_json: str,
    train_json: str,
    model_json: str,
    decision_json: str,
    evaluate_json: str,
    export_json: str,
    latency_json: str,
    promote_json: str,
    corpus: str,
    version: str,
    shards: list[int],
    num_shards: int,
    data_rev: str = "",
    recorded: str = "",
    noises: str = "",
    rooms: str = "",
    reason: str = "",
    provider: str = "cuda",
    accept_equal: bool = False,
) -> str:
    """See the parameters of the components; `*_json` are sections of params.yaml, `shards` count from 0."""
    with dsl.ParallelFor(items=shards, name="prepare-shards") as shard:
        part = prepare(
            data_repo=data_repo,
            data_rev=data_rev,
            corpus=corpus,
            recorded=recorded,
            noises=noises,
            rooms=rooms,
            data_revision=data_revision,
            config_json=prepare_json,
            code_revision=code_revision,
            shard=shard,
            num_shards=num_shards,
        )
    prepared = join(shards=dsl.Collected(part.outputs["dataset"]), code_revision=code_revision)
    validated = validate(config_json=validate_json, code_revision=code_revision, dataset=prepared.outputs["dataset"])
    trained = train(
        config_json=train_json,
        model_json=model_json,
        decision_json=decision_json,
        data_revision=data_revision,
        code_revision=code_revision,
        reason=reason,
        dataset=prepared.outputs["dataset"],
        validation=validated.outputs["report"],
    )
    evaluated = evaluate(
        config_json=evaluate_json,
        code_revision=code_revision,
        trained=trained.outputs["trained"],
        dataset=prepared.outputs["dataset"],
        validation=validated.outputs["report"],
    )
    exported = export(
        config_json=export_json,
        evaluate_json=evaluate_json,
        version=version,
        data_revision=data_revision,
        code_revision=code_revision,
        trained=trained.outputs["trained"],
        dataset=prepared.outputs["dataset"],
        validation=validated.outputs["report"],
    )
    timed = latency(
        config_json=latency_json, provider=provider, code_revision=code_revision, exported=exported.outputs["exported"]
    )
    promoted = promote(
        config_json=promote_json,
        evaluate_json=evaluate_json,
        accept_equal=accept_equal,
        exported=exported.outputs["exported"],
        dataset=prepared.outputs["dataset"],
        validation=validated.outputs["report"],
        evaluation=evaluated.outputs["evaluation"],
        latency_report=timed.outputs["report"],
    )
    for task in (part, prepared, validated, trained, evaluated, exported, timed):
        task.set_caching_options(True)
    # GPU nodes may be taken away; a refusal of bad data would only be repeated.
    for task in (trained, timed):
        task.set_retry(2, backoff_duration="30s", backoff_factor=2.0, backoff_max_duration="300s")
    promoted.set_caching_options(False)
    _on_t4(trained).set_cpu_limit("8").set_memory_limit("24G")
    _on_t4(timed).set_cpu_limit("4").set_memory_limit("8G")
    return promoted.outputs["Output"]
