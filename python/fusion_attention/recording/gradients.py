"""Sees what a backward pass through a call gets and gives, without taking part in it.

A hook on the call's node in the graph is shown dy and the gradients that the node returned: nothing
is computed twice, nothing is kept alive, and it works for every pass through a retained graph.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from fusion_attention._arguments import TENSOR_NAMES
from fusion_attention._call import Call

#: Argument -> the name of its gradient.
NAMES = {
    "query": "dq",
    "key": "dk",
    "value": "dv",
    "pse": "dpse",
    "sink": "dsink",
    "query_rope": "dq_rope",
    "key_rope": "dk_rope",
}

#: Gets dy (None if nothing flowed back) and the gradients by name.
Seen = Callable[[Tensor | None, dict[str, Tensor]], None]


def watch(call: Call, out: Tensor, seen: Seen) -> None:
    """Calls `seen` at every backward pass through `out`, the first result of `call`."""
    node = out.grad_fn
    if node is None:  # not recorded by autograd
        return
    names = _slots(call, node)

    def hook(gradients: tuple[Tensor | None, ...], dy: tuple[Tensor | None, ...]) -> None:
        found = zip(names, gradients, strict=False)  # the last slots are dropout's random words
        seen(dy[0], {name: x for name, x in found if name is not None and x is not None})

    node.register_hook(hook)


def _slots(call: Call, node: torch.autograd.graph.Node) -> list[str | None]:
    """Returns which gradient is in which of the node's results."""
    tensors = {n: x for n in TENSOR_NAMES if isinstance(x := call.arguments.get(n), Tensor)}
    if call.arguments["query"].device.type == "cpu":
        # Our own operator takes its tensors in this order. Autocast may have put casts before it.
        return [NAMES.get(name) for name in tensors]
    # The vendor's has an order of its own, but leads back to the same tensors.
    edges = {
        tuple(torch.autograd.graph.get_gradient_edge(tensor)[:2]): NAMES.get(name)
        for name, tensor in tensors.items()
        if tensor.requires_grad
    }
    return [edges.get(edge) for edge in node.next_functions]
