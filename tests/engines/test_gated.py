"""Gated layers are compiled for any number of threads, and compute the same."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from app.engines.models.artefact import MODEL_FILES
from app.engines.openvino_gated import keep_gates_apart
from app.machine.hardware import cpu_features
from tests import models
from tests.engines.test_attention import CORE, logits
from tests.models import make_model, make_modular, make_yes_no

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]
LAYERS = 2
SCORE = """
import sys
from pathlib import Path
from app.engines.openvino import OpenVinoEngine
from app.engines.openvino_model import Configuration
engine = OpenVinoEngine(Path(sys.argv[1]), None, 1, configuration=Configuration("bf16"))
print(engine.score(engine.encode("moon", ["tides"])))
"""


def export(model: Path) -> Path:
    models.export(model, model.parent / "bf16", precision="bf16")
    return model.parent / "bf16"


def modernbert(folder: Path) -> Path:
    return make_model(folder, "modernbert", spread=0.3)


@pytest.mark.parametrize(
    ("make", "layers"), [(modernbert, LAYERS), (make_modular, LAYERS), (make_yes_no, LAYERS), (make_model, 0)]
)
def test_the_logits_stay_the_same(tmp_path: Path, make: Callable[[Path], Path], layers: int) -> None:
    file = export(make(tmp_path / "model")) / MODEL_FILES["openvino"]
    plain, apart = CORE.read_model(file), CORE.read_model(file)
    assert keep_gates_apart(apart) == layers
    np.testing.assert_allclose(logits(apart), logits(plain), atol=1e-5)


@pytest.mark.skipif("amx_bf16" not in cpu_features(), reason="without AMX the layers are not fused")
def test_one_thread_is_enough(tmp_path: Path) -> None:
    """Runs in a separate process, because a failure ends the process."""
    command = [sys.executable, "-c", SCORE, str(export(modernbert(tmp_path / "model")))]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("[")
