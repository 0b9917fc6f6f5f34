"""Hands calls on tensors of an Ascend NPU to the vendor's operators, where its package is there.

Knows nothing of the operators but which arguments older releases of the vendor's package lack.
"""

import importlib
from typing import Any

from torch import Tensor

# Passed on only when they are in use; all of them are None, empty or zero when they are not.
_NEWEST = {"softmax_layout", "sink"}
_ROPES = {"query_rope", "key_rope"}
_NEWER = {
    "npu_fusion_attention": {*_NEWEST, "dropout_mask", "seed", "offset"},
    "npu_fusion_attention_grad": {*_NEWEST, "dropout_mask"},
    "npu_fusion_attention_v2": {*_NEWEST, *_ROPES, "dropout_mask", "seed", "offset"},
    "npu_fusion_attention_grad_v2": {*_NEWEST, *_ROPES, "dropout_mask"},
    "npu_fusion_attention_v3": _NEWEST,
    "npu_fusion_attention_grad_v3": _NEWEST,
}


def is_npu(tensor: Any) -> bool:
    """Whether the vendor's operator is the one to call, by a call's first tensor."""
    # A device costs 0.2 us to ask for; most tensors are on the CPU.
    if getattr(tensor, "is_cpu", False):
        return False
    return isinstance(tensor, Tensor) and tensor.device.type == "npu"


def call(name: str, arguments: dict[str, Any], *positional: Any) -> Any:
    """Calls torch_npu's function of this name with these keywords, and `positional` before them.

    Raises:
        NotImplementedError: torch_npu is not installed.
    """
    try:
        vendor = importlib.import_module("torch_npu")
    except ImportError:
        first = positional[0] if positional else next(iter(arguments.values()))
        raise NotImplementedError(
            "npu_fusion_attention: expected tensors on a device that has a backend (cpu), but got "
            f"one on {first.device}. Install torch_npu to use the vendor's operator."
        ) from None
    newer = _NEWER.get(name, set())
    unused = {key for key in newer if not isinstance(arguments[key], Tensor) and not arguments[key]}
    given = {key: value for key, value in arguments.items() if key not in unused}
    return getattr(vendor, name)(*positional, **given)
