"""What all functions of the family share, between their parameters and the differentiable operator.

The public functions are its callers and differ in names, defaults and the form of the random words
alone. All rules are checked by the compiled library (docs/errors.md), all mathematics is done there
(docs/numerics.md).
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fusion_attention import _arguments as arg
from fusion_attention import _autograd, _library, _random
from fusion_attention._arguments import Arguments, Integers

Tensors = tuple[Tensor | None, ...]
_RESULTS = ("dy", "softmax_max", "softmax_sum", "attention_in")


class Gradients(NamedTuple):
    """One for each differentiable input; None for those that the call does not have."""

    dq: Tensor
    dk: Tensor
    dv: Tensor
    dpse: Tensor | None
    dsink: Tensor | None
    dq_rope: Tensor | None
    dk_rope: Tensor | None


def arguments(
    tensors: Tensors,
    head_num: int,
    input_layout: str,
    scale: float,
    keep_prob: float,
    pre_tockens: int,
    next_tockens: int,
    inner_precise: int,
    prefix: Integers,
    actual_seq_qlen: Integers,
    actual_seq_kvlen: Integers,
    sparse_mode: int,
    softmax_layout: str,
    pse_type: int = 1,
    q_start_idx: Integers = None,
    kv_start_idx: Integers = None,
    version: int = 1,
) -> Arguments:
    """Returns everything in the order and the types of the operators' schemas.

    `tensors` are those of `arg.TENSOR_NAMES`.
    """
    arg.check_tensors(arg.TENSOR_NAMES, tensors)
    qlen_tensor = arg.unread_integers("actual_seq_qlen", actual_seq_qlen)
    kvlen_tensor = arg.unread_integers("actual_seq_kvlen", actual_seq_kvlen)
    return Arguments(
        *tensors,
        qlen_tensor,
        kvlen_tensor,
        arg.integer("head_num", head_num),
        arg.string("input_layout", input_layout),
        arg.number("scale", scale),
        arg.number("keep_prob", keep_prob),
        arg.integer("pre_tockens", pre_tockens),
        arg.integer("next_tockens", next_tockens),
        arg.integer("inner_precise", inner_precise),
        arg.integers("prefix", prefix),
        None if qlen_tensor is not None else arg.integers("actual_seq_qlen", actual_seq_qlen),
        None if kvlen_tensor is not None else arg.integers("actual_seq_kvlen", actual_seq_kvlen),
        arg.integer("sparse_mode", sparse_mode),
        arg.string("softmax_layout", softmax_layout),
        arg.integer("pse_type", pse_type),
        arg.integers("q_start_idx", q_start_idx),
        arg.integers("kv_start_idx", kv_start_idx),
        version,
    )


def forward(
    given: Arguments, seed: int, offset: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, int, int, int]:
    """Returns what npu_fusion_attention and _v2 return; a seed of 0 asks for a drawn pair."""
    given = autocast(given)
    seed_word = offset_word = None
    if not _random.draws(given.keep_prob, given.dropout_mask):
        seed = offset = 0
    elif seed != 0:
        seed_word = _random.as_word("seed", seed)
        offset_word = _random.as_word("offset", offset)
    else:
        seed_word, offset_word = drawn_pair(given)
        # A meta tensor has a shape only.
        meta = seed_word.is_meta
        seed, offset = (0, 0) if meta else (seed_word.item(), offset_word.item())
    out, softmax_max, softmax_sum = _autograd.attention(given, seed_word, offset_word)
    numels = arg.dropout_numels(given)
    return out, softmax_max, softmax_sum, out.new_empty(0), seed, offset, numels


def drawn_pair(given: Arguments) -> tuple[Tensor, Tensor]:
    """Returns a fresh (seed, offset), drawn once the call has passed every check."""
    return _random.draw(_library.check(*given, None, None, None, None, None))


def autocast(given: Arguments) -> Arguments:
    """Casts what scaled_dot_product_attention's autocast would: not float64, and not slopes."""
    if not torch.is_autocast_enabled("cpu") or given.query.device.type != "cpu":
        return given
    dtype = torch.get_autocast_dtype("cpu")
    names = ["query", "key", "value", "query_rope", "key_rope"]
    if given.pse_type not in (2, 3):
        names.append("pse")
    tensors = {name: getattr(given, name) for name in names}
    cast = {
        name: tensor.to(dtype)
        for name, tensor in tensors.items()
        if tensor is not None and tensor.is_floating_point() and tensor.dtype != torch.float64
    }
    return given._replace(**cast)


def gradient(
    given: Arguments,
    results: tuple[Tensor | None, ...],
    numels: Any,
    seed: Any,
    offset: Any,
) -> Gradients:
    """Returns the gradients of the call that gave `results`.

    Args:
        given: Its arguments.
        results: dy, softmax_max, softmax_sum and attention_in.
        numels: What the forward call returned, or 0.
        seed: As `_random.as_word` takes it; looked at only where dropout needs it.
        offset: See seed.
    """
    for name, result in zip(_RESULTS, results, strict=True):
        if result is None:
            hint = "The gradient needs the forward call's results."
            raise arg.fail(name, "to be given", f"{name}=None", hint)
        arg.check_tensors(("query", name), (given.query, result))
    seed_word = offset_word = None
    if _random.draws(given.keep_prob, given.dropout_mask):
        seed_word = _random.as_word("seed", seed)
        offset_word = _random.as_word("offset", offset)
    # In a graph of dynamic shapes numels is a symbol; handing it over would fix the shapes.
    numels = 0 if torch.compiler.is_compiling() else arg.integer("numels", numels)
    wants = (given.pse is not None, given.sink is not None)
    dq, dk, dv, *rest = _autograd.gradient(
        given, (*results, numels, seed_word, offset_word, *wants)
    )
    inputs = (given.pse, given.sink, given.query_rope, given.key_rope)
    present = (
        None if tensor is None else result for tensor, result in zip(inputs, rest, strict=True)
    )
    return Gradients(dq, dk, dv, *present)
