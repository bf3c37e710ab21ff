"""What params.yaml may say: one frozen, strict section a stage, and the one loader."""

import importlib.resources
import json
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import Field, model_validator

from voiceflow.config.base import Section, parse_config
from voiceflow.config.data import (
    ConditionWeights,
    PrepareConfig,
    SplitCounts,
    StyleConfig,
    TurnTakingConfig,
    ValidateConfig,
    VarietyConfig,
)
from voiceflow.config.model import (
    DecisionConfig,
    EvaluateConfig,
    ExportConfig,
    LatencyConfig,
    ModelConfig,
    TrainConfig,
)
from voiceflow.config.operations import DriftConfig, PromoteConfig, RewardConfig, RolloutConfig, StreamingConfig
from voiceflow.errors import ConfigError

__all__ = [
    "ConditionWeights",
    "DecisionConfig",
    "DriftConfig",
    "EvaluateConfig",
    "ExportConfig",
    "LatencyConfig",
    "ModelConfig",
    "Params",
    "PrepareConfig",
    "PromoteConfig",
    "RewardConfig",
    "RolloutConfig",
    "Section",
    "SplitCounts",
    "StreamingConfig",
    "StyleConfig",
    "TrainConfig",
    "TurnTakingConfig",
    "ValidateConfig",
    "VarietyConfig",
    "load_params",
    "parse_config",
]


class Params(Section):
    """The whole of params.yaml, less its profiles."""

    prepare: PrepareConfig
    validate_: ValidateConfig = Field(alias="validate")
    model: ModelConfig
    train: TrainConfig
    decision: DecisionConfig
    evaluate: EvaluateConfig
    export: ExportConfig
    latency: LatencyConfig
    promote: PromoteConfig
    rollout: RolloutConfig
    drift: DriftConfig
    streaming: StreamingConfig

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.decision.offset > self.decision.onset:
            raise ValueError("decision.offset must not exceed decision.onset")
        return self


def load_params(path: Path | None = None, *, profile: str | None = None) -> Params:
    """Read params.yaml with one of its profiles laid over it.

    Args:
        path: The file; by default ./params.yaml, and where there is none the released
            one that the package carries.
        profile: A key of its `profiles`, or None for the plain values.

    Raises:
        ConfigError: Missing file, not YAML, unknown profile, unknown or wrong value.
    """
    text, name = _params_text(path)
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as err:
        raise ConfigError(f"{name} is not YAML: {err}") from err
    if not isinstance(raw, dict):
        raise ConfigError(f"{name}: expected sections such as 'prepare:' and 'train:', got {type(raw).__name__}")
    profiles = raw.pop("profiles", None) or {}
    if profile is not None:
        if profile not in profiles:
            raise ConfigError(f"{name}: expected a profile of {sorted(profiles)}, got {profile!r}")
        raw = _overlay(raw, profiles[profile])
    return parse_config(Params, json.dumps(raw), name=name)


def _params_text(path: Path | None) -> tuple[str, str]:
    if path is None and Path("params.yaml").is_file():
        path = Path("params.yaml")
    if path is None:
        return importlib.resources.files("voiceflow.pretrained").joinpath("params.yaml").read_text(), "params.yaml"
    try:
        return path.read_text(encoding="utf-8"), str(path)
    except OSError as err:
        raise ConfigError(f"{path} cannot be read ({err.strerror}); run from the repository or pass --params") from err


def _overlay(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = _overlay(merged[key], value)
        else:
            merged[key] = value
    return merged
