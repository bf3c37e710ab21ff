import json
import os
import shutil
import subprocess
from pathlib import Path

import jsonschema
import pytest
import yaml

REPO = Path(__file__).parents[2]
GOLDEN = REPO / "tests" / "golden" / "manifests-staging.yaml"
STORAGE_URI = "s3://voiceflow-models/staging/voiceflow-diarizer"


@pytest.fixture(scope="module")
def rendered():
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    command = ["kubectl", "kustomize", str(REPO / "manifests" / "overlays" / "staging")]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    if os.environ.get("VOICEFLOW_UPDATE_GOLDEN"):
        GOLDEN.write_text(text)
    return text


@pytest.fixture(scope="module")
def validator(shared):
    path = shared / "kserve-schemas" / "inferenceservice_v1beta1.json"
    if not path.is_file():
        pytest.skip(f"no KServe schemas in {path.parent}")
    return jsonschema.Draft202012Validator(json.loads(path.read_text()))


def services(text):
    return [document for document in yaml.safe_load_all(text) if document["kind"] == "InferenceService"]


def test_the_rendering_is_the_reviewed_one(rendered):
    assert rendered == GOLDEN.read_text(), "review the change, then VOICEFLOW_UPDATE_GOLDEN=1 make test"


def test_both_services_are_what_kserve_takes(rendered, validator):
    found = services(rendered)
    assert [service["metadata"]["name"] for service in found] == ["voiceflow-diarizer", "voiceflow-stream"]
    for service in found:
        assert list(validator.iter_errors(service)) == []


def test_a_misspelt_field_is_refused(rendered, validator):
    service = services(rendered)[0]
    service["spec"]["predictor"]["minReplica"] = service["spec"]["predictor"].pop("minReplicas")
    assert any("minReplica" in error.message for error in validator.iter_errors(service))


def test_both_services_name_the_promoted_model(rendered):
    predictor, stream = services(rendered)
    (container,) = predictor["spec"]["predictor"]["containers"]
    assert {"name": "STORAGE_URI", "value": STORAGE_URI} in container["env"]
    for service in (predictor, stream):
        assert service["metadata"]["annotations"]["voiceflow.dev/storage-uri"] == STORAGE_URI
        (container,) = service["spec"]["predictor"]["containers"]
        assert container["image"] == "ghcr.io/voiceflow/voiceflow-serving:0.1.0"
