"""Numbers and modes in words, for reports. Knows no layout of text."""

import math

from fusion_attention._arguments import UNLIMITED
from fusion_attention.explaining.facts import Facts
from fusion_attention.explaining.reading import Reading

_MODES = {
    1: "the mask as given: row i sees the keys where atten_mask is 0",
    2: "causal from the top left: row i sees the keys up to i",
    3: "causal from the bottom right: row i sees the keys up to i + Skv - Sq",
    5: "prefix: causal from the bottom right, and the first prefix[b] keys for every row; where "
    "atten_mask is 0",
    6: "prefix: causal from the bottom right, and the first prefix[b] keys for every row",
}


def mode_in_words(facts: Facts) -> str:
    """What the mask arguments of a call mean together."""
    mode = facts.sparse_mode
    if facts.mask == "none":
        return "no atten_mask: every row sees every key" + (
            f", sparse_mode={mode} is not read" if mode else ""
        )
    if mode == 0 and min(facts.pre_tockens, facts.next_tockens) >= UNLIMITED:
        return "default: row i sees the keys where atten_mask is 0"
    if mode == 0:
        return f"default: row i sees {_band(facts, 'i')}, where atten_mask is 0"
    if mode == 4:
        return f"band from the bottom right: row i sees {_band(facts, 'i + Skv - Sq')}"
    if mode in (7, 8):
        which, rest = ("last", 3) if mode == 7 else ("first", 2)
        return (
            f"packed sequences of mode {rest}, cut between cards: sequence {facts.band_sequence} "
            f"(the {which}) was cut, its row i sees {_band(facts, 'i + Skv - Sq')}; the others are "
            f"{_MODES[rest]}"
        )
    return _MODES[mode]


def _band(facts: Facts, own: str) -> str:
    """The keys around a row's own one."""
    pre, following = facts.pre_tockens, facts.next_tockens
    first = "the first one" if pre >= UNLIMITED else _moved(own, -pre)
    last = "the last one" if following >= UNLIMITED else _moved(own, following)
    return f"the keys from {first} to {last}"


def _moved(own: str, by: int) -> str:
    return own if by == 0 else f"{own} {'-' if by < 0 else '+'} {abs(by)}"


def size(count: float) -> str:
    """A number of bytes: 1.5 MiB."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if count < 1024 or unit == "TiB":
            break
        count /= 1024
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}"


def flops(count: float) -> str:
    """A number of floating point operations: 34.4 GFLOP."""
    power = min(int(math.log10(count)) // 3, 5) if count >= 1 else 0
    return f"{count / 1000**power:.3g} {['', 'k', 'M', 'G', 'T', 'P'][power]}FLOP"


def many(count: int, noun: str) -> str:
    """1 row, 2 rows."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def share(part: float, whole: float) -> str:
    """A share as a percentage; never 0% or 100% for what is neither."""
    if not whole or part in (0, whole):
        return "0%" if part == 0 else "100%"
    percent = min(max(100 * part / whole, 0.01), 99.99)
    return f"{percent:.2f}%" if percent < 1 or percent > 99 else f"{percent:.1f}%"


def bias_in_words(facts: Facts, reading: Reading) -> str:
    """What pse adds to the scores."""
    if facts.pse == "slopes":
        distance = "distance" if reading.integer("pse_type") == 2 else "sqrt(distance)"
        return f"slopes: each head's slope times {distance} is subtracted from the scaled scores"
    what = "added to the scaled scores" if facts.pse_after_scale else "added before scaling"
    if facts.pse == "compressed":
        return f"the last 1024 rows of a bias that repeats along the diagonals, {what}"
    return f"a bias, {what}"


def dropout_in_words(facts: Facts, reading: Reading) -> list[str]:
    """What dropout does to the weights, and where its bits come from."""
    elements = f"{facts.numels:,} dropout elements (numels)"
    if facts.dropout == "none":
        return [f"none (keep_prob={facts.keep_prob:g}); {elements}; seed and offset come back 0"]
    if facts.dropout == "drop_all":
        return [
            f"keep_prob={facts.keep_prob:g} counts as 0: every weight is dropped, the output is 0"
        ]
    if facts.dropout == "external":
        return [
            f"the caller's dropout_mask, one bit per score, 1 keeps; kept weights times "
            f"{1 / facts.keep_prob:.6g}; {elements}"
        ]
    bits = {"float16": 10, "bfloat16": 7}.get(facts.dtype, 23)
    steps = round(facts.drop_rate * 2**bits)
    lines = [
        f"drops {steps}/{2**bits} = {facts.drop_rate:.6g} of the weights (asked for: "
        f"{1 - facts.keep_prob:.6g}; the step is {facts.dtype}'s)",
        f"kept weights times {1 / facts.keep_prob:.6g}; softmax_max and softmax_sum do not see it",
    ]
    given = reading.values.get("seed") is not None and reading.integer("seed", 1) != 0
    if reading.is_gradient:
        source = "the call's seed and offset: they must be those that the forward call returned"
    elif given:
        source = f"the call's seed={reading['seed']} and offset={reading['offset']}"
    else:
        source = (
            "torch's default generator: torch.manual_seed() repeats the mask; the pair is returned"
        )
    return [*lines, f"Philox bits from {source}", elements]
