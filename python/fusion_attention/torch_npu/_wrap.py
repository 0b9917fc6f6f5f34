"""How functions of PyTorch are replaced: by one that is handed the original, and looks like it."""

import functools
from collections.abc import Callable
from typing import Any


def wrap(original: Callable[..., Any], replacement: Callable[..., Any]) -> Callable[..., Any]:
    """Returns `replacement` with `original` as its first argument.

    Example:
        >>> wrap(abs, lambda original, x: original(x) + 1)(-2)
        3
    """

    @functools.wraps(original)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return replacement(original, *args, **kwargs)

    return wrapper
