"""What a score_mod adds to the score, if adding is all that it does.

Proven on its traced graph: the score passes through additions alone, so score_mod(s) = s + bias,
and the bias is score_mod(0).
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch._dynamo._trace_wrapped_higher_order_op import TransformGetItemToIndex
from torch.fx.experimental.proxy_tensor import make_fx

from fusion_attention.convert._refusal import refuse

_ADDITIONS = (torch.ops.aten.add.Tensor, torch.ops.aten.sub.Tensor)


def added_bias(
    score_mod: Callable[..., Tensor], batch: int, heads: int, q_len: int, kv_len: int
) -> Tensor:
    """Returns the bias, float32 [B, N, Sq, Skv] ([1, N, Sq, Skv] if batches do not matter).

    Raises:
        ConversionError: score_mod does more than to add.
    """
    # A tensor each: of one tensor given four times all uses would count as the last index's.
    indices = [torch.zeros((), dtype=torch.int64) for _ in range(4)]
    with TransformGetItemToIndex():
        graph = make_fx(score_mod)(torch.zeros(()), *indices).graph
    score, batch_index, *_ = (node for node in graph.nodes if node.op == "placeholder")
    if not _only_adds(graph, score):
        raise refuse(
            "this score_mod",
            "the operator can add a bias to the scores and nothing else",
            "Keep such a model on flex_attention",
        )
    mod = score_mod
    for axes in ((None, None, None, 0), (None, None, 0, None), (None, 0, None, None)):
        mod = torch.vmap(mod, (None, *axes))
    mod = torch.vmap(mod, (None, 0, None, None, None))
    batches = batch if batch_index.users else 1
    with TransformGetItemToIndex():
        return mod(
            torch.zeros(()), *(torch.arange(n) for n in (batches, heads, q_len, kv_len))
        ).float()


def _only_adds(graph: torch.fx.Graph, score: torch.fx.Node) -> bool:
    """Whether the result is the score plus what does not depend on it."""
    node = score
    while True:
        if len(node.users) != 1:
            return False
        (user,) = node.users
        if user.op == "output":
            return True
        term_is_first = user.args[0] is node and user.args.count(node) == 1
        # `a - score` and `a + alpha * score` change the score itself.
        first_or_plain_sum = term_is_first or (
            user.target is torch.ops.aten.add.Tensor and "alpha" not in user.kwargs
        )
        if user.target not in _ADDITIONS or not first_or_plain_sum or user.args.count(node) != 1:
            return False
        node = user
