"""The report: every analysis's table as CSV, its pictures, and one HTML file that holds them all."""

import base64
import inspect
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pandas as pd
from markupsafe import Markup, escape

from robustlr.analysis._verdicts import judge
from robustlr.errors import UserError, unknown
from robustlr.registry import analyses

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from robustlr.status import Progress
    from robustlr.study import Study

LONG_TABLE_ROWS = 40
ORDER = ("sensitivity", "near-optimal", "gap", "warmup", "divergence", "lr-curves", "heatmap")
"""The sections of the report that come first, in this order; others follow by name."""


@dataclass(frozen=True)
class Picture:
    """A drawn figure: its file, its text alternative and its PNG bytes."""

    file: str
    alternative: str
    png: bytes

    @property
    def data_uri(self) -> str:
        """The picture as an address that a page can hold."""
        return f"data:image/png;base64,{base64.b64encode(self.png).decode()}"


@dataclass(frozen=True)
class Section:
    """One analysis of the report."""

    title: str
    question: str
    method: Sequence[Markup]
    file: str
    table: str
    rows: int
    pictures: Sequence[Picture]


def write_report(
    trials: pd.DataFrame,
    out: Path,
    *,
    study: "Study",
    progress: "Progress",
    only: Sequence[str] = (),
) -> Path:
    """Write the report on a study's tidy table into the folder ``out``; return the HTML file.

    The page says how many of the study's trials (``progress``) it does not speak of.

    Raises:
        UserError: there are no trials, or no analysis has a name in ``only``.
    """
    if trials.empty:
        raise UserError(
            f'study "{study.name}" has no finished trial yet: robustlr worker {study.name}'
        )
    modules = analyses()
    for name in only:
        if name not in modules:
            raise unknown("analysis", name, modules)
    try:
        out.mkdir(parents=True, exist_ok=True)
        trials.to_csv(out / "trials.csv", index=False)
        names = only or sorted(
            modules, key=lambda n: (ORDER.index(n) if n in ORDER else len(ORDER), n)
        )
        sections = [_section(name, modules[name], trials, out) for name in names]
        verdicts = judge(study.findings, trials)
        if not verdicts.empty:
            verdicts.to_csv(out / "findings.csv", index=False)
        page = out / "report.html"
        html = _render(trials, study, progress, sections, _html_table(verdicts))
        page.write_text(html, encoding="utf-8")
    except OSError as error:
        raise UserError(f"the report cannot be written to {out}: {error.strerror}") from error
    return page


def pictures(name: str, module: ModuleType, table: pd.DataFrame) -> Iterator[Picture]:
    """Yield an analysis's pictures: one, or one for each value of its ``PICTURE_PER`` column."""
    stem = name.replace("-", "_")
    per = getattr(module, "PICTURE_PER", None)
    groups = table.groupby(per, sort=False) if per else [("", table)]
    for value, group in groups:
        file = f"{stem}-{value}.png".replace(":", "-").replace("/", "-") if value else f"{stem}.png"
        subject = f"{module.TITLE}, {value}" if value else module.TITLE
        alternative = f"{subject}: the numbers are in {stem}.csv."
        yield Picture(file, alternative, _png(module.draw(group)))


def _png(figure: "Figure") -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def _section(name: str, module: ModuleType, trials: pd.DataFrame, out: Path) -> Section:
    table = module.compute(trials)
    question, _, method = (inspect.getdoc(module) or "").partition("\n")
    file = f"{name.replace('-', '_')}.csv"
    header = pd.DataFrame(columns=["task", "optimizer"])  # an empty file is no CSV
    (header if table.empty else table).to_csv(out / file, index=False)
    drawn = [] if table.empty else list(pictures(name, module, table))
    for picture in drawn:
        (out / picture.file).write_bytes(picture.png)
    return Section(
        title=module.TITLE,
        question=question,
        method=[_paragraph(text) for text in method.strip().split("\n\n")],
        file=file,
        table=_html_table(table),
        rows=len(table),
        pictures=drawn,
    )


def _tasks_with_metrics(trials: pd.DataFrame) -> str:
    """Return the tasks, each with what its values are."""
    if "metric" not in trials:
        return ", ".join(trials["task"].unique())
    metrics = trials.groupby("task", sort=False)["metric"].first()
    return ", ".join(f"{task} ({metric})" for task, metric in metrics.items())


def _paragraph(text: str) -> Markup:
    """Return a docstring's paragraph with its ``names`` marked as code."""
    return Markup(re.sub(r"``(.+?)``", r"<code>\1</code>", str(escape(" ".join(text.split())))))


def _html_table(table: pd.DataFrame) -> str:
    if table.empty:
        return ""
    table = table.drop(columns="conditions", errors="ignore")  # their names head columns already
    return str(table.to_html(index=False, float_format=lambda v: f"{v:.3g}", na_rep="–", border=0))


def _render(
    trials: pd.DataFrame,
    study: "Study",
    progress: "Progress",
    sections: Sequence[Section],
    verdicts: str,
) -> str:
    from jinja2 import Environment, PackageLoader

    environment = Environment(loader=PackageLoader("robustlr", "."), autoescape=True)
    facts: dict[str, Any] = {
        "trials": len(trials),
        "total": progress.total,
        "failed": progress.failed,
        "tasks": _tasks_with_metrics(trials),
        "optimizers": ", ".join(trials["optimizer"].unique()),
        "seeds": trials["seed"].nunique(),
        "diverged": int(trials["diverged"].astype(bool).sum()),
        "hours": trials["seconds"].sum() / 3600,
    }
    template = environment.get_template("report.html.j2")
    return template.render(
        study=study, facts=facts, sections=sections, verdicts=verdicts, long=LONG_TABLE_ROWS
    )
