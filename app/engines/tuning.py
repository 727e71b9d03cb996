"""Choose the configuration that serves: the most exact of the fast ones, measured and tested on this machine.

The choice and the schedule are kept in one file for each combination of model, machine and settings.
"""

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter

from pydantic import BaseModel, ConfigDict, ValidationError

from app.engines.protocol import Engine
from app.engines.schedule import Schedule, arrange, speed_of
from app.engines.selftest import SelfTest, self_test, shared_test
from app.errors import InvalidRequest, StartupError, UnusableModel, first_line

log = logging.getLogger(__name__)

# Configurations with at least this share of the best speed count as equally fast. The most exact of them is chosen.
AS_FAST = 0.9
# After this time, no further configuration is measured.
SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to serve the model."""

    name: str
    load: Callable[[], Engine]
    """Raises `StartupError`."""
    is_measured: bool = True
    """Whether its speed is measured. The others serve only if the measured ones are wrong or cannot be loaded."""


class Tuning(BaseModel):
    """The choice for one model on one machine."""

    model_config = ConfigDict(frozen=True)

    configuration: str
    """The candidate's name."""
    schedule: Schedule
    device_name: str | None = None
    rejected: tuple[str, ...] = ()


class TuningFile:
    """The file that keeps a tuning. The service also runs if it cannot be read or written."""

    def __init__(self, folder: Path, *identity: object) -> None:
        digest = hashlib.blake2b(repr(identity).encode(), digest_size=8).hexdigest()
        self.path = folder / f"tuning-{digest}.json"

    def read(self) -> Tuning | None:
        """The kept tuning, or None if there is none that can be used."""
        try:
            return Tuning.model_validate_json(self.path.read_bytes())
        except (OSError, ValidationError):
            return None

    def write(self, tuning: Tuning) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(tuning.model_dump_json(indent=2) + "\n")
        except OSError as error:
            log.info("The measurement is not saved: RERANKER_EXPORT_DIR is not writable: %s", error.strerror)


def tune(candidates: Sequence[Candidate], asked: Callable[[Engine], dict[str, int]], file: TuningFile) -> Engine:
    """The engine to serve with, tested and with its schedule.

    `asked` returns the fields of the schedule that the settings fix. Raises `StartupError` if no candidate can be
    loaded and computes correctly.
    """
    rejected: list[str] = []
    if (kept := file.read()) and (engine := _as_kept(kept, candidates, rejected)):
        log.info("Measured earlier (%s): %s; %s", file.path, kept.configuration, kept.schedule)
        return engine
    errors: list[StartupError] = []
    candidate, engine = choose(candidates, rejected, errors)
    tested = engine.schedule
    to_keep = arrange(engine, asked(engine))
    if engine.schedule != tested:
        _test_again(engine, tested, rejected)
    # A fallback is not kept: what could not be loaded, such as a failed export, is tried at the next start.
    if to_keep and (candidate.is_measured or not errors):
        info, rejections = engine.info, tuple(rejected)
        file.write(
            Tuning(
                configuration=candidate.name,
                schedule=engine.schedule,
                device_name=info.device_name,
                rejected=rejections,
            )
        )
    return engine


def _as_kept(kept: Tuning, candidates: Sequence[Candidate], rejected: list[str]) -> Engine | None:
    """The engine of the kept tuning, tested again. None if it cannot be loaded or fails the test now."""
    candidate = next((candidate for candidate in candidates if candidate.name == kept.configuration), None)
    engine = _load(candidate, []) if candidate else None
    if candidate is None or engine is None or engine.info.device_name != kept.device_name:
        return None
    rejected += kept.rejected
    engine.schedule = kept.schedule
    return engine if _test(engine, candidate.name, rejected) else None


def choose(
    candidates: Sequence[Candidate], rejected: list[str], errors: list[StartupError]
) -> tuple[Candidate, Engine]:
    """The most exact candidate within 10 % of the fastest. If all of those fail the self-test, the next fastest.

    Candidates that fail the self-test are added to `rejected`, and reasons why some cannot be loaded to `errors`.
    Raises `StartupError` if none is left.
    """
    for group in _by_speed(candidates, errors):
        passed = [
            (candidate, engine, test)
            for candidate in group
            if (engine := _load(candidate, errors)) and (test := _test(engine, candidate.name, rejected))
        ]
        if passed:
            candidate, engine, test = min(passed, key=lambda each: each[2].distance)
            engine.self_test = replace(test, rejected=tuple(rejected))
            for error in errors:
                log.warning("Not used: %s", error)
            log.info("Chosen: %s; self-test: %s", candidate.name, test)
            return candidate, engine
    if rejected:
        raise StartupError(f"no engine computes this model correctly on this machine: {'; '.join(rejected)}")
    raise errors[0]


def _by_speed(candidates: Sequence[Candidate], errors: list[StartupError]) -> Iterator[list[Candidate]]:
    """Groups of candidates: the fastest ones together, then the others one by one. Unmeasured ones come last."""
    speeds = _speeds(candidates, errors)
    fastest = max(speeds.values(), default=0.0)
    contenders = [candidate for candidate in candidates if speeds.get(candidate.name, 0.0) >= AS_FAST * fastest > 0]
    if contenders:
        yield contenders
    others = [candidate for candidate in candidates if candidate not in contenders]
    for candidate in sorted(others, key=lambda each: -speeds.get(each.name, 0.0)):
        yield [candidate]


def _speeds(candidates: Sequence[Candidate], errors: list[StartupError]) -> dict[str, float]:
    """Tokens per second of the measured candidates, by name. Empty if there is no choice or the machine is slow."""
    speeds: dict[str, float] = {}
    measured = [candidate for candidate in candidates if candidate.is_measured]
    started = perf_counter()
    for candidate in measured if len(measured) > 1 else []:
        if perf_counter() - started > SECONDS:
            break
        engine = _load(candidate, errors)
        if engine is None:
            continue
        try:
            speed = speed_of(engine)
        except Exception as error:  # libraries raise various types; the self-test reports it
            log.info("%s was not measured: %s", candidate.name, first_line(error))
            continue
        if speed is None:
            log.info("Not measured: the machine is too slow or too busy")
            return {}
        speeds[candidate.name] = speed
    if speeds:
        figures = "; ".join(f"{speed:.0f} tokens/s with {name}" for name, speed in speeds.items())
        log.info("Measured in %.1f s: %s", perf_counter() - started, figures)
    return speeds


def _load(candidate: Candidate, errors: list[StartupError]) -> Engine | None:
    """The candidate's engine, or None with the reason in `errors`. Raises `UnusableModel`: no engine can use it."""
    try:
        return candidate.load()
    except UnusableModel:
        raise
    except StartupError as error:
        if str(error) not in map(str, errors):
            errors.append(error)
        return None


def _test(engine: Engine, name: str, rejected: list[str]) -> SelfTest | None:
    """The engine's self-test if it passes. If not, logs the reason, adds it to `rejected` and returns None."""
    try:
        test = self_test(engine)
    except StartupError:
        raise
    except InvalidRequest as error:
        raise StartupError(f"RERANKER_MAX_LENGTH: {error}") from None
    except Exception as error:  # libraries raise various types
        reason = f"it fails: {first_line(error)}"
    else:
        if test.passed:
            _test_shared_rows(engine, name, rejected)
        engine.self_test = replace(test, rejected=tuple(rejected))
        if test.passed:
            return test
        reason = str(test)
    log.error("%s gives wrong scores on this machine: %s", name, reason)
    rejected.append(f"{name}: {reason}")
    return None


def _test_shared_rows(engine: Engine, name: str, rejected: list[str]) -> None:
    """If the engine is wrong where pairs share a row, logs the reason, and each pair gets its own row."""
    if not engine.info.shares_prefixes:
        return
    try:
        test = shared_test(engine)
        if test.passed:
            return
        reason = str(test)
    except Exception as error:  # libraries raise various types
        reason = f"it fails: {first_line(error)}"
    engine.info = replace(engine.info, shares_prefixes=False)
    log.error("%s gives wrong scores if pairs share a row, so each has its own: %s", name, reason)
    if (rejection := f"{name}, shared rows: {reason}") not in rejected:
        rejected.append(rejection)


def _test_again(engine: Engine, tested: Schedule, rejected: list[str]) -> None:
    """Test the new schedule. If it fails, go back to the one that passed. Raises `StartupError` if that fails too."""
    if _test(engine, str(engine.schedule), rejected) is None:
        engine.schedule = tested
        if _test(engine, str(tested), rejected) is None:
            raise StartupError(f"the engine does not compute reliably on this machine: {'; '.join(rejected)}")
