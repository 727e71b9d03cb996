"""How far a run is: a bar on a terminal, else a line now and then."""

from time import perf_counter
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from app.bulk.scoring import Counts

LINE_SECONDS = 30.0
MINUTE, HOUR = 60, 3600


class Report:
    """Shows the share of the input that is done, the speed, and the time that is left."""

    def __init__(self, console: Console, size: int, before: Counts) -> None:
        """`before`: what earlier runs have done. `size`: see `Source.size`."""
        self._console = console
        self._size = max(1, size)
        self._documents = before.documents
        self._first: int | None = None
        self._started = self._written = perf_counter()
        self._bar = Progress(
            TextColumn("Reranking"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(elapsed_when_finished=True, compact=True),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("", total=self._size, figures="")

    def show(self, done: int, counts: Counts) -> None:
        """Called after each row. `counts`: those of earlier runs included."""
        now = perf_counter()
        if self._first is None:
            self._first = done
        speed = (counts.documents - self._documents) / max(now - self._started, 1e-9)
        figures = f"{counts.rows:,} rows, {speed:,.0f} documents/s"
        if counts.bad:
            figures += f", {counts.bad:,} bad"
        if self._console.is_terminal:
            self._bar.update(self._task, completed=done, figures=figures)
        elif now - self._written >= LINE_SECONDS:
            self._written = now
            share, read = done / self._size, done - self._first
            left = (self._size - done) / read * (now - self._started) if read > 0 else 0.0
            self._console.print(f"{share:.1%}: {figures}, {as_time(left)} left", highlight=False)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bar.stop()


def as_time(seconds: float) -> str:
    """Hours, minutes and seconds."""
    whole = round(seconds)
    return f"{whole // HOUR}:{whole % HOUR // MINUTE:02}:{whole % MINUTE:02}"
