"""elmoe: lossless Elastic self-speculative decoding for Mixture-of-Experts models.

``Engine.open("tiny").generate(["Hello"])`` is the shortest way in. Public names are imported at first use, so that
``import elmoe`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from elmoe.backend.protocol import DraftQuality
    from elmoe.engine.controller import Mode, Speculation
    from elmoe.engine.engine import Engine, EngineOptions
    from elmoe.engine.request import Generation, Output
    from elmoe.engine.sampler import Sampling
    from elmoe.errors import ElmoeError
    from elmoe.quant.bitnested import Treatment

__version__ = metadata.version("elmoe")

__all__ = [
    "DraftQuality",
    "ElmoeError",
    "Engine",
    "EngineOptions",
    "Generation",
    "Mode",
    "Output",
    "Sampling",
    "Speculation",
    "Treatment",
    "__version__",
]

_HOMES = {
    "DraftQuality": "elmoe.backend.protocol",
    "ElmoeError": "elmoe.errors",
    "Engine": "elmoe.engine.engine",
    "EngineOptions": "elmoe.engine.engine",
    "Generation": "elmoe.engine.request",
    "Mode": "elmoe.engine.controller",
    "Output": "elmoe.engine.request",
    "Sampling": "elmoe.engine.sampler",
    "Speculation": "elmoe.engine.controller",
    "Treatment": "elmoe.quant.bitnested",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'elmoe' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
