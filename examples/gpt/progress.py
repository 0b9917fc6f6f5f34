"""What the user sees while the model trains: a live panel, or plain lines without a terminal.

Knows numbers and rich; must not know the model.
"""

from __future__ import annotations

import time
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
        self._losses: list[float] = []
        self._validation: float | None = None
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

    def validation(self, loss: float) -> None:
        """Tells the loss on held-out text."""
        self._validation = loss

    def update(self, step: int, tokens: int, loss: float, share_done: float) -> None:
        """Tells the state after `step` steps, of which `share_done` in (0, 1] is behind us."""
        self._losses.append(loss)
        now = time.perf_counter()
        elapsed = now - self._start
        left = elapsed * (1 - share_done) / share_done
        recent = self._losses[-20:]
        mean = sum(recent) / len(recent)
        rate = tokens / elapsed
        if self._live:
            self._live.update(self._panel(step, tokens, mean, share_done, rate, elapsed, left))
        elif now - self._last_line >= PLAIN_LINE_SECONDS or share_done >= 1:
            self._last_line = now
            held_out = "" if self._validation is None else f"  held-out {self._validation:.3f}"
            self._console.print(
                f"step {step:5d}  loss {mean:.3f} nats/byte{held_out}  "
                f"{rate:,.0f} tokens/s  {minutes(left)} left",
                highlight=False,
            )

    def _panel(
        self,
        step: int,
        tokens: int,
        loss: float,
        share_done: float,
        rate: float,
        elapsed: float,
        left: float,
    ) -> Panel:
        width = min(self._console.width, 88) - 6
        figures = Table.grid(padding=(0, 3))
        figures.add_row("step", "tokens", "tokens/s", "loss", "held-out loss", "time", "left")
        held_out = "-" if self._validation is None else f"{self._validation:.3f}"
        figures.add_row(
            f"[bold]{step:,}[/]",
            f"[bold]{tokens / 1e6:.2f} M[/]",
            f"[bold]{rate:,.0f}[/]",
            f"[bold cyan]{loss:.3f}[/]",
            f"[bold cyan]{held_out}[/]",
            f"[bold]{minutes(elapsed)}[/]",
            f"[bold]{minutes(left)}[/]",
        )
        bar = ProgressBar(total=1.0, completed=share_done, width=width)
        line = Text(sparkline(self._losses, width), style="cyan")
        return Panel(
            Group(figures, Text(), line, bar),
            title=self._title,
            subtitle="loss in nats per byte; Ctrl-C stops early and still reports",
            width=width + 6,
            padding=(1, 2),
        )
