import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from app.config import Settings
from app.environment import load_settings, unknown_variables
from app.errors import StartupError
from app.evaluation.service import own_settings

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("RERANKER_PORT", "99999", "less than or equal to 65535"),
        ("RERANKER_PORT", "web", "valid integer"),
        ("RERANKER_DEVICE", "gpu", "must be auto, cpu, cuda, cuda:N or mps"),
        ("RERANKER_MAX_PARALLEL", "0", "greater than or equal to 1"),
        ("RERANKER_MAX_QUEUE", "-1", "greater than or equal to 0"),
        ("RERANKER_QUEUE_TIMEOUT", "0", "greater than 0"),
        ("RERANKER_QUEUE_TIMEOUT", "inf", "finite"),
        ("RERANKER_OVERLOAD_STATUS", "500", "429 or 503"),
        ("ENABLE_TORCH_COMPILE", "perhaps", "valid boolean"),
        ("TOKENIZER_WORKERS", "none", "valid integer"),
        ("CACHE_TTL_SECONDS", "-5", "greater than 0"),
        ("RERANKER_CORS_ORIGINS", "https://a.example, b.example", "'b.example' is not an origin"),
        ("RERANKER_LOG_LEVEL", "loud", "'debug', 'info', 'warning' or 'error'"),
    ],
)
def test_an_invalid_value_is_reported_with_the_allowed_values(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, allowed: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(StartupError) as caught:
        load_settings()
    message = str(caught.value)
    assert message.startswith(f"{name}={value!r} is not valid: ")
    assert allowed in message
    assert "\n" not in message


@pytest.mark.parametrize("origins", ["*", "null", "https://a.example, http://localhost:3000", "chrome-extension://abc"])
def test_every_kind_of_browser_origin_is_accepted(monkeypatch: pytest.MonkeyPatch, origins: str) -> None:
    monkeypatch.setenv("RERANKER_CORS_ORIGINS", origins)
    assert ", ".join(load_settings().origins()) == origins


def test_an_invalid_cache_url_is_rejected_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RERANKER_CACHE_URL", "http://user:s3cret@host")
    with pytest.raises(StartupError) as caught:
        load_settings()
    assert str(caught.value) == "RERANKER_CACHE_URL is not valid: must start with redis://, rediss:// or unix://"


@pytest.mark.parametrize(
    ("backend", "precision"), [("openvino", "fp16"), ("onnx", "bf16"), ("onnx", "fp16"), ("torch", "int8")]
)
def test_a_precision_that_the_backend_does_not_support_is_rejected(
    monkeypatch: pytest.MonkeyPatch, backend: str, precision: str
) -> None:
    monkeypatch.setenv("RERANKER_BACKEND", backend)
    monkeypatch.setenv("RERANKER_PRECISION", precision)
    with pytest.raises(
        StartupError, match=f"RERANKER_PRECISION={precision} is not valid with .*={backend}: use auto, "
    ):
        load_settings()


@pytest.mark.parametrize("name", ["RERANKER_MODEL", "RERANKER_PREFILTER_MODEL"])
def test_check_reports_missing_folders(tmp_path: Path, name: str) -> None:
    for folder, reason in ((tmp_path, "it has no config.json"), (tmp_path / "none", "no such folder")):
        command = [sys.executable, "-m", "app", "--check"]
        environment = os.environ | {name: str(folder)}
        checked = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        found = name == "RERANKER_PREFILTER_MODEL" and folder.is_dir()
        assert checked.returncode == (0 if found else 1)
        assert (f"{name}={str(folder)!r}" in checked.stderr, reason in checked.stderr) == (not found, not found)


def test_the_log_level_may_be_upper_case(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RERANKER_LOG_LEVEL", "WARNING")
    assert load_settings().log_level == "warning"


def test_each_invalid_value_is_reported_on_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RERANKER_PORT", "0")
    monkeypatch.setenv("RERANKER_DEVICE", "tpu")
    with pytest.raises(StartupError) as caught:
        load_settings()
    assert [line.split("=")[0] for line in str(caught.value).splitlines()] == ["RERANKER_PORT", "RERANKER_DEVICE"]


def test_an_empty_variable_is_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RERANKER_MODEL", "")
    monkeypatch.setenv("RERANKER_MAX_PARALLEL", "")
    assert load_settings().model is None


def test_defaults_depend_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RERANKER_MAX_QUEUE", "7")
    settings = load_settings()
    cpu, cuda = settings.capacity("cpu"), settings.capacity("cuda:1")
    assert (cpu.max_queue, cuda.max_queue) == (7, 7)
    assert cpu.max_parallel < cuda.max_parallel


def test_a_misspelled_variable_is_reported() -> None:
    assert unknown_variables(["RERANKER_MAX_PARALEL", "RERANKER_PORT", "PATH"]) == ["RERANKER_MAX_PARALEL"]


def test_every_documented_variable_is_known() -> None:
    names = re.findall(r"^\| `(RERANKER_\w+)` \|", (ROOT / "docs/configuration.md").read_text(), re.MULTILINE)
    assert {"RERANKER_PROXY_PORT", "RERANKER_PROXY_TIMEOUT", "RERANKER_URL"} < set(names)
    assert unknown_variables(names) == []


# What Kubernetes sets in every container for the Services `reranker` and `reranker-proxy`.
SERVICES = {
    "RERANKER_SERVICE_HOST": "10.96.12.3",
    "RERANKER_SERVICE_PORT": "8000",
    "RERANKER_SERVICE_PORT_HTTP": "8000",
    "RERANKER_PORT": "tcp://10.96.12.3:8000",
    "RERANKER_PORT_8000_TCP": "tcp://10.96.12.3:8000",
    "RERANKER_PORT_8000_TCP_PROTO": "tcp",
    "RERANKER_PORT_8000_TCP_PORT": "8000",
    "RERANKER_PORT_8000_TCP_ADDR": "10.96.12.3",
    "RERANKER_PROXY_PORT": "tcp://[fd00::1]:8080",
    "RERANKER_PROXY_PORT_53_UDP_ADDR": "fd00::1",
}


def test_the_variables_of_kubernetes_services_are_ignored_with_one_line() -> None:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RERANKER_")}
    command = [sys.executable, "-m", "app", "--check"]
    checked = subprocess.run(command, env=clean | SERVICES, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    [line] = checked.stderr.splitlines()
    assert line.endswith(f"Kubernetes has set {', '.join(sorted(SERVICES))} for a Service: ignored")


def test_the_default_is_used_in_place_of_a_kubernetes_address(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("tcp://10.96.12.3:8000", "udp://[fd00::1]:53"):
        monkeypatch.setenv("RERANKER_PORT", value)
        assert load_settings().port == 8000
    monkeypatch.setenv("RERANKER_PORT", "9000")
    assert load_settings().port == 9000


@pytest.mark.parametrize(
    ("script", "shown"),
    [
        ("source scripts/process.sh; echo $url", "http://127.0.0.1:8000"),
        ("RERANKER_HOST=[fd00::2]; source scripts/process.sh; echo $url", "http://[fd00::2]:8000"),
        ("RERANKER_HOST=::; source scripts/process.sh; echo $url", "http://localhost:8000"),
        ("docker/entrypoint.sh sh -c 'echo ${RERANKER_PORT-none}'", "none"),
    ],
)
def test_the_scripts_ignore_them_too(script: str, shown: str) -> None:
    environment = {"PATH": os.environ["PATH"]} | SERVICES
    found = subprocess.run(
        ["bash", "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == shown


@pytest.mark.parametrize("name", [name for name, field in Settings.model_fields.items() if field.default is not None])
def test_every_default_is_valid_in_the_environment(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    default = getattr(Settings(), name)
    monkeypatch.setenv(str(Settings.model_fields[name].alias), str(default))
    assert getattr(load_settings(), name) == default


@pytest.mark.parametrize(
    ("value", "used"), [("::0", "::"), ("[0:0:0:0:0:0:0:0]", "::"), ("[::1]", "::1"), ("my-host", "my-host")]
)
def test_an_address_may_be_spelled_in_any_way(monkeypatch: pytest.MonkeyPatch, value: str, used: str) -> None:
    """Only `::` listens on both families."""
    monkeypatch.setenv("RERANKER_HOST", value)
    assert load_settings().host == used


def test_a_user_without_a_home_folder_is_told_what_to_set() -> None:
    """As with an arbitrary user id in a container that does not set HOME."""
    code = (
        "import pwd\n"
        "def nobody(uid): raise KeyError(uid)\n"
        "pwd.getpwuid = nobody\n"
        "from app.environment import load_settings\n"
        "from app.errors import StartupError\n"
        "try: load_settings().store\n"
        "except StartupError as error: print(error)\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "HOME"}
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert found.stdout == (
        "RERANKER_EXPORT_DIR='~/.cache/reranker': this user has no home folder. Set HOME, or set RERANKER_EXPORT_DIR "
        "to a folder\n"
    )


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ("embedded", "'embedded' is not NAME=SOURCE, with a name of letters, digits and . _ : / -"),
        ("a=", "'a=' is not NAME=SOURCE"),
        ("a b=embedded", "'a b=embedded' is not NAME=SOURCE"),
        ("a=embedded,A=x/y", "the name 'A' appears twice"),
        (",", "must be NAME=SOURCE, NAME=SOURCE"),
    ],
)
def test_a_list_of_models_that_is_wrong_is_reported(monkeypatch: pytest.MonkeyPatch, models: str, message: str) -> None:
    monkeypatch.setenv("RERANKER_MODELS", models)
    with pytest.raises(StartupError, match=re.escape(f"RERANKER_MODELS={models!r} is not valid: {message}")):
        load_settings()


def test_each_model_has_its_source_and_revision(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "at@home"
    folder.mkdir()
    monkeypatch.setenv("RERANKER_MODELS", f"e=embedded, org/b = BAAI/bge@v1.0, c=BAAI/bge,f={folder}")
    each = load_settings().each()
    assert {name: (own.model, own.revision) for name, own in each.items()} == {
        "e": ("embedded", None),
        "org/b": ("BAAI/bge", "v1.0"),
        "c": ("BAAI/bge", None),
        "f": (str(folder), None),
    }


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("RERANKER_MODEL", "RERANKER_MODELS and RERANKER_MODEL are both set: unset one of them"),
        ("RERANKER_REVISION", "write ID@REVISION in RERANKER_MODELS"),
        ("RERANKER_TEMPLATE", "export the model with its template"),
        ("RERANKER_INSTRUCTION", "send `instruction` in the requests"),
    ],
)
def test_settings_of_one_model_are_refused_with_several(
    monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    monkeypatch.setenv("RERANKER_MODELS", "a=embedded")
    monkeypatch.setenv(name, "none")
    with pytest.raises(StartupError, match=re.escape(message)):
        load_settings()


def test_a_command_for_one_model_asks_for_it_or_takes_the_chosen_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RERANKER_MODELS", "a=embedded,b=embedded:multilingual")
    with pytest.raises(StartupError, match="choose one with --model"):
        own_settings({"model": None})
    assert own_settings({"model": "embedded:multilingual"}).model == "embedded:multilingual"
