"""Three scripts with a bug that many have had: what explain prints names the cause at once.

Each is what a user would have, with the call's name replaced by explain.
"""

import pytest

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
