"""One head of 1,048,576 tokens under a band of 4096: memory, and time per token against 65,536.

The band makes the work linear in the tokens, so nothing that is stored or done may grow faster. The
memory is measured in a process of its own, because the peak of a process never sinks.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.progress_bar import ProgressBar
from rich.table import Table
from torch import Tensor

from fma_peak import FmaPeak
from fusion_attention import _library
from fusion_attention._errors import FeatureError
from fusion_attention.benchmark.cases import DTYPES, Case, Direction
from fusion_attention.benchmark.clock import take_turns
from fusion_attention.benchmark.contestants import Inputs, Ours
from fusion_attention.benchmark.masks import Mask
from fusion_attention.benchmark.verify import verify
from running import child
from targets import FORWARD_BACKWARD

LONG, SHORT, BAND = 1_048_576, 65_536, 4096
#: What the promises are: scratch memory of a thread, and how much longer a token may take.
SCRATCH_MIB, SLOWER = 16, 1.05
ROWS: tuple[tuple[str, Direction], ...] = tuple(
    itertools.product(("fp32", "bf16"), FORWARD_BACKWARD)
)
_MIB = 2**20
_SHORTS_A_ROUND = 4
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's mallopt


@dataclass(frozen=True)
class LongResult:
    """What one dtype and direction showed. `held` is inputs, outputs and fp32 dQ, in bytes."""

    dtype: str
    direction: str
    threads: int
    held: int
    growth: int
    short_seconds: float
    long_seconds: float
    short_of_peak: float
    long_of_peak: float

    @property
    def allowed(self) -> int:
        """How far the memory of the process may rise."""
        return self.held + SCRATCH_MIB * _MIB * self.threads

    @property
    def per_token(self) -> float:
        """The time of a token of the long sequence, in those of the short one."""
        return self.long_seconds / LONG / (self.short_seconds / SHORT)

    @property
    def holds(self) -> bool:
        """Whether both promises are kept."""
        return self.growth <= self.allowed and self.per_token <= SLOWER


def problem(tokens: int, dtype: str) -> Case:
    """One head under the band."""
    return Case(64, Mask("band", BAND), DTYPES[dtype]).with_heads(1).with_tokens(tokens)


class _Estimate(ProgressColumn):
    """A bar for work that is one call: the time that passed, of what it should take."""

    max_refresh = 0.5

    def render(self, task: Task) -> ProgressBar:
        passed = min(task.elapsed or 0.0, task.fields["seconds"])
        return ProgressBar(total=task.fields["seconds"], completed=passed, width=40)


@contextlib.contextmanager
def _shown(console: Console, text: str, seconds: float) -> Iterator[None]:
    """Shows a bar while one piece of work runs that should take so many seconds."""
    columns = (
        TextColumn("{task.description}"),
        _Estimate(),
        TimeElapsedColumn(),
        TextColumn("of about {task.fields[seconds]:.1f} s"),
    )
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal,
        refresh_per_second=2,
    ) as progress:  # fmt: skip
        progress.add_task(text, total=1, seconds=seconds)
        yield


def _status_bytes(field: str) -> int:
    """A memory figure of this process as Linux reports it."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise FeatureError(f"cannot measure memory: /proc/self/status has no {field}")


def memory(case: Case, threads: int) -> dict[str, tuple[int, int]]:
    """Runs forward and backward once; for each, what inputs and outputs hold and the growth."""
    torch.set_num_threads(threads)
    small = case.shortened(2048)
    # Loads what is there once: code, threads, arenas, the mask.
    Ours(small, Inputs(small)).results()
    before = _status_bytes("VmRSS")
    ours = Ours(case, Inputs(case))
    # The peak starts here: 16-bit inputs are drawn in fp32, which is no memory of the operator's.
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    tensors = [*ours.leaves, ours.dy, ours.out]
    fixed = 4 * case.q_len * 8 * 2  # softmax_max and softmax_sum, fp32 [1, 1, S, 8]
    grown = {"forward": (_held(tensors) + fixed, _status_bytes("VmHWM") - before)}
    tensors += ours.backward()
    if case.dtype != torch.float32:
        fixed += 4 * case.q_len * case.head_dim  # dQ in fp32; that of fp32 is the output
    grown["backward"] = _held(tensors) + fixed, _status_bytes("VmHWM") - before
    return grown


def _held(tensors: Sequence[Tensor]) -> int:
    return sum(x.untyped_storage().nbytes() for x in tensors)


def _reuse_memory() -> None:
    """Has the allocator keep what is freed, whatever its size.

    Else it returns blocks above 32 MiB to the system, and only the long problem would pay for fresh
    pages at every call: 82,000 page faults, 4 % of its time.

    Raises:
        FeatureError: The allocator is not glibc's.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        raise FeatureError("--long needs glibc, whose allocator can be told to keep memory")
    for parameter, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1)):
        mallopt(parameter, value)


def run(
    rows: Sequence[tuple[str, Direction]], threads: int, console: Console
) -> Iterator[LongResult]:
    """Measures rows of dtype and direction, those of a dtype one after the other.

    Raises:
        FeatureError: Our results are wrong, or the memory cannot be measured.
    """
    _reuse_memory()
    torch.set_num_threads(threads)
    peak = FmaPeak(threads, _library.target())
    for dtype, of_dtype in itertools.groupby(rows, key=lambda row: row[0]):
        small = problem(SHORT, dtype).shortened(1024)
        inputs = Inputs(small)
        verify(small, inputs, Ours(small, inputs))
        short, long = (Ours(x, Inputs(x)) for x in (problem(SHORT, dtype), problem(LONG, dtype)))
        grown: dict[str, tuple[int, int]] = {}
        for _, direction in of_dtype:
            run_short = functools.partial(short.run, direction)
            (first,) = take_turns([run_short], 0)
            seconds = min(first) * LONG / SHORT
            if not grown:
                title = f"{dtype}: memory of {LONG:,} tokens"
                with _shown(console, title, 3.5 * seconds), child(_library.target()) as process:
                    grown = process.submit(memory, long.case, threads).result()
            title = f"{dtype} {direction}: {LONG:,} tokens"
            run_long = _showing(functools.partial(long.run, direction), console, title, seconds)
            peak_turn, peaks = peak.turn_as_long_as(run_short)
            *turns, longs = take_turns([run_short, peak_turn] * _SHORTS_A_ROUND + [run_long], 0)
            shorts = turns[::2]
            # Not the best: a long run lasts as long as sixteen short ones and meets what they meet.
            typical = {SHORT: median(itertools.chain(*shorts)), LONG: median(longs)}
            of_peak = {
                tokens: problem(tokens, dtype).flops(direction) / typical[tokens] / max(peaks)
                for tokens in typical
            }
            held, growth = grown[direction]
            yield LongResult(
                dtype, direction, threads, held, growth, typical[SHORT], typical[LONG],
                of_peak[SHORT], of_peak[LONG],
            )  # fmt: skip


def _showing(
    work: Callable[[], object], console: Console, title: str, seconds: float
) -> Callable[[], object]:
    def show_and_work() -> object:
        with _shown(console, title, seconds):
            return work()

    return show_and_work


_COLUMNS = ("dtype", "direction", "memory rose, MiB", "allowed, MiB", f"seconds, {SHORT:,}")
_COLUMNS += (f"seconds, {LONG:,}", "of peak", "time per token", "")


def cells(result: LongResult) -> tuple[str, ...]:
    """One row of the table."""
    return (
        result.dtype,
        result.direction,
        f"{result.growth / _MIB:.0f}",
        f"{result.allowed / _MIB:.0f}",
        f"{result.short_seconds:.3f}",
        f"{result.long_seconds:.2f}",
        f"{100 * result.short_of_peak:.1f} %, {100 * result.long_of_peak:.1f} %",
        f"{result.per_token:.3f} x",
        "holds" if result.holds else "SHORT",
    )


def table(results: list[LongResult]) -> Table:
    """All rows for a terminal."""
    shown = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in _COLUMNS:
        left = name in ("dtype", "direction", "")
        header = name.replace(", ", ",\n").replace(" per", "\nper")  # fits a terminal
        shown.add_column(header, justify="left" if left else "right", no_wrap=True)
    for result in results:
        *row, verdict = cells(result)
        color = "green" if result.holds else "red"
        shown.add_row(*row, f"[{color}]{verdict}[/]")
    return shown


def markdown(results: list[LongResult]) -> str:
    """The same as Markdown."""
    lines = [
        "| " + " | ".join(_COLUMNS) + " |",
        "|---|---|" + "---:|" * (len(_COLUMNS) - 3) + "---|",
    ]
    return "\n".join([*lines, *("| " + " | ".join(cells(x)) + " |" for x in results)])
