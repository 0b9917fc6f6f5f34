"""explain and lint have an answer for every call that Python lets through, however wrong it is."""

import random
from typing import Any

import torch
from lint_calls import CAUSAL, PREFIX, call, gradient, meta, packed, triangle

from fusion_attention import explain, npu_fusion_attention

TENSORS = [
    None,
    "a string",
    7,
    meta(),
    meta(5),
    meta(0, 4, 0, 64),
    meta(2, 4, 64),
    meta(64, 4, 64),
    meta(2, 4, 64, 64),
    meta(2, 64, 4, 64, dtype=torch.int32),
    meta(2, 4, 64, 64, 1),
    meta(1, 300, 8, 8, dtype=torch.float64),
    torch.ones(2, 4, 64, 64),
    torch.ones(64, 4, 64).to_sparse(),
    triangle(64, 64),
    triangle(64, 64).long(),
    triangle(64, 64).float().log(),
    ~CAUSAL,
    CAUSAL[:, :2047],
    PREFIX,
    CAUSAL.expand(2, 4, 2048, 2048),
    torch.zeros(0, 0, dtype=torch.bool),
]
NUMBERS = [0, 1, -1, 3, 64, 2**31, -(2**63), 2**63, 2**70, 0.5, float("nan"), None, "4", True, [4]]
LISTS = [
    None, [], [0], [64], [32, 64], (64, 32), [0, 32, 64], [64, 0], [0, 0], [2**62, 2**63 - 1],
    [-5, 64], ["a"], [1.5], 64, torch.tensor([32, 64]), torch.tensor(3), meta(2),
    list(range(3000)),
]  # fmt: skip
WORDS = ["BNSD", "bsnd", "SBH", "BSH", "TND", "tnd", "", "NTD", None, 5]
VALUES = {
    **dict.fromkeys(
        ("query", "key", "value", "atten_mask", "pse", "sink", "dropout_mask"), TENSORS
    ),
    **dict.fromkeys(("head_num", "scale", "keep_prob", "sparse_mode", "inner_precise"), NUMBERS),
    **dict.fromkeys(("pre_tockens", "next_tockens", "seed", "offset"), NUMBERS),
    **dict.fromkeys(("actual_seq_qlen", "actual_seq_kvlen", "prefix"), LISTS),
    **dict.fromkeys(("input_layout", "softmax_layout"), WORDS),
}
BASES = [
    ("npu_fusion_attention", lambda: call(atten_mask=CAUSAL, sparse_mode=3)),
    ("npu_fusion_attention", lambda: call("SBH", atten_mask=triangle(64, 64))),
    ("npu_fusion_attention", lambda: packed([32, 64], [32, 64], atten_mask=CAUSAL, sparse_mode=7)),
    ("npu_fusion_attention_grad", gradient),
]


def broken(seed: int) -> tuple[str, dict[str, Any]]:
    """A legal call in which one to four arguments are anything at all."""
    rng = random.Random(seed)
    function, base = rng.choice(BASES)
    arguments = base()
    for name in rng.sample(sorted(VALUES), rng.randint(1, 4)):
        own = "scale_value" if name == "scale" and "grad" in function else name
        arguments[own] = rng.choice(VALUES[name])
    return function, arguments


def test_every_call_gets_a_report() -> None:
    refused = 0
    for seed in range(200):
        function, arguments = broken(seed)
        report = explain(function=function, **arguments)
        text = report.text(100, "ascii")
        assert max(map(len, text.splitlines())) <= 100, seed
        assert report.runs == (report.error is None)
        refused += not report.runs
    assert 100 < refused < 200


def error_of(arguments: dict[str, Any]) -> str | None:
    """The error with which the operator refuses a call."""
    try:
        npu_fusion_attention(**arguments)
    except (RuntimeError, NotImplementedError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def test_what_explain_takes_the_operator_takes() -> None:
    for seed in range(80):
        function, arguments = broken(seed)
        if function != "npu_fusion_attention":
            continue
        report = explain(**arguments)
        real = {
            name: torch.zeros_like(x, device="cpu") if torch.is_tensor(x) and x.is_meta else x
            for name, x in arguments.items()
        }
        assert report.error == error_of(real), seed
