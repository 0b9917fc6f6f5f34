"""The refusal: what a converter raises where the meaning of a call could not be kept."""

from fusion_attention._errors import FeatureError


class ConversionError(FeatureError, NotImplementedError):
    """A call means something that the other side cannot say; the text says what, and a way out."""


def refuse(what: str, why: str, remedy: str) -> ConversionError:
    """Returns the error `convert: <what> cannot be kept: <why>. <remedy>.`."""
    return ConversionError(f"convert: {what} cannot be kept: {why}. {remedy}.")


def refuse_invalid(function: str, rule: str) -> ConversionError:
    """Returns the error for a call that `function` itself would not take."""
    return ConversionError(f"convert: this is no call of {function}: {rule}.")
