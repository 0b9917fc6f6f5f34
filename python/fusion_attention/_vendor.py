"""Hands calls on tensors of an Ascend NPU to the vendor's own operator, where its package is there.

Knows nothing of the operator but which arguments older releases of the vendor's package lack.
"""

import importlib
from typing import Any

from torch import Tensor

# Passed on only when they are in use; all of them are None, empty or zero when they are not.
_NEWER = {
    "npu_fusion_attention": {"softmax_layout", "sink", "dropout_mask", "seed", "offset"},
    "npu_fusion_attention_grad": {"softmax_layout", "sink", "dropout_mask"},
}


def is_npu(query: Any) -> bool:
    """Whether the vendor's operator is the one to call."""
    return isinstance(query, Tensor) and query.device.type == "npu"


def call(name: str, arguments: dict[str, Any]) -> Any:
    """Calls torch_npu's function of this name with these keywords.

    Raises:
        NotImplementedError: torch_npu is not installed.
    """
    try:
        vendor = importlib.import_module("torch_npu")
    except ImportError:
        raise NotImplementedError(
            "npu_fusion_attention: expected query on a device that has a backend (cpu), but got "
            f"query on {arguments['query'].device}. Install torch_npu to use the vendor's operator."
        ) from None
    unused = {
        key for key in _NEWER[name] if not isinstance(arguments[key], Tensor) and not arguments[key]
    }
    return getattr(vendor, name)(
        **{key: value for key, value in arguments.items() if key not in unused}
    )
