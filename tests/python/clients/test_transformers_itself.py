"""transformers as it is: its own path for the device, reached through attn_implementation.

The library finds torch_npu, takes it for flash-attn and calls the operator; nothing of this package
is named to it.
"""

import copy

import pytest
import torch
import torch_npu
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.integrations import npu_flash_attention

TOKENS = 40


@pytest.fixture
def model() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        attn_implementation="flash_attention_2",
        use_cache=False,
        dtype=torch.float32,
    )
    return LlamaForCausalLM(config).npu()


def exact(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """The same model in float64 with attention written out."""
    model = copy.deepcopy(model).double()
    model.set_attn_implementation("eager")
    return model


def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The layouts of the calls that the library makes from now on."""
    layouts = []

    def spy(*args: object, **kwargs: object) -> object:
        layouts.append(kwargs["input_layout"] if "input_layout" in kwargs else args[4])
        return torch_npu.npu_fusion_attention(*args, **kwargs)

    monkeypatch.setattr(npu_flash_attention, "npu_fusion_attention", spy)
    return layouts


def assert_close(actual: Tensor, expected: Tensor) -> None:
    """Within a hundred roundings of float32 at the tensor's size: two layers and a head."""
    allowed = 100 * 2**-24 * expected.abs().max()
    assert (actual.double() - expected).abs().max() <= allowed


# Without padding the wrapper for rows of one length is called; with it, the one for packed texts.
@pytest.mark.parametrize(("padding", "layout"), [(0, "BSND"), (11, "TND")])
def test_training(
    model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch, padding: int, layout: str
) -> None:
    layouts = calls(monkeypatch)
    tokens = torch.randint(64, (2, TOKENS), device="npu")
    mask = torch.ones_like(tokens)
    mask[0, TOKENS - padding :] = 0
    labels = tokens.masked_fill(mask == 0, -100)
    reference = exact(model)
    outputs = [m(tokens, attention_mask=mask, labels=labels) for m in (model, reference)]
    assert layouts == [layout] * 2
    assert_close(outputs[0].loss, outputs[1].loss)
    seen = mask.bool()
    assert_close(outputs[0].logits[seen], outputs[1].logits[seen])
    for output in outputs:
        output.loss.backward()
    for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        assert_close(ours.grad, theirs.grad)


def test_texts_packed_by_position(model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    layouts = calls(monkeypatch)
    lengths = [15, 1, 24]
    tokens = torch.randint(64, (1, TOKENS), device="npu")
    positions = torch.cat([torch.arange(n) for n in lengths])[None].npu()
    packed = model(tokens, position_ids=positions).logits[0]
    assert layouts == ["TND"] * 2
    reference = exact(model)
    alone = [reference(text[None]).logits[0] for text in tokens[0].split(lengths)]
    assert_close(packed, torch.cat(alone))
