"""What a model's mask is, told by transformers' own mask functions, without writing it out.

Everything that is no band of keys, no padding and no packing becomes the boolean mask that "sdpa"
would get.
"""

import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fusion_attention._arguments import UNLIMITED
from fusion_attention._errors import FeatureError
from fusion_attention._optional import load


def _load_masks() -> ModuleType:
    """Imports transformers' mask functions.

    Raises:
        FeatureError: transformers is not installed, or its mask functions are others.
    """
    version = load("transformers").__version__
    try:
        module = load("transformers.masking_utils")
        parameters = inspect.signature(module.sdpa_mask).parameters
    except (ImportError, AttributeError):
        parameters = {}
    if not {"q_length", "q_offset", "kv_offset", "mask_function"} <= set(parameters):
        raise FeatureError(
            f"fusion_attention: transformers {version} is too old, its masks are not made from "
            "q_length and q_offset. Install a newer one: `pip install --upgrade transformers`."
        )
    return module


masks = _load_masks()


class Seen(NamedTuple):
    """A mask by its rule: row i sees the keys from i - before to i + after that are no padding.

    `padding` is bool [B, Skv], True for real tokens. `ends` says where the sequences end that are
    packed into the batch's tokens; rows and keys then count from their own sequence's first token.
    """

    before: int = UNLIMITED
    after: int = UNLIMITED
    padding: Tensor | None = None
    ends: list[int] | None = None

    @property
    def ndim(self) -> int:
        """Tells transformers that this is no 2-D padding mask any more, but a mask already made."""
        return 4

    def contiguous(self) -> "Seen":
        """Returns itself; generation with a static cache asks every mask for this."""
        return self


def make_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] | None = None,
    attention_mask: Tensor | Seen | None = None,
    local_size: int | None = None,
    allow_is_causal_skip: bool = True,
    allow_is_bidirectional_skip: bool = False,
    use_vmap: bool = False,
    config: Any = None,
    **options: Any,
) -> Seen | Tensor:
    """Returns a model's mask, as transformers' AttentionMaskInterface asks for it.

    Args:
        batch_size: B.
        q_length: Sq.
        kv_length: Skv.
        q_offset: Position of the first row.
        kv_offset: Position of the first key.
        mask_function: The rule, of batch, head, row's and key's positions; causal by default.
        attention_mask: [B, tokens], True for real tokens; or a mask that this function made.
        local_size: The window or the chunk that the rule has.
        allow_is_causal_skip: Says that the rule is causal (in a window or a chunk), without more.
        allow_is_bidirectional_skip: Says that the rule hides nothing (outside of a window).
        use_vmap: Says that the model added rules of its own.
        config: The model's.
        **options: For sdpa_mask.

    Returns:
        A `Seen`, or a boolean mask [B, 1, Sq, Skv] with True for what is seen.
    """
    if isinstance(attention_mask, Seen):
        return attention_mask  # generation has made it before the model was called
    if mask_function is None:
        mask_function = masks.causal_mask_function
    compiling = torch.compiler.is_compiling()
    # The rule of a window and that of a chunk come with the same arguments; the config tells.
    chunked = local_size is not None and (
        getattr(config, "attention_chunk_size", None) is not None
        or local_size != getattr(config, "sliding_window", None)
    )
    if not chunked and not use_vmap and isinstance(q_offset, int):
        padding = _padding(attention_mask, kv_length, kv_offset, compiling)
        shift = q_offset - kv_offset
        if allow_is_causal_skip or mask_function is masks.causal_mask_function:
            before = UNLIMITED if local_size is None else local_size - 1 - shift
            return Seen(before, shift, padding)
        if allow_is_bidirectional_skip or mask_function is masks.bidirectional_mask_function:
            if local_size is None:
                return Seen(padding=padding)
            return Seen(local_size - shift, local_size + shift, padding)
        if not compiling and attention_mask is None:
            ends = _packed_ends(mask_function)
            if ends is not None:
                return Seen(UNLIMITED if local_size is None else local_size - 1, 0, ends=ends)
    return masks.sdpa_mask(
        batch_size,
        q_length,
        kv_length,
        q_offset,
        kv_offset,
        mask_function,
        attention_mask,
        local_size=local_size,
        allow_is_causal_skip=False,
        use_vmap=use_vmap,
        config=config,
        **options,
    )


def _padding(
    attention_mask: Tensor | None, kv_length: int, kv_offset: int, compiling: bool
) -> Tensor | None:
    """Returns which of the keys are real tokens, [B, Skv]; None if all are known to be."""
    if attention_mask is None:
        return None
    covers = attention_mask.shape[1] >= kv_offset + kv_length  # a static cache has keys to spare
    if covers and not compiling and bool(attention_mask.all()):
        return None
    kept = attention_mask[:, kv_offset : kv_offset + kv_length]
    return torch.nn.functional.pad(kept, (0, kv_length - kept.shape[1]))


def _packed_ends(mask_function: Callable[..., Any]) -> list[int] | None:
    """Returns where packed sequences end, None if the rule is not that of packed sequences.

    That rule is a function made by `packed_sequence_compatibility_function`: both of its parts must
    be transformers' own, and what they hold must be found under the names that they have there.
    """
    both = _held(mask_function, masks.and_masks, "mask_functions")
    if both is None or len(both) != 2:
        return None
    sequence = _held(both[0], masks.packed_sequence_mask_function, "packed_sequence_mask")
    rule = _held(both[1], masks.remap_positions_for_packed_sequence, "mask_function")
    if sequence is None or rule is None:
        return None
    if rule is not masks.causal_mask_function:
        # A window's rule: two functions, the window and causal.
        window = _held(rule, masks.and_masks, "mask_functions") or (None,)
        is_window = _held(window[0], masks.sliding_window_overlay, "sliding_window") is not None
        if not is_window or window[1:] != (masks.causal_mask_function,):
            return None
    last = torch.ones_like(sequence, dtype=torch.bool)  # of its sequence, in its row of the batch
    last[:, :-1] = sequence[:, 1:] != sequence[:, :-1]
    return (last.flatten().nonzero().flatten() + 1).tolist()


def _held(function: Any, maker: Callable[..., Any], name: str) -> Any:
    """Returns the variable `name` that a function made by `maker` holds; None for any other."""
    code = getattr(function, "__code__", None)
    if code not in maker.__code__.co_consts or name not in code.co_freevars:
        return None
    return function.__closure__[code.co_freevars.index(name)].cell_contents
