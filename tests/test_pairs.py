"""Sentence pairs in batches, and what the text tasks measure on them and on windows of text."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Engine
from tokenizers import models, pre_tokenizers
from torch import Tensor, nn

from robustlr.errors import UserError
from robustlr.registry import load_task, tasks
from robustlr.scale import Scale
from robustlr.task import Batch, Config, SupervisedTask
from robustlr.tasks import _text
from robustlr.tasks.data.corpora import PARTS, corpus
from robustlr.tasks.data.pairs import PairPart, load_pairs
from robustlr.tasks.data.tokens import BOS, EOS, PAD, SPECIAL, Tokenizer
from robustlr.training import batches, steps_an_epoch
from tests.runs import ignore, with_little_data

WORDS = [f"w{number}" for number in range(60)]
VOCABULARY = len(SPECIAL) + len(WORDS)
ON_CLDR = [name for name, task in tasks().items() if task.scales["small"].data == "cldr"]


def _tokenizer() -> Tokenizer:
    """Return a tokeniser for which a line has as many tokens as words."""
    numbers = {word: number for number, word in enumerate([*SPECIAL, *WORDS])}
    engine = Engine(models.WordLevel(numbers, unk_token="<unk>"))
    engine.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return Tokenizer(engine)


def _line(length: int, first: int) -> str:
    return " ".join(WORDS[(first + place) % len(WORDS)] for place in range(length))


def _part(
    lengths: Sequence[tuple[int, int]], *, longest: int = 50, by_tokens: bool = False
) -> PairPart:
    """Return pairs with so many words on each side; no two sources are the same."""
    return PairPart(
        [_line(source, number) for number, (source, _) in enumerate(lengths)],
        [_line(target, 7 * number) for number, (_, target) in enumerate(lengths)],
        _tokenizer(),
        longest=longest,
        by_tokens=by_tokens,
        device="cpu",
    )


def _supervised(name: str) -> SupervisedTask:
    task = load_task(name)
    assert isinstance(task, SupervisedTask)
    return task


def _train_part(name: str) -> PairPart:
    """Return a task's training pairs at small scale."""
    task = _supervised(name)
    part = task.data(task.scales["small"], "cpu").train
    assert isinstance(part, PairPart)
    return part


def _share_of_padding(part: PairPart, groups: list[Tensor]) -> float:
    sides = [side for group in groups for side in part.take(group)]
    return sum(int((side == PAD).sum()) for side in sides) / sum(side.numel() for side in sides)


LENGTHS = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=60)


# batches


@given(lengths=LENGTHS, by_tokens=st.booleans(), size=st.integers(1, 200), seed=st.integers(0, 99))
def test_every_pair_is_in_one_batch_of_an_epoch(
    lengths: list[tuple[int, int]], by_tokens: bool, size: int, seed: int
) -> None:
    groups = _part(lengths, by_tokens=by_tokens).groups(size, seed)
    assert torch.cat(groups).sort().values.tolist() == list(range(len(lengths)))
    assert all(len(group) for group in groups)


@given(lengths=LENGTHS, by_tokens=st.booleans(), size=st.integers(1, 200), seed=st.integers(0, 99))
def test_every_seed_gives_batches_of_the_same_lengths(
    lengths: list[tuple[int, int]], by_tokens: bool, size: int, seed: int
) -> None:
    part = _part(lengths, by_tokens=by_tokens)

    def lengths_of(groups: list[Tensor]) -> list[list[tuple[int, int]]]:
        return sorted(sorted(lengths[i] for i in group.tolist()) for group in groups)

    assert lengths_of(part.groups(size, seed)) == lengths_of(part.groups(size, 100))


def test_pairs_of_the_same_lengths_meet_others_in_every_epoch() -> None:
    part = _part([(5, 6)] * 30 + [(9, 8)] * 30)
    first, again, second = (part.groups(10, seed) for seed in (0, 0, 1))
    assert list(map(Tensor.tolist, first)) == list(map(Tensor.tolist, again))
    together = [{frozenset(group.tolist()) for group in groups} for groups in (first, second)]
    assert not together[0] & together[1]
    order = [[int(group.max()) >= 30 for group in groups] for groups in (first, second)]
    assert order[0] != order[1]  # short and long ones take turns
    assert order[0] not in (sorted(order[0]), sorted(order[0], reverse=True))


@given(lengths=LENGTHS, size=st.integers(1, 200))
def test_a_batch_of_tokens_is_never_above_its_size_unless_a_pair_alone_is(
    lengths: list[tuple[int, int]], size: int
) -> None:
    part = _part(lengths, by_tokens=True)
    for group in part.groups(size, seed=0):
        batch = part.take(group)
        seen = max(batch.inputs.numel(), batch.targets[:, 1:].numel())
        assert seen <= size or len(group) == 1


@given(lengths=LENGTHS, size=st.integers(1, 70))
def test_a_batch_of_sentences_has_its_size_but_for_one(
    lengths: list[tuple[int, int]], size: int
) -> None:
    found = sorted(len(group) for group in _part(lengths).groups(size, seed=0))
    assert found[1:] == [size] * (len(found) - 1)
    assert 0 < found[0] <= size


@pytest.mark.parametrize("name", ON_CLDR)
def test_little_of_a_batch_is_padding_and_batches_of_tokens_are_full(name: str) -> None:
    part, size = _train_part(name), _supervised(name).scales["small"].batch_size
    groups = part.groups(size, seed=0)
    share = _share_of_padding(part, groups)
    assert share < 0.1
    assert part.padding(size) == pytest.approx(share)
    if part.by_tokens:
        batched = [part.take(group) for group in groups]
        full = [max(b.inputs.numel(), b.targets[:, 1:].numel()) / size for b in batched]
        assert np.mean(full) > 0.9


@pytest.mark.parametrize(("by_tokens", "size"), [(True, 256), (True, 4096), (False, 128)])
def test_little_of_a_batch_of_real_sentences_is_padding(by_tokens: bool, size: int) -> None:
    """Lengths as in help texts: most sentences are short, and translations of another length."""
    drawn = np.random.default_rng(0)
    sources = drawn.lognormal(2.8, 0.6, 10_000)
    targets = sources * drawn.lognormal(0.1, 0.25, 10_000)
    both = np.clip(np.stack([sources, targets], axis=1), 1, 60).astype(int)
    part = _part([(s, t) for s, t in both.tolist()], longest=40, by_tokens=by_tokens)
    assert 8_000 < len(part) < 10_000
    assert _share_of_padding(part, part.groups(size, seed=0)) < 0.1


# pairs


def test_a_batch_is_padded_at_the_end_and_can_be_read_as_text() -> None:
    part = _train_part("multi30k-transformer")
    index = torch.randperm(len(part), generator=torch.Generator().manual_seed(0))[:50]
    batch = part.take(index)
    assert batch.inputs.dtype == batch.targets.dtype == torch.int64
    for side, texts, start in (
        (batch.inputs, part.sources, []),
        (batch.targets, part.references, [BOS]),
    ):
        assert (side[:, -1] == EOS).any()  # it is no longer than the longest
        for row, place in zip(side.tolist(), index.tolist(), strict=True):
            tokens = row[: row.index(EOS) + 1]
            assert set(row[len(tokens) :]) <= {PAD}
            assert tokens[: len(start)] == start
            content = tokens[len(start) : -1]
            assert content
            assert not {PAD, BOS, EOS} & set(content)
            assert part.tokenizer.decode(row) == texts[place]
    lengths = [part.source_lengths[i] for i in index.tolist()]
    assert lengths == (batch.inputs != PAD).sum(dim=1).tolist()


def test_sources_and_targets_are_of_the_languages_asked_for() -> None:
    options: dict[str, Any] = {"tokens": "bpe", "vocabulary": 1000, "longest": 40}
    options |= {"by_tokens": True, "device": "cpu"}
    whole = corpus("cldr")
    for source, target in (("de", "en"), ("en", "de")):
        splits = load_pairs("cldr", source=source, target=target, **options)
        for name, part in zip(PARTS, splits, strict=True):
            pairs = set(zip(whole[name][source], whole[name][target], strict=True))
            ours = list(zip(part.sources, part.references, strict=True))
            assert set(ours) <= pairs
            assert len(ours) == len(part) > 0.95 * len(pairs)
        assert load_pairs("cldr", source=source, target=target, **options) is splits


def test_pairs_with_a_side_that_is_too_long_are_left_out() -> None:
    part = _part([(9, 3), (10, 3), (3, 9), (3, 10), (9, 9), (12, 12)], longest=10)
    assert [len(line.split()) for line in part.sources] == [9, 3, 9]
    assert [len(line.split()) for line in part.references] == [3, 9, 9]
    batch = part.take(torch.arange(3))
    assert batch.inputs.shape == (3, 10)
    assert batch.targets[:, :-1].shape == (3, 10)
    with pytest.raises(UserError, match="no pair of the corpus is shorter than 3 tokens"):
        _part([(3, 1), (1, 3)], longest=3)


# steps


@pytest.mark.parametrize(("by_tokens", "size"), [(True, 120), (False, 8)])
def test_an_epoch_has_every_pair_once_and_then_come_new_batches(by_tokens: bool, size: int) -> None:
    lengths = [(3 + number % 9, 2 + number % 13) for number in range(200)]
    part = _part(lengths, by_tokens=by_tokens)
    scale = Scale(epochs=3, batch_size=size)
    scale = scale.sized(steps_an_epoch(part, scale))
    count = len(part.groups(size, seed=5))
    assert scale.steps == 3 * count
    whole = [batch.inputs for batch in batches(part, scale, seed=4)]
    assert len(whole) == 3 * count
    epochs = [whole[k * count : (k + 1) * count] for k in range(3)]
    rows = [
        sorted(tuple(t for t in row if t != PAD) for inputs in epoch for row in inputs.tolist())
        for epoch in epochs
    ]
    expected = part.take(torch.arange(200)).inputs.tolist()
    assert rows == [sorted(tuple(t for t in row if t != PAD) for row in expected)] * 3
    assert len({str(list(map(Tensor.tolist, epoch))) for epoch in epochs}) == 3


@pytest.mark.parametrize(("by_tokens", "size"), [(True, 120), (False, 8)])
def test_batches_of_pairs_go_on_from_any_step(by_tokens: bool, size: int) -> None:
    lengths = [(3 + number % 9, 2 + number % 13) for number in range(200)]
    part = _part(lengths, by_tokens=by_tokens)
    length = len(part.groups(size, seed=0))
    scale = Scale(steps=2 * length + 3, batch_size=size)
    whole = list(batches(part, scale, 7))
    assert len(whole) == scale.steps
    for first in (1, length - 1, length, length + 1, 2 * length, scale.steps - 1, scale.steps):
        rest = list(batches(part, scale, 7, first))
        assert len(rest) == scale.steps - first
        for ours, theirs in zip(rest, whole[first:], strict=True):
            assert torch.equal(ours.inputs, theirs.inputs)
            assert torch.equal(ours.targets, theirs.targets)


# losses and metrics


def _model(task: SupervisedTask, scale: Scale) -> nn.Module:
    torch.manual_seed(0)
    return task.model(scale).eval()


def _task_of_words(name: str, **options: object) -> tuple[SupervisedTask, Scale]:
    """Return a task at small scale for the words of this file."""
    task = _supervised(name)
    own = task.scales["small"]
    words = {**own.options, "vocabulary": VOCABULARY, **options}
    return task, replace(own, options=words, batch_size=16)


def _gradients(model: nn.Module, loss: Tensor) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_summed_loss_has_the_gradient_of_the_sum_and_the_value_of_the_mean(
    smoothing: float,
) -> None:
    batch = _part([(3, 5), (8, 2), (4, 9)]).take(torch.arange(3))
    values, gradients = [], []
    for summed in (True, False):
        task, scale = _task_of_words("multi30k-transformer", summed=summed)
        scale = replace(scale, label_smoothing=smoothing)
        model = _model(task, scale)
        loss = task.loss(model, batch, scale)
        values.append(loss.item())
        gradients.append(_gradients(model, loss))
    log_p = model(batch.inputs, batch.targets[:, :-1]).log_softmax(-1)
    following = batch.targets[:, 1:]
    right = log_p.gather(-1, following[:, :, None])[:, :, 0]
    each = -(1 - smoothing) * right - smoothing * log_p.mean(-1)
    total = each[following != PAD].sum()
    count = 6 + 3 + 10
    assert values == pytest.approx([total.item() / count] * 2, rel=1e-5)
    expected = _gradients(model, total)
    torch.testing.assert_close(gradients[0], expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(gradients[1], expected / count, rtol=1e-3, atol=1e-5)


@torch.no_grad()
def test_perplexity_is_that_of_each_sentence_alone_whatever_the_batch_size() -> None:
    task, scale = _task_of_words("cldr-translation")
    model = _model(task, scale)
    lengths = [(1 + number % 7, 1 + number % 11) for number in range(40)]
    surprise, count = 0.0, 0
    for number in range(40):
        inputs, targets = _part([lengths[number]] * (number + 1)).take(torch.tensor([number]))
        log_p = model(inputs, targets[:, :-1])[0].log_softmax(-1)
        assert PAD not in targets
        surprise -= sum(log_p[t, word].item() for t, word in enumerate(targets[0, 1:].tolist()))
        count += targets.shape[1] - 1
    for by_tokens in (True, False):
        part = _part(lengths, by_tokens=by_tokens)
        for size in (1, 16, 1000):
            found = task.evaluate(model, part, replace(scale, batch_size=size))
            assert found == pytest.approx(math.exp(surprise / count), rel=1e-4)


@torch.no_grad()
def test_token_zero_counts_in_a_language_models_perplexity(monkeypatch: pytest.MonkeyPatch) -> None:
    """GPT-2's token 0 is an exclamation mark, where the other tokenisers have padding."""
    task, scale = _task_of_words("wikitext103-gpt2", context=8)
    model = _model(task, scale)
    generator = torch.Generator().manual_seed(0)
    stream = torch.randint(0, 3, (33, 9), generator=generator)  # a third of it is 0
    part = Batch(stream[:, :-1], stream[:, 1:])
    log_p = model(part.inputs).log_softmax(-1)
    expected = math.exp(-log_p.gather(-1, part.targets[:, :, None]).mean().item())
    for logits in (1, 8 * VOCABULARY * 5, 2**27):
        monkeypatch.setattr(_text, "EVALUATED_LOGITS", logits)
        assert task.evaluate(model, part, scale) == pytest.approx(expected, rel=1e-5)


@torch.no_grad()
def test_a_hopeless_models_perplexity_is_worth_the_worst() -> None:
    task, scale = _task_of_words("cldr-translation")
    model = _model(task, scale)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=1e3)
    found = task.evaluate(model, _part([(5, 6)] * 3), scale)
    assert found == math.inf
    assert task.at("small").capped(found) == task.at("small").worst


class _Knowing(nn.Module):
    """Knows the answers: the likeliest token is always that of the target of the source."""

    def __init__(self, part: PairPart, wrong: Sequence[int] = ()) -> None:
        super().__init__()
        self.answers: dict[tuple[int, ...], list[int]] = {}
        self.asked = 0
        batch = part.take(torch.arange(len(part)))
        for place, (source, target) in enumerate(
            zip(batch.inputs.tolist(), batch.targets.tolist(), strict=True)
        ):
            answer = target[1 : target.index(EOS) + 1]
            self.answers[tuple(t for t in source if t != PAD)] = (
                [*answer[-2::-1], EOS] if place in wrong else answer
            )

    def encode(self, source: Tensor) -> Tensor:
        self.asked += len(source)
        return torch.zeros(len(source), source.shape[1], 1)

    def following(self, target: Tensor, memory: Tensor, source: Tensor) -> Tensor:
        logits = torch.zeros(len(target), VOCABULARY)
        place = target.shape[1] - 1
        for row, tokens in enumerate(source.tolist()):
            answer = self.answers[tuple(t for t in tokens if t != PAD)]
            logits[row, answer[place] if place < len(answer) else EOS] = 30.0
        return logits


@pytest.mark.parametrize("beams", [1, 5])
def test_perfect_translations_have_a_bleu_of_100_the_longest_too(beams: int) -> None:
    task, scale = _task_of_words("iwslt14-transformer", beams=beams, decoded=0, longest=30)
    lengths = [(5 + 3 * k % 17, 6 + 5 * k % 13) for k in range(30)] + [(29, 29), (20, 29)]
    part = _part(lengths, longest=30, by_tokens=True)
    knowing = _Knowing(part)
    assert task.evaluate(knowing, part, scale) == pytest.approx(100)
    assert knowing.asked == 32
    some = replace(scale, options={**scale.options, "decoded": 8})
    fewer = _Knowing(part)
    assert task.evaluate(fewer, part, some) == pytest.approx(100)
    assert fewer.asked == 8
    assert 50 < task.evaluate(_Knowing(part, wrong=range(6)), part, scale) < 95


def test_bleu_is_that_of_the_whole_corpus_by_sacrebleu() -> None:
    from sacrebleu import corpus_bleu

    task, scale = _task_of_words("iwslt14-transformer", beams=1, decoded=0)
    part = _part([(9, 5 + k % 9) for k in range(12)])
    wrong = range(0, 12, 3)
    made = [
        " ".join(reversed(line.split())) if place in wrong else line
        for place, line in enumerate(part.references)
    ]
    expected = corpus_bleu(made, [part.references]).score
    assert task.evaluate(_Knowing(part, wrong), part, scale) == pytest.approx(expected)


def test_samples_count_what_is_right_and_show_some_of_it() -> None:
    task = _supervised("cldr-translation")
    assert task.samples is not None
    part = _part([(4 + k % 5, 3 + k % 4) for k in range(50)])
    heading, blank, columns, *rows = task.samples(_Knowing(part, wrong=(0, 7)), part).split("\n")
    assert heading == "48 of 50 test sentences are translated as the reference has them"
    assert (blank, columns) == ("", "source\ttranslation\treference")
    *rows, end = rows
    assert end == ""
    assert len(rows) == 10
    pairs = dict(zip(part.sources, part.references, strict=True))
    cells = [row.split("\t") for row in rows]
    assert all(pairs[source] == reference for source, _, reference in cells)
    assert sum(made == reference for _, made, reference in cells) == 9  # the first is wrong
    assert cells[0][:2] == [
        part.sources[0],
        " ".join(reversed(part.references[0].split())),
    ]


def test_a_run_leaves_samples_in_its_folder(tmp_path: Path) -> None:
    task = with_little_data(_supervised("lohelp-translation"))
    task = replace(task, scales={"small": replace(task.scales["small"], steps=2, evaluations=1)})
    config = Config(task=task.name, optimizer="adamw", hyperparameters={"lr": 1e-3}, seed=0)
    task.run(config, ignore, "cpu", tmp_path)
    text = (tmp_path / "samples.txt").read_text(encoding="utf-8")
    test = task.data(task.scales["small"], "cpu").test
    judged = min(200, len(test))
    assert text.startswith(f"0 of {judged} test sentences")
    assert f"\n{test.sources[0]}\t" in text
