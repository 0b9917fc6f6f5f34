"""Makes a saved call again, with its random numbers, its autocast and its backward passes."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import fusion_attention
from fusion_attention import _observers, _random
from fusion_attention._call import Call, signature
from fusion_attention._errors import FeatureError
from fusion_attention.recording import gradients, saved, tensors
from fusion_attention.recording.saved import SavedCall
from fusion_attention.recording.tensors import Description


@dataclass(frozen=True)
class Rerun:
    """What a call gave this time.

    Attributes:
        results: Its results by name.
        backward: For each recorded backward pass, the gradients by name.
        recorded_results: The tensors among the recorded results.
        recorded_backward: The recorded gradients.
    """

    results: dict[str, Any]
    backward: list[dict[str, Tensor]]
    recorded_results: dict[str, Tensor]
    recorded_backward: list[dict[str, Tensor]]


def check(call: SavedCall) -> None:
    """Raises unless all files are what was recorded, and the call legal and of the same shapes.

    Nothing is computed, so a record that asks for absurd amounts of memory is found out here.
    """
    elements, recorded = call.tensors()
    _recorded_words(call, recorded)
    for backward in call.backward:
        call.backward_tensors(backward)
    shapes = {
        name: tensors.without_elements(value)
        for name, value in call.arguments.items()
        if isinstance(value, Description) and _is_for_tensors(call.function, name)
    }
    function = getattr(fusion_attention, call.function)
    with _observers.unseen():  # they are for calls that are made
        results = _call(call, function, call.arguments | elements | shapes)
    for name, expected in call.results.items():
        if isinstance(expected, Description) != isinstance(results[name], Tensor):
            raise FeatureError(f"{call.folder}: {name} is not what {call.function} returns")
        if isinstance(expected, Description) and tuple(results[name].shape) != expected.shape:
            raise FeatureError(
                f"{call.folder}: {name} was recorded as {expected}, but these arguments give "
                f"{list(results[name].shape)}"
            )


def rerun(call: SavedCall) -> Rerun:
    """Makes the call and its backward passes.

    Raises:
        FeatureError: The operator refuses the call, or the record is damaged.
    """
    elements, recorded = call.tensors()
    for name, tensor in elements.items():
        if call.arguments[name].requires_grad:
            tensor.requires_grad_()
    arguments = call.arguments | elements
    with _recorded_words(call, recorded):
        results = _call(call, getattr(fusion_attention, call.function), arguments)
    caught: list[dict[str, Tensor]] = []
    recorded_gradients: list[dict[str, Tensor]] = []
    if call.backward:
        out = results["out"]
        if out.grad_fn is None:
            raise FeatureError(
                f"{call.folder} has a backward pass, but no argument that requires a gradient"
            )
        gradients.watch(Call(call.function, arguments), out, lambda _, found: caught.append(found))
        inputs = [tensor for tensor in elements.values() if tensor.requires_grad]
        for backward in call.backward:
            dy, expected = call.backward_tensors(backward)
            recorded_gradients.append(expected)
            dy = torch.zeros_like(out) if dy is None else dy
            torch.autograd.grad(out, inputs, dy, retain_graph=True, allow_unused=True)
    plain = {n: x.detach() if isinstance(x, Tensor) else x for n, x in results.items()}
    return Rerun(plain, caught, recorded, recorded_gradients)


def _is_for_tensors(function: str, parameter: str) -> bool:
    """Whether a parameter takes tensors alone; what others take may be a tensor and read anyway."""
    return signature(function).parameters[parameter].annotation in (Tensor, Tensor | None)


def _call(
    call: SavedCall, function: Callable[..., Any], arguments: dict[str, Any]
) -> dict[str, Any]:
    dtype = None if call.autocast is None else tensors.DTYPES[call.autocast]
    with (
        torch.set_grad_enabled(call.grad_enabled),
        torch.autocast("cpu", dtype=dtype, enabled=dtype is not None),
    ):
        try:
            result = function(**arguments)
        except RuntimeError as error:
            raise FeatureError(f"{call.folder} cannot be made again: {error}") from None
    results = result if isinstance(result, tuple) else (result,)
    return dict(zip(saved.RESULTS[call.function], results, strict=True))


def _recorded_words(
    call: SavedCall, recorded: dict[str, Tensor]
) -> contextlib.AbstractContextManager[None]:
    """Makes a call that draws random numbers draw those that were recorded."""
    if "seed" not in call.results:  # a function without random numbers
        return contextlib.nullcontext()
    words = []
    for name in ("seed", "offset"):  # integers, or tensors of one
        word = recorded[name].item() if name in recorded else call.results[name]
        if type(word) is not int:
            raise FeatureError(f"{call.folder}: {name} is {word!r:.40}, not an integer")
        words.append(word)
    return _random.pinned(*words)
