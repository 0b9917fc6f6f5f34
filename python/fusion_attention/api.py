"""npu_fusion_attention and its gradient: the vendor's signatures, and what the user's manual says.

What they share with the other functions of the family is in _entry.py.
"""

from torch import Tensor

from fusion_attention import _entry, _observers, _plain, _vendor
from fusion_attention._arguments import UNLIMITED, Integers


def npu_fusion_attention(
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
    dropout_mask: Tensor | None = None,
    seed: int = 0,
    offset: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor, int, int, int]:
    """Computes `dropout(softmax(mask((query @ key.T + pse) * scale))) @ value`.

    The scores are never stored. The formula is that of torch_npu.npu_fusion_attention's page
    (pse_type 1); docs/numerics.md states it with all its corner cases. Results are exact up to fp32
    accumulation and one rounding, and do not depend on the number of threads. Differentiable in
    query, key, value, pse and sink. Works under torch.compile(fullgraph=True), autocast and
    activation checkpointing.

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
        pse: Bias that is added to the scores before scaling, [B or 1, N, Sq or 1, Skv]; or the last
            1024 rows of a Toeplitz bias (ALiBi), [B or 1, N, 1024, Skv]. The dtype of query.
        padding_mask: Must be None.
        atten_mask: bool or uint8, True or non-zero where a key must NOT be seen (the opposite of
            PyTorch's masks). Modes 0, 1, 5: [Sq, Skv], [1 or B, 1, Sq, Skv] or [B, N, Sq, Skv].
            Modes 2, 3, 4, 7, 8: torch.ones(2048, 2048, dtype=torch.bool).triu(1). Mode 6: its
            [3072, 2048] form. None: every key is seen, whatever sparse_mode says.
        scale: Factor on the scores, usually D**-0.5.
        keep_prob: Probability to keep a weight, in (0, 1]; 1 means no dropout.
        pre_tockens: How many keys before its own a row sees in modes 0, 4, 7, 8.
        next_tockens: How many keys after its own a row sees in modes 0, 4, 7, 8.
        inner_precise: 2 reports softmax_sum = FLT_MAX for rows that see no key; other values have
            no effect.
        prefix: For modes 5 and 6: the number of leading keys that all rows of a sequence see, one
            per sequence.
        actual_seq_qlen: For TND: where each sequence ends in query, cumulative, [2, 5, 9] for
            lengths 2, 3, 4. A list, a tuple or a 1-D integer tensor; trailing zeros switch
            sequences off.
        actual_seq_kvlen: The same for key and value.
        sparse_mode: 0 default mask with band, 1 whole mask, 2 causal from the top left, 3 causal
            from the bottom right, 4 band, 5 and 6 prefix, 7 and 8 packed sequences that were cut
            (docs/masks.md draws all of them).
        gen_mask_parallel: Accepted for compatibility; no value depends on it.
        sync: Accepted for compatibility; no value depends on it.
        softmax_layout: "TND" stores packed statistics as [T, N, 8]; "" as one [N, Sq, 8] block a
            sequence.
        sink: float32 [N], a logit per head that takes part in the softmax and has no value.
        dropout_mask: uint8, one bit per score, least significant first, 1 = keep; replaces the
            generated mask.
        seed: Philox seed of the dropout mask. 0 takes seed and offset from PyTorch's generator.
        offset: Philox offset that belongs to a non-zero seed.

    Returns:
        (attention_out, softmax_max, softmax_sum, reserved, seed, offset, numels): attention_out in
        query's layout and dtype with Dv channels; the rows' maximum and sum of exponentials,
        float32, [B, N, Sq, 8] ([T, N, 8] in TND), 8 equal values, not differentiable; an empty
        tensor; the Philox pair that was used, (0, 0) if none was; the number of dropout
        elements, B*N*Sq*Skv or N times the sum of Sq*Skv over the sequences.

    Raises:
        RuntimeError: An argument breaks a rule of the operator. Nothing was computed, and no random
            number was drawn.
        NotImplementedError: padding_mask is given, or the tensors are on a device without a
            backend.
        torch.OutOfMemoryError: Memory ran out.

    Example:
        >>> import torch
        >>> query = torch.randn(2, 8, 256, 64)
        >>> key = value = torch.randn(2, 2, 256, 64)
        >>> causal = torch.ones(2048, 2048, dtype=torch.bool).triu(1)
        >>> out, *_ = npu_fusion_attention(
        ...     query, key, value, 8, "BNSD", atten_mask=causal, sparse_mode=2, scale=0.125)
        >>> out.shape
        torch.Size([2, 8, 256, 64])
    """
    if _observers.watching and _observers.outermost():
        return _observers.show(npu_fusion_attention, locals())
    if _vendor.is_npu(query):
        return _vendor.call("npu_fusion_attention", locals())
    plain = _plain.attention(
        query, key, value, atten_mask, head_num, input_layout, scale, sparse_mode, pre_tockens,
        next_tockens, actual_seq_qlen, actual_seq_kvlen, keep_prob, inner_precise, softmax_layout,
        pse is padding_mask is prefix is sink is dropout_mask is None,
    )  # fmt: skip
    if plain is not None:
        out, softmax_max, softmax_sum, softmax_in, numels = plain
        return out, softmax_max, softmax_sum, softmax_in, 0, 0, numels
    tensors = (query, key, value, pse, padding_mask, atten_mask, sink, dropout_mask, None, None)
    given = _entry.arguments(
        tensors, head_num, input_layout, scale, keep_prob, pre_tockens, next_tockens, inner_precise,
        prefix, actual_seq_qlen, actual_seq_kvlen, sparse_mode, softmax_layout,
    )  # fmt: skip
    return _entry.forward(given, seed, offset)


def npu_fusion_attention_grad(
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
    seed: int = 0,
    offset: int = 0,
    numels: int = 0,
    prefix: Integers = None,
    actual_seq_qlen: Integers = None,
    actual_seq_kvlen: Integers = None,
    sparse_mode: int = 0,
    gen_mask_parallel: bool = True,
    sync: bool = False,
    softmax_layout: str = "",
    sink: Tensor | None = None,
    dropout_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """Computes the gradients of `npu_fusion_attention` from its results.

    Context-parallel training calls it so. The formula is FlashAttention-2's backward pass (Dao
    2023, algorithm 2): the probabilities are recomputed from the stored row statistics. Arguments
    not listed are those of the forward call and must be equal to them.

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
            states the same logarithm softmax_max + log(softmax_sum), such as (logsumexp, 1), as
            merged partial results do.
        softmax_sum: float32, the forward call's third result.
        softmax_in: Accepted for compatibility; not read.
        attention_in: The forward call's attention_out.
        scale_value: The forward call's scale.
        keep_prob: See query.
        pre_tockens: See query.
        next_tockens: See query.
        inner_precise: See query.
        seed: The forward call's fifth result; used when keep_prob < 1 and no dropout_mask is given.
        offset: The forward call's sixth result.
        numels: The forward call's seventh result, or 0.
        prefix: See query.
        actual_seq_qlen: See query.
        actual_seq_kvlen: See query.
        sparse_mode: See query.
        gen_mask_parallel: Accepted for compatibility.
        sync: Accepted for compatibility.
        softmax_layout: See query.
        sink: See query.
        dropout_mask: See query.

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
        >>> out, row_max, row_sum, *_ = npu_fusion_attention(query, key, value, 4, "BNSD")
        >>> dq, dk, dv, dpse, dsink = npu_fusion_attention_grad(
        ...     query, key, value, torch.ones_like(out), 4, "BNSD",
        ...     softmax_max=row_max, softmax_sum=row_sum, attention_in=out)
        >>> dq.shape, dpse
        (torch.Size([1, 4, 128, 64]), None)
    """
    if _observers.watching and _observers.outermost():
        return _observers.show(npu_fusion_attention_grad, locals())
    if _vendor.is_npu(query):
        return _vendor.call("npu_fusion_attention_grad", locals())
    tensors = (query, key, value, pse, padding_mask, atten_mask, sink, dropout_mask, None, None)
    given = _entry.arguments(
        tensors, head_num, input_layout, scale_value, keep_prob, pre_tockens, next_tockens,
        inner_precise, prefix, actual_seq_qlen, actual_seq_kvlen, sparse_mode, softmax_layout,
    )  # fmt: skip
    results = (dy, softmax_max, softmax_sum, attention_in)
    gradients = _entry.gradient(given, results, numels, seed, offset)
    return gradients[:5]
