"""Ascend's fused attention operator for every machine: exact, and with its gradient.

>>> import torch
>>> from fusion_attention import npu_fusion_attention
>>> query = key = value = torch.randn(1, 4, 128, 64)
>>> npu_fusion_attention(query, key, value, 4, "BNSD", scale=64**-0.5)[0].shape
torch.Size([1, 4, 128, 64])
"""

import importlib
import os
from typing import Any

from fusion_attention import _fakes as _fakes
from fusion_attention.api import npu_fusion_attention, npu_fusion_attention_grad
from fusion_attention.api_dropout import _npu_dropout_gen_mask as _npu_dropout_gen_mask
from fusion_attention.api_ring import npu_ring_attention_update
from fusion_attention.api_v2 import npu_fusion_attention_grad_v2, npu_fusion_attention_v2
from fusion_attention.api_v3 import npu_fusion_attention_grad_v3, npu_fusion_attention_v3

__version__ = "0.3.0"

# The features around the operator: public name -> the module that has it, imported when asked for.
_LAZY = {
    "LintWarning": "explaining",
    "explain": "explaining",
    "lint": "explaining",
    "load_call": "recording",
    "record": "recording",
    "replay": "recording",
    "set_lint": "explaining",
}

__all__ = [
    "npu_fusion_attention",
    "npu_fusion_attention_grad",
    "npu_fusion_attention_grad_v2",
    "npu_fusion_attention_grad_v3",
    "npu_fusion_attention_v2",
    "npu_fusion_attention_v3",
    "npu_ring_attention_update",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    value = getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
    globals()[name] = value  # asked for once; also wins over a folder of the same name
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})


if os.environ.get("FUSION_ATTENTION_RECORD"):
    importlib.import_module(f"{__name__}.recording.recorder").record_program()
if os.environ.get("FUSION_ATTENTION_LINT", "off") not in ("", "off"):
    importlib.import_module(f"{__name__}.explaining").set_lint(os.environ["FUSION_ATTENTION_LINT"])
