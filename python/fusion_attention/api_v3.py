"""npu_fusion_attention_v3 and its gradient: lengths, seed and offset are tensors, for graphs.

What they share with the other functions of the family is in _entry.py.
"""

import torch
from torch import Tensor

from fusion_attention import _autograd, _entry, _observers, _plain, _random, _vendor
from fusion_attention._arguments import UNLIMITED, Integers


def npu_fusion_attention_v3(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    head_num: int,
    input_layout: str,
    pse: Tensor | None = None,
    padding_mask: Tensor | None = None,
    atten_mask: Tensor | None = None,
    scale: float = 1.0,
    keep_prob: float = 1.0,
    pre_tockens: int = UNLIMITED,
    next_tockens: int = UNLIMITED,
    inner_precise: int = 0,
    prefix: Integers = None,
    actual_seq_qlen: Integers = None,
    actual_seq_kvlen: Integers = None,
    sparse_mode: int = 0,
    gen_mask_parallel: bool = True,
    sync: bool = False,
    softmax_layout: str = "",
    sink: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Computes npu_fusion_attention in the form for graphs: what a run decides is a tensor.

    The numbers are those of npu_fusion_attention with the same random state, bit for bit. Works
    under torch.compile(fullgraph=True) with dropout, and with sequence lengths that only the run
    knows.

    Letters: B batch, N heads of query, Nkv heads of key and value (N is a multiple of it), Sq and
    Skv tokens, D and Dv <= D channels of a head, T tokens of all packed sequences together.

    Args:
        query: float16, bfloat16 or float32 (float64 too, for gradcheck), any strides. [B, Sq, N*D]
            in layout BSH, [Sq, B, N*D] in SBH, [B, Sq, N, D] in BSND, [B, N, Sq, D] in BNSD,
            [T, N, D] in TND.
        key: Like query with Skv and Nkv; the same dtype.
        value: Like key with Dv; the same dtype.
        head_num: N.
        input_layout: "BSH", "SBH", "BSND", "BNSD" or "TND", in any letter case.
        pse: Bias that is added to the scores before scaling, as for npu_fusion_attention.
        padding_mask: Must be None.
        atten_mask: bool or uint8, True or non-zero where a key must NOT be seen; its shape depends
            on sparse_mode, as for npu_fusion_attention.
        scale: Factor on the scores, usually D**-0.5.
        keep_prob: Probability to keep a weight, in (0, 1]; 1 means no dropout.
        pre_tockens: How many keys before its own a row sees in modes 0, 4, 7, 8.
        next_tockens: How many keys after its own a row sees in modes 0, 4, 7, 8.
        inner_precise: 2 reports softmax_sum = FLT_MAX for rows that see no key; other values have
            no effect.
        prefix: For modes 5 and 6: the number of leading keys that all rows of a sequence see, one
            per sequence.
        actual_seq_qlen: For TND: a 1-D integer tensor of where each sequence ends in query,
            cumulative, [2, 5, 9] for lengths 2, 3, 4. A list does too.
        actual_seq_kvlen: The same for key and value.
        sparse_mode: 0 default mask with band, 1 whole mask, 2 causal from the top left, 3 causal
            from the bottom right, 4 band, 5 and 6 prefix, 7 and 8 packed sequences that were cut.
        gen_mask_parallel: Accepted for compatibility; no value depends on it.
        sync: Accepted for compatibility; no value depends on it.
        softmax_layout: "TND" stores packed statistics as [T, N, 8]; "" as one [N, Sq, 8] block a
            sequence.
        sink: float32 [N], a logit per head that takes part in the softmax and has no value.

    Returns:
        (attention_out, softmax_max, softmax_sum, softmax_out, seed, offset): the first three as
        npu_fusion_attention returns them; an empty tensor; the Philox pair that was drawn from
        PyTorch's generator, two int64 tensors of shape [1] on the CPU, zeros without dropout.

    Raises:
        RuntimeError: An argument breaks a rule of the operator. Nothing was computed, and no random
            number was drawn.
        NotImplementedError: padding_mask is given, or the tensors are on a device without a
            backend.
        torch.OutOfMemoryError: Memory ran out.

    Example:
        >>> import torch
        >>> query = key = value = torch.randn(9, 4, 64)
        >>> ends = torch.tensor([2, 5, 9])
        >>> out, *_, seed, offset = npu_fusion_attention_v3(
        ...     query, key, value, 4, "TND", actual_seq_qlen=ends, actual_seq_kvlen=ends)
        >>> out.shape, seed
        (torch.Size([9, 4, 64]), tensor([0]))
    """
    if _observers.watching and _observers.outermost():
        return _observers.show(npu_fusion_attention_v3, locals())
    if _vendor.is_npu(query):
        return _vendor.call("npu_fusion_attention_v3", locals())
    plain = _plain.attention(
        query, key, value, atten_mask, head_num, input_layout, scale, sparse_mode, pre_tockens,
        next_tockens, actual_seq_qlen, actual_seq_kvlen, keep_prob, inner_precise, softmax_layout,
        pse is padding_mask is prefix is sink is None,
    )  # fmt: skip
    if plain is not None:
        return *plain[:4], *_no_pair()
    tensors = (query, key, value, pse, padding_mask, atten_mask, sink, None, None, None)
    given = _entry.arguments(
        tensors, head_num, input_layout, scale, keep_prob, pre_tockens, next_tockens, inner_precise,
        prefix, actual_seq_qlen, actual_seq_kvlen, sparse_mode, softmax_layout, version=3,
    )  # fmt: skip
    given = _entry.autocast(given)
    if _random.draws(given.keep_prob, None):
        pair = _entry.drawn_pair(given)
        out, softmax_max, softmax_sum = _autograd.attention(given, *pair)
        seed, offset = (word.reshape(1) for word in pair)
    else:
        out, softmax_max, softmax_sum = _autograd.attention(given, None, None)
        seed, offset = _no_pair()
    return out, softmax_max, softmax_sum, out.new_empty(0), seed, offset


def _no_pair() -> tuple[Tensor, Tensor]:
    """Returns the (seed, offset) of a call without dropout."""
    return torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)


def npu_fusion_attention_grad_v3(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dy: Tensor,
    head_num: int,
    input_layout: str,
    *,
    pse: Tensor | None = None,
    padding_mask: Tensor | None = None,
    atten_mask: Tensor | None = None,
    softmax_max: Tensor | None = None,
    softmax_sum: Tensor | None = None,
    softmax_in: Tensor | None = None,
    attention_in: Tensor | None = None,
    scale_value: float = 1.0,
    keep_prob: float = 1.0,
    pre_tockens: int = UNLIMITED,
    next_tockens: int = UNLIMITED,
    inner_precise: int = 0,
    seed: Tensor | int | None = None,
    offset: Tensor | int | None = None,
    prefix: Integers = None,
    actual_seq_qlen: Integers = None,
    actual_seq_kvlen: Integers = None,
    sparse_mode: int = 0,
    gen_mask_parallel: bool = True,
    sync: bool = False,
    softmax_layout: str = "",
    sink: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """Computes the gradients of `npu_fusion_attention_v3` from its results.

    The formula is FlashAttention-2's backward pass (Dao 2023, algorithm 2): the probabilities are
    recomputed from the stored row statistics. Arguments not listed are those of the forward call
    and must be equal to them.

    Args:
        query: As in the forward call; so are key, value and all arguments not listed here.
        key: See query.
        value: See query.
        dy: Gradient of attention_out, of its shape and dtype, any strides.
        head_num: See query.
        input_layout: See query.
        pse: See query.
        padding_mask: Must be None.
        atten_mask: See query.
        softmax_max: float32, the forward call's second result; or any array that with softmax_sum
            states the same logarithm softmax_max + log(softmax_sum), such as (logsumexp, 1).
        softmax_sum: float32, the forward call's third result.
        softmax_in: Accepted for compatibility; not read.
        attention_in: The forward call's attention_out.
        scale_value: The forward call's scale.
        keep_prob: See query.
        pre_tockens: See query.
        next_tockens: See query.
        inner_precise: See query.
        seed: The forward call's fifth result, an int64 tensor of one element (or an integer);
            needed when keep_prob < 1.
        offset: The forward call's sixth result; see seed.
        prefix: See query.
        actual_seq_qlen: See query.
        actual_seq_kvlen: See query.
        sparse_mode: See query.
        gen_mask_parallel: Accepted for compatibility.
        sync: Accepted for compatibility.
        softmax_layout: See query.
        sink: See query.

    Returns:
        (dq, dk, dv, dpse, dsink), of the shapes and dtypes of query, key, value, pse and sink; dpse
        is None without pse, dsink is None without sink.

    Raises:
        RuntimeError: An argument breaks a rule of the operator.
        NotImplementedError: padding_mask is given, or the tensors are on a device without a
            backend.
        torch.OutOfMemoryError: Memory ran out.

    Example:
        >>> import torch
        >>> query = key = value = torch.randn(1, 4, 128, 64)
        >>> out, row_max, row_sum, _, seed, offset = npu_fusion_attention_v3(
        ...     query, key, value, 4, "BNSD", keep_prob=0.9)
        >>> dq, dk, dv, dpse, dsink = npu_fusion_attention_grad_v3(
        ...     query, key, value, torch.ones_like(out), 4, "BNSD", keep_prob=0.9, seed=seed,
        ...     offset=offset, softmax_max=row_max, softmax_sum=row_sum, attention_in=out)
        >>> dq.shape, dpse
        (torch.Size([1, 4, 128, 64]), None)
    """
    if _observers.watching and _observers.outermost():
        return _observers.show(npu_fusion_attention_grad_v3, locals())
    if _vendor.is_npu(query):
        return _vendor.call("npu_fusion_attention_grad_v3", locals())
    tensors = (query, key, value, pse, padding_mask, atten_mask, sink, None, None, None)
    given = _entry.arguments(
        tensors, head_num, input_layout, scale_value, keep_prob, pre_tockens, next_tockens,
        inner_precise, prefix, actual_seq_qlen, actual_seq_kvlen, sparse_mode, softmax_layout,
        version=3,
    )  # fmt: skip
    results = (dy, softmax_max, softmax_sum, attention_in)
    return _entry.gradient(given, results, 0, seed, offset)[:5]
