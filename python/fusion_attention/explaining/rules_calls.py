"""Lint rules about shapes, layouts, scale, dropout and the hand-written gradient call."""

import math
from collections.abc import Iterator

from fusion_attention.explaining.findings import Case, Finding


def limits(case: Case) -> Iterator[Finding]:
    """L10: sizes that the operator does not take."""
    call = case.reading
    sizes = call.sizes
    value = call.tensor("value")
    bounds = {"N": 256, "D": 768, "Sq": 1 << 20, "Skv": 1 << 20, "Tq": 1 << 20, "B": 1 << 21}
    for letter, bound in bounds.items():
        if sizes.get(letter, 0) > bound:
            yield _limit(f"{letter}={sizes[letter]} is above {bound}", "Split it over more calls.")
    if "D" not in sizes or "N" not in sizes or value is None or value.dim() != len(call.layout):
        return
    if value.shape[-1] > sizes["D"]:
        yield _limit(
            f"value has {value.shape[-1]} channels, more than the {sizes['D']} of query",
            "Pad query and key with zeros up to Dv.",
        )
    if sizes.get("Dkv", sizes["D"]) != sizes["D"] <= bounds["D"]:
        yield _limit(f"query has D={sizes['D']}, key D={sizes['Dkv']}", "Make them equal.")
    heads, kv_heads = sizes["N"], sizes.get("Nkv", 0)
    if kv_heads and heads % kv_heads:
        yield _limit(
            f"N={heads} is no multiple of the {kv_heads} heads of key",
            "Each key head serves N / Nkv query heads.",
        )


def _limit(title: str, mend: str) -> Finding:
    why = "The operator refuses it, here and on the device."
    return Finding("L10", "wrong", title, why, mend)


def scale(case: Case) -> Iterator[Finding]:
    """L11: the default of scale is 1."""
    call, facts = case.reading, case.facts
    if facts is None or facts.head_dim <= 1:
        return
    given, dim = call.number("scale"), facts.head_dim + facts.rope_dim
    name = call.spelling("scale")
    right = f"Pass {name}={dim}**-0.5."
    if given == 1.0:
        yield Finding(
            "L11",
            "risk",
            f"{name}=1.0 with D={dim}",
            "1.0 is the default: unlike scaled_dot_product_attention the operator does not divide "
            "by sqrt(D) on its own, and unscaled scores make softmax nearly one-hot.",
            f"{right} Leave it if query is scaled already.",
        )
    elif math.isclose(given, math.sqrt(dim), rel_tol=1e-3):
        yield Finding(
            "L11",
            "risk",
            f"{name}={given:g} is sqrt(D), not its inverse",
            "Scores are multiplied by scale.",
            right,
        )


def gradient_without_state(case: Case) -> Iterator[Finding]:
    """L13: a gradient that does not know the forward call's dropout mask."""
    call = case.reading
    keep_prob = call.number("keep_prob")
    state = ("seed", "offset", "numels")
    if (
        not call.is_gradient
        or not 0 < keep_prob < 1 - 1e-9
        or call.tensor("dropout_mask") is not None
    ):
        return
    if any(call.values.get(name) is not None and call.integer(name, 1) != 0 for name in state):
        return
    yield Finding(
        "L13",
        "wrong",
        f"keep_prob={keep_prob:g} without seed, offset and numels",
        "The gradient makes the dropout mask again from (seed, offset). With zeros it makes "
        "another mask than the forward call had, and the gradients are silently wrong.",
        "Pass the forward call's results 4, 5 and 6 as seed, offset and numels.",
    )


def heads_and_layout(case: Case) -> Iterator[Finding]:
    """L14: head_num that is not N, and shapes that fit two layouts."""
    call = case.reading
    query, key = call.tensor("query"), call.tensor("key")
    heads, sizes = call.integer("head_num"), call.sizes
    if query is None or not {"Sq", "Tq"} & set(sizes):
        return
    if "N" in sizes and heads != sizes["N"]:
        other = {"BNSD": ("BSND", 2), "BSND": ("BNSD", 1)}.get(call.layout)
        swapped = other is not None and query.shape[other[1]] == heads
        kv = heads == sizes.get("Nkv")
        yield Finding(
            "L14",
            "wrong",
            f"head_num={heads}, but query has N={sizes['N']} in layout {call.layout}",
            f"head_num is the number of query heads, the N of {call.layout}."
            + (" This is the number of key heads." if kv else ""),
            f"Pass input_layout='{other[0]}': there N is {heads}."
            if other and swapped
            else f"Pass head_num={sizes['N']}, or check input_layout.",
        )
    elif call.layout in ("BNSD", "BSND") and query.shape[1] == query.shape[2] > 1:
        # With other lengths or head counts on the key's side one reading alone is legal.
        if key is not None and key.dim() == 4 and key.shape[1] == key.shape[2]:
            yield Finding(
                "L14",
                "advice",
                f"query of shape {list(query.shape)} fits both BNSD and BSND",
                f"It is read as {call.layout}: nothing can tell if that is meant.",
                "Check that the axis of tokens is where input_layout says.",
            )
    elif call.layout in ("BSH", "SBH") and sizes["B"] > sizes["Sq"] > 1 and sizes["B"] >= 128:
        other, axes, first = {
            "BSH": ("SBH", "[S, B, H], Megatron's order", "holds tokens"),
            "SBH": ("BSH", "[B, S, H]", "is the batch"),
        }[call.layout]
        yield Finding(
            "L14",
            "risk",
            f"layout {call.layout} with B={sizes['B']} and Sq={sizes['Sq']}",
            f"It looks like {axes}: attention would run over the batch.",
            f"Pass input_layout='{other}' if the first axis {first}.",
        )


def heads_for_channels(case: Case) -> Iterator[Finding]:
    """L14: head_dim passed as head_num, which layouts with both on one axis cannot tell."""
    call, facts = case.reading, case.facts
    if facts is None or call.layout not in ("BSH", "SBH") or facts.q_heads == facts.head_dim:
        return
    heads, given = facts.q_heads, call.number("scale")
    if heads > 1 and math.isclose(given, heads**-0.5, rel_tol=1e-6):
        yield Finding(
            "L14",
            "risk",
            f"head_num={heads} and {call.spelling('scale')}={heads}**-0.5, but D={facts.head_dim}",
            f"H = {heads * facts.head_dim} is cut into head_num heads, here of {facts.head_dim} "
            "channels. The scale is that of heads of head_num channels.",
            f"Pass head_num={facts.head_dim} if a head has {heads} channels.",
        )


def letter_case(case: Case) -> Iterator[Finding]:
    """L15: a layout in lower case."""
    given = case.reading["input_layout"]
    if case.reading.layout != "TND" or given == "TND":
        return
    yield Finding(
        "L15",
        "risk",
        f"input_layout='{given}'",
        "Here letter case does not matter. The device's library compares with 'TND' before it "
        "changes the case: its checks of lengths are skipped, sparse_mode 7 and 8 are refused.",
        "Write 'TND'.",
    )


def small_keep_prob(case: Case) -> Iterator[Finding]:
    """L19: a drop rate passed as keep_prob."""
    keep_prob = case.reading.number("keep_prob")
    if case.reading.tensor("dropout_mask") is not None or not 0 <= keep_prob < 0.5:
        return
    yield Finding(
        "L19",
        "wrong" if keep_prob == 0 else "risk",
        f"keep_prob={keep_prob:g} drops {1 - keep_prob:.0%} of the weights",
        "keep_prob is the share that is kept; PyTorch's dropout_p and flash-attn's p are the share "
        "that is dropped.",
        f"Pass keep_prob=1 - p, {1 - keep_prob:g} for p={keep_prob:g}.",
    )


def quantised_rate(case: Case) -> Iterator[Finding]:
    """L20: a drop rate that the dtype cannot say."""
    facts = case.facts
    if facts is None or facts.dropout != "philox":
        return
    wanted = 1 - facts.keep_prob
    if abs(facts.drop_rate - wanted) > 0.1 * wanted:
        yield Finding(
            "L20",
            "risk",
            f"dropout of {wanted:g} becomes {facts.drop_rate:g} in {facts.dtype}",
            "The random numbers have the query's dtype, here and on the device, and a rate is "
            "rounded up to their step; kept weights are still divided by keep_prob.",
            "Use a rate that is a multiple of 1/128 (bfloat16) or 1/1024 (float16).",
        )


RULES = (
    limits,
    scale,
    gradient_without_state,
    heads_and_layout,
    heads_for_channels,
    letter_case,
    small_keep_prob,
    quantised_rate,
)
