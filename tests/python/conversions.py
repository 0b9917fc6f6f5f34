"""Random tensors for the converters' tests, and what both sides of a conversion must agree in.

Everything is float64: two orders of the same sums then differ by about 1e-15, and a wrong mask, a
wrong scale or a bias in the wrong place by more than 1e-3. Gradients start from row statistics that
the operator stores in float32, so a weight is off by 2^-24 (1 + max|score|) of itself there.
"""

import functools
import random
from collections.abc import Callable

import cases
import torch
from case_tensors import build

from fusion_attention._call import Call, bind

OUT_TOLERANCE = 1e-12
GRADIENT_TOLERANCE = 2.0**-24 * 32  # scores reach 20 or so; gradients are of the size of 1


def tensors(
    rng: random.Random, q_shape: tuple[int, ...], kv_shape: tuple[int, ...], value_dim: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Query, key and value that want gradients."""
    torch.manual_seed(rng.randrange(2**31))
    query, key = (torch.randn(x, dtype=torch.float64) for x in (q_shape, kv_shape))
    value = torch.randn(*kv_shape[:-1], value_dim, dtype=torch.float64)
    return query.requires_grad_(), key.requires_grad_(), value.requires_grad_()


def assert_same(
    ours: Callable[[], torch.Tensor],
    theirs: Callable[[], torch.Tensor],
    *inputs: torch.Tensor,
) -> None:
    """Fails unless both give the same result and the same gradients of `inputs`."""
    results = []
    for function in (ours, theirs):
        out = function()
        torch.manual_seed(0)
        gradients = torch.autograd.grad(out, inputs, torch.randn(out.shape, dtype=out.dtype))
        results.append((out, *gradients))
    for index, (actual, expected) in enumerate(zip(*results, strict=True)):
        tolerance = GRADIENT_TOLERANCE if index else OUT_TOLERANCE
        largest = expected.abs().max().item() if expected.numel() else 0
        torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * max(1, largest))


@functools.cache
def plain_specs(count: int) -> list[cases.Spec]:
    """Random calls in float64, of all layouts and modes, with masks, ropes, biases and slopes.

    They have no dropout and no sink, which each converter is tested with by itself.
    """
    found: list[cases.Spec] = []
    for seed in range(10**9):
        spec = cases.draw(seed)
        if spec.pse == "compressed":
            continue
        spec.dtype, spec.dropout, spec.strides = torch.float64, "none", "contiguous"
        spec.arguments["sink"] = False
        for name in ("keep_prob", "seed", "offset"):
            spec.arguments.pop(name, None)
        found.append(spec)
        if len(found) == count:
            break
    return found


def call_of(spec: cases.Spec) -> Call:
    """The spec's call, of the first version unless an argument needs the second."""
    arguments = build(spec).call
    newer = {"pse_type", "q_start_idx", "kv_start_idx", "query_rope", "key_rope"}
    if not newer & arguments.keys():
        return bind("npu_fusion_attention", **arguments)
    renamed = {"pre_tockens": "pre_tokens", "next_tockens": "next_tokens"}
    arguments = {renamed.get(name, name): value for name, value in arguments.items()}
    return bind("npu_fusion_attention_v2", **arguments)
