"""npu_fusion_attention_v2 and its gradient: other kinds of bias, and channels for scores alone.

What they share with the other functions of the family is in _entry.py.
"""

from torch import Tensor

from fusion_attention import _arguments as arg
from fusion_attention import _entry, _observers, _plain, _vendor
from fusion_attention._arguments import UNLIMITED, Arguments, Integers


def npu_fusion_attention_v2(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    head_num: int,
    input_layout: str,
    *,
    pse: Tensor | None = None,
    padding_mask: Tensor | None = None,
    atten_mask: Tensor | None = None,
    query_rope: Tensor | None = None,
    key_rope: Tensor | None = None,
    scale: float = 1.0,
    keep_prob: float = 1.0,
    pre_tokens: int = UNLIMITED,
    next_tokens: int = UNLIMITED,
    inner_precise: int = 0,
    prefix: Integers = None,
    actual_seq_qlen: Integers = None,
    actual_seq_kvlen: Integers = None,
    sparse_mode: int = 0,
    gen_mask_parallel: bool = True,
    sync: bool = False,
    pse_type: int = 1,
    q_start_idx: Integers = None,
    kv_start_idx: Integers = None,
    softmax_layout: str = "",
    sink: Tensor | None = None,
    dropout_mask: Tensor | None = None,
    seed: int = 0,
    offset: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor, int, int, int]:
    """Computes npu_fusion_attention with a bias of any pse_type and with channels for scores alone.

    With `raw = query @ key.T + query_rope @ key_rope.T`, the scaled scores are, by pse_type,

        0: raw * scale + pse
        1: (raw + pse) * scale
        2: raw * scale - slope * |distance|
        3: raw * scale - slope * sqrt(|distance|)

    where slope is the head's element of pse and distance is `(key's index + kv_start_idx) - (row's
    index + q_start_idx)`, counted from the top left of each sequence (torch_npu's page of this
    function; ALiBi: Press, Smith, Lewis 2022). Everything else is npu_fusion_attention's.
    Differentiable in query, key, value, pse (slopes too), sink, query_rope and key_rope.

    Letters: B batch, N heads of query, Nkv heads of key and value (N is a multiple of it), Sq and
    Skv tokens, D and Dv <= D channels of a head, Dr <= D channels of a head's rope, T tokens of all
    packed sequences together.

    Args:
        query: float16, bfloat16 or float32 (float64 too, for gradcheck), any strides. [B, Sq, N*D]
            in layout BSH, [Sq, B, N*D] in SBH, [B, Sq, N, D] in BSND, [B, N, Sq, D] in BNSD,
            [T, N, D] in TND.
        key: Like query with Skv and Nkv; the same dtype.
        value: Like key with Dv; the same dtype.
        head_num: N.
        input_layout: "BSH", "SBH", "BSND", "BNSD" or "TND", in any letter case.
        pse: For pse_type 0 and 1 a bias, [B or 1, N, Sq or 1, Skv], or the last 1024 rows of a
            Toeplitz bias, [B or 1, N, 1024, Skv], in the dtype of query. For pse_type 2 and 3
            slopes, float32 [N] or [B, N]; Sq equals Skv then, except in TND.
        padding_mask: Must be None.
        atten_mask: bool or uint8, True or non-zero where a key must NOT be seen; its shape depends
            on sparse_mode, as for npu_fusion_attention.
        query_rope: More channels of query that count for the scores alone: [T, N, Dr], the dtype of
            query. Given with key_rope or not at all; in TND, with an atten_mask, without pse and
            without dropout, not in mode 6.
        key_rope: [T, Nkv, Dr].
        scale: Factor on the scores, usually (D + Dr)**-0.5.
        keep_prob: Probability to keep a weight, in (0, 1]; 1 means no dropout.
        pre_tokens: How many keys before its own a row sees in modes 0, 4, 7, 8.
        next_tokens: How many keys after its own a row sees in modes 0, 4, 7, 8.
        inner_precise: 2 reports softmax_sum = FLT_MAX for rows that see no key; other values have
            no effect.
        prefix: For modes 5 and 6: the number of leading keys that all rows of a sequence see, one
            per sequence.
        actual_seq_qlen: For TND: where each sequence ends in query, cumulative, [2, 5, 9] for
            lengths 2, 3, 4. A list, a tuple or a 1-D integer tensor.
        actual_seq_kvlen: The same for key and value.
        sparse_mode: 0 default mask with band, 1 whole mask, 2 causal from the top left, 3 causal
            from the bottom right, 4 band, 5 and 6 prefix, 7 and 8 packed sequences that were cut.
        gen_mask_parallel: Accepted for compatibility; no value depends on it.
        sync: Accepted for compatibility; no value depends on it.
        pse_type: 0, 1, 2 or 3, as above. Types other than 1 need a pse.
        q_start_idx: For pse_type 2 and 3: one integer in a list, the position of row 0. Counts only
            when kv_start_idx is given too.
        kv_start_idx: The position of key 0.
        softmax_layout: "TND" stores packed statistics as [T, N, 8]; "" as one [N, Sq, 8] block a
            sequence.
        sink: float32 [N], a logit per head that takes part in the softmax and has no value.
        dropout_mask: uint8, one bit per score, least significant first, 1 = keep; replaces the
            generated mask.
        seed: Philox seed of the dropout mask. 0 takes seed and offset from PyTorch's generator.
        offset: Philox offset that belongs to a non-zero seed.

    Returns:
        (attention_out, softmax_max, softmax_sum, reserved, seed, offset, numels), as
        npu_fusion_attention returns them.

    Raises:
        RuntimeError: An argument breaks a rule of the operator. Nothing was computed, and no random
            number was drawn.
        NotImplementedError: padding_mask is given, or the tensors are on a device without a
            backend.
        torch.OutOfMemoryError: Memory ran out.

    Example:
        >>> import torch
        >>> query = key = value = torch.randn(1, 4, 256, 64)
        >>> slopes = 2.0 ** torch.tensor([-2.0, -4.0, -6.0, -8.0])
        >>> causal = torch.ones(2048, 2048, dtype=torch.bool).triu(1)
        >>> out, *_ = npu_fusion_attention_v2(
        ...     query, key, value, 4, "BNSD", pse=slopes, pse_type=2, atten_mask=causal,
        ...     sparse_mode=2, scale=0.125)
        >>> out.shape
        torch.Size([1, 4, 256, 64])
    """
    if _observers.watching and _observers.outermost():
        return _observers.show(npu_fusion_attention_v2, locals())
    if _vendor.is_npu(query):
        return _vendor.call("npu_fusion_attention_v2", locals())
    plain = _plain.attention(
        query, key, value, atten_mask, head_num, input_layout, scale, sparse_mode, pre_tokens,
        next_tokens, actual_seq_qlen, actual_seq_kvlen, keep_prob, inner_precise, softmax_layout,
        pse is padding_mask is query_rope is key_rope is prefix is None
        and q_start_idx is kv_start_idx is sink is dropout_mask is None,
        pse_type,
    )  # fmt: skip
    if plain is not None:
        out, softmax_max, softmax_sum, softmax_in, numels = plain
        return out, softmax_max, softmax_sum, softmax_in, 0, 0, numels
    given = _arguments(
        (query, key, value, pse, padding_mask, atten_mask, sink, dropout_mask, query_rope,
         key_rope),
        head_num, input_layout, scale, keep_prob, pre_tokens, next_tokens, inner_precise, prefix,
        actual_seq_qlen, actual_seq_kvlen, sparse_mode, softmax_layout, pse_type, q_start_idx,
        kv_start_idx,
    )  # fmt: skip
    return _entry.forward(given, seed, offset)


def npu_fusion_attention_grad_v2(
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
    query_rope: Tensor | None = None,
    key_rope: Tensor | None = None,
    scale_value: float = 1.0,
    keep_prob: float = 1.0,
    pre_tokens: int = UNLIMITED,
    next_tokens: int = UNLIMITED,
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
    pse_type: int = 1,
    q_start_idx: Integers = None,
    kv_start_idx: Integers = None,
    softmax_layout: str = "",
    sink: Tensor | None = None,
    dropout_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Computes the gradients of `npu_fusion_attention_v2` from its results.

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
        query_rope: See query.
        key_rope: See query.
        scale_value: The forward call's scale.
        keep_prob: See query.
        pre_tokens: See query.
        next_tokens: See query.
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
        pse_type: See query.
        q_start_idx: See query.
        kv_start_idx: See query.
        softmax_layout: See query.
        sink: See query.
        dropout_mask: See query.

    Returns:
        (dq, dk, dv, dpse, dq_rope, dk_rope, dsink), of the shapes and dtypes of query, key, value,
        pse, query_rope, key_rope and sink; None for each of the last four that was not given.

    Raises:
        RuntimeError: An argument breaks a rule of the operator.
        NotImplementedError: padding_mask is given, or the tensors are on a device without a
            backend.
        torch.OutOfMemoryError: Memory ran out.

    Example:
        >>> import torch
        >>> query = key = value = torch.randn(1, 2, 128, 64)
        >>> slopes = torch.tensor([0.5, 0.25])
        >>> out, row_max, row_sum, *_ = npu_fusion_attention_v2(
        ...     query, key, value, 2, "BNSD", pse=slopes, pse_type=3)
        >>> dq, dk, dv, dslopes, dq_rope, dk_rope, dsink = npu_fusion_attention_grad_v2(
        ...     query, key, value, torch.ones_like(out), 2, "BNSD", pse=slopes, pse_type=3,
        ...     softmax_max=row_max, softmax_sum=row_sum, attention_in=out)
        >>> dslopes.shape, dq_rope
        (torch.Size([2]), None)
    """
    if _observers.watching and _observers.outermost():
        return _observers.show(npu_fusion_attention_grad_v2, locals())
    if _vendor.is_npu(query):
        return _vendor.call("npu_fusion_attention_grad_v2", locals())
    given = _arguments(
        (query, key, value, pse, padding_mask, atten_mask, sink, dropout_mask, query_rope,
         key_rope),
        head_num, input_layout, scale_value, keep_prob, pre_tokens, next_tokens, inner_precise,
        prefix, actual_seq_qlen, actual_seq_kvlen, sparse_mode, softmax_layout, pse_type,
        q_start_idx, kv_start_idx,
    )  # fmt: skip
    results = (dy, softmax_max, softmax_sum, attention_in)
    found = _entry.gradient(given, results, numels, seed, offset)
    return found.dq, found.dk, found.dv, found.dpse, found.dq_rope, found.dk_rope, found.dsink


def _arguments(
    tensors: _entry.Tensors,
    head_num: int,
    input_layout: str,
    scale: float,
    keep_prob: float,
    pre_tokens: int,
    next_tokens: int,
    *rest: object,
) -> Arguments:
    """Returns the common arguments; errors spell the tokens as these functions do."""
    pre_tokens = arg.integer("pre_tokens", pre_tokens)
    next_tokens = arg.integer("next_tokens", next_tokens)
    return _entry.arguments(
        tensors, head_num, input_layout, scale, keep_prob, pre_tokens, next_tokens, *rest, version=2
    )
