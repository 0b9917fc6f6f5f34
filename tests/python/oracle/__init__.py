"""The operator in dense float64, written from its specification to be compared with.

Every mask, bias and dropout mask is materialised here and nothing is fast. This package shares no
code and no idea of an algorithm with the library, and must never import it.
"""

from oracle.attention import Quantity, Result, attention
from oracle.dropout import keep_mask, philox_words
from oracle.geometry import FLT_MAX, Geometry
from oracle.visibility import visible_keys

__all__ = [
    "FLT_MAX",
    "Geometry",
    "Quantity",
    "Result",
    "attention",
    "keep_mask",
    "philox_words",
    "visible_keys",
]
