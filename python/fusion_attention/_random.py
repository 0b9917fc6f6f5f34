"""Where a call's dropout (seed, offset) come from when the caller gives none.

They come from PyTorch's generator of the device. The pair is a pure function of the generator's
state, so manual_seed(), fork_rng(), get/set_rng_state() and activation checkpointing reproduce the
mask. It travels as two 0-dim int64 tensors, which a compiled graph can carry.
"""

import contextlib
import threading
from collections.abc import Iterator

import torch
from torch import Tensor

from fusion_attention._arguments import fail, integer

_library = torch.library.Library("fusion_attention", "FRAGMENT")
# `after` only orders the draw behind the check that returned it: a rejected call must draw nothing.
# `distinct` only tells two draws of a graph apart: equal calls of operators that are not PyTorch's
# own are merged there, random or not.
_library.define(
    "draw(Tensor after, Tensor distinct) -> (Tensor seed, Tensor offset)",
    tags=(torch.Tag.nondeterministic_seeded,),
)

# The generator's state starts with: its seed (8 bytes), the 32-bit words left before the next
# refill (4 bytes), whether it is seeded (4 bytes), the index of the next word (8 bytes). Right
# after seeding one word is "left" at index 0, which never happens again.
_COUNTERS = slice(8, 24)
_FRESH = [1, 1, 0, 0]


def _draw_on_cpu(*_: Tensor) -> tuple[Tensor, Tensor]:
    generator = torch.default_generator
    fresh = generator.get_state()[_COUNTERS].view(torch.int32).tolist() == _FRESH
    offset = torch.empty((), dtype=torch.int64).random_(-(2**63), None)
    if fresh:
        offset.zero_()
    else:
        offset.bitwise_and_(-4)  # whole blocks of four Philox words
    return as_word("seed", generator.initial_seed()), offset


def _draw_shapes(after: Tensor, distinct: Tensor) -> tuple[Tensor, Tensor]:
    return after.new_empty((), dtype=torch.int64), after.new_empty((), dtype=torch.int64)


def as_word(name: str, value: int | Tensor | None) -> Tensor:
    """Returns a 64-bit value, signed or unsigned, as a 0-dim int64 tensor of the same bits."""
    if isinstance(value, Tensor):
        if value.numel() != 1 or value.dtype != torch.int64:
            got = f"a {value.dtype} tensor of {list(value.shape)}"
            raise fail(name, "to be one int64 when it is a tensor", got)
        return value.reshape(()).to("cpu")
    if value is None:
        hint = "The gradient needs the pair that the forward call returned."
        raise fail(name, "to be given when keep_prob < 1", f"{name}=None", hint)
    if not torch.compiler.is_compiling():  # a traced value has no size to look at
        value = integer(name, value, end=2**64)
        value -= 2**64 if value >= 2**63 else 0
    return torch.full((), value, dtype=torch.int64)


def draws(keep_prob: float, dropout_mask: Tensor | None) -> bool:
    """Whether a legal call needs random bits; 1e-9 is the device's tolerance at both ends."""
    return dropout_mask is None and 1e-9 <= keep_prob < 1 - 1e-9


_library.impl("draw", _draw_on_cpu, "CPU")
torch.library.register_fake("fusion_attention::draw", _draw_shapes, lib=_library)


# .pinned: what draw() gives instead of fresh words, while this thread makes a recorded call again.
_thread = threading.local()


@contextlib.contextmanager
def pinned(seed: int, offset: int) -> Iterator[None]:
    """Makes this thread's calls inside that would draw use this pair, and the generator stays."""
    before = getattr(_thread, "pinned", None)
    _thread.pinned = (seed, offset)
    try:
        yield
    finally:
        _thread.pinned = before


def _nobody_looks_on(after: Tensor) -> bool:
    """Whether an operator would only cost time: 3 of the 35 us of a small call with dropout."""
    return (
        type(after) is Tensor
        and after.is_cpu
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
        and not torch._C._len_torch_dispatch_stack()
        and not torch._C._get_tracing_state()
    )


def draw(after: Tensor) -> tuple[Tensor, Tensor]:
    """Returns (seed, offset) for one call, drawn once the tensor `after` has been computed."""
    # A graph is made for later calls.
    pair = None if torch.compiler.is_compiling() else getattr(_thread, "pinned", None)
    if pair is not None and not after.is_meta:
        return as_word("seed", pair[0]), as_word("offset", pair[1])
    if _nobody_looks_on(after):
        return _draw_on_cpu()
    # No two calls of empty() are ever merged.
    distinct = torch.empty(0, device=after.device)
    return torch.ops.fusion_attention.draw.default(after, distinct)
