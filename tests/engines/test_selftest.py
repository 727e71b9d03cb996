"""An engine with wrong scores does not serve: reference logits, the self-test, and the choice that follows."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from app.config import Settings
from app.engines.load import load_artefact, load_engine
from app.engines.models.artefact import Manifest
from app.engines.models.source import EMBEDDED
from app.engines.openvino import OpenVinoEngine, parts
from app.engines.openvino_model import EXACT, Configuration, compile_model
from app.engines.padding import bucket_length, shapes
from app.engines.probes import ProbeSet
from app.engines.selftest import BOUNDS, self_test
from app.engines.tuning import Candidate, TuningFile, tune
from app.errors import StartupError
from app.main import create_app
from app.types import Pair
from tests.conftest import serving
from tests.models import UNMEASURED, export, make_model

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore:Converting a tensor:Warning"),
]

INT8 = EMBEDDED / "openvino-int8"
# A self-test takes CPU time for each thread.
ONE_THREAD = UNMEASURED | {"threads": 1, "streams": 1}
Wrong = Callable[[int, int], bool]
"""Whether a part with this many rows and this width is computed wrongly."""


@pytest.fixture(autouse=True, scope="module")
def _compile_once() -> Iterator[None]:
    """Engines of the same configuration share a compiled model: these tests make about a hundred engines."""
    compiled: dict[tuple[Any, ...], Any] = {}

    def compile_once(*arguments: Any) -> Any:
        # Without the manifest and the cache of compiled code, which change nothing that is computed.
        folder, _, max_length, configuration, threads, _, streams = arguments
        key = folder, max_length, configuration, threads, streams
        if key not in compiled:
            compiled[key] = compile_model(*arguments)
        return compiled[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("app.engines.openvino.compile_model", compile_once)
        yield


RIGHT: dict[tuple[object, ...], list[float]] = {}
"""The logits of the batches so far: these tests score the same ones about a hundred times."""


class WrongEngine(OpenVinoEngine):
    """The embedded model with a kernel that is wrong for some shapes."""

    def __init__(self, wrong: Wrong, by: float = 0.75) -> None:
        super().__init__(INT8, None, 2)
        self.wrong, self.by = wrong, by

    def score(self, pairs: Sequence[Pair]) -> list[float]:
        batch = self.schedule.part_tokens, *(pair.ids.tobytes() for pair in pairs)
        if batch not in RIGHT:
            RIGHT[batch] = super().score(pairs)
        logits = np.array(RIGHT[batch])
        lengths = [pair.length for pair in pairs]
        for part in parts(lengths, self.schedule.part_tokens or 0):
            if self.wrong(len(part), bucket_length(lengths[part[0]])):
                logits[part] += self.by
        return logits.tolist()


def manifest_probes(folder: Path) -> ProbeSet:
    probes = Manifest.read(folder).probes
    assert probes is not None
    return probes


@pytest.mark.parametrize("folder", ["openvino-int8", "openvino-bf16"])
def test_the_shipped_probes_meet_every_width_with_and_without_padding(folder: str) -> None:
    manifest = Manifest.read(EMBEDDED / folder)
    probes = manifest_probes(EMBEDDED / folder)
    lengths = {probe.length for probe in probes.probes}
    for width in {shape.width for shape in shapes(manifest.max_length, 384)}:
        assert width in lengths
        assert any(bucket_length(length) == width != length for length in lengths)
    assert sum(probe.window is not None for probe in probes.probes) == 2  # queries that are cut
    logits = [probe.logit for probe in probes.probes]
    assert max(logits) - min(logits) > 5  # answers, and texts that are none


def test_the_reference_logits_are_the_oracles() -> None:
    engine = load_engine(Settings(backend="torch", **UNMEASURED))
    for known in manifest_probes(INT8).known(engine, engine.info.max_length):
        assert engine.score([known.pair])[0] == pytest.approx(known.original, abs=1e-4)


def test_right_engines_pass() -> None:
    for engine in (OpenVinoEngine(INT8, None, 2), OpenVinoEngine(EMBEDDED / "openvino-bf16", None, 2)):
        test = self_test(engine, seconds=10)
        assert test.passed
        assert 0 < test.deviation < test.bound == BOUNDS[engine.info.precision]
        assert test.error is not None
        assert test.pairs > 100


@pytest.mark.parametrize("width", [16, 32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256])
def test_an_engine_that_is_wrong_at_one_width_only_is_caught(width: int) -> None:
    test = self_test(WrongEngine(lambda _, found: found == width), seconds=10)
    assert not test.passed
    assert test.width == width


@pytest.mark.parametrize("rows", [1, 2, 5, 12, 17, 24])
def test_an_engine_that_is_wrong_for_one_number_of_rows_only_is_caught(rows: int) -> None:
    assert not self_test(WrongEngine(lambda found, _: found == rows), seconds=10).passed


@pytest.mark.parametrize("width", [32, 128, 256])
def test_corner_widths_are_tested_even_without_time(width: int) -> None:
    assert not self_test(WrongEngine(lambda _, found: found == width), seconds=0).passed


def test_logits_that_are_nan_fail() -> None:
    assert not self_test(WrongEngine(lambda *_: True, float("nan"))).passed


def test_a_new_schedule_is_tested_in_its_own_shapes() -> None:
    engine = WrongEngine(lambda rows, _: rows == 40)
    assert self_test(engine, seconds=10).passed
    engine.schedule = engine.schedule.model_copy(update={"part_tokens": 768})
    assert not self_test(engine, seconds=10).passed


def test_a_shorter_window_keeps_the_probes_that_fit() -> None:
    test = self_test(OpenVinoEngine(INT8, 64, 2))
    assert test.passed
    assert test.width <= 64


def test_a_changed_tokenizer_is_detected(tmp_path: Path) -> None:
    probes = manifest_probes(INT8)
    engine = OpenVinoEngine(INT8, None, 2)
    engine.probes = probes.model_copy(
        update={"probes": [probe.model_copy(update={"length": probe.length + 1}) for probe in probes.probes[:5]]}
    )
    with pytest.raises(StartupError, match=r"The tokenizer of .* has changed"):
        self_test(engine)


@pytest.fixture
def alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """All configurations are as fast: which of them are tested does not depend on what else the machine does."""
    monkeypatch.setattr("app.engines.tuning.speed_of", lambda _: 1000.0)


@pytest.fixture
def arranged(monkeypatch: pytest.MonkeyPatch) -> None:
    """The default schedule is the best, as measured on a quiet machine: a choice is kept."""
    monkeypatch.setattr("app.engines.tuning.arrange", lambda *_: True)


def candidate(name: str, wrong: Wrong, **fields: str) -> Candidate:
    def load() -> WrongEngine:
        engine = WrongEngine(wrong)
        engine.info = replace(engine.info, **fields)
        return engine

    return Candidate(name, load)


def right(*_: int) -> bool:
    return False


@pytest.mark.usefixtures("alike", "arranged")
def test_the_next_configuration_serves_where_the_first_is_wrong(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    candidates = [
        candidate("fused", lambda _, width: width == 32, configuration="fused"),
        candidate("plain", right, configuration="plain"),
    ]
    for _ in range(2):  # measured, and as it was kept
        engine = tune(candidates, lambda _: {}, TuningFile(tmp_path))
        assert engine.info.configuration == "plain"
        assert engine.self_test is not None
        assert engine.self_test.passed
        [reason] = engine.self_test.rejected
        assert reason.startswith("fused: logits are off by up to 0.")
        assert "at 32 tokens" in reason
    assert "fused gives wrong scores on this machine: logits are off by up to" in caplog.text


@pytest.mark.usefixtures("arranged")
def test_a_kept_choice_that_fails_now_is_made_again(tmp_path: Path) -> None:
    faulty = False
    candidates = [candidate("first", lambda *_: faulty, configuration="first")]
    assert tune(candidates, lambda _: {}, TuningFile(tmp_path)).info.configuration == "first"
    faulty = True  # a new driver, say
    candidates.append(candidate("second", right, configuration="second"))
    assert tune(candidates, lambda _: {}, TuningFile(tmp_path)).info.configuration == "second"


@pytest.mark.usefixtures("arranged")
def test_a_fallback_serves_only_as_long_as_nothing_better_can_be_loaded(tmp_path: Path) -> None:
    exported = candidate("exported", right, configuration="exported")
    fallback = replace(candidate("fallback", right, configuration="fallback"), is_measured=False)

    def fail() -> WrongEngine:
        raise StartupError("cannot be exported: no space left on device")

    for load, expected in ((fail, "fallback"), (exported.load, "exported")):
        engine = tune([replace(exported, load=load), fallback], lambda _: {}, TuningFile(tmp_path))
        assert engine.info.configuration == expected


@pytest.mark.usefixtures("alike", "arranged")
def test_a_configuration_that_fails_is_not_used(tmp_path: Path) -> None:
    def fail(*_: int) -> bool:
        raise RuntimeError("could not create a primitive")

    candidates = [candidate("failing", fail, configuration="failing"), candidate("plain", right, configuration="plain")]
    engine = tune(candidates, lambda _: {}, TuningFile(tmp_path))
    assert engine.info.configuration == "plain"
    with pytest.raises(StartupError, match="failing: it fails: could not create a primitive"):
        tune(candidates[:1], lambda _: {}, TuningFile(tmp_path / "none"))


def test_a_layout_that_is_wrong_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def arrange(engine: WrongEngine, _: dict[str, int]) -> bool:
        engine.schedule = engine.schedule.model_copy(update={"part_tokens": 768})
        return True

    monkeypatch.setattr("app.engines.tuning.arrange", arrange)
    engine = tune([candidate("only", lambda rows, _: rows == 48)], lambda _: {}, TuningFile(tmp_path))
    assert engine.schedule.part_tokens == 384
    assert engine.self_test is not None
    assert engine.self_test.passed
    assert "parts of 768" in engine.self_test.rejected[0]


def test_torch_serves_if_openvino_cannot_be_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def configurations(_: str, _window: int) -> list[Configuration]:
        raise StartupError("OpenVINO's CPU plugin cannot be loaded: no such file")

    monkeypatch.setattr("app.engines.openvino_model.configurations", configurations)
    assert load_engine(Settings(export_dir=tmp_path, **UNMEASURED)).info.backend == "torch"
    with pytest.raises(StartupError, match="plugin cannot be loaded"):
        load_engine(Settings(export_dir=tmp_path, backend="openvino"))


@pytest.mark.usefixtures("alike")
def test_nothing_serves_if_every_candidate_is_wrong(tmp_path: Path) -> None:
    candidates = [candidate(name, lambda _, width: width == 64) for name in ("a", "b")]
    with pytest.raises(StartupError, match="no engine computes this model correctly on this machine") as raised:
        tune(candidates, lambda _: {}, TuningFile(tmp_path))
    assert all(f"{each.name}: logits are off" in str(raised.value) for each in candidates)
    assert "at 64 tokens" in str(raised.value)
    assert not list(tmp_path.iterdir())


def wrong_when(monkeypatch: pytest.MonkeyPatch, is_wrong: Callable[[OpenVinoEngine], bool]) -> None:
    """Make the real engine wrong at 32 tokens in some configurations."""
    score = OpenVinoEngine.score

    def wrong(self: OpenVinoEngine, pairs: Sequence[Pair]) -> list[float]:
        return [
            logit + 0.75 * (is_wrong(self) and bucket_length(pair.length) == 32)
            for logit, pair in zip(score(self, pairs), pairs, strict=True)
        ]

    monkeypatch.setattr(OpenVinoEngine, "score", wrong)


@pytest.mark.usefixtures("alike")
async def test_a_wrong_kernel_is_reported_to_operators(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    wrong_when(monkeypatch, lambda engine: "not fused" not in engine.info.configuration)
    async with serving(create_app(Settings(export_dir=tmp_path, **ONE_THREAD))) as client:
        info, health = (await client.get("/info")).json(), (await client.get("/health")).json()
        metrics = (await client.get("/metrics")).text
        order = await client.post("/rerank", json={"query": "what causes tides", "documents": ["bread", "the moon"]})
    assert "not fused" in info["configuration"]
    assert info["self_test"] == health["self_test"]
    assert info["self_test"]["passed"]
    assert any("at 32 tokens" in reason for reason in info["self_test"]["rejected"])
    deviation = next(line for line in metrics.splitlines() if line.startswith("reranker_self_test_deviation "))
    assert float(deviation.split()[1]) == pytest.approx(info["self_test"]["deviation"], abs=0.001)
    assert f"reranker_self_test_rejected {len(info['self_test']['rejected'])}.0" in metrics
    assert order.json()["results"][0]["index"] == 1
    assert "gives wrong scores on this machine" in caplog.text


async def test_the_service_does_not_start_with_a_wrong_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    wrong_when(monkeypatch, lambda _: True)
    settings = Settings(export_dir=tmp_path, backend="openvino", precision="int8", **ONE_THREAD)
    async with serving(create_app(settings)) as client:
        assert (await client.get("/health")).status_code == httpx.codes.SERVICE_UNAVAILABLE
    assert "Cannot start: no engine computes this model correctly on this machine: openvino int8" in caplog.text


@pytest.mark.usefixtures("alike")
def test_torch_serves_if_every_export_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong_when(monkeypatch, lambda _: True)
    engine = load_engine(Settings(export_dir=tmp_path, **ONE_THREAD))
    assert engine.info.backend == "torch"
    assert engine.self_test is not None
    assert engine.self_test.error is not None
    assert engine.self_test.error < 0.02


def test_torch_with_wrong_scores_does_not_serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from app.engines.torch import TorchEngine

    score = TorchEngine.score
    monkeypatch.setattr(TorchEngine, "score", lambda self, pairs: [logit + 0.1 for logit in score(self, pairs)])
    with pytest.raises(StartupError, match="no engine computes this model correctly"):
        load_engine(Settings(backend="torch", export_dir=tmp_path))


def test_an_export_without_reference_logits_is_compared_with_itself(tmp_path: Path) -> None:
    export(make_model(tmp_path / "tiny"), tmp_path / "out", "onnx")
    manifest = Manifest.read(tmp_path / "out")
    assert manifest.probes is not None
    manifest.model_copy(update={"probes": None}).write(tmp_path / "out")
    engine = load_engine(Settings(model=str(tmp_path / "out"), export_dir=tmp_path / "store", **UNMEASURED))
    assert engine.self_test is not None
    assert engine.self_test.passed
    assert engine.self_test.error is None


SLIM = """
import json, sys
class Missing:
    def find_spec(self, name, *_):
        if name.split('.')[0] in ('torch', 'transformers', 'sentence_transformers', 'nncf'):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Missing())
import importlib.util
found = importlib.util.find_spec
def find_spec(name, *rest):
    return None if name == 'torch' else found(name, *rest)
importlib.util.find_spec = find_spec
import app.machine.hardware
app.machine.hardware.cpu_features = lambda *_: {'avx2'}
from pathlib import Path
from app.engines.load import load_engine
from app.config import Settings
for precision in sys.argv[3:]:
    engine = load_engine(Settings(export_dir=Path(sys.argv[1]), precision=precision, **json.loads(sys.argv[2])))
    print(precision, engine.info.precision, engine.self_test.passed)
"""


def test_an_old_cpu_without_torch_serves_the_embedded_model(tmp_path: Path) -> None:
    precisions = {"auto": {"fp32", "bf16", "int8"}, "fp32": {"fp32"}, "int8": {"int8"}}
    command = [sys.executable, "-c", SLIM, str(tmp_path), json.dumps(ONE_THREAD), *precisions]
    result = subprocess.run(command, cwd=EMBEDDED.parent.parent, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    found = [line.split() for line in result.stdout.splitlines()]
    assert [requested for requested, _, _ in found] == [*precisions]
    for requested, precision, passed in found:
        assert precision in precisions[requested]
        assert passed == "True"


def test_compiled_code_is_kept_for_each_configuration(tmp_path: Path) -> None:
    """A configuration that is tried because another one is wrong must not get the code of that one."""
    folder = EMBEDDED / "openvino-bf16"

    def fused_operations(configuration: Configuration) -> int:
        compiled = compile_model(folder, Manifest.read(folder), 256, configuration, 1, tmp_path, 1)
        nodes = compiled.get_runtime_model().get_ordered_ops()
        return sum(node.get_rt_info()["layerType"] == "Subgraph" for node in nodes)

    for _ in range(2):
        assert fused_operations(Configuration("f32")) > 0
        assert fused_operations(EXACT) == 0


def test_cached_scores_are_kept_for_each_configuration() -> None:
    fused, plain = (OpenVinoEngine(INT8, None, 1, None, Configuration("f32", fused)) for fused in (True, False))
    assert fused.info.fingerprint != plain.info.fingerprint


def test_a_folder_of_another_artefact_is_loaded_untested() -> None:
    assert load_artefact(INT8, None, 1).self_test is None
