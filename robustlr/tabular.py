"""How a table of numbers is shown to people: in the report, in LaTeX, on a terminal."""

from typing import Any

import pandas as pd

MISSING = "–"
ARROWS = {"minimize": "↓", "maximize": "↑"}
ESCAPED = {c: f"\\{c}" for c in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "↓": r"$\downarrow$",
    "↑": r"$\uparrow$",
    "–": "--",
    "×": r"$\times$",
    "≤": r"$\leq$",
    "−": "$-$",
}


def shown(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table as texts, an estimate and its bounds in one column, ``0.12 [0.1, 0.15]``.

    Bounds are the two columns after the estimate, named ``low`` and ``high`` or ending in ``_low`` and
    ``_high``. The metric carries an arrow that points where values are better.
    """
    table = table.drop(columns="conditions", errors="ignore")  # their names head columns already
    if {"metric", "direction"} <= {*table}:
        arrows = table["direction"].map(ARROWS).fillna("")
        table = table.assign(metric=table["metric"].astype(str) + " " + arrows)
        table = table.drop(columns="direction")
    names = list(table)
    texts = {name: [number(value) for value in table[name]] for name in names}
    columns = {}
    while names:
        name = names.pop(0)
        columns[name.replace("_", " ")] = texts[name]
        if _are_bounds(table, name, names[:2]):
            bounds = zip(texts[name], *(texts[bound] for bound in names[:2]), strict=True)
            columns[name.replace("_", " ")] = [_with_bounds(*each) for each in bounds]
            del names[:2]
    return pd.DataFrame(columns)


def _are_bounds(table: pd.DataFrame, name: str, after: list[str]) -> bool:
    if len(after) < 2 or not pd.api.types.is_float_dtype(table[name]):
        return False
    prefixes = [bound.removesuffix(end) for bound, end in zip(after, ("low", "high"), strict=True)]
    return prefixes[0] == prefixes[1] and prefixes[0] + "low" == after[0]


def _with_bounds(estimate: str, low: str, high: str) -> str:
    return estimate if MISSING in (low, high) else f"{estimate} [{low}, {high}]"


def number(value: Any) -> str:
    """Return a value as text: numbers of three digits, yes and no."""
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple | dict):
        return str(value)
    if pd.isna(value):
        return MISSING
    if value is True or value is False or str(value) in ("True", "False"):
        return "yes" if value else "no"
    if isinstance(value, float) and (not value.is_integer() or abs(value) >= 1e6):
        return f"{value:.3g}" if abs(value) < 100 or abs(value) >= 1e6 else f"{value:.0f}"
    return f"{value:.0f}" if isinstance(value, float) else str(value)


def as_lines(texts: pd.DataFrame) -> list[str]:
    """Return a table of texts as lines whose columns are as wide as their values."""
    rows: list[list[str]] = [list(texts.columns), *texts.to_numpy().tolist()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def as_html(table: pd.DataFrame) -> str:
    """Return the table as HTML, or nothing if it is empty."""
    if table.empty:
        return ""
    return str(shown(table).to_html(index=False, border=0))


def as_latex(table: pd.DataFrame, caption: str = "") -> str:
    """Return the table in LaTeX, for the packages ``booktabs`` and ``longtable``.

    Texts are to the left, numbers to the right; every special character is escaped.
    """
    texts = shown(table)
    are_numbers = [all(_is_number(text) for text in texts[name]) for name in texts]
    align = "".join("r" if right else "l" for right in are_numbers)
    head = " & ".join(map(escape_latex, texts.columns)) + r" \\"
    rows = [" & ".join(map(escape_latex, row)) + r" \\" for row in texts.itertuples(index=False)]
    title = [rf"\caption{{{escape_latex(caption)}}} \\"] if caption else []
    lines = [rf"\begin{{longtable}}{{{align}}}", *title, r"\toprule", head, r"\midrule"]
    return "\n".join([*lines, r"\endhead", *rows, r"\bottomrule", r"\end{longtable}", ""])


def _is_number(text: str) -> bool:
    return text[:1].isdigit() or text[:1] in ("-", MISSING)


def escape_latex(text: str) -> str:
    """Return a text as LaTeX prints it."""
    return "".join(ESCAPED.get(character, character) for character in str(text))
