"""Who watches calls: the lint and the recorder register here, the public functions tell them.

With nobody registered a call costs one look at an empty tuple. Observers see eager calls only: a
compiled graph has no call to show them.
"""

import functools
import threading
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import torch

from fusion_attention._call import Call, bind

Function = TypeVar("Function", bound=Callable[..., Any])


class Observer(Protocol):
    """What may watch calls. A method that raises stops the call."""

    def before(self, call: Call) -> None:
        """Sees a call that is about to be made, before anything of it is checked."""

    def after(self, call: Call, result: Any) -> None:
        """Sees a call that succeeded. Gradients can be watched by hooks on its tensors."""


_observers: tuple[Observer, ...] = ()
_changing = threading.Lock()
_thread = threading.local()  # .inside: a function of the family that calls another is one call


def add(observer: Observer) -> None:
    """Shows every later call to `observer`."""
    global _observers
    with _changing:
        _observers = (*_observers, observer)


def remove(observer: Observer) -> None:
    """Shows no more calls to `observer`."""
    global _observers
    with _changing:
        _observers = tuple(other for other in _observers if other is not observer)


def observed(function: Function) -> Function:
    """Makes the calls of a public function visible to the observers."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if not _observers or torch.compiler.is_compiling():
            return function(*args, **kwargs)
        return _show(function, args, kwargs)

    return wrapper  # type: ignore[return-value]


def _show(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if getattr(_thread, "inside", False):
        return function(*args, **kwargs)
    call = bind(function.__name__, *args, **kwargs)
    watching = _observers  # who comes or goes meanwhile sees all of a call or nothing of it
    _thread.inside = True
    try:
        for observer in watching:
            observer.before(call)
        result = function(**call.arguments)
        for observer in watching:
            observer.after(call, result)
    finally:
        _thread.inside = False
    return result
