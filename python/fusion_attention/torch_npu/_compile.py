"""Lets torch.compile see the device "npu" as what it is: the CPU.

While a program is traced its tensors are fakes, and a fake on "npu" would not mix with those on the
CPU, as real ones do. And the code generator knows no "npu": what goes to it says "cpu".
"""

from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor

from fusion_attention.torch_npu._wrap import wrap
from fusion_attention.torch_npu.npu.utils import NAMES


def install() -> None:
    """Makes torch.compile work on code that moves tensors to the device, or makes them there."""
    FakeTensor.__new__ = staticmethod(wrap(FakeTensor.__new__, _fake_on_cpu))
    torch.compile = wrap(torch.compile, _compile)


def _fake_on_cpu(
    original: Any, cls: type, fake_mode: Any, elem: Any, device: Any, *args: Any, **kwargs: Any
) -> FakeTensor:
    return original(cls, fake_mode, elem, _on_cpu(device), *args, **kwargs)


def _compile(original: Any, *args: Any, **kwargs: Any) -> Any:
    # Imported here: the compiler takes longer to import than all the rest.
    from torch._inductor import config, custom_graph_pass

    class ToCpu(custom_graph_pass.CustomGraphPass):
        def __call__(self, graph: fx.Graph) -> None:
            move_to_cpu(graph)

        def uuid(self) -> str:
            return "fusion_attention.torch_npu: npu to cpu, 1"

    if config.pre_grad_custom_pass is None:
        config.pre_grad_custom_pass = ToCpu()
    return original(*args, **kwargs)


def move_to_cpu(graph: fx.Graph) -> None:
    """Replaces the device by the CPU in a traced program; what was a copy stays one."""
    for node in graph.nodes:
        before = (node.args, node.kwargs)
        node.args = fx.node.map_aggregate(node.args, _on_cpu)
        node.kwargs = fx.node.map_aggregate(node.kwargs, _on_cpu)
        if node.op != "call_method":
            continue
        if node.target in NAMES:
            node.target, node.args, node.kwargs = "to", (node.args[0], "cpu"), {"copy": True}
        elif node.target == "to" and before != (node.args, node.kwargs):
            # Tensor.to(self, device, dtype, non_blocking, copy)
            node.kwargs = {**node.kwargs, "copy": True}
            node.args = node.args[:4]


def _on_cpu(value: Any) -> Any:
    if isinstance(value, str) and value.partition(":")[0] in NAMES:
        return "cpu"
    if isinstance(value, torch.device) and value.type in NAMES:
        return torch.device("cpu")
    return value
