"""What every section of params.yaml is: frozen, strict, no unknown keys; and the one parser."""

from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from voiceflow.errors import ConfigError


class Section(BaseModel):
    """Base of all configuration: frozen, strict, no unknown keys."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", use_attribute_docstrings=True)


S = TypeVar("S", bound=Section)


def parse_config(section: type[S], text: str, *, name: str = "configuration") -> S:
    """Parse one section from JSON text.

    Raises:
        ConfigError: Listing each wrong value with its path.
    """
    try:
        return section.model_validate_json(text)
    except ValidationError as err:
        faults = "; ".join(
            f"{'.'.join(str(part) for part in fault['loc'])}: {fault['msg']} (got {fault['input']!r})"
            for fault in err.errors()
        )
        raise ConfigError(f"{name}: {faults}") from err
