"""What is left of a run: two pictures and the table of comparison.

Knows figures and matplotlib; must not know the model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patches import Polygon, Rectangle
from rich.table import Table

from gpt.compare import Agreement, StepCost
from gpt.data import PackedBatch

# Okabe and Ito's palette: its colours stay apart for every kind of colour blindness.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#E4E4E4"
INK = "#222222"
STYLE = {
    "font.size": 11,
    "axes.titlesize": 13,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "axes.edgecolor": INK,
    "figure.dpi": 120,
}


@dataclass
class History:
    """The losses of a run in nats per byte; one entry a step, (tokens so far, loss) held out."""

    tokens_per_step: int
    losses: list[float] = field(default_factory=list)
    held_out: list[tuple[int, float]] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def tokens(self) -> int:
        return self.tokens_per_step * len(self.losses)


def smoothed(values: list[float], window: int) -> list[float]:
    """The mean of each value and up to `window` - 1 before it."""
    return [
        sum(part) / len(part)
        for part in (values[max(0, end - window) : end] for end in range(1, len(values) + 1))
    ]


def draw_losses(history: History, gzip_bits: float, path: Path) -> None:
    """Loss against text read, in bits per byte, with gzip on the held-out text for scale."""
    bits = [loss / math.log(2) for loss in history.losses]
    read = [history.tokens_per_step * (step + 1) / 1e6 for step in range(len(bits))]
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(8, 4.6), layout="constrained")
        axes.plot(read, bits, color=BLUE, alpha=0.22, linewidth=0.8)
        window = max(1, len(bits) // 50)
        axes.plot(
            read, smoothed(bits, window), color=BLUE, linewidth=2, label="training, running mean"
        )
        axes.plot(
            [tokens / 1e6 for tokens, _ in history.held_out],
            [loss / math.log(2) for _, loss in history.held_out],
            "o-",
            color=ORANGE,
            markersize=4,
            linewidth=1.2,
            label="files it never trains on",
        )
        axes.axhline(gzip_bits, color=GREEN, linestyle="--", linewidth=1.2)
        axes.annotate(
            f"gzip -9 on those files: {gzip_bits:.2f}",
            (0, gzip_bits),
            xytext=(6, -5),
            textcoords="offset points",
            va="top",
            color=GREEN,
        )
        final = history.held_out[-1][1] / math.log(2)
        axes.annotate(
            f"{final:.2f}",
            (read[-1], final),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            color=ORANGE,
            fontweight="bold",
        )
        axes.set_ylim(min(min(bits), gzip_bits, final) - 0.6, min(max(bits), 8.0) + 0.2)
        axes.set_xlim(0, read[-1] * 1.06)
        axes.set_xlabel("source code read, MB")
        axes.set_ylabel("loss, bits per byte")
        axes.set_title("Learning to write Python")
        axes.grid(axis="y", color=GREY)
        axes.legend(frameon=False, loc="upper right")
        figure.savefig(path)
        plt.close(figure)


def draw_mask(batch: PackedBatch, path: Path) -> None:
    """The visible (query, key) pairs of one packed batch: a triangle a document."""
    total = batch.ends[-1]
    lengths = batch.lengths
    visible = sum(length * (length + 1) // 2 for length in lengths)
    with plt.rc_context(STYLE | {"axes.spines.top": True, "axes.spines.right": True}):
        figure, axes = plt.subplots(figsize=(7.6, 7.9), layout="constrained")
        axes.add_patch(Rectangle((0, 0), total, total, facecolor=GREY, edgecolor="none"))
        for index, (end, length) in enumerate(zip(batch.ends, lengths, strict=True)):
            begin = end - length
            colour = BLUE if index % 2 == 0 else "#56B4E9"
            triangle = [(begin, begin), (begin, end), (end, end)]
            axes.add_patch(Polygon(triangle, closed=True, facecolor=colour, edgecolor="none"))
            label_document(axes, batch.names[index], begin, length, total)
        axes.set_xlim(0, total)
        axes.set_ylim(total, 0)
        axes.set_aspect("equal")
        axes.set_xlabel("key token")
        axes.set_ylabel("query token")
        axes.set_title(
            f"One packed batch: {len(lengths)} documents, {total:,} tokens\n"
            f"blue pairs are computed: {visible / total**2:.1%} of the square"
        )
        figure.savefig(path)
        plt.close(figure)


def label_document(axes: plt.Axes, name: str, begin: int, length: int, total: int) -> None:
    """Writes a document's name beside its triangle, on the side that has room."""
    if length < total / 60:
        return  # the name would cover its neighbours'
    middle = begin + length / 2
    on_the_right = middle < total * 0.72
    axes.annotate(
        f"{name}, {length} tokens",
        (middle, middle) if on_the_right else (begin, middle),
        xytext=(8 if on_the_right else -6, 0),
        textcoords="offset points",
        ha="left" if on_the_right else "right",
        va="center",
        fontsize=9,
    )


def comparison_table(
    costs: dict[str, tuple[StepCost, StepCost]], agreement: Agreement, tokens: int
) -> Table:
    """One training step, fusion against torch.

    Args:
        costs: for each case, a word such as "dropout 0.1", the cost of fusion and of torch.
        agreement: of loss and gradients, dropout off.
        tokens: in the packed batch.
    """
    table = Table(
        title=f"One training step on {tokens:,} packed tokens",
        caption="torch: scaled_dot_product_attention with a dense block-diagonal mask\n"
        "peak memory: what a step adds to the process; loss and gradients: no dropout",
        title_style="bold",
    )
    table.add_column("")
    for heading in ("npu_fusion_attention", "torch", ""):
        table.add_column(heading, justify="right")
    for case, (ours, theirs) in costs.items():
        table.add_row(
            f"time, {case}",
            f"{ours.seconds * 1e3:,.0f} ms",
            f"{theirs.seconds * 1e3:,.0f} ms",
            f"[bold]{theirs.seconds / ours.seconds:.1f} x[/]",
        )
    for case, (ours, theirs) in costs.items():
        table.add_row(
            f"peak memory, {case}",
            f"{ours.peak_bytes / 2**20:,.0f} MiB",
            f"{theirs.peak_bytes / 2**20:,.0f} MiB",
            f"[bold]{theirs.peak_bytes / ours.peak_bytes:.1f} x[/]",
        )
    table.add_section()
    for name, pair, apart in (
        ("loss", agreement.loss, agreement.loss_apart),
        ("largest gradient", agreement.gradient, agreement.gradient_apart),
    ):
        table.add_row(name, *(f"{value:.6f}" for value in pair), f"apart {apart:.1e}")
    return table
