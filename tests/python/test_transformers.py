"""Models of transformers compute and train the same on this operator as on "sdpa".

The models are tiny and built from configs. Which calls they make is watched, so that no test passes
because something else ran.
"""

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import transformers

from fusion_attention import _observers
from fusion_attention._call import Call
from fusion_attention.integrations.transformers import attention, register

register()

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "vocab_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "head_dim": 8,
    "pad_token_id": 0,
}
Model = tuple[Any, Any, dict[str, Any]]
MODELS: dict[str, Model] = {
    "gpt2": (
        transformers.GPT2LMHeadModel,
        transformers.GPT2Config,
        {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    ),
    "llama": (transformers.LlamaForCausalLM, transformers.LlamaConfig, {}),
    "mistral": (transformers.MistralForCausalLM, transformers.MistralConfig, {"sliding_window": 5}),
    "gemma3": (
        transformers.Gemma3ForCausalLM,
        transformers.Gemma3TextConfig,
        {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "llama4": (
        transformers.Llama4ForCausalLM,
        transformers.Llama4TextConfig,
        {
            "attention_chunk_size": 5,
            "layer_types": ["chunked_attention", "full_attention"],
            "num_local_experts": 2,
            "intermediate_size_mlp": 32,
        },
    ),
    "gpt_oss": (
        transformers.GptOssForCausalLM,
        transformers.GptOssConfig,
        {"sliding_window": 5, "num_local_experts": 2, "num_experts_per_tok": 1},
    ),
}
IDS = torch.randint(1, 32, (2, 18), generator=torch.Generator().manual_seed(1))
PACKED = torch.cat([torch.arange(n) for n in (7, 1, 10)])[None].expand(2, -1)
PADDED = torch.ones_like(IDS)
PADDED[0, :5] = 0
# A model's float32 parts (norms, experts) round; logits are of the size of 1.
CLOSE = {"rtol": 0, "atol": 2e-6}


class Calls:
    """An observer that notes what was called, as (layout, mode, shape of the mask)."""

    def __init__(self) -> None:
        self.seen: set[tuple[str, int, tuple[int, ...] | None]] = set()

    def before(self, call: Call) -> None:
        mask = call.arguments["atten_mask"]
        shape = None if mask is None else tuple(mask.shape)
        self.seen.add((call.arguments["input_layout"], call.arguments["sparse_mode"], shape))

    def after(self, call: Call, result: Any) -> None:
        pass


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Threads cost these sizes more than they give."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def calls() -> Iterator[Calls]:
    observer = Calls()
    _observers.add(observer)
    yield observer
    _observers.remove(observer)


def build(name: str, implementation: str, dtype: torch.dtype, **further: Any) -> Any:
    model_class, config_class, own = MODELS[name]
    torch.manual_seed(0)
    config = config_class(**{**SIZES, **own, **further}, attn_implementation=implementation)
    return model_class(config).to(dtype)


def pair(name: str, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """The same model on its reference and on this operator."""
    reference = "eager" if name == "gpt_oss" else "sdpa"  # sdpa knows no sinks
    return build(name, reference, dtype).eval(), build(name, "fusion_attention", dtype).eval()


COMPRESSED = (2048, 2048)
ARGUMENTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "left padding": {"attention_mask": PADDED},
    "right padding": {"attention_mask": PADDED.flip(1)},
    "no padding": {"attention_mask": torch.ones_like(IDS)},
    "packed": {"position_ids": PACKED, "use_cache": False},
    "4-D mask": {"attention_mask": (torch.rand(2, 1, 18, 18) < 0.5) | torch.eye(18).bool()},
}
OF_HEADS = torch.randn(1, 4, 18, 18)  # one for all batches


CASES = [(name, arguments) for name in MODELS for arguments in ARGUMENTS]
CASES.remove(("gpt_oss", "4-D mask"))  # its reference, "eager", takes additive masks only


@pytest.mark.parametrize(("name", "arguments"), CASES)
def test_logits(name: str, arguments: str, calls: Calls) -> None:
    reference, ours = pair(name)
    options = ARGUMENTS[arguments]
    expected = reference(IDS, **options).logits
    assert not calls.seen
    actual = ours(IDS, **options).logits
    assert calls.seen
    kept = options.get("attention_mask", PADDED.new_ones(2, 18))
    if kept.dim() == 2:  # what padding computes is not looked at by anybody
        expected, actual = expected * kept[..., None], actual * kept[..., None]
    torch.testing.assert_close(actual, expected, **CLOSE)


@pytest.mark.parametrize("mask", [OF_HEADS, (OF_HEADS > 0) | torch.eye(18).bool()])
def test_a_mask_of_heads_serves_all_batches(mask: torch.Tensor) -> None:
    reference, ours = pair("llama")
    expected, actual = (model(IDS, attention_mask=mask).logits for model in (reference, ours))
    torch.testing.assert_close(actual, expected, **CLOSE)


LAYERS = {
    ("llama", "plain"): {("BSND", 2, COMPRESSED)},
    ("llama", "no padding"): {("BSND", 2, COMPRESSED)},
    ("llama", "left padding"): {("BSND", 0, (2, 1, 18, 18))},
    ("llama", "packed"): {("TND", 3, COMPRESSED)},
    ("mistral", "plain"): {("BSND", 4, COMPRESSED)},
    ("mistral", "packed"): {("TND", 4, COMPRESSED)},
    ("gemma3", "plain"): {("BSND", 2, COMPRESSED), ("BSND", 4, COMPRESSED)},
    ("gemma3", "packed"): {("TND", 3, COMPRESSED), ("TND", 4, COMPRESSED)},
    ("llama4", "plain"): {("BSND", 1, (2, 1, 18, 18)), ("BSND", 2, COMPRESSED)},
    ("gpt_oss", "plain"): {("BSND", 2, COMPRESSED), ("BSND", 4, COMPRESSED)},
}


@pytest.mark.parametrize(("name", "arguments"), LAYERS)
def test_masks_reach_the_operator_as_rules(name: str, arguments: str, calls: Calls) -> None:
    ours = build(name, "fusion_attention", torch.float32)
    ours(IDS, **ARGUMENTS[arguments])
    assert calls.seen == LAYERS[name, arguments]


def test_a_padding_mask_takes_no_memory_for_rows() -> None:
    strides = []

    class Strides(Calls):
        def before(self, call: Call) -> None:
            strides.append(call.arguments["atten_mask"].stride())

    observer = Strides()
    _observers.add(observer)
    try:
        build("llama", "fusion_attention", torch.float32)(IDS, attention_mask=PADDED)
    finally:
        _observers.remove(observer)
    assert {stride[2] for stride in strides} == {0}


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "mistral", "gemma3", "gpt_oss"])
def test_generation(name: str, cache: str) -> None:
    options = {"max_new_tokens": 8, "do_sample": False, "attention_mask": PADDED}
    options |= {"cache_implementation": cache, "disable_compile": True}
    reference, ours = pair(name)
    assert torch.equal(ours.generate(IDS, **options), reference.generate(IDS, **options))


def test_new_tokens_in_one_go_after_a_cache() -> None:
    reference, ours = pair("mistral")
    results = []
    for model in (reference, ours):
        cache = model(IDS[:, :9], use_cache=True).past_key_values
        results.append(model(IDS[:, 9:], past_key_values=cache).logits)
    torch.testing.assert_close(results[1], results[0], **CLOSE)


def train(model: Any, options: dict[str, Any]) -> tuple[list[float], torch.Tensor]:
    """20 steps; the losses, and all parameters after them."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(20):
        loss = model.train()(IDS, labels=IDS, **options).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, torch.cat([x.detach().double().flatten() for x in model.parameters()])


@pytest.mark.parametrize("options", ["packed", "left padding"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "mistral"])
def test_training(name: str, options: str, calls: Calls) -> None:
    """Rounding alone parts the two: ours is as near to "sdpa" in float64 as "sdpa" in float32 is.

    Four times its distance is allowed: the errors of two correct float32 runs are of one size, not
    equal, and 20 steps multiply both. It is about 2e-6 after steps that change the loss by 3, and
    counts as no less than a unit in the last place of the loss, because it may be zero by chance.
    """
    arguments = ARGUMENTS[options]
    exact_losses, exact = train(build(name, "sdpa", torch.float64), arguments)
    rounded_losses, rounded = train(build(name, "sdpa", torch.float32), arguments)
    assert not calls.seen
    losses, parameters = train(build(name, "fusion_attention", torch.float32), arguments)
    assert {layout for layout, _, _ in calls.seen} == {"TND" if options == "packed" else "BSND"}
    assert losses[-1] < losses[0] - 2
    assert (parameters - exact).norm() <= 4 * (rounded - exact).norm()
    of_sdpa = max(abs(a - b) for a, b in zip(rounded_losses, exact_losses, strict=True))
    of_ours = max(abs(a - b) for a, b in zip(losses, exact_losses, strict=True))
    assert of_ours <= 4 * max(of_sdpa, torch.finfo(torch.float32).eps * max(exact_losses))


def test_training_with_gradient_checkpointing() -> None:
    plain, checkpointed = (build("llama", "fusion_attention", torch.float32) for _ in range(2))
    checkpointed.activation_checkpointing_enable({"use_reentrant": False})
    for model in (plain, checkpointed):
        model.train()(IDS, labels=IDS, position_ids=PACKED, use_cache=False).loss.backward()
    for ours, theirs in zip(checkpointed.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)


def test_sinks_are_trained() -> None:
    reference, ours = pair("gpt_oss")
    for model in (reference, ours):
        model(IDS, labels=IDS).loss.backward()
    for index in (0, 1):
        expected, actual = (m.model.layers[index].self_attn.sinks.grad for m in (reference, ours))
        assert expected.abs().max() > 1e-5
        torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("lengths", [False, True])
def test_compiled_whole_and_bit_for_bit(lengths: bool) -> None:
    torch._dynamo.reset()
    options: dict[str, Any] = {"position_ids": PACKED, "use_cache": False}
    if lengths:
        starts = torch.tensor([0, 7, 8, 18, 25, 26, 36], dtype=torch.int32)
        options |= {"cu_seq_lens_q": starts, "cu_seq_lens_k": starts}
        options |= {"max_length_q": 10, "max_length_k": 10}
    model = build("llama", "fusion_attention", torch.float32, num_hidden_layers=1)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    losses = [m(IDS, labels=IDS, **options).loss for m in (model, compiled)]
    assert torch.equal(*losses)
    gradients = [torch.autograd.grad(loss, list(model.parameters())) for loss in losses]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-7)


def test_sequence_lengths_say_what_is_packed(calls: Calls) -> None:
    model = build("mistral", "fusion_attention", torch.float32)
    starts = torch.tensor([0, 7, 8, 18, 25, 26, 36])
    packed = {"position_ids": PACKED, "use_cache": False}
    expected = model(IDS, **packed).logits
    lengths = {"cu_seq_lens_q": starts, "cu_seq_lens_k": starts}
    assert torch.equal(model(IDS, **packed, **lengths).logits, expected)
    assert calls.seen == {("TND", 4, COMPRESSED)}


QUERY, KEY = torch.randn(2, 4, 6, 8), torch.randn(2, 2, 6, 8)


class Layer(torch.nn.Module):
    """A layer that sees all keys."""

    is_causal = False


@pytest.mark.parametrize("causal", [False, True])
def test_position_bias_and_additive_masks_are_added(causal: bool) -> None:
    bias = torch.randn(1, 4, 6, 6, requires_grad=True)
    hidden = torch.ones(6, 6).triu(1).bool()
    added = torch.zeros(6, 6).masked_fill(hidden, torch.finfo(torch.float32).min)[None, None]
    expected = torch.nn.functional.scaled_dot_product_attention(
        QUERY, KEY, KEY, bias + added if causal else bias, enable_gqa=True
    ).transpose(1, 2)
    mask = added if causal else None
    out, weights = attention(Layer(), QUERY, KEY, KEY, mask, position_bias=bias)
    assert weights is None
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-5)
    ours, theirs = (torch.autograd.grad(x.square().sum(), bias)[0] for x in (out, expected))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


def test_dropout_drops() -> None:
    out, _ = attention(Layer(), QUERY, KEY, torch.ones_like(KEY), None, dropout=0.5)
    assert out.std() > 0.1


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"softcap": 30.0}, "no softcap"),
        ({"output_attentions": True}, "never stored"),
        ({"cache": object()}, "not from pages"),
    ],
)
def test_refusals(options: dict[str, Any], text: str) -> None:
    with pytest.raises(NotImplementedError, match=text):
        attention(Layer(), QUERY, KEY, KEY, None, **options)


@pytest.mark.parametrize(
    ("module", "text"),
    [("transformers", "need the package transformers"), ("transformers.masking_utils", "too old")],
)
def test_what_is_missing_is_said(module: str, text: str) -> None:
    """In a process of its own, whose import system has no such module."""
    program = f"""
import sys
class Without:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Without())
if {module!r} != "transformers":
    import types
    sys.modules["transformers"] = types.ModuleType("transformers")
    sys.modules["transformers"].__version__ = "4.40"
    sys.modules["transformers"].__path__ = []
import fusion_attention.integrations.transformers
"""
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    last = result.stderr.strip().splitlines()[-1]
    assert "FeatureError" in last
    assert text in last
