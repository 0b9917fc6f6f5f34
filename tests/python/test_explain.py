"""explain: its facts are the operator's, its counts are exact, and its forms can be read.

The masks are compared with the oracle's predicates over random legal calls of all modes.
"""

from typing import Any

import pytest
import torch
from calls import as_v2, forward, version_of
from case_tensors import build
from cases import draw
from lint_calls import CAUSAL, PREFIX, call, gradient, meta, packed, triangle
from oracle import Geometry, keep_mask, visible_keys

import fusion_attention
from fusion_attention import _call, explain, npu_fusion_attention
from fusion_attention._errors import FeatureError
from fusion_attention.explaining import Report, panels

SEEDS = range(80)


def explained(arguments: dict[str, Any]) -> Report:
    """Explains a random call, of the oldest function that takes it."""
    if version_of(arguments) == 1:
        return explain(**arguments)
    return explain(function="npu_fusion_attention_v2", **as_v2(arguments))


def tiles_of(keys: torch.Tensor, size: int) -> torch.Tensor:
    """0 for tiles that see nothing, 2 for those that see everything, 1 for others."""
    seen = keys[None].float()
    some = torch.nn.functional.max_pool2d(seen, size, ceil_mode=True)
    not_all = torch.nn.functional.max_pool2d(1 - seen, size, ceil_mode=True)
    return (some + (1 - not_all))[0].to(torch.uint8)


@pytest.mark.parametrize("first", range(0, len(SEEDS), 20))
def test_visible_pairs_are_those_of_the_oracle(first: int) -> None:
    for seed in SEEDS[first : first + 20]:
        arguments = build(draw(seed)).call
        report = explained(arguments)
        assert report.runs, report.error
        visible, geometry = report.visible, Geometry.of(arguments)
        expected = {s.index: visible_keys(arguments, geometry, s) for s in geometry.sequences}
        blind = sum(int((~keys.any(2)).sum()) for keys in expected.values())
        assert report.pairs == sum(int(keys.sum()) for keys in expected.values())
        assert visible.empty_rows == blind
        for matrix in visible.matrices:
            keys = expected[matrix.sequence][max(matrix.head, 0)]
            assert torch.equal(matrix.cells(), keys)
            rows = matrix.rows()
            assert torch.equal(rows.count, keys.sum(1))
            for size in (1, 4, 64) if keys.numel() else ():
                assert torch.equal(matrix.tiles(size), tiles_of(keys, size))


def test_facts_are_what_the_operator_returns() -> None:
    for seed in range(40):
        arguments = build(draw(seed)).call
        out, row_max, *_, numels = forward(arguments)
        facts = explained(arguments).facts
        assert facts.out_shape == tuple(out.shape)
        assert facts.statistics_shape == tuple(row_max.shape)
        assert facts.numels == numels
        assert facts.dtype == str(out.dtype).removeprefix("torch.")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("keep_prob", [0.9, 0.5, 0.999])
def test_drop_rate_is_that_of_the_generated_mask(dtype: torch.dtype, keep_prob: float) -> None:
    query = meta(1, 1, 1, 8, dtype=dtype)
    rate = explain(query, query, query, 1, "BNSD", keep_prob=keep_prob).facts.drop_rate
    kept = torch.as_tensor(keep_mask(3, 0, 1 << 19, keep_prob, dtype)).double().mean()
    deviation = (rate * (1 - rate) / (1 << 19)) ** 0.5
    assert abs(1 - kept - rate) < 5 * deviation
    assert rate * 2**23 == int(rate * 2**23)


def test_work_and_memory() -> None:
    report = explain(**call(kv=96, value=meta(2, 4, 96, 32), atten_mask=CAUSAL, sparse_mode=2))
    pairs = 2 * 4 * 64 * 65 // 2
    assert report.pairs == pairs
    assert report.flops == (2 * pairs * (64 + 32), 2 * pairs * (3 * 64 + 2 * 32))
    assert report.memory["query"] == 2 * 4 * 64 * 64 * 2
    assert report.memory["attention_out"] == 2 * 4 * 64 * 32 * 2
    assert report.memory["softmax_max and softmax_sum"] == 2 * 2 * 4 * 64 * 8 * 4
    assert report.memory["gradients"] == 2 * (2 * 4) * (64 * 64 + 96 * 64 + 96 * 32)
    assert report.memory["scores"] == 4 * 2 * 4 * 64 * 96


def test_biases_are_named() -> None:
    before = explain(**call(pse=meta(2, 4, 1, 64)))
    assert "a bias, added before scaling" in before.text()
    full = call("TND", 1200, 1200, actual_seq_qlen=[1200], actual_seq_kvlen=[1200])
    full |= {"pse": meta(1, 4, 1024, 1200), "atten_mask": CAUSAL, "sparse_mode": 2}
    assert "the last 1024 rows of a bias" in explain(**full).text()
    after = call(pse=meta(2, 4, 64, 64), pse_type=0)
    report = explain(function="npu_fusion_attention_v2", **after)
    assert "a bias, added to the scaled scores" in report.text()


def test_a_mask_without_data_leaves_the_count_open() -> None:
    report = explain(**call(atten_mask=meta(64, 64, dtype=torch.bool), next_tockens=0))
    assert (report.pairs, report.flops) == (None, None)
    assert report.visible.pairs == 2 * 4 * 64 * 65 // 2
    assert "no data: what follows is an upper bound" in str(report)


def test_every_function_of_the_family() -> None:
    rope = meta(64, 4, 16)
    v2 = packed([16, 64], [16, 64], atten_mask=CAUSAL, sparse_mode=3, next_tokens=0)
    slopes = {"pse": meta(4, dtype=torch.float32), "pse_type": 2}
    report = explain(function="npu_fusion_attention_v2", **v2, **slopes)
    assert (report.error, report.facts.pse) == (None, "slopes")
    assert "each head's slope times distance is subtracted" in report.text()
    ropes = {"query_rope": rope, "key_rope": rope}
    both = explain(function="npu_fusion_attention_v2", **v2, **slopes, **ropes)
    assert both.error.startswith("RuntimeError: npu_fusion_attention: expected pse to be None")
    assert both.facts.without == ("pse",)
    report = explain(function="npu_fusion_attention_v2", **v2, **ropes)
    assert (report.error, report.facts.rope_dim) == (None, 16)
    assert report.flops[0] == 2 * report.pairs * (64 + 16 + 64)
    ends = torch.tensor([16, 64])
    v3 = packed(ends, ends, 64)
    assert explain(function="npu_fusion_attention_v3", **v3).facts.sequences == 2
    back = explain(function="npu_fusion_attention_grad", **gradient(keep_prob=0.9, seed=3))
    assert back.runs, back.error
    assert "those that the forward call returned" in " ".join(str(back).split())
    bound = _call.bind("npu_fusion_attention", **call())
    assert explain(bound).reading.call is bound
    with pytest.raises(FeatureError, match="npu_ring_attention_update computes no attention"):
        explain(_call.Call("npu_ring_attention_update", {}))
    with pytest.raises(FeatureError, match="npu_fusion_attention_v9 computes no attention"):
        explain(_call.Call("npu_fusion_attention_v9", {}))


def test_calls_that_are_not_even_refused_raise_as_the_function_does() -> None:
    with pytest.raises(TypeError, match="missing a required argument: 'value'"):
        explain(meta(1, 1, 4, 8), meta(1, 1, 4, 8))
    with pytest.raises(TypeError, match="unexpected keyword argument 'causal'"):
        explain(**call(causal=True))


# What is changed in a legal call so that it is refused, and whether the rest can still be read.
REFUSED: list[tuple[dict[str, Any], tuple[str, ...] | None]] = [
    ({"atten_mask": triangle(64, 63)}, ("atten_mask",)),
    ({"atten_mask": triangle(64, 64).float()}, ("atten_mask",)),
    ({"atten_mask": ~CAUSAL, "sparse_mode": 2}, ()),
    ({"sink": torch.zeros(3)}, ("sink",)),
    ({"actual_seq_qlen": [64]}, ("actual_seq_qlen",)),
    ({"padding_mask": meta(2, 64)}, ("padding_mask",)),
    ({"head_num": 3}, None),
    ({"head_num": "4"}, None),
    ({"key": None}, None),
    ({"input_layout": "NBSD"}, None),
    ({"sparse_mode": 9, "atten_mask": CAUSAL}, None),
    ({"keep_prob": 2.0}, None),
    ({"query": torch.ones(2, 4, 64, 64).to_sparse()}, None),
    ({"scale": float("nan")}, None),
]


@pytest.mark.parametrize(
    ("changes", "without"), REFUSED, ids=["-".join(changes) for changes, _ in REFUSED]
)
def test_refused_calls_are_explained(
    changes: dict[str, Any], without: tuple[str, ...] | None
) -> None:
    arguments = call(**changes)
    report = explain(**arguments)
    real = {
        name: torch.ones_like(x, device="cpu") if torch.is_tensor(x) and x.is_meta else x
        for name, x in arguments.items()
    }
    with pytest.raises((RuntimeError, NotImplementedError)) as refusal:
        npu_fusion_attention(**real)
    assert report.error == f"{type(refusal.value).__name__}: {refusal.value}"
    assert not report.runs
    assert report.verdict.startswith("REFUSED: ")
    assert (report.facts.without if report.facts else None) == without
    assert "What the operator says" in report.text()


@pytest.mark.parametrize("seed", range(0, 120, 4))
def test_text_fits_the_terminal_in_both_character_sets(seed: int) -> None:
    report = explained(build(draw(seed)).call)
    for width, charset in ((100, "unicode"), (100, "ascii"), (80, "ascii")):
        text = report.text(width, charset)
        assert max(map(len, text.splitlines())) <= width
        assert charset == "unicode" or text.isascii()
        assert text.splitlines()[1].startswith("Runs")


def test_small_masks_are_drawn_token_by_token() -> None:
    report = explain(**call(q=4, kv=6, atten_mask=CAUSAL, sparse_mode=3))
    drawn = [line.strip() for line in report.text(charset="ascii").splitlines()]
    assert drawn[drawn.index("a cell is a token") + 1 :][:4] == [
        "0 ######......",
        "1 ########....",
        "2 ##########..",
        "3 ############",
    ]


def test_large_masks_are_drawn_in_tiles_with_their_corners() -> None:
    report = explain(**call(q=1000, kv=3000, atten_mask=CAUSAL, sparse_mode=3))
    whole, top, bottom = panels.panels_of(report.facts, report.visible, 3, 16)
    assert whole.cells.shape == (4, 12)
    assert whole.size == 256
    assert (top.row, top.key, bottom.row, bottom.key) == (0, 0, 992, 2992)
    assert torch.equal(bottom.cells == panels.FULL, torch.ones(8, 8, dtype=torch.bool).tril())


def test_the_pages_example_of_mode_7_as_text() -> None:
    report = explain(**packed([3, 5], [3, 9], atten_mask=CAUSAL, sparse_mode=7, pre_tockens=6,
                              next_tockens=-2) | {"query": meta(5, 4, 64)})  # fmt: skip
    lines = report.text(charset="ascii").splitlines()
    start = lines.index("  a cell is a token") + 1
    assert lines[start : start + 5] == [
        "  0 ##....",
        "  1 ####..",
        "  2 ######",
        "  3       ######......",
        "  4       ########....",
    ]


def test_prefix_masks_show_every_batch() -> None:
    report = explain(**call(q=8, kv=8, atten_mask=PREFIX, sparse_mode=6, prefix=[4, 5]))
    assert "batch 0: 8 x 8, prefix 4" in str(report)
    assert "batch 1: 8 x 8, prefix 5" in str(report)


def test_nothing_is_computed_and_no_random_number_is_drawn() -> None:
    state = torch.get_rng_state()
    query = torch.full((1, 1, 1, 1), torch.nan).expand(64, 32, 4096, 128)  # 4 GiB if it were read
    report = explain(query, query, query, 32, "BNSD", scale=0.1, keep_prob=0.9)
    assert report.pairs == 64 * 32 * 4096 * 4096
    assert torch.equal(torch.get_rng_state(), state)


def test_names_of_the_package() -> None:
    assert fusion_attention.explain is explain
    assert {"explain", "lint", "set_lint", "LintWarning"} <= set(dir(fusion_attention))
