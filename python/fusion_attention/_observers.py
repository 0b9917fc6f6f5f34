"""Who watches calls: the lint and the recorder register here, the public functions tell them.

Each public function begins with these two lines, so that with nobody registered a call costs one
look at an empty tuple (a decorator would cost 6 % of a small one):

    if _observers.watching and _observers.outermost():
        return _observers.show(<itself>, locals())

Observers see eager calls only: a compiled graph has no call to show them.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch

from fusion_attention._call import Call, bind


class Observer(Protocol):
    """What may watch calls. A method that raises stops the call."""

    def before(self, call: Call) -> None:
        """Sees a call that is about to be made, before anything of it is checked."""

    def after(self, call: Call, result: Any) -> None:
        """Sees a call that succeeded. Gradients can be watched by hooks on its tensors."""


#: Whoever watches now. It is replaced, never changed.
watching: tuple[Observer, ...] = ()

_changing = threading.Lock()
_thread = threading.local()  # .inside: a function of the family that calls another is one call


def add(observer: Observer) -> None:
    """Shows every later call to `observer`."""
    global watching
    with _changing:
        watching = (*watching, observer)


def remove(observer: Observer) -> None:
    """Shows no more calls to `observer`."""
    global watching
    with _changing:
        watching = tuple(other for other in watching if other is not observer)


def outermost() -> bool:
    """Whether a call that begins now is one to show: eager, and no part of another."""
    return not (getattr(_thread, "inside", False) or torch.compiler.is_compiling())


@contextlib.contextmanager
def unseen() -> Iterator[None]:
    """Shows no calls of this thread meanwhile."""
    before = getattr(_thread, "inside", False)
    _thread.inside = True
    try:
        yield
    finally:
        _thread.inside = before


def show(function: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    """Makes the call of a public function, shows it to the observers and returns what it returns.

    `arguments` are all of the function's own parameters.
    """
    call = bind(function.__name__, **arguments)
    observers = watching  # who comes or goes meanwhile sees all of a call or nothing of it
    with unseen():
        for observer in observers:
            observer.before(call)
        result = function(**call.arguments)
        for observer in observers:
            observer.after(call, result)
    return result
