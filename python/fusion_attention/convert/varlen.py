"""torch.nn.attention.varlen.varlen_attn <-> a call of the operator.

It is flash_attn_varlen_func without dropout, causal and slopes; the window (-1, 0) is causal.
"""

from typing import Any

from torch import Tensor

from fusion_attention._call import Call
from fusion_attention.convert._refusal import refuse, refuse_invalid
from fusion_attention.convert._windows import Window
from fusion_attention.convert.flash_attn import from_flash_attn_varlen, to_flash_attn_varlen


def from_varlen_attn(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int | None = None,
    max_k: int | None = None,
    *,
    scale: float | None = None,
    window_size: Window = (-1, -1),
    enable_gqa: bool = False,
    seqused_k: Tensor | None = None,
    block_table: Tensor | None = None,
) -> Call:
    """Returns the call that computes what varlen_attn computes, in layout TND.

    Args:
        query: [T, N, D]; the other arguments are varlen_attn's as well.
        key: [T, Nkv, D].
        value: [T, Nkv, D].
        cu_seq_q: Where each sequence begins, and the end of the last one.
        cu_seq_k: The same for key and value.
        max_q: Not needed.
        max_k: Not needed.
        scale: Factor on the scores; None is 1/sqrt(D).
        window_size: How many keys to the left and to the right a row sees, -1 for all.
        enable_gqa: Whether key and value may have fewer heads.
        seqused_k: Must be None.
        block_table: Must be None.

    Raises:
        ConversionError: As `from_flash_attn_varlen`, and for seqused_k.

    Example:
        >>> import torch
        >>> query, cu_seq = torch.randn(9, 4, 8), torch.tensor([0, 2, 5, 9], dtype=torch.int32)
        >>> call = from_varlen_attn(query, query, query, cu_seq, cu_seq, window_size=(-1, 0))
        >>> call.arguments["sparse_mode"], call.run()[0].shape
        (3, torch.Size([9, 4, 8]))
    """
    if query.shape[1] != key.shape[1] and not enable_gqa:
        raise refuse_invalid(
            "varlen_attn", f"{query.shape[1]} and {key.shape[1]} heads need enable_gqa=True"
        )
    if seqused_k is not None:
        raise refuse(
            "seqused_k",
            "packed keys follow each other without gaps",
            "Cut each sequence's keys to the length in use and pack them again",
        )
    return from_flash_attn_varlen(
        query, key, value, cu_seq_q, cu_seq_k,
        softmax_scale=scale, window_size=window_size, block_table=block_table,
    )  # fmt: skip


def to_varlen_attn(call: Call) -> dict[str, Any]:
    """Returns the arguments with which varlen_attn computes what `call` computes.

    Args:
        call: Of npu_fusion_attention, _v2 or _v3, in layout TND.

    Raises:
        ConversionError: As `to_flash_attn_varlen`, and for dropout and slopes.

    Example:
        >>> import torch
        >>> from fusion_attention._call import bind
        >>> query = torch.randn(9, 4, 8)
        >>> to_varlen_attn(bind(
        ...     "npu_fusion_attention", query, query, query, 4, "TND",
        ...     actual_seq_qlen=[2, 5, 9], actual_seq_kvlen=[2, 5, 9]))["window_size"]
        (-1, -1)
    """
    theirs = to_flash_attn_varlen(call)
    if theirs["dropout_p"]:
        raise refuse("dropout", "varlen_attn has none", "Use to_flash_attn_varlen")
    if theirs["alibi_slopes"] is not None:
        raise refuse("pse", "varlen_attn adds nothing to scores", "Use to_flash_attn_varlen")
    return {
        "query": theirs["q"],
        "key": theirs["k"],
        "value": theirs["v"],
        "cu_seq_q": theirs["cu_seqlens_q"],
        "cu_seq_k": theirs["cu_seqlens_k"],
        "max_q": theirs["max_seqlen_q"],
        "max_k": theirs["max_seqlen_k"],
        "scale": theirs["softmax_scale"],
        "window_size": theirs["window_size"],
        "enable_gqa": theirs["q"].shape[1] != theirs["k"].shape[1],
    }
