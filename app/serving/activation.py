"""From logits to the scores that clients see."""

from collections.abc import Sequence

import numpy as np

from app.engines.padding import ACTIVATIONS
from app.engines.protocol import Engine, EngineInfo
from app.types import Activation


def activation_name(asked: Activation, info: EngineInfo) -> str:
    """The name of the function: `sigmoid`, `identity`, or the activation that the model declares."""
    return {"model": info.activation, "none": "identity"}.get(asked, asked)


def activate(logits: Sequence[float], asked: Activation, engine: Engine) -> list[float]:
    """The scores, in float32."""
    name = activation_name(asked, engine.info)
    if name == engine.info.activation:
        return engine.activate(logits)
    scores: list[float] = ACTIVATIONS[name](np.array(logits, np.float32)).tolist()
    return scores
