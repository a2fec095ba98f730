"""Translations from a trained model: greedy, and by beam search as fairseq's."""

from collections.abc import Iterator
from functools import partial
from itertools import pairwise, product

import pytest
import torch
from torch import Tensor, nn

from robustlr.tasks.data.tokens import BOS, EOS, PAD, UNKNOWN
from robustlr.tasks.models.decoding import beam_search, greedy
from robustlr.tasks.models.translation import TranslationTransformer, iwslt_transformer

A, B = UNKNOWN + 1, UNKNOWN + 2
LONGEST = 5
SEEDS = (1, 9, 10)  # of babblers whose sentences end early and late


def _babbler(seed: int) -> TranslationTransformer:
    """Return a model of four words and ``EOS`` whose sentences differ, in length too."""
    torch.manual_seed(seed)
    model = iwslt_transformer(7, LONGEST, layers=1, heads=2, width=8, hidden=16).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter)
    return model


def _sources(count: int = 12) -> Tensor:
    source = torch.randint(A, 7, (count, 5), generator=torch.Generator().manual_seed(3))
    source[::3, 3:] = PAD
    return source


def _log_p(model: TranslationTransformer, source: Tensor, tokens: tuple[int, ...]) -> Tensor:
    """Return the log-probabilities of what follows each of ``tokens``, and ``BOS`` before them."""
    logits: Tensor = model(source[None], torch.tensor([[BOS, *tokens]]))
    return logits[0].log_softmax(-1)


def _sentences(tokens: Tensor) -> list[tuple[int, ...]]:
    """Return the sentences with their ``EOS``; after it there is padding alone."""
    assert tokens.dtype == torch.int64
    found = []
    for row in tokens.tolist():
        sentence = row[: row.index(EOS) + 1]
        assert set(row[len(sentence) :]) <= {PAD}
        assert not {PAD, BOS} & set(sentence)
        found.append(tuple(sentence))
    assert max(map(len, found)) == tokens.shape[1]
    return found


@torch.no_grad()
@pytest.mark.parametrize("seed", SEEDS)
def test_greedy_takes_the_likeliest_token_and_is_a_beam_of_one(seed: int) -> None:
    model, source = _babbler(seed), _sources()
    found = _sentences(greedy(model, source, LONGEST))
    assert _sentences(beam_search(model, source, LONGEST, beams=1)) == found
    for row, sentence in zip(source, found, strict=True):
        log_p = _log_p(model, row, sentence[:-1])
        log_p[:, [PAD, BOS]] = -torch.inf
        *free, last = log_p.argmax(-1).tolist()
        assert sentence[:-1] == tuple(free)
        assert last == EOS or len(sentence) == LONGEST


@torch.no_grad()
@pytest.mark.parametrize("seed", SEEDS)
def test_a_sentence_is_translated_alike_alone_and_among_others(seed: int) -> None:
    model, source = _babbler(seed), _sources()
    for decode in (greedy, partial(beam_search, beams=3, length_penalty=2.0)):
        together = _sentences(decode(model, source, LONGEST))
        assert len(set(map(len, together))) > 1
        for row, sentence in zip(source, together, strict=True):
            assert _sentences(decode(model, row[row != PAD][None], LONGEST)) == [sentence]


def _every_sentence() -> Iterator[tuple[int, ...]]:
    for words in range(4):
        for sentence in product(range(UNKNOWN, 7), repeat=words):
            yield (*sentence, EOS)


@torch.no_grad()
@pytest.mark.parametrize("length_penalty", [0.0, 0.7, 2.0])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_wide_beam_finds_the_best_of_all_sentences(seed: int, length_penalty: float) -> None:
    model, source = _babbler(seed), _sources(4)
    found = _sentences(
        beam_search(model, source, 4, beams=4**3, length_penalty=length_penalty)
    )  # 4³ hypotheses of three words: none is ever dropped
    sentences = list(_every_sentence())
    for row, sentence in zip(source, found, strict=True):
        scores = []
        for each in sentences:
            log_p = _log_p(model, row, each[:-1])[torch.arange(len(each)), list(each)].sum()
            scores.append(log_p.item() / len(each) ** length_penalty)
        assert sentence == sentences[scores.index(max(scores))]


def _reference_beam(
    model: TranslationTransformer, source: Tensor, beams: int, length_penalty: float
) -> tuple[int, ...]:
    """Search as fairseq does, one sentence and hypothesis at a time."""
    hypotheses: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    finished: list[tuple[float, tuple[int, ...]]] = []
    for length in range(1, LONGEST + 1):
        allowed = [EOS] if length == LONGEST else [EOS, *range(UNKNOWN, 7)]
        candidates = []
        for score, tokens in hypotheses:
            log_p = _log_p(model, source, tokens)[-1]
            candidates += [(score + log_p[word].item(), (*tokens, word)) for word in allowed]
        candidates = sorted(candidates, reverse=True)[: 2 * beams]
        for score, tokens in candidates[:beams]:
            if tokens[-1] == EOS:
                finished.append((score / length**length_penalty, tokens))
        if len(finished) >= beams:
            break
        hypotheses = [each for each in candidates if each[1][-1] != EOS][:beams]
    return max(finished)[1]


@torch.no_grad()
def test_beam_search_is_fairseqs() -> None:
    found: list[list[tuple[int, ...]]] = []
    for beams, length_penalty in ((1, 1.0), (2, 0.0), (2, 1.0), (4, 0.5), (5, 2.0)):
        sentences = []
        for seed in SEEDS:
            model, source = _babbler(seed), _sources()
            sentences += _sentences(
                beam_search(model, source, LONGEST, beams=beams, length_penalty=length_penalty)
            )
            for row, sentence in zip(source, sentences[-len(source) :], strict=True):
                assert sentence == _reference_beam(model, row, beams, length_penalty)
        found.append(sentences)
    assert all(first != second for first, second in pairwise(found))  # each setting has its say


def _watch(model: TranslationTransformer, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Return a list to which each call of ``following`` will append its targets."""
    following, targets = model.following, []

    def watched(target: Tensor, memory: Tensor, source: Tensor) -> Tensor:
        targets.append(target)
        return following(target, memory, source)

    monkeypatch.setattr(model, "following", watched)
    return targets


@torch.no_grad()
@pytest.mark.parametrize("beams", [2, 4])  # up to as many as words to begin with
def test_open_hypotheses_are_different_and_none_has_ended(
    beams: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in SEEDS:
        model = _babbler(seed)
        targets = _watch(model, monkeypatch)
        beam_search(model, _sources(), LONGEST, beams, length_penalty=2.0)
        assert [target.shape[1] for target in targets] == list(range(1, LONGEST + 1))
        for target in targets[1:]:
            for hypotheses in target.view(-1, beams, target.shape[1]).tolist():
                assert len({tuple(hypothesis) for hypothesis in hypotheses}) == beams
            assert not (target == EOS).any()


@torch.no_grad()
def test_beam_search_stops_when_no_hypothesis_could_win(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _babbler(SEEDS[0])
    targets = _watch(model, monkeypatch)
    steps: dict[bool, set[int]] = {True: set(), False: set()}
    for row in _sources():
        likeliest = _sentences(greedy(model, row[None], LONGEST))
        targets.clear()
        beam_search(model, row[None], LONGEST, beams=4, length_penalty=0.0)
        steps[likeliest == [(EOS,)]].add(len(targets))
    # where to end is likelier than any first word, it is likelier than anything after one
    assert steps[True] == {1}
    assert min(steps[False]) > 1


@torch.no_grad()
def test_beam_search_stops_when_as_many_hypotheses_as_beams_are_finished(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = _babbler(SEEDS[0])
    targets = _watch(model, monkeypatch)
    steps = []
    for row in _sources():
        targets.clear()
        # a penalty with which one more token is always worth its price
        (sentence,) = _sentences(beam_search(model, row[None], LONGEST, 2, length_penalty=50.0))
        assert len(sentence) == len(targets)
        steps.append(len(targets))
    assert min(steps) < LONGEST
