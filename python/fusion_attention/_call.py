"""A call of the family as a value: the name of its function, and its arguments by name.

What looks at calls instead of running them (explain, lint, recording, converters) takes and gives
this form. It checks nothing but what Python itself checks when a function is called.
"""

import functools
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Call:
    """One call: `function` is a name of the package's, `arguments` has every parameter of it."""

    function: str
    arguments: dict[str, Any]

    def run(self) -> Any:
        """Makes the call and returns what the function returns.

        Example:
            >>> import torch
            >>> query = torch.randn(1, 1, 4, 8)
            >>> bind("npu_fusion_attention", query, query, query, 1, "BNSD").run()[0].shape
            torch.Size([1, 1, 4, 8])
        """
        return getattr(__import__(__package__), self.function)(**self.arguments)


@functools.cache
def signature(function: str) -> inspect.Signature:
    """Returns the signature of the package's function of this name."""
    package = __import__(__package__)
    return inspect.signature(getattr(package, function))


def bind(function: str, /, *args: Any, **kwargs: Any) -> Call:
    """Returns the call that `function(*args, **kwargs)` would be, defaults filled in.

    Iterators become lists: who looks at a call must not use up what it is made of.

    Raises:
        TypeError: Python itself would refuse the call: a missing, unknown or repeated argument.

    Example:
        >>> import torch
        >>> query = torch.randn(1, 1, 4, 8)
        >>> bind("npu_fusion_attention", query, query, query, 1, "BNSD").arguments["keep_prob"]
        1.0
    """
    bound = signature(function).bind(*args, **kwargs)
    bound.apply_defaults()
    arguments = {
        name: list(value) if isinstance(value, Iterator) else value
        for name, value in bound.arguments.items()
    }
    return Call(function, arguments)
