"""`python -m app.serving.shadow_worker LEVEL FORMAT`: the second model, in a process of the lowest priority.

The first line of the standard input is the settings of the model. Each further line is a question. Each line is
answered by one on the standard output. When the input ends, because the service did, so does this process.
"""

import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from time import perf_counter
from typing import Any, TextIO

from app.engines.load import load_described
from app.engines.protocol import Engine
from app.errors import ScoringFailed
from app.telemetry.logs import configure_logging
from app.types import Pair


def main(level: str, form: str) -> int:
    """Exit status: 0, or 1 if the model cannot be loaded."""
    # Libraries may print: only answers go to the real standard output.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    _step_back()
    configure_logging(level, form)
    lines: SimpleQueue[str] = SimpleQueue()
    # On a thread, the end of the input is noticed during a long load, too.
    Thread(target=_read, args=(lines,), daemon=True).start()
    try:
        engine = load_described(lines.get())
        engine.warm_up()
    except Exception as error:
        _answer(answers, {"error": str(error) or type(error).__name__})
        return 1
    _answer(answers, {"model": engine.info.model})
    while True:
        try:
            _answer(answers, _scores(engine, json.loads(lines.get())))
        except Exception as error:
            _answer(answers, {"error": str(error) or type(error).__name__})


def _step_back() -> None:
    """Give way to the service, in the use of cores and of memory.

    In another process group, a Ctrl-C in the terminal reaches the service only. Not in another session: Linux shares
    the cores equally among sessions, and compares priorities within each.
    """
    with suppress(AttributeError):  # Windows has none of these
        os.setpgid(0, 0)
        os.nice(19)
    with suppress(OSError):  # only Linux has it
        Path("/proc/self/oom_score_adj").write_text("1000")


def _read(lines: "SimpleQueue[str]") -> None:
    for line in sys.stdin:
        lines.put(line)
    os._exit(0)


def _answer(answers: TextIO, content: dict[str, Any]) -> None:
    answers.write(json.dumps(content) + "\n")


def _scores(engine: Engine, question: dict[str, Any]) -> dict[str, Any]:
    started = perf_counter()
    instruction = question["instruction"] if engine.info.instruction is not None else None
    pairs = engine.encode(question["query"], question["documents"], None, instruction)
    logits = [float(logit) for batch in _batches(engine, pairs) for logit in engine.score(batch)]
    if not all(map(math.isfinite, logits)):
        raise ScoringFailed("The model gave a score that is not a number")
    return {"logits": logits, "seconds": perf_counter() - started}


def _batches(engine: Engine, pairs: Sequence[Pair]) -> Iterator[list[Pair]]:
    """Neighbours, as many as the engine takes at once."""
    batch: list[Pair] = []
    for pair in pairs:
        if batch and sum(engine.padded_tokens([*batch, pair])) > engine.schedule.batch_tokens:
            yield batch
            batch = []
        batch.append(pair)
    if batch:
        yield batch


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
