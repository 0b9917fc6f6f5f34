"""The functions of the family as the vendor's package has them: in Python and as torch.ops.npu.*.

The schemas of the operators are the signatures of this package's functions. A profile is an older
release of the vendor's package: it lacks parameters and results, and refuses them as that release
would. Knows nothing of the device "npu".
"""

import functools
import inspect
import typing
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

import fusion_attention
from fusion_attention._arguments import Integers
from fusion_attention.torch_npu._absent import absent

NAMES = (
    "npu_fusion_attention",
    "npu_fusion_attention_grad",
    "npu_fusion_attention_v2",
    "npu_fusion_attention_grad_v2",
    "npu_fusion_attention_v3",
    "npu_fusion_attention_grad_v3",
    "npu_ring_attention_update",
    "_npu_dropout_gen_mask",
)

NEWEST = "newest"
#: Release of the vendor's package -> the parameters that came after it. (The seed and offset that
#: came are the forward functions'; the gradients always had theirs.)
PROFILES = {
    NEWEST: frozenset[str](),
    "7.3": frozenset({"dropout_mask", "seed", "offset"}),
    "7.2": frozenset({"dropout_mask", "seed", "offset", "sink"}),
    "7.1": frozenset({"dropout_mask", "seed", "offset", "sink", "softmax_layout"}),
}
# Gradients whose last result, dsink, came with the sink.
_DSINK_LAST = ("npu_fusion_attention_grad", "npu_fusion_attention_grad_v2")

_SCHEMA_TYPES: dict[Any, str] = {
    Tensor: "Tensor",
    Tensor | None: "Tensor?",
    Tensor | int | None: "Tensor?",
    int: "int",
    float: "float",
    bool: "bool",
    str: "str",
    Integers: "int[]?",
    Sequence[int]: "int[]",
}


def function(name: str, profile: str) -> Callable[..., Any]:
    """Returns the function of this name as the release has it."""
    newest = getattr(fusion_attention, name)
    lacks = _lacks(name, profile)
    parameters = inspect.signature(newest).parameters
    if not lacks & parameters.keys():
        return newest
    kept = [x for x in parameters.values() if x.name not in lacks]
    positional = sum(x.kind is x.POSITIONAL_OR_KEYWORD for x in kept)
    results = _result_count(name, profile)

    @functools.wraps(newest)
    def older(*args: Any, **kwargs: Any) -> Any:
        for given in kwargs:
            if given in lacks:
                raise _unknown(name, f"has no parameter '{given}'", profile)
        if len(args) > positional:
            rule = f"takes {positional} positional arguments but {len(args)} were given"
            raise _unknown(name, rule, profile)
        return newest(*args, **kwargs)[:results]

    older.__signature__ = inspect.Signature(kept)  # type: ignore[attr-defined]
    return older


def schema(name: str, profile: str) -> str:
    """Returns the operator's schema in the release."""
    newest = inspect.signature(getattr(fusion_attention, name))
    given = function(name, profile)
    parts, starred = [], False
    for parameter in inspect.signature(given).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not starred:
            starred = True
            parts.append("*")
        kind = _SCHEMA_TYPES[parameter.annotation]
        if name.endswith("_v3") and parameter.name.startswith("actual_seq"):
            kind = "Tensor?"  # in this form a graph computes them
        text = f"{kind} {parameter.name}"
        if parameter.default is not parameter.empty:
            default = parameter.default
            text += f'="{default}"' if isinstance(default, str) else f"={default}"
        parts.append(text)
    results = typing.get_args(newest.return_annotation) or (newest.return_annotation,)
    kinds = [_SCHEMA_TYPES[x].rstrip("?") for x in results[: _result_count(name, profile)]]
    return f"{name}({', '.join(parts)}) -> ({', '.join(kinds)})"


def define_operators(profile: str) -> torch.library.Library:
    """Defines torch.ops.npu.*, which last as long as the library that is returned."""
    library = torch.library.Library("npu", "FRAGMENT")
    for name in NAMES:
        library.define(schema(name, profile))
        library.impl(name, function(name, profile), "CompositeImplicitAutograd")
    namespace = _Operators("npu")
    setattr(torch.ops, "npu", namespace)  # noqa: B010 (the attribute is no part of its class)
    return library


def add_to_vendors_operators() -> torch.library.Library:
    """Gives the vendor's operators, which know its device alone, kernels for tensors of the CPU."""
    library = torch.library.Library("npu", "IMPL")
    for name in NAMES:
        operator = getattr(getattr(torch.ops.npu, name, None), "default", None)
        if operator is None:
            continue  # a release that does not have it
        kernel = getattr(fusion_attention, name)
        if name in _DSINK_LAST:  # an older release returns fewer
            kernel = _first(kernel, len(operator._schema.returns))
        library.impl(name, kernel, "CPU")
        library.impl(name, kernel, "AutogradCPU")
    return library


class _Operators(torch._ops._OpNamespace):
    """torch.ops.npu, which says what it has when it is asked for something else."""

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            raise absent("torch.ops.npu", name, NAMES) from None

    def __dir__(self) -> list[str]:
        return list(NAMES)


def _first(function: Callable[..., Any], count: int) -> Callable[..., Any]:
    """Returns the function with its first results alone."""
    return lambda *args, **kwargs: function(*args, **kwargs)[:count]


def _lacks(name: str, profile: str) -> frozenset[str]:
    lacks = PROFILES[profile]
    return lacks - {"seed", "offset"} if "_grad" in name else lacks


def _result_count(name: str, profile: str) -> int | None:
    return -1 if name in _DSINK_LAST and "sink" in PROFILES[profile] else None


def _unknown(name: str, rule: str, profile: str) -> RuntimeError:
    return RuntimeError(
        f"torch_npu.{name} {rule} in release {profile}, for which compat={profile!r} stands. "
        f"compat={NEWEST!r} has all of them."
    )
