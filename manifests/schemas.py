"""Strict JSON Schemas of KServe's objects, from the models of the installed `kserve` and `kubernetes` packages.

Both are generated from the API's own definitions: `openapi_types` says what each attribute is, `attribute_map` what it
is called in YAML, and a setter that refuses None that it is required. A field that they do not know is refused; rules
that the cluster's webhooks and CEL expressions add are not in them.
"""

import re
from functools import cache
from typing import Any

Schema = dict[str, Any]

KINDS = {
    "InferenceService": "V1beta1InferenceService",
    "InferenceGraph": "V1alpha1InferenceGraph",
    "ServingRuntime": "V1alpha1ServingRuntime",
    "ClusterServingRuntime": "V1alpha1ClusterServingRuntime",
}
PLAIN: dict[str, Schema] = {
    "str": {"type": "string"},
    "int": {"type": "integer"},
    "float": {"type": "number"},
    "bool": {"type": "boolean"},
    "datetime": {"type": ["string", "null"]},
    "ResourceQuantity": {"type": ["string", "number"]},
    "V1beta1MetricQuantity": {"type": ["string", "number"]},
    "V1Time": {"type": ["string", "null"]},
    # A port or a percentage, among others: the models do not say more.
    "object": {},
    "file": {},
}
QUANTITIES = {"limits", "requests", "overhead", "sizeLimit", "capacity"}
"""The client calls quantities strings; in YAML a whole number is one, too."""
ELSEWHERE = re.compile(r"^K8sIoApi[A-Z][a-z]+(?=V\d)")
"""How KServe's models call some of Kubernetes' types."""


@cache
def kserve_schemas() -> dict[str, Schema]:
    """A schema of each of `KINDS`, of draft 2020-12."""
    return {kind: _schema(kind, model) for kind, model in KINDS.items()}


def _schema(kind: str, model: str) -> Schema:
    definitions: dict[str, Schema] = {}
    root = _of_type(model, definitions)
    return {"title": kind, **root, "$defs": definitions}


def _of_type(name: str, definitions: dict[str, Schema]) -> Schema:
    """The schema of a type as the models write it: ``list[V1Container]``, ``dict(str, str)``, ``V1Probe``."""
    if name in PLAIN:
        return PLAIN[name]
    if inner := re.fullmatch(r"list\[(.+)\]", name):
        return {"type": "array", "items": _of_type(inner[1], definitions)}
    if inner := re.fullmatch(r"dict\(str, (.+)\)", name):
        return {"type": "object", "additionalProperties": _of_type(inner[1], definitions)}
    if name not in definitions:
        definitions[name] = {}  # some refer to themselves
        definitions[name] |= _of_model(name, definitions)
    return {"$ref": f"#/$defs/{name}"}


def _of_model(name: str, definitions: dict[str, Schema]) -> Schema:
    model = _model(name)
    if model is None:
        return {}
    properties, required = {}, []
    for attribute, of_type in model.openapi_types.items():
        key = model.attribute_map[attribute]
        properties[key] = _quantity(of_type) if key in QUANTITIES else _of_type(of_type, definitions)
        if _is_required(model, attribute):
            required.append(key)
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _quantity(of_type: str) -> Schema:
    one = PLAIN["ResourceQuantity"]
    return {"type": "object", "additionalProperties": one} if of_type.startswith("dict") else one


@cache
def _model(name: str) -> Any:
    """The class of a type; None where neither package has it: then any value is let through."""
    import kserve.models
    from kubernetes import client

    plain = ELSEWHERE.sub("", name)
    return getattr(kserve.models, name, None) or getattr(client, plain, None)


def _is_required(model: Any, attribute: str) -> bool:
    from kubernetes.client import Configuration

    empty = model.__new__(model)
    empty.local_vars_configuration = Configuration()
    try:
        setattr(empty, attribute, None)
    except ValueError:
        return True
    return False
