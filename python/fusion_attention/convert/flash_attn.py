"""flash_attn_func and flash_attn_varlen_func of flash-attn <-> a call of the operator.

What differs: scale defaults to 1/sqrt(D) there, windows are (left, right) with -1 for no bound, and
cu_seqlens begins with 0. Masks count from the bottom right on both sides (modes 3 and 4), and rows
that see no key are 0 on both.
"""

from typing import Any

import torch
from torch import Tensor

from fusion_attention._arguments import UNLIMITED
from fusion_attention._call import Call
from fusion_attention._masks import Structure
from fusion_attention.convert._reading import read
from fusion_attention.convert._refusal import refuse, refuse_invalid
from fusion_attention.convert._source import as_dtype, default_scale, keep_prob_of, make_call
from fusion_attention.convert._windows import Window, options_of


def from_flash_attn(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Window = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Call:
    """Returns the call that computes what flash_attn_func computes, in layout BSND.

    causal is sparse_mode 3, a window is sparse_mode 4. alibi_slopes is pse_type 2 of
    npu_fusion_attention_v2 for Sq == Skv, where both count distances from the same corner; for
    other lengths the bias is written out, which float16 and bfloat16 can hold for few slopes only.
    Results are deterministic always. softmax_lse is softmax_max + log(softmax_sum). Dropout keeps
    its probability, not its random bits.

    Args:
        q: [B, Sq, N, D]; the other arguments are flash-attn's as well.
        k: [B, Skv, Nkv, D].
        v: [B, Skv, Nkv, D].
        dropout_p: Probability to drop a weight.
        softmax_scale: Factor on the scores; None is 1/sqrt(D).
        causal: Whether the last row sees the last key, the row before one less, and so on.
        window_size: How many keys to the left and to the right a row sees, -1 for all.
        softcap: Must be 0.
        alibi_slopes: float32 [N] or [B, N].
        deterministic: Changes nothing.
        return_attn_probs: Must be False.

    Raises:
        ConversionError: softcap, return_attn_probs, or slopes that cannot be kept.

    Example:
        >>> q, k = torch.randn(2, 5, 4, 8), torch.randn(2, 9, 2, 8)
        >>> call = from_flash_attn(q, k, k, causal=True)
        >>> call.arguments["input_layout"], call.arguments["sparse_mode"]
        ('BSND', 3)
        >>> call.run()[0].shape
        torch.Size([2, 5, 4, 8])
    """
    _refuse_unsupported(softcap, return_attn_probs)
    if not q.dim() == k.dim() == v.dim() == 4:
        raise refuse_invalid("flash_attn_func", "q, k and v must be [B, S, N, D]")
    options = _options(q, dropout_p, softmax_scale, causal, window_size)
    if alibi_slopes is not None:
        options |= _alibi(alibi_slopes, q, k.shape[1])
    return make_call(q, k, v, q.shape[2], "BSND", **options)


def from_flash_attn_varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Window = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    block_table: Tensor | None = None,
) -> Call:
    """Returns the call that computes what flash_attn_varlen_func computes, in layout TND.

    `actual_seq_qlen` is cu_seqlens_q without its leading 0. Everything else is as in
    `from_flash_attn`, but layout TND takes no sequence with rows that see no key.

    Args:
        q: [T, N, D]; the other arguments are flash-attn's as well.
        k: [T, Nkv, D].
        v: [T, Nkv, D].
        cu_seqlens_q: Where each sequence begins, and the end of the last one.
        cu_seqlens_k: The same for k and v.
        max_seqlen_q: Not needed.
        max_seqlen_k: Not needed.
        dropout_p: See `from_flash_attn`; so are all that follow.
        softmax_scale: Factor on the scores.
        causal: Whether a row sees no key after its own place.
        window_size: How many keys to the left and to the right a row sees.
        softcap: Must be 0.
        alibi_slopes: float32 [N] or [B, N].
        deterministic: Changes nothing.
        return_attn_probs: Must be False.
        block_table: Must be None.

    Raises:
        ConversionError: The meaning could not be kept, or flash-attn would refuse the call.

    Example:
        >>> q, cu_seqlens = torch.randn(9, 4, 8), torch.tensor([0, 2, 5, 9], dtype=torch.int32)
        >>> call = from_flash_attn_varlen(q, q, q, cu_seqlens, cu_seqlens, 4, 4, causal=True)
        >>> call.arguments["actual_seq_qlen"], call.run()[0].shape
        ([2, 5, 9], torch.Size([9, 4, 8]))
    """
    _refuse_unsupported(softcap, return_attn_probs)
    if block_table is not None:
        raise refuse(
            "block_table",
            "the operator reads keys as they lie in one tensor",
            "Gather the pages first: k_cache[block_table].flatten(...) of each sequence",
        )
    q_ends, k_ends = _ends("cu_seqlens_q", cu_seqlens_q), _ends("cu_seqlens_k", cu_seqlens_k)
    if len(q_ends) != len(k_ends):
        raise refuse_invalid(
            "flash_attn_varlen_func", "cu_seqlens_q and cu_seqlens_k must be alike"
        )
    options = _options(q, dropout_p, softmax_scale, causal, window_size)
    options |= {"actual_seq_qlen": q_ends, "actual_seq_kvlen": k_ends}
    lengths = list(zip(_lengths(q_ends), _lengths(k_ends), strict=True))
    following = options.get("next_tockens", 0)
    for index, (q_len, k_len) in enumerate(lengths):
        if "sparse_mode" in options and q_len > k_len + following:
            raise refuse(
                f"sequence {index} with {q_len} rows and {k_len} keys under this mask",
                f"its first {q_len - k_len - following} rows see no key; layout TND refuses them",
                "Leave these rows out, their result is 0, or call the sequence as a batch",
            )
    if alibi_slopes is not None:
        deltas = {k_len - q_len for q_len, k_len in lengths}
        if len(deltas) > 1:
            raise refuse(
                "alibi_slopes with sequences whose Skv - Sq differ",
                "the operator has one q_start_idx for all of them",
                "Make a call for each group of sequences with equal Skv - Sq",
            )
        options |= {"pse": alibi_slopes.float(), "pse_type": 2}
        delta = deltas.pop() if deltas else 0
        if delta != 0:
            options |= {"q_start_idx": [max(delta, 0)], "kv_start_idx": [max(-delta, 0)]}
    return make_call(q, k, v, q.shape[1], "TND", **options)


def to_flash_attn(call: Call) -> dict[str, Any]:
    """Returns the arguments with which flash_attn_func computes what `call` computes.

    q, k and v are views in [B, S, N, D]; ropes become further channels. flash-attn takes float16
    and bfloat16 only, and that is not checked here.

    Args:
        call: Of npu_fusion_attention, _v2 or _v3, in any layout but TND.

    Raises:
        ConversionError: The mask is no window from the bottom right, value has fewer channels than
            query, or there is a bias (other than ALiBi from that corner), a sink or a dropout_mask.

    Example:
        >>> from fusion_attention._call import bind
        >>> from fusion_attention._masks import causal_mask
        >>> query = torch.randn(2, 4, 6, 8)
        >>> arguments = to_flash_attn(bind(
        ...     "npu_fusion_attention", query, query, query, 4, "BNSD",
        ...     atten_mask=causal_mask(), sparse_mode=4, pre_tockens=3, next_tockens=0))
        >>> arguments["q"].shape, arguments["causal"], arguments["window_size"]
        (torch.Size([2, 6, 4, 8]), True, (3, 0))
    """
    reading = read(call)
    if reading.sequences is not None:
        raise refuse("layout TND", "flash_attn_func knows no packed sequences", "Use varlen")
    q, k, v = (x.transpose(1, 2) for x in (reading.query, reading.key, reading.value))
    spans = [(0, q.shape[1], 0, k.shape[1])]
    return {"q": q, "k": k, "v": v} | options_of(reading, spans)


def to_flash_attn_varlen(call: Call) -> dict[str, Any]:
    """Returns the arguments with which flash_attn_varlen_func computes what `call` computes.

    Args:
        call: As for `to_flash_attn`, in layout TND.

    Raises:
        ConversionError: As `to_flash_attn`.

    Example:
        >>> from fusion_attention._call import bind
        >>> query = torch.randn(9, 4, 8)
        >>> arguments = to_flash_attn_varlen(bind(
        ...     "npu_fusion_attention", query, query, query, 4, "TND",
        ...     actual_seq_qlen=[2, 5, 9], actual_seq_kvlen=[2, 5, 9]))
        >>> arguments["cu_seqlens_q"].tolist(), arguments["max_seqlen_q"]
        ([0, 2, 5, 9], 4)
    """
    reading = read(call)
    if reading.sequences is None:
        layout = reading.arguments["input_layout"]
        raise refuse(f"layout {layout}", "it has no packed sequences", "Use flash_attn_func")
    q, k, v = (x[0].transpose(0, 1) for x in (reading.query, reading.key, reading.value))
    spans = [(a, b, c, d) for a, b, c, d in reading.sequences.tolist()]
    cu_seqlens_q = [0, *(begin + length for begin, length, _, _ in spans)]
    cu_seqlens_k = [0, *(begin + length for _, _, begin, length in spans)]
    return {
        "q": q,
        "k": k,
        "v": v,
        "cu_seqlens_q": torch.tensor(cu_seqlens_q, dtype=torch.int32),
        "cu_seqlens_k": torch.tensor(cu_seqlens_k, dtype=torch.int32),
        "max_seqlen_q": max((length for _, length, _, _ in spans), default=0),
        "max_seqlen_k": max((length for _, _, _, length in spans), default=0),
    } | options_of(reading, spans)


def _refuse_unsupported(softcap: float, return_attn_probs: bool) -> None:
    if softcap:
        raise refuse(
            f"softcap={softcap}",
            "the operator's scores go into the softmax as they are",
            "Keep such a model on flash-attn, or on FlexAttention with a tanh score_mod",
        )
    if return_attn_probs:
        raise refuse(
            "return_attn_probs=True",
            "the operator never stores probabilities",
            "softmax_lse alone is softmax_max + log(softmax_sum) of its results",
        )


def _options(
    q: Tensor, dropout_p: float, softmax_scale: float | None, causal: bool, window_size: Window
) -> dict[str, Any]:
    options: dict[str, Any] = {"scale": default_scale(q, softmax_scale)}
    if dropout_p != 0:
        options["keep_prob"] = keep_prob_of(dropout_p)
    left, right = window_size
    right = 0 if causal else right
    pre, following = (UNLIMITED if side < 0 else side for side in (left, right))
    if pre == UNLIMITED and following == 0:
        options |= Structure(3).arguments()
    elif (pre, following) != (UNLIMITED, UNLIMITED):
        options |= Structure(4, pre, following).arguments()
    return options


def _alibi(slopes: Tensor, q: Tensor, kv_len: int) -> dict[str, Any]:
    """The bias -slope * |i + Skv - Sq - j| for layouts with batches."""
    q_len, heads = q.shape[1:3]
    if q_len == kv_len:
        return {"pse": slopes.float(), "pse_type": 2}
    place = torch.arange(q_len)[:, None] + kv_len - q_len
    slopes = slopes.to(torch.promote_types(torch.float32, q.dtype)).view(-1, heads, 1, 1)
    bias = -(place - torch.arange(kv_len)).abs() * slopes
    return {"pse": as_dtype(bias, q.dtype, "the bias of alibi_slopes"), "pse_type": 0}


def _ends(name: str, cu_seqlens: Tensor) -> list[int]:
    first, *ends = cu_seqlens.tolist()
    if first != 0:
        raise refuse_invalid("flash_attn_varlen_func", f"{name} must begin with 0, not {first}")
    return ends


def _lengths(ends: list[int]) -> list[int]:
    return [end - begin for begin, end in zip([0, *ends[:-1]], ends, strict=True)]
