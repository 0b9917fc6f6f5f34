"""lint: every rule finds the bug that it is for, and stays silent about calls that are right.

Calls are on meta tensors where a rule needs no data: lint computes nothing.
"""

import os
import subprocess
import sys
import warnings
from typing import Any

import pytest
import torch
from lint_calls import CAUSAL, PREFIX, call, gradient, meta, packed, triangle
from torch import Tensor

import fusion_attention
from fusion_attention import LintWarning, explain, lint, npu_fusion_attention, set_lint
from fusion_attention._errors import FeatureError

GRAD = "npu_fusion_attention_grad"
LEFT_PADDING_SWAPPED = torch.zeros(2, 1, 64, 64, dtype=torch.bool)
LEFT_PADDING_SWAPPED[0, :, :, :40] = True  # True for the real tokens: 40 of 64 ...
LEFT_PADDING_SWAPPED[1] = True  # ... and all of them

PADDED = triangle(64, 64).expand(2, 1, 64, 64).clone()  # causal, and the second batch is padded
PADDED[1, :, :, 40:] = True
WINDOW = triangle(64, 64) | triangle(64, 64, -15).logical_not()
DOCUMENTS = torch.arange(64)[:, None] // 16 == torch.arange(64) // 16
ONE_WRONG = CAUSAL.clone()
ONE_WRONG[5, 900] = False
DIAGONAL_TOO = CAUSAL | torch.eye(2048).bool()

# Rule, severity, words of the title, the call with the bug, one without.
BUGS: list[tuple[str, str, str, dict[str, Any], dict[str, Any]]] = [
    ("L01", "wrong", "sparse_mode=3", call(sparse_mode=3), call(sparse_mode=3, atten_mask=CAUSAL)),
    ("L01", "wrong", "sparse_mode=2", call("BSND", sparse_mode=2), call("BSND")),
    ("L01", "advice", "sparse_mode=1", call(sparse_mode=1), call(sparse_mode=0)),
    (
        "L02", "wrong", "actual_seq_qlen and actual_seq_kvlen given in layout BNSD",
        call(actual_seq_qlen=[64], actual_seq_kvlen=[64]),
        call(actual_seq_qlen=[], actual_seq_kvlen=[]),
    ),
    ("L02", "wrong", "actual_seq_kvlen given", call(actual_seq_kvlen=[64]), call()),
    (
        "L03", "wrong", "inverted",
        call(atten_mask=~triangle(64, 64), sparse_mode=1),
        call(atten_mask=triangle(64, 64), sparse_mode=1),
    ),
    (
        "L03", "wrong", "inverted",
        call(atten_mask=~triangle(64, 64)), call(atten_mask=triangle(64, 64)),
    ),
    (
        "L03", "wrong", "inverted",
        call(kv=96, atten_mask=~triangle(64, 96, 33), sparse_mode=1),
        call(kv=96, atten_mask=triangle(64, 96, 33), sparse_mode=1),
    ),
    (
        "L03", "wrong", "queries see later keys but not their own",
        call(atten_mask=~PADDED, sparse_mode=1), call(atten_mask=PADDED, sparse_mode=1),
    ),
    (
        "L03", "wrong", "63 of 63 queries see later keys",
        call(atten_mask=~WINDOW, sparse_mode=1), call(atten_mask=WINDOW, sparse_mode=1),
    ),
    (
        "L03", "risk", "hides each query's own key",
        call(atten_mask=DOCUMENTS, sparse_mode=1), call(atten_mask=~DOCUMENTS, sparse_mode=1),
    ),
    (
        "L03", "risk", "inverted padding mask",
        call(atten_mask=LEFT_PADDING_SWAPPED, sparse_mode=1),
        call(atten_mask=~LEFT_PADDING_SWAPPED, sparse_mode=1),
    ),
    (
        "L03", "wrong", "additive",
        call(atten_mask=triangle(64, 64).float() * -10000.0),
        call(atten_mask=triangle(64, 64).float().bool()),
    ),
    ("L03", "wrong", "int64", call(atten_mask=triangle(64, 64).long()), call()),
    (
        "L03", "risk", "above 1",
        call(atten_mask=triangle(64, 64).byte() * 255),
        call(atten_mask=triangle(64, 64).byte()),
    ),
    (
        "L03", "advice", "without a key",
        call(atten_mask=torch.ones(64, 64, dtype=torch.bool), sparse_mode=1),
        call(atten_mask=torch.zeros(64, 64, dtype=torch.bool), sparse_mode=1),
    ),
    (
        "L04", "wrong", "[2, 1, 1, 64]",
        call(atten_mask=meta(2, 1, 1, 64, dtype=torch.bool), sparse_mode=1),
        call(atten_mask=meta(2, 1, 64, 64, dtype=torch.bool), sparse_mode=1),
    ),
    ("L04", "wrong", "[2, 64]", call(atten_mask=meta(2, 64, dtype=torch.bool)), call()),
    ("L04", "wrong", "[4, 64, 64]", call(atten_mask=meta(4, 64, 64, dtype=torch.bool)), call()),
    (
        "L05", "wrong", "it is inverted",
        call(atten_mask=~CAUSAL, sparse_mode=3),
        call(atten_mask=CAUSAL.byte(), sparse_mode=3),
    ),
    ("L05", "wrong", "diagonal", call(atten_mask=DIAGONAL_TOO, sparse_mode=2), call()),
    (
        "L05", "wrong", "1 elements differ",
        call(atten_mask=ONE_WRONG, sparse_mode=2),
        call(atten_mask=CAUSAL, sparse_mode=2),
    ),
    (
        "L05", "wrong", "takes the 2048 x 2048 mask",
        call(atten_mask=triangle(64, 64), sparse_mode=2),
        call(atten_mask=triangle(64, 64), sparse_mode=0),
    ),
    ("L05", "wrong", "compressed 2048 x 2048 mask", call(atten_mask=CAUSAL), call()),
    (
        "L05", "wrong", "last 1024 rows",
        call(atten_mask=torch.cat([CAUSAL, CAUSAL[:1024]]), sparse_mode=6, prefix=[9, 9]),
        call(atten_mask=PREFIX, sparse_mode=6, prefix=[9, 9]),
    ),
    (
        "L06", "risk", "pre_tockens=16",
        call(atten_mask=triangle(64, 64), pre_tockens=16, next_tockens=0),
        call(atten_mask=triangle(64, 64), pre_tockens=65536, next_tockens=0),
    ),
    (
        "L07", "wrong", "lengths of sequences, not their ends",
        packed([16, 16, 32], [16, 16, 32], 64), packed([16, 32, 64], [16, 32, 64]),
    ),
    ("L07", "wrong", "not their ends", packed([32, 16], [32, 16], 48), packed([32, 48], [32, 48])),
    ("L07", "wrong", "decreases", packed([32, 16, 60], [32, 16, 60], 64), packed([64], [64])),
    ("L07", "wrong", "has 64 tokens", packed([32, 65], [32, 65], 64), packed([32, 64], [32, 64])),
    ("L07", "risk", "ends at 48", packed([0, 24, 48], [0, 24, 48], 64), packed([16, 64], [16, 64])),
    ("L07", "advice", "ends at 48", packed([48, 0], [48, 0], 64), packed([48, 64], [48, 64])),
    ("L07", "risk", "no keys", packed([8, 16], [0, 16]), packed([8, 16], [8, 16])),
    ("L08", "advice", "starts with 0", packed([0, 9, 64], [0, 9, 64]), packed([9, 64], [9, 64])),
    (
        "L09", "advice", "1100 packed sequences",
        packed(list(range(1, 1101)), list(range(1, 1101))),
        packed(list(range(1, 1001)), list(range(1, 1001))),
    ),
    (
        "L09", "wrong", "2049 packed sequences",
        packed(list(range(1, 2050)), list(range(1, 2050))), packed([64], [64]),
    ),
    ("L10", "wrong", "D=800", call(query=meta(2, 4, 64, 800)), call()),
    ("L10", "wrong", "N=300", call(query=meta(2, 300, 64, 64), head_num=300), call()),
    (
        "L10", "wrong", "value has 128",
        call(value=meta(2, 4, 64, 128)), call(value=meta(2, 4, 64, 32)),
    ),
    ("L10", "wrong", "no multiple", call(key=meta(2, 3, 64, 64), value=meta(2, 3, 64, 64)), call()),
    ("L11", "risk", "scale=1.0 with D=64", call(scale=1.0), call(scale=0.125)),
    ("L11", "risk", "sqrt(D)", call(scale=8.0), call(scale=0.125)),
    (
        "L12", "risk", "128 rows without a key, such as rows 0 to 15 of batch 0",
        call(q=80, atten_mask=CAUSAL, sparse_mode=3), call(kv=80, atten_mask=CAUSAL, sparse_mode=3),
    ),
    (
        "L03", "advice", "last 14 of 64 keys",
        call(atten_mask=(torch.arange(64) < 50).expand(64, 64), sparse_mode=1),
        call(atten_mask=(torch.arange(64) >= 50).expand(64, 64), sparse_mode=1),
    ),
    (
        "L12", "risk", "rows without a key",
        call(atten_mask=CAUSAL, sparse_mode=4, next_tockens=-4, pre_tockens=8),
        call(atten_mask=CAUSAL, sparse_mode=4, next_tockens=0, pre_tockens=8),
    ),
    ("L14", "wrong", "head_num=64", call("BSND", head_num=64), call("BSND")),
    (
        "L14", "wrong", "query has N=8",
        call(query=meta(2, 8, 64, 64)), call(query=meta(2, 8, 64, 64), head_num=8),
    ),
    (
        "L14", "advice", "fits both BNSD and BSND",
        call(q=4, kv=4), call(q=4, kv=64),
    ),
    (
        "L14", "risk", "B=1024 and Sq=2",
        call("BSH", query=meta(1024, 2, 256), key=meta(1024, 2, 256), value=meta(1024, 2, 256)),
        call("SBH", query=meta(1024, 2, 256), key=meta(1024, 2, 256), value=meta(1024, 2, 256)),
    ),
    (
        "L14", "risk", "head_num=64 and scale=64**-0.5, but D=4",
        call("BSH", head_num=64), call("BSH"),
    ),
    (
        "L14", "risk", "layout SBH with B=1024 and Sq=2",
        call("SBH", query=meta(2, 1024, 256), key=meta(2, 1024, 256), value=meta(2, 1024, 256)),
        call("BSH", query=meta(2, 1024, 256), key=meta(2, 1024, 256), value=meta(2, 1024, 256)),
    ),
    ("L15", "risk", "'tnd'", packed([64], [64], input_layout="tnd"), packed([64], [64])),
    (
        "L16", "advice", "sparse_mode=3",
        call(q=2100, kv=2100, atten_mask=triangle(2100, 2100), sparse_mode=1),
        call(q=2040, kv=2040, atten_mask=triangle(2040, 2040), sparse_mode=1),
    ),
    (
        "L16", "advice", "sparse_mode=4, pre_tockens=9, next_tockens=3",
        call(q=2100, kv=2200, sparse_mode=1,
             atten_mask=triangle(2100, 2200, 104) | triangle(2100, 2200, 91).logical_not()),
        call(),
    ),
    (
        "L16", "advice", "sparse_mode=6, prefix=[500, 500]",
        call(q=2100, kv=2100, sparse_mode=1,
             atten_mask=triangle(2100, 2100) & (torch.arange(2100) >= 500)),
        call(),
    ),
    ("L17", "advice", "without atten_mask", call(next_tockens=0), call(next_tockens=65536)),
    ("L17", "risk", "prefix", call(atten_mask=CAUSAL, sparse_mode=3, prefix=[3, 3]), call()),
    (
        "L18", "risk", "the last 32 keys",
        call(kv=96, atten_mask=CAUSAL, sparse_mode=2),
        call(kv=96, atten_mask=CAUSAL, sparse_mode=3),
    ),
    (
        "L18", "advice", "the last 2 keys",
        packed([3, 5], [3, 7], 7, atten_mask=CAUSAL, sparse_mode=2),
        packed([3, 5], [3, 5], 7, atten_mask=CAUSAL, sparse_mode=2),
    ),
    ("L19", "risk", "keep_prob=0.1", call(keep_prob=0.1), call(keep_prob=0.9)),
    ("L19", "wrong", "keep_prob=0", call(keep_prob=0.0), call(keep_prob=1)),
    ("L20", "risk", "0.0078125", call(keep_prob=0.999), call(keep_prob=0.75)),
    (
        "L21", "risk", "nothing is masked",
        call(atten_mask=CAUSAL, sparse_mode=4),
        call(atten_mask=CAUSAL, sparse_mode=4, next_tockens=0),
    ),
    (
        "L21", "risk", "all keys after its own",
        call(atten_mask=CAUSAL, sparse_mode=4, pre_tockens=16),
        call(q=1, atten_mask=CAUSAL, sparse_mode=4, pre_tockens=16),
    ),
]  # fmt: skip
IDS = [f"{rule}-{words}" for rule, _, words, _, _ in BUGS]


@pytest.mark.parametrize(("rule", "severity", "words", "bug", "clean"), BUGS, ids=IDS)
def test_rule_finds_its_bug_and_leaves_a_clean_call_alone(
    rule: str, severity: str, words: str, bug: dict[str, Any], clean: dict[str, Any]
) -> None:
    found = [f for f in lint(**bug) if f.id == rule]
    assert [(f.severity, words in f.title) for f in found] == [(severity, True)], found
    assert not [f for f in lint(**clean) if f.id == rule and f.severity == severity]
    for finding in found:
        assert len(finding.title) <= 120
        assert finding.why.endswith(".")
        assert finding.mend.endswith(".")


def test_a_mask_of_numbers_has_the_right_shape_all_the_same() -> None:
    found = lint(**call(atten_mask=triangle(64, 64).float() * -10000.0))
    assert [f.id for f in found] == ["L03"]


@pytest.mark.parametrize(
    ("shape", "mend"),
    [
        ((2, 64), "atten_mask[:, None, None, :].expand(2, 1, 64, 64)"),
        ((2, 1, 1, 64), "atten_mask.expand(2, 1, 64, 64)"),
        ((1, 1, 1, 64), "atten_mask.expand(1, 1, 64, 64)"),
        ((1, 4, 1, 64), "atten_mask.expand(2, 4, 64, 64)"),
        ((2, 64, 1, 64), "Build it for Sq=64 rows and Skv=64 keys"),
        ((2, 64, 64), "atten_mask.unsqueeze(1)"),
        ((4, 64, 64), "atten_mask.expand(2, 4, 64, 64)"),
        ((3, 64, 64), "Build it for B=2, N=4"),
    ],
)
def test_mend_of_a_shape_is_one_that_the_operator_takes(shape: tuple[int, ...], mend: str) -> None:
    (finding,) = lint(**call(atten_mask=torch.zeros(shape, dtype=torch.bool)))
    assert mend in finding.mend
    if "atten_mask" in mend:
        mask = eval(mend, {"atten_mask": torch.zeros(shape, dtype=torch.bool)})
        assert lint(**call(atten_mask=mask, sparse_mode=1)) == []


def test_gradient_without_the_forward_calls_dropout_state() -> None:
    bug = gradient(keep_prob=0.9)
    assert [f.id for f in lint(function=GRAD, **bug) if f.severity == "wrong"] == ["L13"]
    clean = gradient(keep_prob=0.9, seed=7, offset=12, numels=2 * 4 * 64 * 64)
    assert lint(function=GRAD, **clean) == []
    assert lint(function=GRAD, **gradient()) == []


def test_compressed_form_of_a_full_mask_is_the_same_call() -> None:
    """What L16 proposes sees the same pairs as the full mask did."""
    masks = [
        triangle(2100, 2200, 1),
        triangle(2100, 2200, 101),
        triangle(2100, 2200, 50),
        triangle(2100, 2200, 104) | triangle(2100, 2200, 91).logical_not(),
        triangle(2100, 2200, 101) & (torch.arange(2200) >= 500),
        torch.zeros(2100, 2200, dtype=torch.bool),
    ]
    for mask in masks:
        full = call(q=2100, kv=2200, atten_mask=mask, sparse_mode=1)
        (finding,) = [f for f in lint(**full) if f.id == "L16"]
        form = finding.title.removeprefix("the full atten_mask says what ").removesuffix(" says")
        if form == "no atten_mask":
            proposed = call(q=2100, kv=2200)
        else:
            arguments = eval(f"dict({form})", {"dict": dict})
            mask = PREFIX if arguments["sparse_mode"] == 6 else CAUSAL
            proposed = call(q=2100, kv=2200, atten_mask=mask, **arguments)
        before, after = explain(**full), explain(**proposed)
        assert after.error is None, form
        assert set(before.visible.patterns) == set(after.visible.patterns)
        assert before.pairs == after.pairs


def test_every_rule_of_the_list_has_a_bug_here() -> None:
    tested = {rule for rule, *_ in BUGS} | {"L13"}
    assert tested == {f"L{number:02}" for number in range(1, 22)}


def test_names_are_those_of_the_function_that_was_called() -> None:
    v2 = call(atten_mask=triangle(64, 64), pre_tokens=16, next_tokens=0)
    (finding,) = lint(function="npu_fusion_attention_v2", **v2)
    assert "pre_tokens=16, next_tokens=0" in finding.title
    assert "tockens" not in str(finding)


def run(mask: Tensor | None = None) -> None:
    """A call whose place the linter reports."""
    query = torch.ones(1, 1, 4, 8)
    npu_fusion_attention(query, query, query, 1, "BNSD", scale=0.3, atten_mask=mask, sparse_mode=3)


@pytest.fixture
def linter() -> Any:
    """set_lint, switched off again afterwards."""
    yield set_lint
    set_lint("off")


def test_warnings_come_once_for_a_place_and_name_it(linter: Any) -> None:
    linter("warn")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            run()
        run(CAUSAL)
    (warning,) = caught
    assert warning.category is LintWarning
    assert str(warning.message).startswith("npu_fusion_attention: L01 sparse_mode=3 without")
    assert warning.filename == __file__


def test_error_raises_for_what_is_wrong_and_warns_of_risks(linter: Any) -> None:
    linter("error")
    with pytest.raises(RuntimeError, match="L01 sparse_mode=3 without atten_mask"):
        run()
    run(CAUSAL)
    query = torch.ones(1, 1, 4, 8)
    with pytest.warns(LintWarning, match=r"L11 scale=1\.0 with D=8"):
        npu_fusion_attention(query, query, query, 1, "BNSD")


def test_off_means_that_nobody_observes(linter: Any) -> None:
    linter("warn")
    linter("off")
    assert fusion_attention._observers.watching == ()
    with pytest.raises(FeatureError, match="expected off, warn or error"):
        linter("loud")


def test_environment_variable_switches_it_on() -> None:
    script = (
        "import torch; from fusion_attention import npu_fusion_attention as f;"
        "q = torch.ones(1, 1, 4, 8); f(q, q, q, 1, 'BNSD', scale=0.3, sparse_mode=3)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "FUSION_ATTENTION_LINT": "error"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "RuntimeError: npu_fusion_attention: L01 sparse_mode=3 without" in done.stderr
