"""How functions of PyTorch are replaced: by one that is handed the original, and looks like it."""

import functools
from collections.abc import Callable
from typing import Any

from torch.jit import _builtins


def wrap(original: Callable[..., Any], replacement: Callable[..., Any]) -> Callable[..., Any]:
    """Returns `replacement` with `original` as its first argument.

    Example:
        >>> wrap(abs, lambda original, x: original(x) + 1)(-2)
        3
    """

    @functools.wraps(original)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return replacement(original, *args, **kwargs)

    script_as(wrapper, original)
    return wrapper


def script_as(wrapper: Callable[..., Any], original: Callable[..., Any]) -> None:
    """Lets torch.jit.script take `wrapper` for the builtin that it replaces, where it is one."""
    if operator := _builtins._find_builtin(original):
        _builtins._register_builtin(wrapper, operator)
