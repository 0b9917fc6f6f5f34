"""Hugging Face transformers: attention and mask functions that run on this operator.

`register()` adds them; a model then takes them by name. Causal masks, windows, padding and packed
sequences reach the operator as such, so no mask of Sq x Skv is made for them; key and value heads
are not repeated.
"""

from typing import Any

import torch
from torch import Tensor, nn

from fusion_attention import npu_fusion_attention, npu_fusion_attention_v2
from fusion_attention._arguments import UNLIMITED
from fusion_attention._masks import causal_mask
from fusion_attention._optional import load
from fusion_attention.integrations._transformers_masks import Seen, make_mask, masks

# A module's tensor is an input of compiled graphs; made inside of one, it would be made each time.
_CAUSAL_MASK = causal_mask()


def register(name: str = "fusion_attention") -> None:
    """Makes `attn_implementation=name` run on this operator, for every model of transformers.

    Models that use transformers' attention interface need nothing else. What they pass is supported
    as follows: scaling, dropout, grouped heads, is_causal, sliding windows, 2-D padding masks, 4-D
    boolean and additive masks, position_bias, attention sinks (s_aux), packed sequences (by
    position_ids that start over, or by cu_seq_lens_q and cu_seq_lens_k), caches, gradient
    checkpointing and torch.compile. softcap, output_attentions and paged caches raise
    NotImplementedError. Rows that see no key are 0.

    Args:
        name: What models call it. A name that exists is replaced.

    Importing this module raises FeatureError where transformers is not installed or too old.

    Example:
        >>> import transformers
        >>> register()
        >>> config = transformers.LlamaConfig(
        ...     hidden_size=32, intermediate_size=32, num_hidden_layers=1, vocab_size=16,
        ...     num_attention_heads=4, num_key_value_heads=2,
        ...     attn_implementation="fusion_attention")
        >>> model = transformers.LlamaForCausalLM(config)
        >>> model(torch.arange(8)[None]).logits.shape
        torch.Size([1, 8, 16])
    """
    load("transformers.modeling_utils").AttentionInterface.register(name, attention)
    masks.AttentionMaskInterface.register(name, make_mask)


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Seen | Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Computes attention for a layer of a model, in the form that transformers asks for.

    Args:
        module: The layer; its is_causal counts where neither mask nor `is_causal` tells.
        query: [B, N, Sq, D].
        key: [B, Nkv, Skv, D].
        value: [B, Nkv, Skv, Dv].
        attention_mask: What `make_mask` returned, or a 4-D mask of the caller's: boolean with True
            for what is seen, or additive. None: causal from the top left if the layer is causal.
        dropout: Probability to drop a weight.
        scaling: Factor on the scores; None is 1/sqrt(D).
        is_causal: Replaces the layer's.
        **options: What else the model passes; see `register`.

    Returns:
        ([B, Sq, N, Dv], None).

    Raises:
        NotImplementedError: The model asks for softcap, attention weights or a paged cache.
    """
    _refuse_unsupported(options)
    causal = is_causal if is_causal is not None else getattr(module, "is_causal", True)
    arguments: dict[str, Any] = {
        "scale": scaling if scaling is not None else query.shape[-1] ** -0.5,
        "keep_prob": 1.0 - dropout,
    }
    sinks = options.get("s_aux")
    if sinks is not None:
        arguments["sink"] = sinks.float()
    q_ends, kv_ends = _packed(attention_mask, options)
    if q_ends is not None:
        window = options.get("sliding_window")
        if isinstance(attention_mask, Seen):
            arguments |= _packed_mask(attention_mask.before)
        elif causal:
            arguments |= _packed_mask(UNLIMITED if window is None else window - 1)
        arguments |= {"actual_seq_qlen": q_ends, "actual_seq_kvlen": kv_ends}
        return _run_packed(query, key, value, arguments), None
    bias = options.get("position_bias")
    if isinstance(attention_mask, Seen):
        arguments |= _seen_arguments(attention_mask, query, key)
    elif attention_mask is None:
        if causal and query.shape[2] > 1:
            arguments |= {"atten_mask": _CAUSAL_MASK, "sparse_mode": 2}
    else:
        mask, added = _split(attention_mask[..., : key.shape[2]], query)
        arguments |= {"atten_mask": mask, "sparse_mode": 1}
        if added is not None:
            bias = added if bias is None else bias + added
    # Projections lie as [B, S, N, D] in memory, and transformers wants the result so.
    tensors = [x.transpose(1, 2) for x in (query, key, value)]
    if bias is None:
        return npu_fusion_attention(*tensors, query.shape[1], "BSND", **arguments)[0], None
    for old, new in (("pre_tockens", "pre_tokens"), ("next_tockens", "next_tokens")):
        if old in arguments:
            arguments[new] = arguments.pop(old)
    rows = 1 if bias.shape[2] == 1 else query.shape[2]
    bias = bias.to(query.dtype).expand(bias.shape[0], query.shape[1], rows, key.shape[2])
    arguments |= {"pse": bias, "pse_type": 0}
    return npu_fusion_attention_v2(*tensors, query.shape[1], "BSND", **arguments)[0], None


def _refuse_unsupported(options: dict[str, Any]) -> None:
    remedy = 'Load the model with attn_implementation="eager"'
    if options.get("softcap") is not None:
        raise NotImplementedError(
            f"fusion_attention: the operator has no softcap of scores. {remedy}."
        )
    if options.get("output_attentions"):
        raise NotImplementedError(
            f"fusion_attention: attention weights are never stored. {remedy} to look at them."
        )
    if options.get("cache") is not None:
        raise NotImplementedError(
            "fusion_attention: keys are read from one tensor, not from pages. Use generate(), not "
            "generate_batch()."
        )


def _packed(mask: Seen | Tensor | None, options: dict[str, Any]) -> tuple[Any, Any]:
    """Returns where the sequences of packed tokens end, for rows and keys; None if not packed."""
    q_starts, kv_starts = options.get("cu_seq_lens_q"), options.get("cu_seq_lens_k")
    if q_starts is not None and kv_starts is not None:
        return q_starts[1:], kv_starts[1:]
    if isinstance(mask, Seen) and mask.ends is not None:
        return mask.ends, mask.ends
    return None, None


def _packed_mask(before: int) -> dict[str, Any]:
    if before == UNLIMITED:
        return {"atten_mask": _CAUSAL_MASK, "sparse_mode": 3}
    return {
        "atten_mask": _CAUSAL_MASK,
        "sparse_mode": 4,
        "pre_tockens": before,
        "next_tockens": 0,
    }


def _run_packed(query: Tensor, key: Tensor, value: Tensor, arguments: dict[str, Any]) -> Tensor:
    batch, heads, q_len, _ = query.shape
    tokens = (x.transpose(1, 2).flatten(0, 1) for x in (query, key, value))
    out = npu_fusion_attention(*tokens, heads, "TND", **arguments)[0]
    return out.unflatten(0, (batch, q_len))


def _seen_arguments(seen: Seen, query: Tensor, key: Tensor) -> dict[str, Any]:
    """Returns the operator's arguments for a band from the top left and a padding mask."""
    q_len, kv_len = query.shape[2], key.shape[2]
    before, after = seen.before, seen.after
    if seen.padding is not None:
        # Mode 0 is a band from the top left and a mask; the mask's rows are one and the same.
        hidden = seen.padding.logical_not()[:, None, None, :]
        return {
            "atten_mask": hidden.expand(query.shape[0], 1, q_len, kv_len),
            "sparse_mode": 0,
            "pre_tockens": before,
            "next_tockens": after,
        }
    if before == UNLIMITED and after == UNLIMITED:
        return {}
    if before == UNLIMITED and after in (0, kv_len - q_len):
        return {"atten_mask": _CAUSAL_MASK, "sparse_mode": 2 if after == 0 else 3}
    delta = kv_len - q_len  # mode 4 counts from the bottom right
    return {
        "atten_mask": _CAUSAL_MASK,
        "sparse_mode": 4,
        "pre_tockens": before if before == UNLIMITED else before + delta,
        "next_tockens": after if after == UNLIMITED else after - delta,
    }


def _split(mask: Tensor, query: Tensor) -> tuple[Tensor, Tensor | None]:
    """Splits a caller's 4-D mask into what it hides, in the operator's form, and what it adds."""
    # The operator broadcasts heads, and batch and heads together; not the batch alone.
    batch = mask.shape[0] if mask.shape[1] == 1 else query.shape[0]
    shape = (batch, mask.shape[1], query.shape[2], mask.shape[3])
    if mask.dtype == torch.bool:
        return mask.logical_not().expand(shape), None
    hidden = mask <= torch.finfo(mask.dtype).min
    return hidden.expand(shape), mask.masked_fill(hidden, 0)
