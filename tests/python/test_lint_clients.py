"""lint has advice at most for calls as training frameworks and models write them."""

from typing import Any

import pytest
import torch
from lint_calls import CAUSAL, call, meta, packed, triangle

from fusion_attention import lint


def ends(*lengths: int) -> list[int]:
    """Cumulative lengths."""
    return torch.tensor(lengths).cumsum(0).tolist()


UNLIMITED = 2**31 - 1
DOCUMENTS = (ends(16, 24, 24), ends(16, 24, 24))
# As clients write them, in the order of their table: legal, and meant as they are.
CLIENTS: dict[str, dict[str, Any]] = {
    "mindspeed adaptor": call(
        "SBH", atten_mask=CAUSAL, sparse_mode=2, pre_tockens=65536, next_tockens=0
    ),
    "mindspeed adaptor, full mask": call(
        "SBH", atten_mask=triangle(64, 64), pre_tockens=65536, next_tockens=0
    ),
    "mindspeed te, no mask": call("SBH", pre_tockens=65536, next_tockens=0),
    "mindspeed te, packed": packed(
        *DOCUMENTS, atten_mask=CAUSAL, sparse_mode=2, pre_tockens=65536, next_tockens=0
    ),
    "mindspeed all-gather": call(
        "SBH", kv=256, atten_mask=CAUSAL, sparse_mode=3, pre_tockens=65536, next_tockens=0
    ),
    "mindspeed ring, diagonal": call(
        "SBH", atten_mask=CAUSAL, sparse_mode=3, pre_tockens=64, next_tockens=0
    ),
    "mindspeed ring, past": call("SBH", pre_tockens=64, next_tockens=64),
    "mindspeed ring, general, block without keys": call(
        "SBH",
        atten_mask=torch.ones(2, 1, 64, 64, dtype=torch.bool),
        sparse_mode=1,
        pre_tockens=64,
        next_tockens=64,
    ),
    # Keys of an earlier block: those of the document that goes on in this block's first 40 rows.
    "mindspeed ring, general, document across blocks": call(
        "SBH",
        atten_mask=((torch.arange(64) < 50) | (torch.arange(64)[:, None] >= 40))[None, None],
        sparse_mode=1,
        pre_tockens=64,
        next_tockens=64,
    ),
    "mindspeed ring, general, document from an earlier block": call(
        "SBH", atten_mask=(torch.arange(64) < 50).expand(2, 1, 64, 64), sparse_mode=1
    ),
    "random mask": call(atten_mask=torch.rand(64, 64) < 0.5, sparse_mode=1),
    "mindspeed ring, packed general, leading 0": packed([0, 16, 64], [0, 16, 64]),
    "mindspeed-llm window": call(
        "BNSD", atten_mask=CAUSAL, sparse_mode=4, pre_tockens=16, next_tockens=0
    ),
    "mindspeed-llm alibi": call("BNSD", pse=meta(2, 4, 1, 64), atten_mask=triangle(64, 64)),
    "mindspeed-llm dropout": call("SBH", atten_mask=CAUSAL, sparse_mode=2, keep_prob=0.9),
    "mindspeed-mm flash attention": call("BSND", atten_mask=CAUSAL, sparse_mode=3, keep_prob=1),
    "mindspeed-mm wan": call("BNSD", actual_seq_qlen=[], actual_seq_kvlen=[]),
    "fpdt": call("BSND"),
    "torchtitan": call("BNSD", atten_mask=CAUSAL, sparse_mode=2, sync=True),
    "torchtitan, packed mode 7": packed(
        *DOCUMENTS, atten_mask=CAUSAL, sparse_mode=7, pre_tockens=64, next_tockens=0
    ),
    "ms-swift": packed(
        *DOCUMENTS, atten_mask=CAUSAL, sparse_mode=3, softmax_layout="TND", pre_tockens=UNLIMITED
    ),
    "torch context parallel": call(
        "BNSD", atten_mask=triangle(64, 64).byte()[None, None], sparse_mode=1
    ),
    "deepspeed": call("BSH", pre_tockens=65536, next_tockens=65536),
    "transformers": packed(*map(tuple, DOCUMENTS), atten_mask=CAUSAL, sparse_mode=3),
    "diffusers": call(
        "BSND", pre_tockens=65536, next_tockens=65536, atten_mask=~torch.ones(2, 1, 64, 64).bool()
    ),
    "vllm-ascend, unused tail": packed(
        [16, 40, 0], [16, 40, 0], 64, atten_mask=CAUSAL, sparse_mode=3
    ),
    "xllm": call("BSND", pre_tockens=65535, next_tockens=65535),
    "torch_npu sdpa": call(
        "BNSD", atten_mask=CAUSAL, sparse_mode=2, next_tockens=0, inner_precise=2
    ),
    "api page": call("BNSD", sparse_mode=1, pre_tockens=65536, next_tockens=65536),
    "grouped heads, smaller value": call("BNSD", key=meta(2, 2, 64, 64), value=meta(2, 2, 64, 32)),
}


@pytest.mark.parametrize("name", CLIENTS)
def test_calls_of_clients_get_advice_at_most(name: str) -> None:
    assert [f for f in lint(**CLIENTS[name]) if f.severity != "advice"] == []
