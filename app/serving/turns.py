"""Which model runs its batch next.

The models of a process share its cores or its GPU: together they run as many batches at once as one would run alone.

The model that has had the fewest tokens goes first. A model that had nothing to do does not catch up on what it missed.
"""

import asyncio
from time import monotonic

# A batch that runs for longer may hang: the other models stop waiting for it.
PATIENCE_SECONDS = 5.0
# Shares such as three thirds may add up to a little more than 1.
ROUNDING = 1e-9


class Turn:
    """The right to run one batch, until `end`."""

    def __init__(self, line: "Line", share: float) -> None:
        """`share`: how much of the machine the batch takes, where 1 is all of it."""
        self.share = share
        self.started = monotonic()
        self._line = line

    def begin(self, tokens: int) -> None:
        """The batch has this many tokens."""
        self._line.tokens += tokens
        self._line.clock += tokens

    def end(self) -> None:
        """Let others run. A second call has no effect."""
        self._line.leave(self)


class Line:
    """One model's place among those that take turns. Its engine may be replaced."""

    def __init__(self, turns: "Turns") -> None:
        self.tokens = 0
        """Tokens of all batches of this model."""
        self.clock = 0
        """The tokens by which turns are given."""
        self.at_once = 1
        """How many batches of this model may run."""
        self.running: set[Turn] = set()
        self._turns = turns

    async def take(self, at_once: int) -> Turn:
        """Wait for the turn to run a batch. `at_once`: how many batches of this model fill the machine."""
        self.at_once = at_once
        return await self._turns.take(self)

    def leave(self, turn: Turn) -> None:
        """End a turn."""
        self.running.discard(turn)
        self._turns.pass_on()

    def close(self) -> None:
        """End all turns: the engine is gone."""
        self.running.clear()
        self._turns.pass_on()


class Turns:
    """Owns who runs and who waits. Used on the event loop only."""

    def __init__(self) -> None:
        self._lines: list[Line] = []
        # A line waits for one turn at a time.
        self._waiting: dict[Line, asyncio.Future[Turn]] = {}
        self._clock = 0
        self._timer: asyncio.TimerHandle | None = None

    def join(self) -> Line:
        """A new place."""
        self._lines.append(line := Line(self))
        return line

    async def take(self, line: Line) -> Turn:
        """Wait for this line's turn."""
        line.clock = max(line.clock, self._clock)
        if not self._waiting and self._is_free(line):
            return self._grant(line)
        self._waiting[line] = granted = asyncio.get_running_loop().create_future()
        self.pass_on()
        try:
            turn: Turn = await granted
            return turn
        except asyncio.CancelledError:
            if granted.done() and not granted.cancelled():  # granted just before the cancellation
                granted.result().end()
            else:
                self._waiting.pop(line, None)
                self.pass_on()
            raise

    def pass_on(self) -> None:
        """Grant the turns that are free. A line that needs more than is free is not overtaken."""
        while ready := [line for line in self._waiting if len(line.running) < line.at_once]:
            line = min(ready, key=lambda waiting: waiting.clock)
            if not self._is_free(line):
                self._look_again()
                return
            granted = self._waiting.pop(line)
            if not granted.done():  # else the waiting was cancelled
                granted.set_result(self._grant(line))

    def _is_free(self, line: Line) -> bool:
        """Whether this line may run another batch now."""
        if len(line.running) >= line.at_once:
            return False
        return len(self._lines) == 1 or self._taken() + 1 / line.at_once <= 1 + ROUNDING

    def _grant(self, line: Line) -> Turn:
        line.running.add(turn := Turn(line, 1 / line.at_once))
        self._clock = line.clock
        return turn

    def _taken(self) -> float:
        """The share of the machine that running batches take, without those that may hang."""
        overdue = monotonic() - PATIENCE_SECONDS
        return sum(turn.share for line in self._lines for turn in line.running if turn.started > overdue)

    def _look_again(self) -> None:
        """Look again when the oldest batch would have run for too long."""
        if self._timer is None:
            overdue = monotonic() - PATIENCE_SECONDS
            running = (turn.started for line in self._lines for turn in line.running)
            oldest = min((started for started in running if started > overdue), default=overdue)
            self._timer = asyncio.get_running_loop().call_later(oldest - overdue, self._on_time)

    def _on_time(self) -> None:
        self._timer = None
        self.pass_on()
