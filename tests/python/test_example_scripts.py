"""Runs the example scripts as a user does, and checks the parts of the demo that can be wrong."""

import csv
import io
import itertools
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

import train_gpt
from gpt.compare import agreement
from gpt.data import MARK, Corpus, cut_length, load_corpus, pack, packed_batches
from gpt.model import GPT, GPTConfig, Packing, generate
from gpt.progress import TrainingProgress, sparkline

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
TINY = GPTConfig(layers=2, heads=2, head_dim=8, context=64)


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tensors as small as these are slower on more, the more so while other tests run."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return load_corpus(TINY.context)


def test_minimal() -> None:
    answer = subprocess.run(
        [sys.executable, EXAMPLES / "minimal.py"], check=True, capture_output=True, text=True
    )
    assert answer.stdout == "torch.Size([2, 8, 128, 64]) torch.Size([2, 8, 128, 64])\n"


def test_demo_writes_everything(tmp_path: Path) -> None:
    sizes = ["--steps", "5", "--tokens", "256", "--compare-tokens", "256", "--sample-bytes", "30"]
    answer = subprocess.run(
        [sys.executable, EXAMPLES / "train_gpt.py", "--quick", *sizes, "--out", tmp_path],
        check=True,
        capture_output=True,
        text=True,
    )
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"figures.json", "loss.csv", "loss.png", "mask.png", "sample.py.txt"}
    assert all(str(tmp_path / name) in answer.stdout for name in names)
    for name in ("loss.png", "mask.png"):
        with Image.open(tmp_path / name) as image:
            assert min(image.size) > 400
    with (tmp_path / "loss.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["tokens"]) for row in rows] == [256, 512, 768, 1024, 1280]
    assert all(0 < float(row["loss_nats_per_byte"]) < 20 for row in rows)
    figures = json.loads((tmp_path / "figures.json").read_text())
    for cost in figures["costs"].values():
        assert cost["fusion"]["seconds"] > 0
        assert cost["torch"]["seconds"] > 0
    assert (tmp_path / "sample.py.txt").read_text().startswith("def ")


def trained(corpus: Corpus, seed: int, steps: int, out: Path) -> list[float]:
    """The losses of a tiny run."""
    torch.manual_seed(seed)
    options = replace(
        train_gpt.QUICK, steps=steps, tokens=128, model=TINY, seed=seed, out=out, learning_rate=0.01
    )
    console = Console(file=io.StringIO())
    return train_gpt.train(GPT(TINY), corpus, options, console).losses


def test_the_seed_decides_every_bit(corpus: Corpus, tmp_path: Path) -> None:
    first, again, other = (trained(corpus, seed, 4, tmp_path) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_the_model_learns(corpus: Corpus, tmp_path: Path) -> None:
    losses = trained(corpus, 1, 60, tmp_path)
    assert sum(losses[-10:]) / 10 < losses[0] - 1.5


def test_both_attentions_agree(corpus: Corpus) -> None:
    torch.manual_seed(1)
    model = GPT(TINY)
    for weight in model.parameters():  # the zero matrices would hide attention's gradients
        torch.nn.init.normal_(weight, std=0.2)
    agreed = agreement(model, next(packed_batches(corpus.train, 300, seed=1)))
    assert agreed.gradient[0] > 1e-2
    assert agreed.gradient_apart < 1e-4 * agreed.gradient[0]
    assert agreed.loss_apart < 1e-5 * agreed.loss[0]


def test_documents_do_not_see_each_other(corpus: Corpus) -> None:
    torch.manual_seed(1)
    model = GPT(TINY).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    batch = pack(corpus.train[:5], 100)
    together = model(batch.tokens, Packing(batch.ends, batch.positions))
    for begin, end in itertools.pairwise([0, *batch.ends]):
        packing = Packing([end - begin], batch.positions[begin:end])
        alone = model(batch.tokens[begin:end], packing)
        torch.testing.assert_close(together[begin:end], alone)


def test_texts_grow_together_as_they_would_alone() -> None:
    torch.manual_seed(1)
    model = GPT(TINY).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    texts, cold = ["def ", "class A", ""], 1e-5
    together = generate(model, texts, 40, cold, seed=1)
    assert together == [generate(model, [text], 40, cold, seed=1)[0] for text in texts]
    assert all(grown.startswith(text) for grown, text in zip(together, texts, strict=True))


def test_packing(corpus: Corpus) -> None:
    for batch in itertools.islice(packed_batches(corpus.train, 500, seed=3), 20):
        assert batch.ends[-1] == len(batch.tokens) == len(batch.targets) == 500
        assert len(batch.names) == len(batch.ends)
        assert max(batch.lengths) <= TINY.context
        for begin, end in itertools.pairwise([0, *batch.ends]):
            assert batch.tokens[begin] == MARK
            assert batch.positions[begin:end].tolist() == list(range(end - begin))
            assert torch.equal(batch.tokens[begin + 1 : end], batch.targets[begin : end - 1])
        closed = [batch.targets[end - 1] == MARK for end in batch.ends[:-1]]
        assert all(closed)
    with pytest.raises(ValueError, match="short"):
        pack(corpus.train[:1], 1000)


def test_no_file_is_both_trained_on_and_held_out(corpus: Corpus) -> None:
    train = {document.name for document in corpus.train}
    held_out = {document.name for document in corpus.validation}
    assert held_out
    assert not train & held_out


@pytest.mark.parametrize(
    ("text", "limit", "length"),
    [(b"ab", 5, 2), (b"a\n\nb\nc d e", 8, 1), (b"ab\ncd ef", 7, 2), (b"abcdefgh", 3, 3)],
)
def test_documents_are_cut_where_it_hurts_least(text: bytes, limit: int, length: int) -> None:
    assert cut_length(text, limit) == length


def test_sparkline() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7], 8) == "▁▂▃▄▅▆▇█"
    assert sparkline([3, 3, 1, 1], 2) == "█▁"
    assert sparkline([1.0], 9) == "▁"
    assert sparkline([], 9) == ""


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_shows_the_loss(terminal: bool) -> None:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=100)
    with TrainingProgress(console, "title") as progress:
        progress.held_out(math.pi)
        progress.update(tokens=2048, losses=[math.e], share_done=1.0)
    shown = console.file.getvalue()
    assert "2.718" in shown
    assert "3.142" in shown


@pytest.mark.parametrize("option", ["--minutes", "--steps", "--tokens", "--sample-bytes"])
def test_options_must_be_positive(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        train_gpt.parse_options([option, "0"])
    assert f"{option} must be positive" in capsys.readouterr().err


def test_learning_rate_rises_then_falls() -> None:
    rates = [train_gpt.learning_rate(step, step / 999, 1.0) for step in range(1000)]
    peak = rates.index(max(rates))
    assert 15 < peak < 40
    assert rates[:peak] == sorted(rates[:peak])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert rates[-1] == pytest.approx(0.05)
