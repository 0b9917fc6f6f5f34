"""Panels as text: two characters a cell, in Unicode blocks or in ASCII."""

from itertools import zip_longest

from fusion_attention.explaining.panels import EMPTY, FULL, OUTSIDE, PARTIAL, Panel

_UNICODE = {OUTSIDE: "  ", EMPTY: "··", PARTIAL: "▒▒", FULL: "██"}
_ASCII = {OUTSIDE: "  ", EMPTY: "..", PARTIAL: "++", FULL: "##"}
_GAP = "    "


def legend(panels: list[Panel], charset: str) -> str:
    """What the characters mean."""
    marks = _UNICODE if charset == "unicode" else _ASCII
    tiles = any(panel.size > 1 for panel in panels)
    parts = [f"{marks[FULL]} " + ("all visible" if tiles else "visible")]
    if tiles:
        parts.append(f"{marks[PARTIAL]} partly")
    parts.append(f"{marks[EMPTY]} " + ("all masked" if tiles else "masked"))
    return "   ".join(parts) + "   rows down, keys across"


def lines_of(panel: Panel, charset: str) -> list[str]:
    """A panel with its title, and the tokens at which rows start."""
    marks = _UNICODE if charset == "unicode" else _ASCII
    last = panel.row + (len(panel.cells) - 1) * panel.size
    width = len(str(last))
    cell = (
        f"a cell is {panel.size} x {panel.size} tokens" if panel.size > 1 else "a cell is a token"
    )
    lines = [panel.title, cell]
    for index, row in enumerate(panel.cells.tolist()):
        body = "".join(marks[value] for value in row).rstrip()
        lines.append(f"{panel.row + index * panel.size:>{width}} {body}")
    return lines


def beside(panels: list[Panel], width: int, charset: str) -> list[str]:
    """The panels, as many side by side as the width allows."""
    rows: list[list[list[str]]] = []
    used = 0
    for panel in panels:
        block = lines_of(panel, charset)
        columns = max(map(len, block))
        if rows and used + len(_GAP) + columns <= width:
            rows[-1].append(block)
            used += len(_GAP) + columns
        else:
            rows.append([block])
            used = columns
    result: list[str] = []
    for row in rows:
        widths = [max(map(len, block)) for block in row]
        result += [""] if result else []
        for parts in zip_longest(*row, fillvalue=""):
            line = _GAP.join(f"{part:<{w}}" for part, w in zip(parts, widths, strict=True))
            result.append(line.rstrip())
    return result
