"""torch_npu.testing.common_distributed: how many devices a test needs."""

import functools
import unittest
from collections.abc import Callable
from typing import Any

from fusion_attention.torch_npu import npu


def skipIfUnsupportMultiNPU(npu_number_needed: int) -> Callable[..., Any]:
    """Skips a test unless there are so many devices; FUSION_ATTENTION_NPU_COUNT makes them."""

    def decorate(test: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(test)
        def run_where_enough(*args: Any, **kwargs: Any) -> Any:
            if npu.device_count() < npu_number_needed:
                raise unittest.SkipTest(
                    f"This test needs {npu_number_needed} devices, there are {npu.device_count()}. "
                    f"FUSION_ATTENTION_NPU_COUNT={npu_number_needed} makes that many of this CPU."
                )
            return test(*args, **kwargs)

        return run_where_enough

    return decorate
