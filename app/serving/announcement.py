"""What the log says once the service is ready, and which settings it warns about."""

import logging

from app.engines.protocol import Engine, EngineInfo
from app.machine.hardware import cpu_limit

log = logging.getLogger(__name__)

LOOPBACK = {"127.0.0.1", "::1", "localhost"}


def announce_engine(engine: Engine, seconds: float) -> None:
    """Log what runs, and how the self-test went."""
    info = engine.info
    log.info(
        "Ready in %.1f s: model %s, device %s, backend %s, precision %s%s, %d threads, window %d tokens",
        seconds,
        info.model,
        info.device,
        info.backend + (" compiled" if info.compiled else ""),
        info.precision,
        info.configuration and f" ({info.configuration})",
        info.threads,
        info.max_length,
    )
    if test := engine.self_test:
        log.info("Self-test: %s; %d pairs in %.2f s", test, test.pairs, test.seconds)


def announce_activation(asked: str, info: EngineInfo) -> None:
    """`asked` is RERANKER_ACTIVATION. Log that scores are not those of `CrossEncoder.predict`."""
    if asked == "auto" and info.activation != "sigmoid":
        log.info(
            "Scores are from 0 to 1, by a sigmoid. The model's own activation is %s: set RERANKER_ACTIVATION=model to "
            "use it everywhere",
            info.activation,
        )


def announce_address(host: str, port: int, has_docs: bool, has_keys: bool) -> None:
    """Log the URL. Warn if the service is open to other machines and needs no key."""
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    log.info("Listening on %s%s", url, ", API documentation at /docs" if has_docs else "")
    if not has_keys:
        level = logging.INFO if host in LOOPBACK else logging.WARNING
        log.log(level, "No API key is set (RERANKER_API_KEYS): anyone who can reach %s can use the service", url)


def warn_about_length(asked: int | None, info: EngineInfo) -> None:
    """`asked` is RERANKER_MAX_LENGTH; None leaves it to the model."""
    if asked and info.max_length < asked:
        log.warning("RERANKER_MAX_LENGTH=%d: the model reads at most %d tokens", asked, info.max_length)
    elif asked and info.declared_length and asked < info.declared_length:
        log.warning(
            "RERANKER_MAX_LENGTH=%d truncates pairs that the model could read: its window is %d tokens",
            asked,
            info.declared_length,
        )


def warn_about_threads(asked: int) -> None:
    if asked > cpu_limit():
        log.warning("RERANKER_THREADS=%d: only %d CPUs are available, more threads are slower", asked, cpu_limit())
