"""Translations from a trained model: greedy, and by beam search.

Both give int64 tokens ``[b, ≤ longest]``: each sentence with its ``EOS`` but without ``BOS``, then
``PAD``. A sentence that does not end by itself ends at ``longest``. Put the model in eval mode.
"""

import torch
from torch import Tensor

from robustlr.tasks.data.tokens import BOS, EOS, PAD
from robustlr.tasks.models.translation import TranslationTransformer


@torch.no_grad()
def greedy(model: TranslationTransformer, source: Tensor, longest: int) -> Tensor:
    """Return the translations that take the likeliest token at each step.

    Args:
        model: the model, in eval mode.
        source: sentences ``[b, s]``.
        longest: the most tokens of a translation, ``EOS`` included; at most the model's own.
    """
    memory = model.encode(source)
    tokens = source.new_full((len(source), 1), BOS)
    ended = torch.zeros_like(tokens[:, 0], dtype=torch.bool)
    for length in range(1, longest + 1):
        log_p = _log_probabilities(model, tokens, memory, source, last=length == longest)
        following = log_p.argmax(-1).masked_fill(ended, PAD)
        tokens = torch.cat([tokens, following[:, None]], dim=1)
        ended |= following == EOS
        if ended.all():
            break
    return tokens[:, 1:]


@torch.no_grad()
def beam_search(
    model: TranslationTransformer,
    source: Tensor,
    longest: int,
    beams: int = 5,
    length_penalty: float = 1.0,
) -> Tensor:
    """Return, for each sentence, the best translation that a beam search finds.

    It follows fairseq (Ott et al., 2019). Of the ``2 * beams`` likeliest continuations of the open
    hypotheses, those that end, if among the first ``beams``, are finished and scored; the likeliest
    ``beams`` of the others stay open. A sentence is done when ``beams`` hypotheses are finished, or
    when no open one could still beat the best of them, which changes no result.

    Args:
        model: the model, in eval mode.
        source: sentences ``[b, s]``.
        longest: the most tokens of a translation, ``EOS`` included; at most the model's own.
        beams: number of hypotheses that stay open.
        length_penalty: a hypothesis scores its log-probability over its length (``EOS`` included)
            to this power: more favours longer ones. At least 0.
    """
    memory = model.encode(source).repeat_interleave(beams, dim=0)
    repeated = source.repeat_interleave(beams, dim=0)
    best = source.new_full((len(source), longest), PAD)
    best_score = memory.new_full((len(source),), -torch.inf, dtype=torch.float)
    finished = torch.zeros_like(best[:, 0])
    tokens = source.new_full((len(source), beams, 1), BOS)
    open_score = best_score[:, None].repeat(1, beams)
    open_score[:, 0] = 0.0  # the beams start equal: all but one would be repetitions

    for length in range(1, longest + 1):
        log_p = _log_probabilities(
            model, tokens.flatten(0, 1), memory, repeated, last=length == longest
        )
        scores, tokens = _continuations(open_score, log_p.view(*open_score.shape, -1), tokens)
        ends = tokens[:, :, -1] == EOS

        ended_score = scores.masked_fill(~ends, -torch.inf)[:, :beams] / length**length_penalty
        score, index = ended_score.max(dim=1)
        better = (score > best_score) & (finished < beams)
        hypothesis = _choose(tokens, index[:, None])[:, 0, 1:]  # without BOS
        best[:, :length] = torch.where(better[:, None], hypothesis, best[:, :length])
        best_score = torch.where(better, score, best_score)
        finished += ended_score.isfinite().sum(dim=1)

        open_score, index = scores.masked_fill(ends, -torch.inf).topk(beams)
        tokens = _choose(tokens, index)
        # Log-probabilities only fall, so an open hypothesis scores at most this:
        reachable = open_score[:, 0] / longest**length_penalty
        if ((finished >= beams) | (best_score >= reachable)).all():
            break
    return best[:, : int((best != PAD).sum(dim=1).max())]


def _log_probabilities(
    model: TranslationTransformer, tokens: Tensor, memory: Tensor, source: Tensor, *, last: bool
) -> Tensor:
    """Return those of the tokens after ``tokens`` ``[n, t]``, ``[n, vocabulary]``.

    ``PAD`` and ``BOS`` never follow, and nothing but ``EOS`` does if it has to be the ``last``.
    """
    logits = model.following(tokens, memory, source)
    log_p = logits.float().log_softmax(-1)
    barred = torch.zeros_like(log_p[0], dtype=torch.bool)
    barred[[PAD, BOS]] = True
    if last:
        barred[:] = True
        barred[EOS] = False
    return log_p.masked_fill(barred, -torch.inf)


def _continuations(open_score: Tensor, log_p: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Return the ``2 * beams`` likeliest continuations, best first: scores and tokens.

    At most ``beams`` of them end, one of each hypothesis, so at least as many do not.

    Args:
        open_score: log-probabilities of the open hypotheses ``[b, beams]``.
        log_p: those of the tokens that could follow ``[b, beams, vocabulary]``.
        tokens: the open hypotheses ``[b, beams, t]``; the result's are ``[b, 2 * beams, t + 1]``.
    """
    beams, vocabulary = log_p.shape[1:]
    scores, index = (open_score[:, :, None] + log_p).flatten(1).topk(2 * beams)
    following = index % vocabulary
    return scores, torch.cat([_choose(tokens, index // vocabulary), following[:, :, None]], dim=2)


def _choose(tokens: Tensor, index: Tensor) -> Tensor:
    """Return the hypotheses ``index`` ``[b, k]`` of ``tokens`` ``[b, n, t]``, ``[b, k, t]``."""
    return tokens.gather(1, index[:, :, None].expand(-1, -1, tokens.shape[2]))
