"""Bugs that many have had: what explain prints names the cause at once.

Three of them are scripts as a user would have them, with the call's name replaced by explain.
"""

import pytest
import torch

from fusion_attention import explain

HEAD = """
import torch
from fusion_attention import explain
torch.manual_seed(0)
"""

INVERTED = """
# A causal mask made as for scaled_dot_product_attention: True where a token may look.
query = key = value = torch.randn(2, 8, 256, 64)
mask = torch.ones(256, 256, dtype=torch.bool).tril()
print(explain(query, key, value, 8, "BNSD", atten_mask=mask, scale=64**-0.5))
"""

WITHOUT_MASK = """
# "sparse_mode=2 makes it causal."
query = key = value = torch.randn(2, 256, 8, 64)
print(explain(query, key, value, 8, "BSND", sparse_mode=2, scale=64**-0.5))
"""

LENGTHS = """
# Three documents of 128 tokens, packed.
lengths = [128, 128, 128]
query = key = value = torch.randn(sum(lengths), 8, 64)
causal = torch.ones(2048, 2048, dtype=torch.bool).triu(1)
print(explain(query, key, value, 8, "TND", atten_mask=causal, sparse_mode=3, scale=64**-0.5,
              actual_seq_qlen=lengths, actual_seq_kvlen=lengths))
"""


@pytest.mark.parametrize(
    ("script", "verdict", "mend"),
    [
        (
            INVERTED,
            "atten_mask is inverted: each query sees later keys but not its own",
            "logical_not()",
        ),
        (
            WITHOUT_MASK,
            "sparse_mode=2 without atten_mask has no effect: every query sees every key",
            "atten_mask=torch.ones(2048, 2048, dtype=torch.bool).triu(1)",
        ),
        (
            LENGTHS,
            "actual_seq_qlen=[128, 128, 128] are lengths of sequences, not their ends",
            "the running sum: [128, 256, 384]",
        ),
    ],
    ids=["inverted mask", "sparse_mode without a mask", "lengths that are not cumulative"],
)
def test_first_lines_name_the_cause_and_the_cure(
    script: str, verdict: str, mend: str, capsys: pytest.CaptureFixture[str]
) -> None:
    exec(HEAD + script, {})
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == f"RUNS, BUT WRONG: {verdict}."
    assert any(mend in line for line in lines[:8])
    assert max(map(len, lines)) <= 100


def test_a_mode_that_there_is_not_is_the_cause_itself() -> None:
    query = torch.empty(1, 2, 8, 16, device="meta")
    report = explain(query, query, query, 2, "BNSD", scale=0.25, sparse_mode=77)
    assert report.verdict.startswith("REFUSED: the operator expects sparse_mode to be in [0, 6]")


def test_a_mask_that_fits_the_other_order_of_axes_says_so() -> None:
    query = torch.empty(64, 2, 32, device="meta")  # [S, B, H]
    mask = torch.ones(64, 64, dtype=torch.bool).triu(1)
    call = (query, query, query, 2)
    (finding,) = explain(*call, "BSH", scale=0.25, atten_mask=mask).findings
    assert finding.id == "L04"
    assert finding.mend.startswith("Pass input_layout='SBH'")
    assert explain(*call, "SBH", scale=0.25, atten_mask=mask, sparse_mode=1).runs
