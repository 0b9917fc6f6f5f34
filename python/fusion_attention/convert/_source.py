"""What the converters into a call share: choosing between the family's functions, and masks.

Knows the operator's arguments, not where a call comes from.
"""

from typing import Any

import torch
from torch import Tensor

from fusion_attention._call import Call, bind
from fusion_attention._masks import recognise
from fusion_attention.convert._refusal import refuse


def make_call(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    head_num: int,
    input_layout: str,
    **options: Any,
) -> Call:
    """Returns the call; of npu_fusion_attention unless an argument needs the second version."""
    if value.shape[-1] > query.shape[-1]:
        raise refuse(
            f"a value of {value.shape[-1]} channels with a query of {query.shape[-1]}",
            "the operator takes at most as many channels in value as in query",
            "Pad query and key with channels of zeros, which change no score, and give scale",
        )
    newer = options.keys() & {"pse_type", "q_start_idx", "kv_start_idx"}
    if not newer:
        return bind("npu_fusion_attention", query, key, value, head_num, input_layout, **options)
    for old, new in (("pre_tockens", "pre_tokens"), ("next_tockens", "next_tokens")):
        if old in options:
            options[new] = options.pop(old)
    return bind("npu_fusion_attention_v2", query, key, value, head_num, input_layout, **options)


def keep_prob_of(dropout_p: float) -> float:
    """Returns the keep_prob of a dropout probability."""
    if not 0 <= dropout_p < 1:
        raise refuse(
            f"dropout_p={dropout_p}",
            "keep_prob must be in (0, 1]",
            "A result without any kept weight is zero; write torch.zeros_like(query)",
        )
    return round(1 - dropout_p, 15)  # 0.9 for 0.1: no noise of the subtraction


def mask_arguments(kept: Tensor, batch: int, heads: int, q_len: int, kv_len: int) -> dict[str, Any]:
    """Returns the arguments for an arbitrary mask: a structured mode if one equals it.

    Args:
        kept: bool, True where a key is seen, of any shape that broadcasts to [B, N, Sq, Skv].
        batch: B.
        heads: N.
        q_len: Sq.
        kv_len: Skv.
    """
    kept = kept[(None,) * (4 - kept.dim())]
    # The operator broadcasts over batch and heads together only; an expanded axis takes no memory.
    one_for_all = kept.shape[0] == 1 and kept.shape[1] == 1
    one_head = kept.shape[1] == 1
    lead = (1, 1) if one_for_all else (batch, 1) if one_head else (batch, heads)
    masked = kept.logical_not().expand(*lead, q_len, kv_len)
    if not masked.is_meta:
        structure = recognise(masked)
        if structure is not None:
            return structure.arguments()
    return {"atten_mask": masked, "sparse_mode": 1}


def default_scale(query: Tensor, scale: float | None) -> float:
    """Returns the factor on the scores: theirs is 1/sqrt(D) where the operator's is 1."""
    return float(scale) if scale is not None else query.shape[-1] ** -0.5


def as_dtype(bias: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    """Returns the bias in the dtype that pse must have, if that changes no element."""
    if bias.dtype == dtype:
        return bias
    converted = bias.to(dtype)
    if not torch.equal(converted.to(bias.dtype), bias):
        raise refuse(
            f"{name} of {bias.dtype}",
            f"pse has the dtype of query, {dtype}, and that rounds some of its elements",
            "Round it yourself, or convert query, key and value to its dtype",
        )
    return converted
