"""The drift check as a pipeline, for recurring runs: one step, never cached."""

from kfp import dsl

from components.drift import drift as check


@dsl.pipeline(name="voiceflow-drift", description="Whether live streams sound like those the champion was judged on.")
def drift(drift_json: str, statistics: str, reference: str = "") -> str:
    """See the parameters of the component; `drift_json` is a section of params.yaml."""
    task = check(config_json=drift_json, statistics=statistics, reference=reference)
    task.set_caching_options(False)
    return task.outputs["Output"]
