"""The text tasks that need no download learn: one trial of each kind with a good learning rate."""

import re
from pathlib import Path

from robustlr.registry import load_task
from robustlr.task import Config, Outcome
from robustlr.tasks.data.text import unigram_perplexity
from tests.runs import ignore


def _run(name: str, lr: float, folder: Path) -> Outcome:
    config = Config(task=name, optimizer="adamw", hyperparameters={"lr": lr}, seed=0)
    return load_task(name).run(config, ignore, "cpu", folder)


def test_a_language_model_learns_the_order_of_words(tmp_path: Path) -> None:
    outcome = _run("pydoc-lm", 1e-3, tmp_path)
    frequencies_alone = unigram_perplexity("pydoc", "bpe", 1024)
    assert outcome.value < frequencies_alone / 3
    assert outcome.test_value is not None
    assert outcome.test_value < frequencies_alone / 2


def test_a_translator_learns_to_translate_sentences_that_it_has_not_seen(tmp_path: Path) -> None:
    outcome = _run("cldr-translation", 3e-3, tmp_path)
    heading = (tmp_path / "samples.txt").read_text(encoding="utf-8").split("\n")[0]
    found = re.match("([0-9]+) of 200 test sentences", heading)
    assert found
    assert int(found[1]) > 100
    assert outcome.value < 3  # the perplexity; of 1,000 tokens
