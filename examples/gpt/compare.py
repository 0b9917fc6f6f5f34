"""One training step with npu_fusion_attention against the same step with torch's own attention.

Time and memory are measured in a fresh process for each, so that neither inherits the other's peak.
Run as `python -m gpt.compare REQUEST`, this file is that process; it prints one line of JSON.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from gpt.data import PackedBatch
from gpt.model import GPT, VOCABULARY, AttentionKind, GPTConfig, Packing


@dataclass(frozen=True)
class StepCost:
    """Median time of a training step, and what the first step added to the resident memory."""

    seconds: float
    peak_bytes: int


@dataclass(frozen=True)
class Agreement:
    """One batch through both attentions, dropout off: (fusion, torch), and how far apart.

    Attributes:
        loss: mean cross entropy.
        loss_apart: the absolute difference of the losses.
        gradient: the largest absolute gradient of any weight, for scale.
        gradient_apart: the largest absolute difference of any weight's gradient.
        worst_weight: the tensor that has it.
    """

    loss: tuple[float, float]
    loss_apart: float
    gradient: tuple[float, float]
    gradient_apart: float
    worst_weight: str


@dataclass(frozen=True)
class StepRequest:
    """What a measuring process is asked for: documents that end at `ends`, for about `seconds`."""

    kind: AttentionKind
    config: GPTConfig
    ends: list[int]
    seconds: float
    threads: int


def training_step(
    model: GPT, optimizer: torch.optim.Optimizer, ends: list[int], kind: AttentionKind
) -> None:
    """Forward, backward and update as train_gpt.py does them; the cost is that of any text."""
    lengths = [end - begin for begin, end in pairwise([0, *ends])]
    positions = torch.cat([torch.arange(length) for length in lengths])
    tokens = torch.randint(VOCABULARY, (ends[-1],))
    model.loss(tokens, tokens, Packing(ends, positions, kind)).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


def step_cost(request: StepRequest) -> StepCost:
    """Measures in a process of its own."""
    answer = subprocess.run(
        [sys.executable, "-m", "gpt.compare", json.dumps(asdict(request))],
        cwd=Path(__file__).resolve().parent.parent,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return StepCost(**json.loads(answer.stdout))


def measure(request: StepRequest) -> StepCost:
    """Measures in this process, which must not have done anything large before."""
    torch.set_num_threads(request.threads)
    model = GPT(request.config)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    # A tiny step first: libraries, threads and optimizer state are not the attention's memory.
    training_step(model, optimizer, [16, 32], request.kind)

    before = resident_bytes()
    training_step(model, optimizer, request.ends, request.kind)
    peak = peak_resident_bytes() - before

    times: list[float] = []
    end = time.perf_counter() + request.seconds
    while len(times) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        training_step(model, optimizer, request.ends, request.kind)
        times.append(time.perf_counter() - start)
    return StepCost(statistics.median(times), peak)


def resident_bytes() -> int:
    """The memory that this process holds now."""
    return _status_bytes("VmRSS") or _peak_rusage_bytes()


def peak_resident_bytes() -> int:
    """The most memory that this process has held so far."""
    # Not ru_maxrss where Linux offers better: that starts at the parent's peak and hides ours.
    return _status_bytes("VmHWM") or _peak_rusage_bytes()


def _status_bytes(field: str) -> int | None:
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    line = next(row for row in status.read_text().splitlines() if row.startswith(field + ":"))
    return int(line.split()[1]) * 1024


def _peak_rusage_bytes() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def agreement(model: GPT, batch: PackedBatch) -> Agreement:
    """Compares loss and gradients of the two attentions on the same weights; dropout is off."""
    was_training = model.training
    model.eval()
    ours, our_gradients = loss_and_gradients(model, batch, "fusion")
    theirs, their_gradients = loss_and_gradients(model, batch, "sdpa")
    model.train(was_training)
    apart = {
        name: (gradient - their_gradients[name]).abs().max().item()
        for name, gradient in our_gradients.items()
    }
    worst = max(apart, key=apart.__getitem__)
    return Agreement(
        loss=(ours, theirs),
        loss_apart=abs(ours - theirs),
        gradient=(largest(our_gradients), largest(their_gradients)),
        gradient_apart=apart[worst],
        worst_weight=worst,
    )


def loss_and_gradients(
    model: GPT, batch: PackedBatch, kind: AttentionKind
) -> tuple[float, dict[str, Tensor]]:
    """The loss on a batch, and every weight's gradient by its name."""
    names, weights = zip(*model.named_parameters(), strict=True)
    loss = model.loss(batch.tokens, batch.targets, Packing(batch.ends, batch.positions, kind))
    return loss.item(), dict(zip(names, torch.autograd.grad(loss, weights), strict=True))


def largest(gradients: dict[str, Tensor]) -> float:
    """The largest absolute value in any of the tensors."""
    return max(gradient.abs().max().item() for gradient in gradients.values())


def parse_request(text: str) -> StepRequest:
    """The inverse of json.dumps(asdict(request))."""
    request = StepRequest(**json.loads(text))
    return replace(request, config=GPTConfig(**request.config))


if __name__ == "__main__":
    print(json.dumps(asdict(measure(parse_request(sys.argv[1])))))
