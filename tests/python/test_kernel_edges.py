"""Corners of the kernels that random calls rarely reach, each with the bug that it would catch."""

import math
import os
import subprocess
import sys

import pytest
import torch

from fusion_attention import npu_fusion_attention, npu_fusion_attention_grad

CAUSAL = torch.ones(2048, 2048, dtype=torch.bool).triu(1)
FLT_MAX = torch.finfo(torch.float32).max


@pytest.mark.parametrize("keep_prob", [1e-10, 1e-40, 1e-300])
def test_a_vanishing_keep_prob_drops_everything(keep_prob: float) -> None:
    """1 / keep_prob is infinite in float32 here, and infinity times nothing would be NaN."""
    query = torch.randn(1, 2, 70, 16, requires_grad=True)
    out, softmax_max, softmax_sum, *_ = npu_fusion_attention(
        query, query, query, 2, "BNSD", keep_prob=keep_prob
    )
    whole = npu_fusion_attention(query, query, query, 2, "BNSD")
    assert torch.equal(out, torch.zeros_like(out))
    assert torch.equal(softmax_max, whole[1])
    assert torch.equal(softmax_sum, whole[2])
    out.sum().backward()
    assert torch.equal(query.grad, torch.zeros_like(query))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_large_scores_keep_gradients_exact(dtype: torch.dtype) -> None:
    """Scores near 4096 are exact here, so what a log-sum-exp would lose of them must not show."""
    key = torch.randint(-8, 9, (1, 1, 60, 8)).to(dtype)
    key[..., 0] = 512.0
    query = torch.randint(-8, 9, (1, 1, 60, 8)).to(dtype) / 64
    query[..., 0] = 8.0
    value, dy = torch.randn(2, 1, 1, 60, 8, dtype=dtype)
    leaves = [x.clone().requires_grad_() for x in (query, key, value)]
    out = npu_fusion_attention(*leaves, 1, "BNSD")[0]
    found = torch.autograd.grad(out, leaves, dy)
    exact_leaves = [x.double().clone().requires_grad_() for x in (query, key, value)]
    weights = (exact_leaves[0] @ exact_leaves[1].mT).softmax(-1)
    exact = torch.autograd.grad(weights @ exact_leaves[2], exact_leaves, dy.double())
    dv, exact_dv = found[2].double(), exact[2]
    # A log-sum-exp near 4096 in float32 is off by up to 2.4e-4, and so would be every weight.
    assert (dv - exact_dv).abs().max() < 1e-5 * (1 + exact_dv.abs().max())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("head_dim", [7, 32])
def test_any_alignment_gives_the_same_bits(dtype: torch.dtype, head_dim: int) -> None:
    """Tensors that start at an odd address."""
    aligned = torch.randn(3, 1, 2, 50, head_dim).to(dtype)
    odd = []
    for tensor in aligned:
        data = bytearray(1) + bytearray(tensor.contiguous().view(torch.uint8).numpy().tobytes())
        odd.append(torch.frombuffer(data, dtype=dtype, offset=1).view(tensor.shape))
        assert odd[-1].data_ptr() % 2 == 1
    for expected, found in zip(
        npu_fusion_attention(*aligned, 2, "BNSD", scale=0.3)[:3],
        npu_fusion_attention(*odd, 2, "BNSD", scale=0.3)[:3],
        strict=True,
    ):
        assert torch.equal(expected, found)


def test_flushing_subnormals_changes_no_bit() -> None:
    """The caller's floating-point flags are his own business: a subnormal scale still counts."""
    query, key, value = torch.randn(3, 1, 1, 40, 8)
    arguments = {"head_num": 1, "input_layout": "BNSD", "scale": 1e-39}
    big = key * 1e37
    expected = npu_fusion_attention(query, big, value, **arguments)[0]
    assert torch.set_flush_denormal(True)
    try:
        found = npu_fusion_attention(query, big, value, **arguments)[0]
    finally:
        torch.set_flush_denormal(False)
    assert torch.equal(expected, found)
    assert not torch.equal(expected, npu_fusion_attention(query, big, value, 1, "BNSD", scale=0)[0])


def test_an_infinite_sink_takes_all_weight() -> None:
    """Also from rows that see no key, whose neighbours' keys lie in the same tile."""
    query, key = torch.randn(1, 1, 4, 8), torch.randn(1, 1, 2, 8)
    out, softmax_max, softmax_sum, *_ = npu_fusion_attention(
        query, key, key, 1, "BNSD", atten_mask=CAUSAL, sparse_mode=3, sink=torch.tensor([math.inf])
    )
    assert torch.equal(out, torch.zeros_like(out))
    assert softmax_max.eq(math.inf).all()
    assert softmax_sum.eq(1.0).all()


def test_statistics_of_float64_are_one_normaliser() -> None:
    """The maximum is stored rounded to float32, so the sum must be relative to the rounded one."""
    query, key = torch.randn(2, 1, 1, 30, 8, dtype=torch.float64)
    _, softmax_max, softmax_sum, *_ = npu_fusion_attention(query, key, key, 1, "BNSD", scale=300.0)
    exact = (query @ key.mT * 300.0).logsumexp(-1)
    found = softmax_max[..., 0].double() + softmax_sum[..., 0].double().log()
    assert (found - exact).abs().max() < 1e-6


@pytest.mark.parametrize("target", ["neon", "avx1024"])
def test_a_target_that_is_not_here_is_an_error(target: str) -> None:
    """No other target and no other backend steps in, and nothing is drawn."""
    program = """
import torch
from fusion_attention import npu_fusion_attention
query, before = torch.ones(1, 1, 2, 8), torch.get_rng_state()
try:
    npu_fusion_attention(query, query, query, 1, "BNSD", keep_prob=0.5)
except RuntimeError as error:
    print(torch.equal(before, torch.get_rng_state()), error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "FUSION_ATTENTION_TARGET": target},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith(
        "True npu_fusion_attention: expected the environment variable FUSION_ATTENTION_TARGET"
    )
    assert f"but got {target}." in done.stdout


def test_blind_rows_give_any_gradient_nothing() -> None:
    """A row that sees no key keeps even a NaN of its own output gradient to itself."""
    query, key = torch.randn(1, 1, 6, 8), torch.randn(1, 1, 4, 8)
    out, softmax_max, softmax_sum, *_ = npu_fusion_attention(
        query, key, key, 1, "BNSD", atten_mask=CAUSAL, sparse_mode=3
    )
    dy = torch.ones_like(out)
    settings = {
        "softmax_max": softmax_max,
        "softmax_sum": softmax_sum,
        "attention_in": out,
        "atten_mask": CAUSAL,
        "sparse_mode": 3,
    }
    expected = npu_fusion_attention_grad(query, key, key, dy, 1, "BNSD", **settings)[:3]
    dy[:, :, :2] = math.nan
    found = npu_fusion_attention_grad(query, key, key, dy, 1, "BNSD", **settings)[:3]
    assert softmax_max[0, 0, 0, 0] == -FLT_MAX
    for one, other in zip(expected, found, strict=True):
        assert torch.equal(one, other)


def test_rows_whose_scores_all_are_minus_infinity_weigh_nothing() -> None:
    """A bias of -inf used as a mask: the row is 0, and no NaN of its dy or the values gets out."""
    query, key = torch.randn(2, 1, 1, 60, 8)
    value, dy = torch.randn(2, 1, 1, 60, 8)
    pse = torch.zeros(1, 1, 60, 60)
    pse[:, :, :7] = -math.inf
    value[0, 0, 3] = math.nan
    dy[0, 0, :7] = math.nan
    leaves = [x.clone().requires_grad_() for x in (query, key, value, pse)]
    out, softmax_max, *_ = npu_fusion_attention(*leaves[:3], 1, "BNSD", pse=leaves[3])
    dq, *_, dpse = torch.autograd.grad(out, leaves, dy)
    for blind in (out[:, :, :7], dq[:, :, :7], dpse[:, :, :7]):
        assert torch.equal(blind, torch.zeros_like(blind))
    assert softmax_max[:, :, :7].eq(-FLT_MAX).all()
    assert out[:, :, 7:].isnan().all()
