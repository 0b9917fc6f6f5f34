"""explain and lint: what a call of the operator does, without making it.

The one place that turns a call into words, findings and pictures. It asks the core for every fact
and computes no attention.
"""

from typing import Any

from fusion_attention.explaining.findings import Finding
from fusion_attention.explaining.linter import LintWarning, as_call, lint, set_lint
from fusion_attention.explaining.reading import read
from fusion_attention.explaining.report import Report, report_of

__all__ = ["Finding", "LintWarning", "Report", "explain", "lint", "set_lint"]


def explain(*args: Any, function: str = "npu_fusion_attention", **kwargs: Any) -> Report:
    """Returns what the operator would do with a call, without computing it.

    How the tensors are read, which keys each row sees (exactly, with a picture), how much work and
    memory that is, what dropout and the statistics are, what would run it, and what looks wrong,
    with why and how to mend it. A call that the operator refuses is explained too. Meta tensors
    will do: only a dense atten_mask needs data.

    Args:
        *args: The arguments of the call; or one `Call`, as the recorder has them.
        function: The function of the family that the arguments are for, such as
            "npu_fusion_attention_grad".
        **kwargs: The arguments of the call.

    Returns:
        A Report: print it, look at its values, or `save` it as a picture.

    Raises:
        TypeError: Python itself would refuse the call: a missing or unknown argument.

    Example:
        >>> import torch
        >>> query = torch.empty(2, 8, 1024, 64, device="meta")
        >>> causal = torch.ones(2048, 2048, dtype=torch.bool).triu(1)
        >>> report = explain(
        ...     query, query, query, 8, "BNSD", scale=0.125, atten_mask=causal, sparse_mode=2)
        >>> report.verdict
        'Runs. Lint has nothing against it.'
        >>> report.pairs == 2 * 8 * 1024 * 1025 // 2
        True
    """
    return report_of(read(as_call(args, kwargs, function)))
