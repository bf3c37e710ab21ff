"""KServe without what no server of ours uses of it: pandas, pyarrow, the client of Kubernetes' API: 120 MB in all."""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

LEFT_OUT = ("pandas", "pyarrow", "kubernetes")


class _Absent(type):
    """A class that any name may be asked of and nothing can be made of."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Absent(name, (), {})

    def __call__(cls, *arguments: Any, **options: Any) -> Any:
        raise ModuleNotFoundError(f"{cls.__name__} is left out of servers")


class _StandIn(ModuleType):
    """In place of a module while KServe is imported: names of it stand in annotations and `isinstance` only."""

    def __getattr__(self, name: str) -> Any:
        return getattr(_Absent(self.__name__, (), {}), name)


def import_kserve() -> None:
    """Import it, where it is not yet; whoever wants what was left out gets the real one afterwards."""
    if "kserve" in sys.modules:
        return
    absent = [name for name in LEFT_OUT if name not in sys.modules]
    for name in absent:
        sys.modules[name] = _StandIn(name)
    try:
        for name in ("model_server", "protocol.grpc.server", "protocol.rest.server"):
            import_module(f"kserve.{name}")
    finally:
        for name in absent:
            del sys.modules[name]
