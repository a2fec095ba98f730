import math

import pandas as pd

from robustlr.tabular import as_html, as_latex, escape_latex, number, shown

TABLE = pd.DataFrame(
    {
        "task": ["a_b", "50 % & more"],
        "metric": ["error", "reward"],
        "direction": ["minimize", "maximize"],
        "conditions": ["", ""],
        "gap": [0.12345, 1234.5],
        "low": [0.1, math.nan],
        "high": [0.2, math.nan],
        "gap_share": [0.5, 0.25],
        "share_low": [0.0, 0.1],
        "share_high": [1.0, 0.3],
        "lr_low": [0.1, 0.2],
        "edge": [True, False],
        "seeds": [3, 1],
    }
)


def test_an_estimate_and_its_bounds_are_one_column() -> None:
    texts = shown(TABLE)
    assert list(texts) == ["task", "metric", "gap", "gap share", "lr low", "edge", "seeds"]
    assert texts["metric"].tolist() == ["error ↓", "reward ↑"]
    assert texts["gap"].tolist() == ["0.123 [0.1, 0.2]", "1234"]
    assert texts["gap share"].tolist() == ["0.5 [0, 1]", "0.25 [0.1, 0.3]"]
    assert texts["edge"].tolist() == ["yes", "no"]


def test_numbers_are_short_and_whole() -> None:
    assert [number(v) for v in (1e-5, 0.12345, 123.4, 12345.6, 1.4e14, 3.0, 7, math.nan, None)] == [
        *("1e-05", "0.123", "123", "12346", "1.4e+14", "3", "7", "–", "–")
    ]
    assert number(float("inf")) == "inf"


def test_latex_is_escaped_and_aligned() -> None:
    latex = as_latex(TABLE, "Gap, 95 %")
    assert r"\begin{longtable}{llrrrlr}" in latex
    assert r"a\_b & error $\downarrow$ & 0.123 [0.1, 0.2]" in latex
    assert r"50 \% \& more" in latex
    assert r"\caption{Gap, 95 \%} \\" in latex
    assert (
        escape_latex("x^2~{y}\\") == r"x\textasciicircum{}2\textasciitilde{}\{y\}\textbackslash{}"
    )
    rows = [line for line in latex.splitlines() if line.endswith(r"\\") and "caption" not in line]
    assert {line.replace(r"\&", "").count("&") for line in rows} == {6}


def test_html_is_escaped() -> None:
    assert "50 % &amp; more" in as_html(TABLE)
    assert as_html(TABLE.iloc[:0]) == ""
