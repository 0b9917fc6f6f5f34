"""Finding: one thing that a lint rule has to say about a call. Case: what a rule may look at."""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

from fusion_attention.explaining.facts import Facts, facts_of
from fusion_attention.explaining.reading import Reading, refusal
from fusion_attention.explaining.visible import Visible, visible_of

Severity: TypeAlias = Literal["wrong", "risk", "advice"]
SEVERITIES: tuple[Severity, ...] = ("wrong", "risk", "advice")


@dataclass(frozen=True)
class Finding:
    """What is noteworthy about a call.

    Attributes:
        id: The rule, "L01" and so on.
        severity: "wrong": the operator or the device refuses the call, or its result cannot be
            what is meant. "risk": it may be meant, but has bitten others. "advice": harmless.
        title: What it is, in a line, with the call's own numbers.
        why: What the operator or the device does with it.
        mend: What to write instead.
    """

    id: str
    severity: Severity
    title: str
    why: str
    mend: str

    def __str__(self) -> str:
        return f"{self.id} {self.title}. {self.why} {self.mend}"


@dataclass(frozen=True)
class Case:
    """A call with everything that the rules ask about it, found out when first asked for."""

    reading: Reading

    @functools.cached_property
    def error(self) -> Exception | None:
        """Why the operator would refuse the call."""
        return refusal(self.reading)

    @functools.cached_property
    def facts(self) -> Facts | None:
        """The validated call; of a refused one, what holds without the arguments in the way."""
        return facts_of(self.reading)

    @functools.cached_property
    def visible(self) -> Visible | None:
        """The effective mask, where the call's own mask is legal in shape."""
        if self.facts is None or "atten_mask" in self.facts.without:
            return None
        return visible_of(self.facts, self.reading.data("atten_mask"))


Rule: TypeAlias = Callable[[Case], Iterator[Finding]]
