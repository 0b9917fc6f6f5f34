"""torch.nn.functional.scaled_dot_product_attention <-> a call of the operator.

What differs: SDPA's boolean mask says True for a key that is seen, its is_causal counts from the
top left, its scale defaults to 1/sqrt(D), and its additive mask is added after scaling.
"""

from typing import Any

import torch
from torch import Tensor

from fusion_attention._call import Call
from fusion_attention._masks import Structure
from fusion_attention.convert._reading import read
from fusion_attention.convert._refusal import refuse, refuse_invalid
from fusion_attention.convert._source import (
    as_dtype,
    default_scale,
    keep_prob_of,
    make_call,
    mask_arguments,
)

_NAME = "scaled_dot_product_attention"


def from_sdpa(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Call:
    """Returns the call that computes what scaled_dot_product_attention computes.

    is_causal is sparse_mode 2, which counts from the top left as SDPA does. A boolean mask is
    inverted and expanded; where a structured mode hides exactly the same keys, that mode is used.
    In an additive mask -inf and finfo.min hide (rows that are all finfo.min are refused); the rest
    becomes pse of npu_fusion_attention_v2 with pse_type=0, which is added after scaling, as SDPA
    does it. (pse of npu_fusion_attention is added before; dividing it by scale would round it.)
    Rows that see no key are 0, as in PyTorch since 2.5; before, they were NaN. Dropout keeps its
    probability, not its random bits.

    Args:
        query: [B, N, Sq, D]; the other arguments are SDPA's as well.
        key: [B, Nkv, Skv, D].
        value: [B, Nkv, Skv, Dv].
        attn_mask: bool or floating point, any shape that broadcasts to [B, N, Sq, Skv].
        dropout_p: Probability to drop a weight.
        is_causal: Whether row i sees the keys up to i only.
        scale: Factor on the scores; None is 1/sqrt(D).
        enable_gqa: Whether key and value may have fewer heads.

    Raises:
        ConversionError: The meaning could not be kept, or SDPA would refuse the call.

    Example:
        >>> query, key = torch.randn(1, 4, 6, 8), torch.randn(1, 2, 9, 8)
        >>> call = from_sdpa(query, key, key, is_causal=True, enable_gqa=True)
        >>> expected = torch.nn.functional.scaled_dot_product_attention(
        ...     query, key, key, is_causal=True, enable_gqa=True)
        >>> torch.testing.assert_close(call.run()[0], expected)
    """
    if not query.dim() == key.dim() == value.dim() == 4:
        raise refuse(
            f"a query of {query.dim()} dimensions",
            "the operator has batch and heads as axes of their own",
            "Give [B, N, S, D]: unsqueeze(0) adds the axis that is missing",
        )
    batch, heads, q_len, _ = query.shape
    kv_heads, kv_len = key.shape[1:3]
    if kv_heads not in (1, heads) and not enable_gqa:
        raise refuse_invalid(_NAME, f"{heads} and {kv_heads} heads need enable_gqa=True")
    if is_causal and attn_mask is not None:
        raise refuse_invalid(_NAME, "it takes either attn_mask or is_causal")
    options: dict[str, Any] = {"scale": default_scale(query, scale)}
    if dropout_p != 0:
        options["keep_prob"] = keep_prob_of(dropout_p)
    if is_causal:
        options |= Structure(2).arguments()
    elif attn_mask is not None and attn_mask.dtype == torch.bool:
        options |= mask_arguments(attn_mask, batch, heads, q_len, kv_len)
    elif attn_mask is not None:
        options |= _additive(attn_mask, query, kv_len)
    return make_call(query, key, value, heads, "BNSD", **options)


def _additive(attn_mask: Tensor, query: Tensor, kv_len: int) -> dict[str, Any]:
    """Splits an additive mask into what it hides and what it adds."""
    batch, heads, q_len, _ = query.shape
    bias = attn_mask[(None,) * (4 - attn_mask.dim())]
    # finfo.min is what many write for -inf. Beside a key with any other bias its weight is exactly
    # zero; in a row that has no other key, scores are lost in it and all keys weigh the same.
    floor = torch.finfo(bias.dtype).min
    kept = bias > floor
    lost = ~kept.any(-1) & (bias == floor).any(-1)
    if lost.any():
        raise refuse(
            f"finfo.min for all keys of {lost.sum().item()} rows",
            "SDPA averages the values of such a row, whose scores are all finfo.min",
            "Give attn_mask > torch.finfo(attn_mask.dtype).min if such rows may be 0",
        )
    found: dict[str, Any] = {}
    if not kept.all():
        found = mask_arguments(kept, batch, heads, q_len, kv_len)
    bias = bias.masked_fill(~kept, 0)
    if bias.requires_grad or bias.any():
        pse = as_dtype(bias, query.dtype, "attn_mask")
        rows = 1 if pse.shape[2] == 1 else q_len
        found |= {"pse": pse.expand(pse.shape[0], heads, rows, kv_len), "pse_type": 0}
    return found


def to_sdpa(call: Call) -> dict[str, Any]:
    """Returns the arguments with which scaled_dot_product_attention computes what `call` computes.

    Query, key and value are views in [B, N, S, D]; those of packed sequences (TND) come as one
    batch of all tokens, [1, N, T, D], and the mask keeps the sequences apart. Masks other than that
    of mode 2 become boolean, of B x N x Sq x Skv elements at most; a bias becomes additive, a pse
    that scale multiplies in float32, where the product of 16 bits loses little. Ropes become
    further channels. SDPA returns [B, N, Sq, Dv] whatever the call's layout, and other random bits
    for dropout.

    Args:
        call: Of npu_fusion_attention, _v2 or _v3.

    Raises:
        ConversionError: The call has a sink, a dropout_mask or a compressed pse.

    Example:
        >>> from fusion_attention._call import bind
        >>> query = torch.randn(1, 6, 32)
        >>> arguments = to_sdpa(bind("npu_fusion_attention", query, query, query, 4, "BSH"))
        >>> arguments["query"].shape, arguments["scale"], arguments["attn_mask"]
        (torch.Size([1, 4, 6, 8]), 1.0, None)
    """
    reading = read(call)
    reading.refuse_extras("sink", "dropout_mask")
    bias = reading.bias()
    is_causal = bias is None and reading.is_causal_from_top_left()
    kept = None if is_causal else reading.kept()
    if bias is not None:
        kept = bias if kept is None else torch.where(kept, bias, -torch.inf)
    # PyTorch multiplies twice by the square root, or scales -inf: only positive factors work there.
    sign = (reading.scale > 0) - (reading.scale < 0)
    return {
        "query": reading.query if sign == 1 else reading.query * sign,
        "key": reading.key,
        "value": reading.value,
        "attn_mask": kept,
        "dropout_p": reading.dropout_p,
        "is_causal": is_causal,
        "scale": abs(reading.scale) or 1.0,
        "enable_gqa": reading.query.shape[1] != reading.key.shape[1],
    }
