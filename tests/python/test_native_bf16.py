"""The SIMD target avx512_bf16: what it changes and what it must not.

That its results are within their bounds, bit for bit reproducible and safe from NaN is tested where
every target is: test_differential.py, test_bitwise.py, test_nan.py run on the best target.
"""

import os
import subprocess
import sys

import pytest
import torch
from bounds import excess
from oracle import attention
from simd import simd_targets

from fusion_attention import npu_fusion_attention
from fusion_attention._library import target

_DIGEST = """
import hashlib, torch
from fusion_attention import npu_fusion_attention
torch.manual_seed(0)
query, key, value = (torch.randn(2, 3, 70, 40, dtype=torch.{dtype}) for _ in range(3))
for tensor in (query, key, value):
    tensor.requires_grad_()
out = npu_fusion_attention(query, key, value, 3, "BNSD", scale=0.2, keep_prob=0.9)[0]
out.sum().backward()
results = (out, query.grad, key.grad, value.grad)
print(hashlib.sha256(repr([x.flatten().tolist() for x in results]).encode()).hexdigest())
"""


def _digest(dtype: str, simd: str) -> str:
    environment = {**os.environ, "FUSION_ATTENTION_TARGET": simd}
    command = [sys.executable, "-c", _DIGEST.format(dtype=dtype)]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True
    ).stdout


@pytest.mark.parametrize("native", [x for x in simd_targets() if x == "avx512_bf16"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "float64", "bfloat16"])
def test_only_bfloat16_differs_from_avx512(dtype: str, native: str) -> None:
    same = _digest(dtype, native) == _digest(dtype, "avx512")
    assert same == (dtype != "bfloat16")


def test_weights_are_rounded_on_the_native_target_alone() -> None:
    # One row, two keys, weights 1 and exp(-1): value selects the second.
    query, key = torch.ones(1, 1, 1, 1), torch.tensor([0.0, -1.0]).view(1, 1, 2, 1)
    value = torch.tensor([0.0, 2.0**100]).view(1, 1, 2, 1)
    out, _, total, *_ = npu_fusion_attention(
        *(x.bfloat16() for x in (query, key, value)), 1, "BNSD", scale=1.0
    )
    weight = torch.tensor(-1.0).exp()
    factor = weight.bfloat16().float() if target() == "avx512_bf16" else weight
    expected = (factor.double() * 2.0**100 / (1 + weight.double())).bfloat16()
    torch.testing.assert_close(total[0, 0, 0, 0], 1 + weight, rtol=2**-22, atol=0)
    assert torch.equal(out.flatten(), expected.view(1))


def test_what_the_products_take_for_0_is_within_the_bound() -> None:
    # One row, two keys, weights 1 and 2^-30: value selects the second. 2^-130 is subnormal.
    query, key = torch.ones(1, 1, 1, 1), torch.tensor([0.0, -20.75]).view(1, 1, 2, 1)
    value = torch.tensor([0.0, 2.0**-100]).view(1, 1, 2, 1)
    call = {"query": query, "key": key, "value": value}
    call = {name: x.bfloat16() for name, x in call.items()}
    call |= {"head_num": 1, "input_layout": "BNSD", "scale": 1.0}
    out = npu_fusion_attention(**call)[0]
    exact = attention(call).out
    assert excess("out", out, exact, torch.bfloat16) <= 1
    assert (out.item() == 0) == (target() == "avx512_bf16")
