"""torch.nn.attention.flex_attention <-> a call of the operator.

A block mask is written out and read back as a structured mode, which is proven pair by pair. A
score_mod is taken if its traced graph shows that it only adds something to the score.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_mask

from fusion_attention._call import Call
from fusion_attention._masks import Structure, fit_band
from fusion_attention.convert._reading import Reading, read
from fusion_attention.convert._refusal import refuse, refuse_invalid
from fusion_attention.convert._source import as_dtype, default_scale, make_call, mask_arguments
from fusion_attention.convert._tracing import added_bias

MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
ScoreMod = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def from_flex(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    score_mod: ScoreMod | None = None,
    block_mask: BlockMask | None = None,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    input_layout: str = "BNSD",
) -> Call:
    """Returns the call that computes what flex_attention computes.

    The block mask is evaluated for all pairs. Causal masks, windows, prefix LM and no mask become
    their sparse mode; any other becomes sparse_mode 1, with one byte a pair. Documents that do not
    see each other become packed sequences with input_layout="TND", which needs no mask memory; the
    result is then [B*S, N, Dv], and `unflatten(0, (B, S)).transpose(1, 2)` is FlexAttention's form.
    Rows that see no key are 0 on both sides.

    A score_mod that adds something to the score (relative positions, ALiBi) becomes a dense pse of
    npu_fusion_attention_v2 with pse_type=0, [B or 1, N, Sq, Skv]; others are refused.

    Args:
        query: [B, N, Sq, D]; the other arguments are flex_attention's as well.
        key: [B, Nkv, Skv, D].
        value: [B, Nkv, Skv, Dv].
        score_mod: Called with score, batch, head, row and key.
        block_mask: Which pairs take part.
        scale: Factor on the scores; None is 1/sqrt(D).
        enable_gqa: Whether key and value may have fewer heads.
        input_layout: "BNSD", or "TND" for documents.

    Raises:
        ConversionError: The meaning could not be kept, or flex_attention would refuse the call.

    Example:
        >>> from torch.nn.attention.flex_attention import create_block_mask
        >>> window = create_block_mask(
        ...     lambda b, h, row, key: (row >= key) & (row - key <= 16),
        ...     None, None, 256, 256, device="cpu")
        >>> query = torch.randn(1, 2, 256, 32)
        >>> call = from_flex(query, query, query, block_mask=window)
        >>> [call.arguments[name] for name in ("sparse_mode", "pre_tockens", "next_tockens")]
        [4, 16, 0]
    """
    if not query.dim() == key.dim() == value.dim() == 4:
        raise refuse_invalid("flex_attention", "query, key and value must have 4 dimensions")
    batch, heads, q_len, _ = query.shape
    kv_heads, kv_len = key.shape[1:3]
    if kv_heads != heads and not enable_gqa:
        raise refuse_invalid("flex_attention", f"{heads} and {kv_heads} heads need enable_gqa=True")
    key, value = (x.expand(batch, *x.shape[1:]) for x in (key, value))
    options: dict[str, Any] = {"scale": default_scale(query, scale)}
    kept = None if block_mask is None else _evaluate(block_mask, q_len, kv_len)
    if score_mod is not None:
        bias = added_bias(score_mod, batch, heads, q_len, kv_len)
        pse = as_dtype(bias, query.dtype, "the bias of score_mod")
        options |= {"pse": pse, "pse_type": 0}
    if input_layout == "BNSD":
        if kept is not None:
            options |= mask_arguments(kept, batch, heads, q_len, kv_len)
        return make_call(query, key, value, heads, "BNSD", **options)
    if input_layout != "TND":
        raise refuse_invalid("from_flex", f'input_layout is "BNSD" or "TND", not {input_layout!r}')
    if score_mod is not None:
        raise refuse(
            "a score_mod with packed documents",
            "layout TND takes no bias of single pairs",
            'Use input_layout="BNSD", which keeps the documents apart by a dense mask',
        )
    options |= _documents(kept, batch, q_len, kv_len)
    packed = (x.transpose(1, 2).flatten(0, 1) for x in (query, key, value))
    return make_call(*packed, heads, "TND", **options)


def _evaluate(block_mask: BlockMask, q_len: int, kv_len: int) -> Tensor:
    """Returns what the block mask keeps, bool [B or 1, N or 1, Sq, Skv]."""
    batch, heads, rows, keys = block_mask.shape
    if (rows, keys) != (q_len, kv_len):
        raise refuse_invalid(
            "flex_attention", f"the block mask is of {rows} x {keys}, the scores {q_len} x {kv_len}"
        )
    kept = create_mask(
        block_mask.mask_mod, batch, heads, q_len, kv_len, device=block_mask.kv_indices.device
    )
    # A block mask made by hand may list blocks that its mask_mod contradicts.
    row_size, key_size = block_mask.BLOCK_SIZE
    listed = block_mask.to_dense().bool()
    listed = listed.repeat_interleave(row_size, 2).repeat_interleave(key_size, 3)
    if (kept & ~listed[:, :, :q_len, :kv_len]).any():
        raise refuse(
            "a block mask whose mask_mod keeps pairs outside of its blocks",
            "compiled and eager flex_attention disagree about it",
            "Let create_block_mask make the blocks from mask_mod",
        )
    return kept


def _documents(kept: Tensor | None, batch: int, q_len: int, kv_len: int) -> dict[str, Any]:
    """Returns lengths and mode of packed sequences that see exactly what `kept` keeps."""
    if q_len != kv_len:
        raise refuse(
            f"documents of {q_len} rows and {kv_len} keys",
            "where a document begins is only known when rows and keys are the same tokens",
            'Use input_layout="BNSD"',
        )
    if kept is None:
        kept = torch.ones(1, 1, q_len, kv_len, dtype=torch.bool)
    if not torch.equal(kept, kept[:, :1].expand_as(kept)):
        raise refuse("a mask for each head", "layout TND has one", 'Use input_layout="BNSD"')
    ends: list[int] = []
    blocks: list[Tensor] = []
    for index in range(batch):
        matrix = kept[index if kept.shape[0] > 1 else 0, 0]
        begin = 0
        for end in _borders(matrix):
            ends.append(index * q_len + end)
            blocks.append(matrix[begin:end, begin:end])
            begin = end
    found: dict[str, Any] = {"actual_seq_qlen": ends, "actual_seq_kvlen": ends}
    if all(block.all() for block in blocks):
        return found
    band = fit_band(blocks)
    if band is None:
        raise refuse(
            "the mask inside the documents",
            "packed sequences are causal, windows or without mask, all of them alike",
            'Use input_layout="BNSD", which takes any mask',
        )
    structure = Structure(3) if band == (Structure(3).pre_tockens, 0) else Structure(4, *band)
    return found | structure.arguments()


def _borders(kept: Tensor) -> list[int]:
    """Returns where documents end: after every token that no kept pair reaches across."""
    tokens = torch.arange(kept.shape[0])
    # Each pair reaches from its smaller to its larger index.
    first = torch.minimum(tokens, torch.where(kept.any(1), kept.to(torch.uint8).argmax(1), tokens))
    from_right = kept.shape[1] - 1 - kept.flip(1).to(torch.uint8).argmax(1)
    last = torch.maximum(tokens, torch.where(kept.any(1), from_right, tokens))
    reach = last.cummax(0).values[:-1]  # of all rows up to here
    back = first.flip(0).cummin(0).values.flip(0)[1:]  # of all rows from the next one on
    ends = (reach < tokens[1:]) & (back >= tokens[1:])
    return [*(ends.nonzero().flatten() + 1).tolist(), kept.shape[0]]


def to_flex(call: Call) -> dict[str, Any]:
    """Returns what flex_attention needs to compute what `call` computes.

    query, key and value are views in [B, N, S, D] (packed sequences: one batch of all tokens, kept
    apart by the mask); mask_mod and score_mod are functions of indices, or None. Make the block
    mask with `create_block_mask(mask_mod, B, N, Sq, Skv, device)`, B and N as the mask needs them.

    Args:
        call: Of npu_fusion_attention, _v2 or _v3.

    Returns:
        query, key, value, score_mod, scale and enable_gqa as flex_attention takes them; mask_mod.

    Raises:
        ConversionError: The call has dropout, a sink or a compressed pse.

    Example:
        >>> from fusion_attention._call import bind
        >>> from fusion_attention._masks import causal_mask
        >>> query = torch.randn(1, 4, 6, 8)
        >>> arguments = to_flex(bind(
        ...     "npu_fusion_attention", query, query, query, 4, "BNSD",
        ...     atten_mask=causal_mask(), sparse_mode=2))
        >>> zero = torch.tensor(0)
        >>> arguments["mask_mod"](zero, zero, torch.tensor(2), torch.tensor([1, 2, 3])).tolist()
        [True, True, False]
    """
    reading = read(call)
    reading.refuse_extras("sink", "dropout_mask")
    if reading.keep_prob < 1:
        raise refuse("dropout", "flex_attention has none", "Use to_sdpa or to_flash_attn")
    return {
        "query": reading.query,
        "key": reading.key,
        "value": reading.value,
        "score_mod": _score_mod(reading),
        "mask_mod": _mask_mod(reading),
        "scale": reading.scale,
        "enable_gqa": reading.query.shape[1] != reading.key.shape[1],
    }


def _mask_mod(reading: Reading) -> MaskMod | None:
    if reading.kept() is None:
        return None
    if reading.offsets is not None:
        return _band_mod(reading)

    def sees(batch: Tensor, head: Tensor, row: Tensor, key: Tensor) -> Tensor:
        return reading.sees(batch, head, row, key)

    return sees


def _band_mod(reading: Reading) -> MaskMod:
    """Returns a rule of arithmetic alone, which kernels need no table for."""
    assert reading.offsets is not None
    first, last = reading.offsets
    # A side that hides nothing is left out: its bound need not fit into the indices' type.
    if not reading.begin.any():
        return lambda batch, head, row, key: key - row < last
    if (reading.end == reading.key.shape[2]).all():
        return lambda batch, head, row, key: key - row >= first
    return lambda batch, head, row, key: (key - row >= first) & (key - row < last)


def _score_mod(reading: Reading) -> ScoreMod | None:
    if reading.slopes is not None:

        def add_slopes(score: Tensor, b: Tensor, h: Tensor, row: Tensor, key: Tensor) -> Tensor:
            return score + reading.slope_bias(b, h, row, key)

        return add_slopes
    bias = reading.bias()
    if bias is None:
        return None

    def add_bias(score: Tensor, b: Tensor, h: Tensor, row: Tensor, key: Tensor) -> Tensor:
        batch = b if bias.shape[0] > 1 else torch.zeros_like(b)
        return score + bias[batch, h, row if bias.shape[2] > 1 else torch.zeros_like(row), key]

    return add_bias
