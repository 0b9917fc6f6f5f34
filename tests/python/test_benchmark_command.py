"""The benchmark: what it counts and checks, and the forms of its report. Never how long it took."""

import itertools
import json
import pathlib
import subprocess
import sys
from itertools import product
from typing import get_args

import pytest
import torch
from torch import Tensor

from fusion_attention import cli
from fusion_attention._errors import FeatureError
from fusion_attention.benchmark import against_torch
from fusion_attention.benchmark.cases import Case, Layout
from fusion_attention.benchmark.clock import take_turns
from fusion_attention.benchmark.contestants import Inputs, Ours, Torch, dense_mask
from fusion_attention.benchmark.layouts import from_layout, to_layout
from fusion_attention.benchmark.masks import CAUSAL, Mask
from fusion_attention.benchmark.verify import verify
from fusion_attention.cli import bench

ROOT = pathlib.Path(__file__).resolve().parents[2]
TINY = ["bench", "--lengths", "8", "24", "--heads", "2", "--head-dim", "8", "--seconds", "0"]


def test_json_has_a_row_for_everything(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*TINY, "--json"]) == 0
    captured = capsys.readouterr()
    content = json.loads(captured.out)
    assert content["machine"]["torch"] == torch.__version__
    keys = {(x["direction"], x["dtype"], x["causal"], x["length"]) for x in content["rows"]}
    everything = product(("forward", "training"), ("fp32", "bf16"), (False, True), (8, 24))
    assert keys == set(everything)
    assert len(content["rows"]) == len(keys)
    for row in content["rows"]:
        assert row["ours"] > 0
        assert row["ratio"] == pytest.approx(row["torch"] / row["ours"])
        assert row["rounds"] >= 3
    full, causal = 2 * 24 * 24, 2 * 24 * 25 // 2
    flops = {(x["direction"], x["causal"]): x["flops"] for x in content["rows"][-8:]}
    assert flops["training", False] == 14 * full * 8
    assert flops["training", True] == 14 * causal * 8


@pytest.mark.parametrize("layout", get_args(Layout))
def test_layouts_hold_the_same_numbers(layout: Layout) -> None:
    batch, heads, tokens, dim = (1 if layout == "TND" else 2), 3, 5, 4
    x = torch.arange(batch * heads * tokens * dim).reshape(batch, heads, tokens, dim)
    y = to_layout(x, layout).contiguous()
    sizes = {"B": batch, "S": tokens, "N": heads, "D": dim, "H": heads * dim, "T": tokens}
    assert list(y.shape) == [sizes[axis] for axis in layout]
    back = from_layout(y, layout, heads)
    assert torch.equal(back, x)
    assert back.data_ptr() == y.data_ptr()
    b, n, s, d = batch - 1, 1, 3, 2
    at = {"B": b, "S": s, "N": n, "D": d, "H": n * dim + d, "T": b * tokens + s}
    assert y[tuple(at[axis] for axis in layout)] == x[b, n, s, d]


def test_times_have_three_digits_and_no_exponent() -> None:
    seconds = (0.0000345678, 0.01, 0.9994, 0.9996, 1.1112, 12.34567)
    shown = ["0.0346", "10", "999", "1000", "1111", "12346"]
    assert [bench._milliseconds(x) for x in seconds] == shown


@pytest.mark.parametrize("rich", [True, False])
def test_the_table_is_there_with_and_without_rich(
    rich: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not rich:
        monkeypatch.setitem(sys.modules, "rich", None)
        monkeypatch.setattr("fusion_attention._optional.is_installed", lambda name: False)
    assert cli.main([*TINY, "--dtypes", "fp16"]) == 0
    printed = capsys.readouterr().out
    assert "torch / ours" in printed
    rows = [line for line in printed.splitlines() if "fp16" in line]
    assert len(rows) == 8
    for line, (direction, mask, length) in zip(
        rows,
        product(("forward", "forward + backward"), ("full", "causal"), (8, 24)),
        strict=True,
    ):
        assert all(x in line for x in (direction, mask, str(length)))


@pytest.mark.parametrize(("name", "begin"), [("a.png", b"\x89PNG"), ("a.svg", b"<?xml")])
def test_the_plot_is_drawn(name: str, begin: bytes, tmp_path: pathlib.Path) -> None:
    assert cli.main([*TINY, "--plot", str(tmp_path / name)]) == 0
    assert (tmp_path / name).read_bytes().startswith(begin)


def test_what_cannot_be_drawn_is_said_before_anything_is_timed(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(against_torch, "measure", lambda *_: pytest.fail("measured"))
    assert cli.main([*TINY, "--plot", str(tmp_path / "a.txt")]) == 1
    assert "its ending must be one of" in capsys.readouterr().err
    assert cli.main([*TINY, "--plot", str(tmp_path / "no" / "a.png")]) == 1
    assert "there is no folder" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert cli.main([*TINY, "--plot", str(tmp_path / "a.png")]) == 1
    assert "pip install matplotlib" in capsys.readouterr().err


def test_what_the_operator_refuses_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "--lengths", "8", "--head-dim", "1000"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("python -m fusion_attention bench: npu_fusion_attention: expected")
    with pytest.raises(SystemExit) as stopped:
        cli.main(["bench", "--heads", "0"])
    assert stopped.value.code == 2
    assert "invalid positive integer value: '0'" in capsys.readouterr().err


def test_a_wrong_result_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Ours.attention

    def wrong(self: Ours, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return right(self, query, key, value * 1.01)

    monkeypatch.setattr(Ours, "attention", wrong)
    with pytest.raises(FeatureError, match=r"out is off by"):
        against_torch.check(against_torch.cases([16], ["fp32"], 2, 8))


CASES = [
    Case(head_dim=8, q_heads=4, kv_heads=2, q_len=17, kv_len=31, mask=CAUSAL),
    Case(head_dim=8, layout="BSH", batch=2, q_len=20, kv_len=20, dtype=torch.float16),
    Case(head_dim=8, layout="TND", lengths=(5, 9), q_len=14, kv_len=14, mask=CAUSAL),
    Case(head_dim=8, q_len=64, kv_len=64, keep_prob=0.5),
    Case(head_dim=8, value_dim=5, layout="SBH", batch=2, q_len=20, kv_len=20),
    Case(head_dim=8, layout="BSND", q_len=33, kv_len=40, mask=Mask("band", 9)),
    Case(head_dim=8, batch=2, q_len=33, kv_len=40, mask=Mask("prefix", 11)),
    Case(head_dim=8, layout="TND", lengths=(25, 9), q_len=34, kv_len=34, mask=Mask("band", 4)),
    Case(head_dim=8, q_len=33, kv_len=40, mask=Mask("random")),
    Case(head_dim=8, q_len=33, kv_len=40, mask=Mask("blocks", 16), dtype=torch.bfloat16),
    Case(head_dim=8, q_len=33, kv_len=40, bias="constant"),
    Case(head_dim=8, q_len=33, kv_len=40, bias="learned", mask=CAUSAL),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_cases_count_their_pairs_and_are_right(case: Case) -> None:
    visible = dense_mask(case)
    per_head = case.q_len * case.kv_len if visible is None else int(visible.sum())
    assert case.pairs() == case.batch * case.q_heads * per_head
    inputs = Inputs(case)
    verify(case, inputs, Ours(case, inputs))


def test_torch_computes_the_same_cases() -> None:
    for case in CASES:
        if case.keep_prob == 1:
            inputs = Inputs(case)
            eps = torch.finfo(case.dtype).eps
            ours, theirs = (kind(case, inputs).results() for kind in (Ours, Torch))
            if case.bias == "learned":  # torch's bias is added after scaling
                theirs[4] *= case.head_dim**-0.5
            for mine, other in zip(ours, theirs, strict=True):
                torch.testing.assert_close(mine, other, rtol=16 * eps, atol=16 * eps)


def test_slices_take_turns() -> None:
    order = []
    work = [lambda: order.append("a"), lambda: order.append("b")]
    times = take_turns(work, 0)
    assert "".join(order) == "ab" + "ab" * 3
    assert [len(x) for x in times] == [3, 3]


def test_short_pieces_are_run_often(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = itertools.count(step=0.25)  # every look at the clock, and so every run, takes 0.25 s
    monkeypatch.setattr("time.perf_counter", lambda: next(ticks))
    order = []
    (times,) = take_turns([lambda: order.append("a")], 0, shortest=1)
    assert len(order) == 2 + 3 * 4
    assert times == [0.25 / 4] * 3


def test_the_developers_benchmark_shares_these_parts() -> None:
    completed = subprocess.run(
        [sys.executable, str(ROOT / "bench" / "attention.py"), "--help"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert completed.returncode == 0, completed.stderr
    assert "--filter" in completed.stdout
