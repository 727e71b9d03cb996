"""Coverage-guided fuzzing of the whole service with atheris: `python -m tests.fuzz.bodies RUNS`."""

import json
import sys
import tempfile
import time
from pathlib import Path
from random import Random
from typing import Any

import atheris

with atheris.instrument_imports(include=["app"]):
    from tests.fuzz.service import HEADERS, ROUTES, SEEDS, Service

HEAD_BYTES = 2
# Checked here, because the limit of libFuzzer also counts the peak of the parent process.
PEAK_BYTES = 512 << 20
BYTES_SHARE, STOP_SHARE = 0.3, 0.2
WORDS = ["query", "documents", "texts", "passages", "text_1", "text_2", "rank_fields", "metadata", "\\\\ud800", "1e999"]


EDGES = [
    None,
    True,
    0,
    -1,
    10**400,
    1e308,
    float("nan"),
    "",
    "a",
    "\ud800",
    "\x00",
    [],
    {},
    [[]],
    {"text": "a"},
    *SEEDS,
]


def mutate(data: bytes, max_size: int, seed: int) -> bytes:
    """Mutate a JSON body mostly by value, so that it stays valid JSON, and otherwise by bytes."""
    random = Random(seed)
    try:
        body = json.loads(data[HEAD_BYTES:])
    except (ValueError, RecursionError):
        body = random.choice(SEEDS)
    if random.random() < BYTES_SHARE:
        return bytes(atheris.Mutate(data, max_size))
    content = json.dumps(changed(body, random)).encode()
    head = bytes([random.randrange(len(ROUTES)), random.randrange(256)])
    return (head + content)[:max_size]


def changed(value: Any, random: Random) -> Any:
    """The value with one nested value replaced or removed."""
    if not isinstance(value, dict | list) or not value or random.random() < STOP_SHARE:
        return random.choice(EDGES)
    items = dict(value) if isinstance(value, dict) else dict(enumerate(value))
    place = random.choice(list(items))
    if random.random() < STOP_SHARE:
        del items[place]
    else:
        items[place] = changed(items[place], random)
    return items if isinstance(value, dict) else list(items.values())


def peak_memory() -> int:
    """Peak resident memory of this process in bytes."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024


def main(runs: int) -> None:
    """Send this many bodies. Exits with status 0 if every response was as expected."""
    service = Service()
    started = time.perf_counter()

    def one(data: bytes) -> None:
        if len(data) > HEAD_BYTES:
            # Most bodies get valid headers, so that they reach the code behind them.
            service.send(data[0], data[1] if data[1] < len(HEADERS) else 0, data[HEAD_BYTES:])
            assert peak_memory() < PEAK_BYTES, peak_memory()
        done = service.statuses.total()
        if done == runs:
            seconds = time.perf_counter() - started
            print(
                f"{done} bodies, {done / seconds:.0f} per second: {dict(sorted(service.statuses.items()))}", flush=True
            )
            grown, peak = service.growth() / 1e6, peak_memory() / 1e6
            print(f"memory: {grown:+.1f} MB since the caches were filled, peak {peak:.0f} MB", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder, "corpus")
        corpus.mkdir()
        for number, seed in enumerate(SEEDS):
            for route in range(len(ROUTES)):
                content = bytes([route, 255]) + json.dumps(seed, ensure_ascii=bool(route)).encode()
                (corpus / f"{number}-{route}").write_bytes(content)
        words = Path(folder, "words")
        words.write_text("".join(f'"{word}"\n' for word in WORDS))
        # Inputs that are too short for a request are not counted, so there are some extra runs.
        options = [
            f"-runs={runs + runs // 10 + 1000}",
            f"-dict={words}",
            "-max_len=4096",
            "-rss_limit_mb=0",
            f"-artifact_prefix={folder}/",
        ]
        atheris.Setup([sys.argv[0], *options, "-verbosity=0", "-seed=1", str(corpus)], one, custom_mutator=mutate)
        atheris.Fuzz()


if __name__ == "__main__":
    main(int(sys.argv[1]))
