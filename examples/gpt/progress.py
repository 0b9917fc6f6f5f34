"""What the user sees while the model trains: a live panel, or plain lines without a terminal.

Knows numbers and rich; must not know the model.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

BARS = "▁▂▃▄▅▆▇█"
PLAIN_LINE_SECONDS = 10.0


def sparkline(values: list[float], width: int) -> str:
    """Draws values as a line of blocks, averaging them down to `width` characters."""
    count = min(width, len(values))
    cells = [
        values[index * len(values) // count : (index + 1) * len(values) // count]
        for index in range(count)
    ]
    means = [sum(cell) / len(cell) for cell in cells]
    low, high = min(means, default=0.0), max(means, default=0.0)
    unit = (high - low) / (len(BARS) - 1) or 1.0
    return "".join(BARS[round((mean - low) / unit)] for mean in means)


def minutes(seconds: float) -> str:
    """7.2 -> '0:07'."""
    whole = max(0, round(seconds))
    return f"{whole // 60}:{whole % 60:02d}"


class TrainingProgress:
    """Shows a training run; use it as a context manager and call update() after every step."""

    def __init__(self, console: Console, title: str) -> None:
        self._console = console
        self._title = title
        self._held_out: float | None = None
        self._start = time.perf_counter()
        self._last_line = self._start
        self._live = Live(console=console, refresh_per_second=4) if console.is_terminal else None

    def __enter__(self) -> TrainingProgress:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live:
            self._live.stop()

    def held_out(self, loss: float) -> None:
        """Tells the loss on held-out text."""
        self._held_out = loss

    def update(self, tokens: int, losses: list[float], share_done: float) -> None:
        """Tells the state after a step: losses so far, and how much, in (0, 1], is behind us."""
        now = time.perf_counter()
        state = _State(
            tokens=tokens,
            losses=losses,
            held_out=self._held_out,
            seconds=now - self._start,
            share_done=share_done,
        )
        if self._live:
            self._live.update(state.panel(self._title, min(self._console.width, 88)))
        elif now - self._last_line >= PLAIN_LINE_SECONDS or share_done >= 1:
            self._last_line = now
            self._console.print(state.line(), highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class _State:
    """A moment of the run, and how to show it."""

    tokens: int
    losses: list[float]
    held_out: float | None
    seconds: float
    share_done: float

    @property
    def seconds_left(self) -> float:
        return self.seconds * (1 - self.share_done) / self.share_done

    @property
    def figures(self) -> dict[str, str]:
        recent = self.losses[-20:]
        return {
            "step": f"{len(self.losses):,}",
            "tokens": f"{self.tokens / 1e6:.2f} M",
            "tokens/s": f"{self.tokens / self.seconds:,.0f}",
            "loss": f"{sum(recent) / len(recent):.3f}",
            "held-out loss": "-" if self.held_out is None else f"{self.held_out:.3f}",
            "time": minutes(self.seconds),
            "left": minutes(self.seconds_left),
        }

    def line(self) -> str:
        """Everything in one plain line."""
        return "  ".join(f"{name} {value}" for name, value in self.figures.items())

    def panel(self, title: str, width: int) -> Panel:
        """Everything, with the curve of the loss and a bar for the time."""
        table = Table.grid(padding=(0, 3))
        table.add_row(*self.figures)
        table.add_row(*(Text(value, style="bold cyan") for value in self.figures.values()))
        inner = width - 6
        curve = Text(sparkline(self.losses, inner), style="cyan")
        bar = ProgressBar(total=1.0, completed=self.share_done, width=inner)
        return Panel(
            Group(table, Text(), curve, bar),
            title=title,
            subtitle="loss in nats per byte; Ctrl-C stops early and still reports",
            width=width,
            padding=(1, 2),
        )
