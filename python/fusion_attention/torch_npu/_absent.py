"""What is said when a program asks for something of the vendor's package that is not here."""

from collections.abc import Iterable


def absent(name: str, attribute: str, has: Iterable[str]) -> AttributeError:
    """Returns the error for `name`.`attribute`, which names what `name` has instead."""
    return AttributeError(
        f"{name} has no '{attribute}' here: fusion_attention stands in for the vendor's package, "
        f"which is not installed. It has {', '.join(sorted(has))}.",
        name=attribute,
    )
