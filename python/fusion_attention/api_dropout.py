"""_npu_dropout_gen_mask: the dropout mask of a call as an array of bits.

The operator makes these bits while it runs and stores none; clients that compare with a golden of
their own, or replay a device's mask, want to see them.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fusion_attention import _arguments as arg
from fusion_attention import _library, _observers, _random, _vendor

_MOST_ELEMENTS = 2**63 - 128  # whole blocks of 128 bits must still be counted


def _npu_dropout_gen_mask(
    self: Tensor,
    size: Sequence[int],
    p: float,
    seed: int,
    offset: int,
    parallel: bool = True,
    sync: bool = False,
) -> Tensor:
    """Returns the keep bits that a call with this (seed, offset) applies to its weights.

    Bit k belongs to element k of a call's B*N*Sq*Skv dropout elements (packed sequences one after
    another) and is 1 where the weight is kept: where the low bits of word k of the Philox4x32-10
    stream reach p, rounded to the dtype of `self` (docs/numerics.md). Given back as dropout_mask,
    with keep_prob, they change no bit of a call's results.

    Args:
        self: Any floating point tensor; its dtype, which should be query's, decides how p is
            rounded.
        size: The shape of the scores, such as [B, N, Sq, Skv], or [numels].
        p: Probability to drop a weight, in [0, 1], used as float32. A call with keep_prob drops
            with the float32 difference 1 - keep_prob. 0 keeps and 1 drops every element.
        seed: The forward call's fifth result.
        offset: The forward call's sixth result.
        parallel: Accepted for compatibility; no value depends on it.
        sync: Accepted for compatibility; no value depends on it.

    Returns:
        uint8 [ceil(numels / 128) * 16]: bit k % 8 of byte k // 8 is element k's, least significant
        first.

    Raises:
        RuntimeError: An argument breaks one of these rules.
        NotImplementedError: `self` is on a device without a backend.
        torch.OutOfMemoryError: Memory ran out.

    Example:
        >>> import torch
        >>> _npu_dropout_gen_mask(torch.empty(0), [1, 2, 4, 16], p=0.1, seed=2, offset=0)[:4]
        tensor([255, 251, 251, 127], dtype=torch.uint8)
    """
    if _observers.watching and _observers.outermost():
        return _observers.show(_npu_dropout_gen_mask, locals())
    if _vendor.is_npu(self):
        given = {"p": p, "seed": seed, "offset": offset, "parallel": parallel, "sync": sync}
        return _vendor.call("_npu_dropout_gen_mask", given, self, size)
    arg.check_tensors(("self",), (self,))
    if not self.is_floating_point():
        raise arg.fail("self", "to have a floating point dtype", f"self.dtype={self.dtype}")
    p = arg.number("p", p)
    if not 0 <= p <= 1:
        raise arg.fail("p", "to be in [0, 1]", f"p={p}", "It is the probability to drop a weight.")
    # In a graph of dynamic shapes the extents are symbols, which must stay so.
    extents = size if torch.compiler.is_compiling() else arg.integers("size", size) or []
    if any(extent < 0 for extent in extents):
        raise arg.fail("size", "to have extents of at least 0", f"size={list(size)!r:.60}")
    numels = math.prod(extents)
    if numels > _MOST_ELEMENTS:
        raise arg.fail("size", "to have fewer than 2^63 elements", f"size={list(size)!r:.60}")
    words = _random.as_word("seed", seed), _random.as_word("offset", offset)
    return _library.dropout_mask(self, numels, p, *words)
