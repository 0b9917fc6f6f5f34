"""What is said when a program asks for something of the vendor's package that is not here."""

from collections.abc import Iterable


def absent(name: str, attribute: str, has: Iterable[str]) -> AttributeError:
    """Returns the error for `name`.`attribute`, which says what of `name` is close to it."""
    return AttributeError(sentence(name, attribute, has), name=attribute)


def sentence(name: str, attribute: str, has: Iterable[str], modules: Iterable[str] = ()) -> str:
    """Returns what the error says; the modules of a package are so few that all are named.

    Example:
        >>> sentence("torch_npu.npu", "Strem", ["Event", "Stream"])[-76:]
        'Close to it: Stream. dir(torch_npu.npu) and docs/porting.md say what it has.'
    """
    import difflib  # here, for most programs never ask

    close = difflib.get_close_matches(attribute, {*has, *modules}, n=3)
    hint = f"Close to it: {', '.join(close)}. " if close else ""
    public = sorted(x for x in modules if x[0] != "_")
    if public:
        hint += f"Its modules are {', '.join(public)}. "
    return (
        f"{name} has no '{attribute}' here: fusion_attention stands in for the vendor's package, "
        f"which is not installed. {hint}dir({name}) and docs/porting.md say what it has."
    )
