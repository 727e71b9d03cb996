"""From logits to the scores that clients see."""

from collections.abc import Sequence

import numpy as np

from app.engines.padding import ACTIVATIONS
from app.engines.protocol import Engine, EngineInfo
from app.types import Activation

# A float32 as a float64 has up to 17 digits, of which nine mean something. Parsers of JSON for Java that keep them all
# (json-smart, which OpenSearch uses) return a BigDecimal instead of a Double for more than 18 characters.
DECIMALS = 14


def activation_name(asked: Activation, info: EngineInfo) -> str:
    """The name of the function: `sigmoid`, `identity`, or the activation that the model declares."""
    return {"model": info.activation, "none": "identity"}.get(asked, asked)


def activate(logits: Sequence[float], asked: Activation, engine: Engine) -> list[float]:
    """The scores, computed in float32."""
    name = activation_name(asked, engine.info)
    own = name == engine.info.activation
    scores = engine.activate(logits) if own else ACTIVATIONS[name](np.array(logits, np.float32))
    rounded: list[float] = np.round(np.asarray(scores, np.float64), DECIMALS).tolist()
    return rounded
