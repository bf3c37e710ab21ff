"""A CycloneDX bill of materials of a model: its file, data, code, libraries and figures."""

import importlib.metadata
import json
from collections.abc import Mapping
from typing import Any

from voiceflow.provenance import Provenance

LIBRARIES = ("voiceflow", "torch", "onnx", "onnxruntime", "numpy", "scipy", "lhotse", "silero-vad", "mlflow")


def model_bom(provenance: Provenance, *, der: Mapping[str, float], licence: str) -> str:
    """CycloneDX 1.6, as JSON.

    Args:
        provenance: What is known of the model.
        der: DER by slice, as fractions.
        licence: SPDX name of the weights' licence.
    """
    from cyclonedx.factory.license import LicenseFactory
    from cyclonedx.model import HashAlgorithm, HashType, Property
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.output.json import JsonV1Dot6
    from packageurl import PackageURL

    model = Component(
        name=provenance.name,
        version=provenance.version,
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref="model",
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=provenance.digest)],
        licenses=[LicenseFactory().make_from_string(licence)],
        properties=[
            Property(name=f"voiceflow:{name}", value=str(value))
            for name, value in provenance.model_dump().items()
            if isinstance(value, str) and value and name not in ("name", "version", "digest")
        ],
    )
    data = Component(
        name="data", version=provenance.data_revision or "unknown", type=ComponentType.DATA, bom_ref="data"
    )
    libraries = [
        Component(name=name, version=version, type=ComponentType.LIBRARY, purl=PackageURL("pypi", None, name, version))
        for name, version in _versions().items()
    ]
    bom = Bom(components=[data, *libraries])
    bom.metadata.component = model
    bom.register_dependency(model, [data, *libraries])
    document: dict[str, Any] = json.loads(JsonV1Dot6(bom).output_as_string())
    # The library has no class for a model's card yet; the standard does.
    document["metadata"]["component"]["modelCard"] = {
        "modelParameters": {"task": "speaker diarization", "datasets": [{"ref": "data"}]},
        "quantitativeAnalysis": {
            "performanceMetrics": [
                {"type": "diarization error rate", "value": f"{value:.6f}", "slice": name}
                for name, value in der.items()
            ]
        },
    }
    return json.dumps(document, indent=2) + "\n"


def _versions() -> dict[str, str]:
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
