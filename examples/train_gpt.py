"""Trains a small GPT on the Python standard library's source code with npu_fusion_attention.

    python examples/train_gpt.py            four minutes of training on two cores
    python examples/train_gpt.py --quick    everything in less than a minute

Documents are packed without padding (layout TND, sparse_mode 3) and attention dropout is on. The
change that a model needs is in gpt/model.py, class Attention: both attentions stand side by side.
Pictures, a sample of the model's own code and the figures are written to out/demo.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import math
import time
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path

import torch
from rich.console import Console
from rich.syntax import Syntax

from gpt.compare import StepRequest, agreement, step_cost
from gpt.data import Corpus, PackedBatch, load_corpus, packed_batches
from gpt.model import GPT, GPTConfig, Packing, generate
from gpt.progress import TrainingProgress, minutes
from gpt.report import History, comparison_table, draw_losses, draw_mask

REPOSITORY = Path(__file__).resolve().parent.parent
HELD_OUT_CHECKS = 16  # while training, and one more at the end
PROMPTS = ["def ", "class ", '"""']


@dataclass(frozen=True)
class Options:
    """What the command line decides."""

    minutes: float
    steps: int | None  # given: trains exactly so many steps, so that runs agree bit for bit
    tokens: int  # per step
    model: GPTConfig
    learning_rate: float
    sample_bytes: int
    compare_tokens: int
    compare_seconds: float
    seed: int
    out: Path


FULL = Options(
    minutes=4.0,
    steps=None,
    tokens=2048,
    model=GPTConfig(),
    learning_rate=4e-3,
    sample_bytes=512,
    compare_tokens=4096,
    compare_seconds=4.0,
    seed=1,
    out=REPOSITORY / "out" / "demo",
)
QUICK = replace(FULL, minutes=1 / 4, sample_bytes=200, compare_tokens=2048, compare_seconds=1.0)


def parse_options(arguments: list[str] | None = None) -> Options:
    """Reads the command line; --quick changes the defaults of the rest."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="less than a minute in all")
    parser.add_argument("--minutes", type=float, help="of training")
    parser.add_argument("--steps", type=int, help="train so many steps, however long it takes")
    parser.add_argument("--tokens", type=int, help="per step")
    parser.add_argument("--sample-bytes", type=int, help="of each text that the model writes")
    parser.add_argument("--compare-tokens", type=int, help="per step of the comparison")
    parser.add_argument("--seed", type=int, help="of weights, order of documents and dropout")
    parser.add_argument("--out", type=Path, help="folder for the results")
    given = vars(parser.parse_args(arguments))
    for name in ("minutes", "steps", "tokens", "sample_bytes", "compare_tokens"):
        if given[name] is not None and given[name] <= 0:
            parser.error(f"--{name.replace('_', '-')} must be positive, but is {given[name]}")
    preset = QUICK if given.pop("quick") else FULL
    return replace(preset, **{name: value for name, value in given.items() if value is not None})


def learning_rate(step: int, share_done: float, peak: float) -> float:
    """Twenty steps of warm-up, then a cosine down to a twentieth of the peak."""
    warm_up = min(1.0, (step + 1) / 20)
    return peak * warm_up * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * share_done)))


def make_optimizer(model: GPT, peak: float) -> torch.optim.AdamW:
    """AdamW; weight decay is for matrices alone."""
    matrices = [weight for weight in model.parameters() if weight.dim() == 2]
    vectors = [weight for weight in model.parameters() if weight.dim() < 2]
    groups = [
        {"params": matrices, "weight_decay": 0.1},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.95), fused=True)


@torch.no_grad()
def held_out_loss(model: GPT, batches: list[PackedBatch]) -> float:
    """The mean loss on text that the model never trains on, in nats per byte."""
    model.eval()
    losses = [
        model.loss(batch.tokens, batch.targets, Packing(batch.ends, batch.positions)).item()
        for batch in batches
    ]
    model.train()
    return sum(losses) / len(losses)


def share_done(history: History, options: Options) -> float:
    """How much of the run is behind us, by steps if they are given, else by the clock."""
    if options.steps is not None:
        return len(history.losses) / options.steps
    return min(1.0, history.seconds / (60 * options.minutes))


def training_step(model: GPT, optimizer: torch.optim.Optimizer, batch: PackedBatch) -> float:
    """One update of the weights; returns the loss before it."""
    packing = Packing(batch.ends, batch.positions)
    loss = model.loss(batch.tokens, batch.targets, packing)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


def train(model: GPT, corpus: Corpus, options: Options, console: Console) -> History:
    """Trains until the steps or the minutes are used up, or the user has seen enough."""
    optimizer = make_optimizer(model, options.learning_rate)
    batches = packed_batches(corpus.train, options.tokens, options.seed)
    held_out = list(islice(packed_batches(corpus.validation, options.tokens, seed=0), 4))
    history = History(options.tokens)
    start = time.perf_counter()

    def check_held_out() -> None:
        history.held_out.append((history.tokens, held_out_loss(model, held_out)))
        progress.held_out(history.held_out[-1][1])

    with TrainingProgress(console, "Training a GPT on Python's standard library") as progress:
        try:
            while (done := share_done(history, options)) < 1:
                if done >= len(history.held_out) / HELD_OUT_CHECKS:
                    check_held_out()
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(len(history.losses), done, options.learning_rate)
                history.losses.append(training_step(model, optimizer, next(batches)))
                history.seconds = time.perf_counter() - start
                progress.update(history.tokens, history.losses, share_done(history, options))
        except KeyboardInterrupt:
            if not history.losses:
                raise
            console.print("Stopped early; the reports follow.")
        check_held_out()
    return history


def gzip_bits_per_byte(corpus: Corpus) -> float:
    """What gzip -9 needs for the held-out text: a yardstick for the loss."""
    text = b"".join(bytes(document.tokens[1:].tolist()) for document in corpus.validation)
    return 8 * len(gzip.compress(text, 9)) / len(text)


def write_history(history: History, folder: Path) -> None:
    """Every step's loss, as CSV."""
    with (folder / "loss.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["step", "tokens", "loss_nats_per_byte"])
        for step, loss in enumerate(history.losses, start=1):
            rows.writerow([step, step * history.tokens_per_step, f"{loss:.6f}"])


def compare(model: GPT, corpus: Corpus, options: Options, console: Console) -> dict[str, object]:
    """Puts one training step against torch's attention; returns the figures it prints."""
    batch = next(packed_batches(corpus.train, options.compare_tokens, options.seed))
    request = StepRequest(
        kind="fusion",
        config=options.model,
        ends=batch.ends,
        seconds=options.compare_seconds,
        threads=torch.get_num_threads(),
    )
    costs = {}
    for keep_prob in (options.model.keep_prob, 1.0):
        case = "no dropout" if keep_prob == 1 else f"dropout {1 - keep_prob:.1f}"
        request = replace(request, config=replace(options.model, keep_prob=keep_prob))
        with console.status(f"Measuring one step, {case}: npu_fusion_attention, then torch"):
            ours = step_cost(replace(request, kind="fusion"))
            theirs = step_cost(replace(request, kind="sdpa"))
        costs[case] = (ours, theirs)
    agreed = agreement(model, batch)
    console.print(comparison_table(costs, agreed, options.compare_tokens))
    return {
        "tokens": options.compare_tokens,
        "costs": {
            case: {"fusion": asdict(ours), "torch": asdict(theirs)}
            for case, (ours, theirs) in costs.items()
        },
        "agreement": asdict(agreed),
    }


def main(arguments: list[str] | None = None) -> None:
    """Trains, then writes and prints everything there is to see."""
    options = parse_options(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    console = Console()
    torch.manual_seed(options.seed)

    corpus = load_corpus(options.model.context)
    model = GPT(options.model)
    parameters = sum(weight.numel() for weight in model.parameters())
    console.print(
        f"{corpus.files} files, {corpus.train_bytes / 1e6:.1f} MB of source in "
        f"{len(corpus.train):,} documents; a GPT of {parameters / 1e6:.2f} M parameters; "
        f"{options.tokens:,} packed tokens a step; {torch.get_num_threads()} threads"
    )
    history = train(model, corpus, options, console)
    model.eval()

    draw_losses(history, gzip_bits_per_byte(corpus), options.out / "loss.png")
    first_batch = next(packed_batches(corpus.train, options.tokens, options.seed))
    draw_mask(first_batch, options.out / "mask.png")
    write_history(history, options.out)
    with console.status("Writing code"):
        samples = generate(model, PROMPTS, options.sample_bytes, temperature=0.7, seed=options.seed)
    sample = "\n\n\n".join(samples) + "\n"
    (options.out / "sample.py.txt").write_text(sample)
    console.rule("What it writes, given the words def, class and a docstring's quotes")
    console.print(Syntax(sample, "python", background_color="default", word_wrap=True))
    console.rule()

    figures = compare(model, corpus, options, console)
    figures |= {
        "steps": len(history.losses),
        "training_seconds": history.seconds,
        "held_out_loss_nats_per_byte": history.held_out[-1][1],
    }
    (options.out / "figures.json").write_text(json.dumps(figures, indent=2) + "\n")
    console.print(
        f"{len(history.losses):,} steps in {minutes(history.seconds)}, "
        f"{history.tokens / history.seconds:,.0f} tokens/s; "
        f"held-out loss {history.held_out[-1][1]:.3f} nats per byte"
    )
    for path in sorted(options.out.iterdir()):
        console.print(f"  {path}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
