"""The report: each analysis's question, verdict, evidence and limits, in one HTML file.

Beside it lie the tables, as CSV and LaTeX, the pictures, and the trials, as CSV and, where pyarrow is
installed, as Parquet.
"""

import base64
import inspect
import io
import itertools
import multiprocessing
import os
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pandas as pd
from markupsafe import Markup, escape

from robustlr.analysis._sentences import many
from robustlr.analysis._verdicts import judge
from robustlr.compare import compare
from robustlr.errors import UserError, unknown
from robustlr.registry import analyses
from robustlr.tabular import as_html, as_latex

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from robustlr.status import Progress
    from robustlr.study import Study

MOST_ROWS = 200
"""How many rows of a table the page shows; the file has all."""

MOST_OF_NAME = 100
"""How many characters of a picture's name are kept."""

LONG_TABLE_ROWS = 40
"""A longer table is folded on a screen; on paper none is."""

MANY_TRIALS = 20_000
"""From here on sections are made in several processes, each of which takes seconds to start."""

ORDER = (
    "sensitivity",
    "relative-performance",
    "near-optimal",
    "width",
    "gap",
    "winners-curse",
    "conditions",
    "warmup",
    "stability",
    "divergence",
    "lr-curves",
    "heatmap",
    "transfer",
    "tuning-dimension",
    "budget",
    "tunability",
    "rank-stability",
    "importance",
    "shapley",
    "interaction",
    "ranking",
    "improvement",
    "profiles",
    "time-to-target",
    "noise",
    "seeds",
)
"""The sections of the report that come first, in this order; others follow by name."""


@dataclass(frozen=True)
class Picture:
    """A drawn figure: its file, what it is of, its text alternative and its PNG bytes."""

    file: str
    subject: str
    alternative: str
    png: bytes

    @property
    def data_uri(self) -> str:
        """The picture as an address that a page can hold."""
        return f"data:image/png;base64,{base64.b64encode(self.png).decode()}"


@dataclass(frozen=True)
class Section:
    """One analysis of the report: what it asks, what it finds, what shows it, what it cannot say."""

    name: str
    title: str
    verdict: str
    method: Sequence[Markup]
    limits: Sequence[Markup]
    file: str
    table: str
    rows: int
    question: str = ""
    pictures: Sequence[Picture] = ()


def write_report(
    trials: pd.DataFrame,
    out: Path,
    *,
    study: "Study | None" = None,
    progress: "Progress | None" = None,
    title: str = "",
    only: Sequence[str] = (),
) -> Path:
    """Write the report on a tidy table into the folder ``out``; return the HTML file.

    With ``only`` it has their names, beside the whole report. Of a ``study``, the page says what it
    asks, how many of its trials (``progress``) the page does not speak of, and whether its findings
    and the papers' numbers show. ``title`` heads the page where there is no study.

    Raises:
        UserError: there are no trials, or no analysis has a name in ``only``.
    """
    if trials.empty and study is not None:
        raise UserError(
            f'study "{study.name}" has no finished trial yet: robustlr worker {study.name}'
        )
    modules = analyses()
    for name in only:
        if name not in modules:
            raise unknown("analysis", name, modules)
    try:
        out.mkdir(parents=True, exist_ok=True)
        _write_trials(trials, out)
        names = only or sorted(
            modules, key=lambda n: (ORDER.index(n) if n in ORDER else len(ORDER), n)
        )
        own = [] if study is None or only else _of_study(study, trials, out)
        sections = [*own, *_sections(names, trials, out)]
        page = out / f"{'-'.join(['report', *only])}.html"
        page.write_text(_render(trials, study, progress, title, sections), encoding="utf-8")
    except OSError as error:
        why = "that is a file" if isinstance(error, FileExistsError) else error.strerror
        raise UserError(f"the report cannot be written to the folder {out}: {why}") from error
    return page


def pictures(
    name: str, module: ModuleType, table: pd.DataFrame, verdict: str = ""
) -> Iterator[Picture]:
    """Yield an analysis's pictures: one, or one for each value of its ``PICTURE_PER`` column."""
    stem = name.replace("-", "_")
    per = getattr(module, "PICTURE_PER", None)
    groups = table.groupby(per, sort=False) if per else [("", table)]
    files: Counter[str] = Counter()
    for value, group in groups:
        # A name that every file system takes, of which there may be two.
        short = re.sub(r"[^\w.-]+", "-", f"{stem}-{value}" if value else stem)[:MOST_OF_NAME]
        files[short] += 1
        file = f"{short}-{files[short]}.png" if files[short] > 1 else f"{short}.png"
        subject = f"{module.TITLE}, {value}" if value else module.TITLE
        alternative = " ".join(
            filter(None, [f"{subject}.", verdict, f"The numbers are in {stem}.csv."])
        )
        plain = group.replace({r"\$": r"\\$"}, regex=True)  # in matplotlib it begins a formula
        yield Picture(file, subject, alternative, _png(module.draw(plain)))


def _png(figure: "Figure") -> bytes:
    from PIL import Image

    drawn, small = io.BytesIO(), io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # a name in letters that the font has not
        figure.savefig(drawn, format="png", dpi=110, bbox_inches="tight")  # titles stay whole
    # A page holds dozens of pictures: with a palette they take a third of the space.
    Image.open(drawn).convert("RGB").quantize(dither=Image.Dither.NONE).save(small, "png")
    return small.getvalue()


def _write_trials(trials: pd.DataFrame, out: Path) -> None:
    trials.to_csv(out / "trials.csv", index=False)
    if find_spec("pyarrow") is not None:
        mixed = [name for name in trials if trials[name].dtype == object]
        # A column of numbers and texts, as hyperparameters can be, has no type but text there.
        trials.assign(**{name: _of_one_type(trials[name]) for name in mixed}).to_parquet(
            out / "trials.parquet", index=False
        )


def _of_one_type(values: pd.Series) -> pd.Series:
    kinds = {type(value) for value in values.dropna()}
    return values if len(kinds) <= 1 else values.map(str, na_action="ignore")


def _write_table(table: pd.DataFrame, out: Path, stem: str, caption: str) -> None:
    header = pd.DataFrame(columns=["task", "optimizer"])  # an empty file is no CSV
    (header if table.empty else table).to_csv(out / f"{stem}.csv", index=False)
    if not table.empty:
        latex = as_latex(table, caption)
        (out / f"{stem}.tex").write_text(latex, encoding="utf-8")


def _sections(names: Sequence[str], trials: pd.DataFrame, out: Path) -> Iterator[Section]:
    """Yield the analyses' sections: those of many trials are made on all cores."""
    processes = min(len(names), os.cpu_count() or 1)
    if len(trials) < MANY_TRIALS or processes == 1:
        for name in names:
            yield _section(name, trials, out)
        return
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads can hang
    with ProcessPoolExecutor(processes, context, _keep, (trials,)) as pool:
        yield from pool.map(_section_of_kept, names, itertools.repeat(out))


_kept: list[pd.DataFrame] = []
"""In a process that makes sections: the trials, sent once."""


def _keep(trials: pd.DataFrame) -> None:
    _kept.append(trials)


def _section_of_kept(name: str, out: Path) -> Section:
    return _section(name, _kept[0], out)


def _section(name: str, trials: pd.DataFrame, out: Path) -> Section:
    module = analyses()[name]
    table = module.compute(trials)
    question, _, method = (inspect.getdoc(module) or "").partition("\n")
    stem = name.replace("-", "_")
    _write_table(table, out, stem, module.TITLE)
    verdict = module.verdict(table)
    drawn = [] if table.empty else list(pictures(name, module, table, verdict))
    for picture in drawn:
        (out / picture.file).write_bytes(picture.png)
    paragraphs = [text for text in method.strip().split("\n\n") if text]
    first = next((i for i, text in enumerate(paragraphs) if text.startswith("Limits:")), None)
    limits = [] if first is None else paragraphs[first:]
    return Section(
        name=name,
        title=module.TITLE,
        question=question,
        verdict=verdict,
        method=[_paragraph(text) for text in paragraphs[: len(paragraphs) - len(limits)]],
        limits=[_paragraph(_sentence(text.removeprefix("Limits:"))) for text in limits],
        file=f"{stem}.csv",
        table=as_html(table.head(MOST_ROWS)),
        rows=len(table),
        pictures=drawn,
    )


FINDINGS = """
Each row compares two arms on one task, at their best settings unless it says ``default`` or ``median``
(over the settings); a tuned setting is chosen for each seed on the other seeds. ``difference`` is how
much better the first is, in the metric's unit (of perplexities, in nats), with Student's interval over
seeds. The verdict is yes where the whole interval lies above minus the ``margin`` that the finding
allows, no where none of it does, and undecided where part of it does, as with a single seed."""

PAPERS = """
Tuned results beside the published values, both with ranks within one table of a paper. A value is the
mean over seeds, each at the setting that is best on the other seeds, with Student's interval. Whether
two optimizers have the paper's order is judged on their difference, paired by seed."""


def _counted(verdicts: "pd.Series[str]") -> str:
    """Return how often each verdict was given: ``Of 5 comparisons: yes 4, no 1``."""
    counts = verdicts.value_counts()
    said = [f"{v} {counts[v]}" for v in ("yes", "no", "undecided", "no trials") if v in counts]
    return f"Of {many(len(verdicts), 'comparison')}: {', '.join(said)}"


def _of_study(study: "Study", trials: pd.DataFrame, out: Path) -> Iterator[Section]:
    """Yield the sections that only a study has: its findings, and the papers' numbers."""
    judged = judge(study.findings, trials)
    if not judged.empty:
        _write_table(judged, out, "findings", "Findings")
        said = [
            f"{finding} {_counted(rows['verdict'])}."
            for finding, rows in judged.groupby("finding", sort=False)
        ]
        yield Section(
            name="findings",
            title="Do the findings show here?",
            verdict="\n".join(said),
            method=[_paragraph(FINDINGS)],
            limits=[
                Markup(f"This is about trials at scale {study.scale}, not about the paper's own.")
            ],
            file="findings.csv",
            table=as_html(_with_sources(judged)),
            rows=len(judged),
        )
    comparison = compare(trials, study.scale)
    if not comparison.table.empty:
        _write_table(comparison.table, out, "papers", "Against the papers")
        yield Section(
            name="papers",
            title="Against the papers",
            verdict=comparison.verdict,
            method=[_paragraph(PAPERS)],
            limits=[_paragraph(text) for text in comparison.differences],
            file="papers.csv",
            table=as_html(comparison.for_people()),
            rows=len(comparison.table),
        )


def _with_sources(judged: pd.DataFrame) -> pd.DataFrame:
    """Return the findings, each with its source, and the verdict beside it."""
    sources = judged["source"].map(lambda source: f" [{source}]" if source else "")
    told = judged.assign(finding=judged["finding"] + sources).drop(columns="source")
    return told[["finding", "verdict", *told.columns.drop(["finding", "verdict"])]]


def _tasks_with_metrics(trials: pd.DataFrame) -> str:
    """Return the tasks, each with what its values are."""
    if "metric" not in trials:
        return ", ".join(map(str, trials["task"].unique()))
    metrics = trials.groupby("task", sort=False)["metric"].first()
    return ", ".join(f"{task} ({metric})" for task, metric in metrics.items())


def _sentence(text: str) -> str:
    text = text.strip()
    return text[:1].upper() + text[1:]


def _paragraph(text: str) -> Markup:
    """Return a docstring's paragraph with its ``names`` marked as code."""
    return Markup(re.sub(r"``(.+?)``", r"<code>\1</code>", str(escape(" ".join(text.split())))))


def _render(
    trials: pd.DataFrame,
    study: "Study | None",
    progress: "Progress | None",
    title: str,
    sections: Sequence[Section],
) -> str:
    from jinja2 import Environment, PackageLoader

    environment = Environment(
        loader=PackageLoader("robustlr", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    is_fresh = trials["role"].isin(("confirm", "confirm-default"))
    facts: dict[str, Any] = {
        "trials": len(trials),
        "tasks": _tasks_with_metrics(trials),
        "optimizers": ", ".join(map(str, trials["optimizer"].unique())),
        "seeds": trials.loc[~is_fresh, "seed"].nunique(),
        "fresh": trials.loc[is_fresh, "seed"].nunique(),
        "diverged": int(trials["diverged"].astype(bool).sum()),
        "hours": trials["seconds"].sum() / 3600 if trials["seconds"].notna().any() else None,
        "parquet": find_spec("pyarrow") is not None,
    }
    return environment.get_template("report.html.j2").render(
        study=study,
        progress=progress,
        title=study.name if study else title,
        facts=facts,
        sections=sections,
        long=LONG_TABLE_ROWS,
        most=MOST_ROWS,
    )
