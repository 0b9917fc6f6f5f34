"""npu_ring_attention_update: two partial results of attention, over different keys, as one.

Plain PyTorch operations; the statistics are those of npu_fusion_attention. Context-parallel
training calls it after each step of its ring.
"""

from typing import Any

import torch
from torch import Tensor

from fusion_attention import _arguments as arg
from fusion_attention import _observers, _vendor
from fusion_attention._arguments import Integers

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_FLT_MAX = torch.finfo(torch.float32).max
_NAMES = (
    *("prev_attn_out", "prev_softmax_max", "prev_softmax_sum"),
    *("cur_attn_out", "cur_softmax_max", "cur_softmax_sum"),
)


def npu_ring_attention_update(
    prev_attn_out: Tensor,
    prev_softmax_max: Tensor,
    prev_softmax_sum: Tensor,
    cur_attn_out: Tensor,
    cur_softmax_max: Tensor,
    cur_softmax_sum: Tensor,
    *,
    actual_seq_qlen: Integers = None,
    input_layout: str = "SBH",
    input_softmax_layout: str = "",
) -> tuple[Tensor, Tensor, Tensor]:
    """Merges the attention of the same rows over two disjoint sets of keys.

    With `m = max(m1, m2)`, `w1 = l1 * exp(m1 - m)`, `w2 = l2 * exp(m2 - m)` and `l = w1 + w2`, the
    result is `(out1 * w1 / l + out2 * w2 / l, m, l)` (torch_npu's page of this function; it is
    FlashAttention's rescaling), computed in float32, in float64 for float64 results. A row that
    sees no key in one of the two takes the other's result unchanged, and one that sees none in both
    stays as npu_fusion_attention reports it: all values stay finite.

    The gradients of the whole are those of npu_fusion_attention_grad, called for each part with the
    merged attention_out, softmax_max and softmax_sum. This function has none of its own.

    Letters: B batch, N heads, S tokens, D channels of a head, T tokens of all packed sequences.

    Args:
        prev_attn_out: float16, bfloat16, float32 or float64, any strides: [S, B, N*D] in layout
            SBH, [T, N, D] in TND.
        prev_softmax_max: float32, [B, N, S, 8] in SBH, [T, N, 8] in TND, 8 equal values a row.
        prev_softmax_sum: Like prev_softmax_max.
        cur_attn_out: Like prev_attn_out.
        cur_softmax_max: Like prev_softmax_max.
        cur_softmax_sum: Like prev_softmax_max.
        actual_seq_qlen: For TND: where each sequence ends, cumulative, with or without a leading 0;
            a 1-D integer tensor, a list or a tuple. Only statistics in blocks need it here; a
            device always asks for it.
        input_layout: "SBH" or "TND", in any letter case.
        input_softmax_layout: For TND: "" or "SBH" for statistics in blocks of [N, S, 8] a sequence,
            as npu_fusion_attention returns them by default; "TND" for [T, N, 8].

    Returns:
        (attn_out, softmax_max, softmax_sum), of the shapes, dtypes and order of the first three.

    Raises:
        RuntimeError: An argument breaks one of these rules.
        NotImplementedError: The result is differentiated, or the tensors are on a device without a
            backend.

    Example:
        >>> import torch
        >>> from fusion_attention import npu_fusion_attention
        >>> query, key, value = (torch.randn(64, 2, 128) for _ in range(3))
        >>> first = npu_fusion_attention(query, key[:24], value[:24], 4, "SBH")[:3]
        >>> second = npu_fusion_attention(query, key[24:], value[24:], 4, "SBH")[:3]
        >>> out, row_max, row_sum = npu_ring_attention_update(*first, *second)
        >>> torch.allclose(out, npu_fusion_attention(query, key, value, 4, "SBH")[0], atol=1e-6)
        True
    """
    if _observers.watching and _observers.outermost():
        return _observers.show(npu_ring_attention_update, locals())
    if _vendor.is_npu(prev_attn_out):
        return _vendor.call("npu_ring_attention_update", locals())
    tensors = (
        *(prev_attn_out, prev_softmax_max, prev_softmax_sum),
        *(cur_attn_out, cur_softmax_max, cur_softmax_sum),
    )
    arg.check_tensors(_NAMES, tensors)
    layout = arg.string("input_layout", input_layout).upper()
    _check(tensors, layout, arg.string("input_softmax_layout", input_softmax_layout))
    rows = None
    if layout == "TND" and input_softmax_layout != "TND":
        rows = _rows_of_blocks(prev_attn_out, actual_seq_qlen)
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        return _Update.apply(*tensors, rows)
    with torch.no_grad():  # in a graph the results are constants
        return _update(*tensors, rows)


def _check(tensors: tuple[Tensor, ...], layout: str, softmax_layout: str) -> None:
    """Raises unless the tensors fit each other and the layouts exist."""
    if layout not in ("SBH", "TND"):
        raise arg.fail("input_layout", "to be SBH or TND", f"input_layout={layout!r:.24}")
    if softmax_layout not in ("", "SBH", "TND"):
        got = f"input_softmax_layout={softmax_layout!r:.24}"
        raise arg.fail("input_softmax_layout", "to be '', 'SBH' or 'TND'", got)

    for name, tensor in zip(_NAMES, tensors, strict=True):
        if tensor is None:
            raise arg.fail(name, "to be a torch.Tensor", f"{name}=None")

    def expect(index: int, holds: bool, rule: str, seen: Any, hint: str = "") -> None:
        if not holds:
            seen = list(seen) if isinstance(seen, torch.Size) else seen
            raise arg.fail(_NAMES[index], rule, f"{_NAMES[index]} of {seen}", hint)

    out, softmax_max = tensors[0], tensors[1]
    expect(0, out.dim() == 3, "to have 3 dimensions", out.shape, "Check input_layout.")
    expect(0, out.dtype in _FLOATS, "to have a floating point dtype", out.dtype)
    rule = "to have the shape and dtype of prev_attn_out"
    expect(3, tensors[3].shape == out.shape, rule, tensors[3].shape)
    expect(3, tensors[3].dtype == out.dtype, rule, tensors[3].dtype)
    heads = softmax_max.shape[1] if softmax_max.dim() > 1 else 0
    if layout == "SBH":
        rule, shape = "to be [B, N, S, 8] in SBH", (out.shape[1], heads, out.shape[0], 8)
        divides = heads > 0 and out.shape[2] % heads == 0
    else:
        rule, shape = "to be [T, N, 8] in TND", (out.shape[0], out.shape[1], 8)
        divides = True
    for index in (1, 2, 4, 5):
        hint = f"prev_attn_out is {list(out.shape)}."
        expect(index, tensors[index].shape == shape, rule, tensors[index].shape, hint)
        expect(index, tensors[index].dtype == torch.float32, "to be float32", tensors[index].dtype)
    expect(1, divides, "to have an N that divides H of prev_attn_out", softmax_max.shape)


def _rows_of_blocks(out: Tensor, ends: Integers) -> Tensor:
    """Returns [T, N]: where in blocks of [N, S] a sequence the row of a token and a head lies."""
    tokens, heads = out.shape[0], out.shape[1]
    unread = arg.unread_integers("actual_seq_qlen", ends)
    if unread is None:
        numbers = arg.integers("actual_seq_qlen", ends)
        if numbers is None:
            hint = "Statistics in blocks of one sequence each need it."
            raise arg.fail("actual_seq_qlen", "to be given in layout TND", f"{ends}", hint)
        _check_ends(numbers, tokens)
        unread = torch.tensor(numbers, dtype=torch.int64)
    else:
        _check_ends_at_run_time(unread, tokens)
    # Trailing zeros repeat the last end; what comes after it is one block more.
    ends = torch.cat([unread.new_zeros(1), unread, unread.new_full((1,), tokens)]).cummax(0).values
    token = torch.arange(tokens)
    sequence = torch.searchsorted(ends, token, right=True)
    begin = ends[sequence - 1]
    length = ends[sequence] - begin
    head = torch.arange(heads)[:, None]
    return (begin * heads + head * length + token - begin).T.to(out.device)


def _check_ends(ends: list[int], tokens: int) -> None:
    """Raises unless they are cumulative lengths, then trailing zeros, within the tokens."""
    used = len(ends)
    while used > 0 and ends[used - 1] == 0:
        used -= 1
    last = 0
    for index, end in enumerate(ends[:used]):
        got = f"actual_seq_qlen[{index}]={end}"
        if end < last:
            hint = "It holds cumulative lengths: 2, 2, 2 is passed as [2, 4, 6]."
            raise arg.fail("actual_seq_qlen", "to be non-decreasing and at least 0", got, hint)
        if end > tokens:
            raise arg.fail("actual_seq_qlen", "to end at T of prev_attn_out or before", got)
        last = end


def _check_ends_at_run_time(ends: Tensor, tokens: int) -> None:
    """The same in a graph, which has no values to name."""
    highest, next_highest = ends.cummax(0).values, ends.flip(0).cummax(0).values.flip(0)
    rising = ((ends == highest) | (next_highest == 0)) & (ends >= 0) & (ends <= tokens)
    rule = "to be non-decreasing (only trailing zeros may follow) and to end at T or before"
    error = arg.fail("actual_seq_qlen", rule, "other values in a compiled graph")
    torch._assert_async(rising.all(), str(error))


def _update(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The formula on the six tensors; `rows` says where in blocks a row's statistics lie."""
    prev_out, prev_max, prev_sum, cur_out, cur_max, cur_sum, rows = inputs
    dtype = torch.float64 if prev_out.dtype == torch.float64 else torch.float32
    max1, sum1, max2, sum2 = (x[..., 0].to(dtype) for x in (prev_max, prev_sum, cur_max, cur_sum))
    # Rows without keys of their own, as in a packed sequence that has none, report (0, 0): such a
    # maximum is none, and must not push the other part's weights below the smallest number.
    merged_max = torch.maximum(
        torch.where(sum1 == 0, max2, max1), torch.where(sum2 == 0, max1, max2)
    )
    weight1 = sum1 * (max1.minimum(merged_max) - merged_max).exp()
    weight2 = sum2 * (max2.minimum(merged_max) - merged_max).exp()
    # Masked rows may report FLT_MAX, and twice that is not finite.
    total = (weight1 + weight2).clamp(max=_FLT_MAX)

    def share(out: Tensor, weight: Tensor) -> Tensor:
        scale = torch.where(total == 0, 0.0, weight / total)
        if scale.dim() == 3:  # SBH
            heads = scale.shape[1]
            parts = out.to(dtype).unflatten(2, (heads, out.shape[2] // heads))
            return (parts * scale.permute(2, 0, 1)[..., None]).flatten(2)
        scale = scale if rows is None else scale.reshape(-1)[rows]
        return out.to(dtype) * scale[..., None]

    merged = (share(prev_out, weight1) + share(cur_out, weight2)).to(prev_out.dtype)
    softmax_max, softmax_sum = (
        x.float()[..., None].repeat_interleave(8, -1) for x in (merged_max, total)
    )
    return merged, softmax_max, softmax_sum


class _Update(torch.autograd.Function):
    """`_update`, recorded only so that differentiating it raises."""

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        return _update(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise NotImplementedError(
            "npu_fusion_attention: the gradient of npu_ring_attention_update is not implemented. "
            "Call npu_fusion_attention_grad for each part, with the merged results."
        )
