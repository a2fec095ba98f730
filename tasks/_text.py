"""What the language-model and translation tasks share: data by name, losses, perplexity and BLEU."""

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, cast

from robustlr.errors import UserError
from robustlr.scale import Scale
from robustlr.task import Batch, Part, Splits, SupervisedTask

if TYPE_CHECKING:
    import torch

    from robustlr.tasks.data.pairs import PairPart
    from robustlr.tasks.models.translation import TranslationTransformer

Build = Callable[..., "torch.nn.Module"]
"""Called as ``build(vocabulary, longest, **options)``: the sizes that a model has from its data."""

LANGUAGE_DATA = ("tokens", "vocabulary", "context")
PAIR_DATA = ("source", "target", "tokens", "vocabulary", "longest", "by_tokens")
PAIR_PROTOCOL = ("summed", "beams", "decoded")

EVALUATED_LOGITS = 2**27
"""How many outputs are held at once in an evaluation: half a gigabyte, and as much for their softmax."""

DECODED_TOGETHER = 256
TOKENS_A_TOKEN, TOKENS_MORE = 2, 20
"""How long a translation gets, by the longest source beside it: untrained models never end theirs.

Fairseq's recipe for IWSLT is 1.2 and 10, too short for numbers in words.
"""

SHOWN, JUDGED = 10, 200
"""Translations that a sample shows, and those that it counts."""


def language_model(*, build: Build, vocabulary: int, **facts: Any) -> SupervisedTask:
    """Return a task that predicts the next token; ``vocabulary`` is that of its largest data set."""
    return SupervisedTask(
        metric="validation perplexity",
        worst=vocabulary,
        fixed=("tokens", "vocabulary"),
        loss_bound=_loss_bound,
        model=_model(build, "context", LANGUAGE_DATA),
        data=_load_text,
        data_name=_data_name,
        loss=_next_token_loss,
        evaluate=_text_perplexity,
        **facts,
    )


def translation(
    *, build: Build, bleu: bool = False, vocabulary: int, **facts: Any
) -> SupervisedTask:
    """Return a translation task, judged by its validation perplexity or, if ``bleu``, by BLEU."""
    return SupervisedTask(
        metric="validation BLEU" if bleu else "validation perplexity",
        direction="maximize" if bleu else "minimize",
        worst=0.0 if bleu else vocabulary,
        fixed=("source", "target", "tokens", "vocabulary", "longest", "beams", "decoded"),
        loss_bound=_loss_bound,
        model=_model(build, "longest", (*PAIR_DATA, *PAIR_PROTOCOL)),
        data=_load_pairs,
        data_name=_data_name,
        loss=_translation_loss,
        evaluate=_bleu if bleu else _pair_perplexity,
        samples=_samples,
        **facts,
    )


def _model(build: Build, longest: str, others: tuple[str, ...]) -> Callable[[Scale], Any]:
    """Return what builds a scale's model from those of its options that are not of the data."""

    def model(scale: Scale) -> "torch.nn.Module":
        if scale.options[longest] < 1:
            raise UserError(f"{longest} = {scale.options[longest]}: it must be at least 1")
        own = {name: value for name, value in scale.options.items() if name not in others}
        return build(scale.options["vocabulary"], scale.options[longest], **own)

    return model


def _loss_bound(scale: Scale) -> float:
    """Return twice the loss of a model that takes every token for equally likely."""
    return 2 * math.log(scale.options["vocabulary"])


def _data_name(scale: Scale) -> str:
    from robustlr.tasks.data.corpora import versioned

    return versioned(scale.data)


def _load_text(scale: Scale, device: str) -> Splits[Part]:
    from robustlr.tasks.data.text import load_text
    from robustlr.tasks.data.tokens import GPT2_PIECES

    facts = {name: scale.options[name] for name in LANGUAGE_DATA}
    if facts["tokens"] == "gpt2":
        facts["vocabulary"] = GPT2_PIECES  # the model's is rounded up
    return load_text(scale.data, device=device, **facts)


def _load_pairs(scale: Scale, device: str) -> "Splits[PairPart]":
    from robustlr.tasks.data.pairs import load_pairs

    return load_pairs(
        scale.data, device=device, **{name: scale.options[name] for name in PAIR_DATA}
    )


def _next_token_loss(model: "torch.nn.Module", batch: Batch, scale: Scale) -> "torch.Tensor":
    from torch.nn.functional import cross_entropy

    outputs = model(batch.inputs).flatten(0, 1).float()
    return cross_entropy(outputs, batch.targets.flatten(), label_smoothing=scale.label_smoothing)


def _translation_loss(model: "torch.nn.Module", batch: Batch, scale: Scale) -> "torch.Tensor":
    """Return the loss of a batch, whose gradient is that of the sum over tokens if ``summed``."""
    from torch.nn.functional import cross_entropy

    from robustlr.tasks.data.tokens import PAD

    outputs = model(batch.inputs, batch.targets[:, :-1]).flatten(0, 1).float()
    targets = batch.targets[:, 1:].flatten()
    mean = cross_entropy(outputs, targets, ignore_index=PAD, label_smoothing=scale.label_smoothing)
    if not scale.options["summed"]:
        return mean
    total = mean * (targets != PAD).sum()
    # The value stays the mean, which does not depend on the batch and can be held to a bound.
    return mean.detach() + (total - total.detach())


def _text_perplexity(model: "torch.nn.Module", part: Part, scale: Scale) -> float:
    import torch

    size = max(1, EVALUATED_LOGITS // (scale.options["vocabulary"] * scale.options["context"]))
    batches = (part.take(index) for index in torch.split(torch.arange(len(part)), size))
    return _perplexity((model(batch.inputs), batch.targets) for batch in batches)


def _pair_perplexity(model: "torch.nn.Module", part: "PairPart", scale: Scale) -> float:
    from robustlr.tasks.data.tokens import PAD

    batches = (part.take(index) for index in part.groups(scale.batch_size, seed=0))
    predictions = (
        (model(batch.inputs, batch.targets[:, :-1]), batch.targets[:, 1:]) for batch in batches
    )
    return _perplexity(predictions, ignored=PAD)


def _perplexity(
    predictions: "Iterable[tuple[torch.Tensor, torch.Tensor]]", ignored: int = -100
) -> float:
    """Return the perplexity of logits ``[…, vocabulary]`` for targets ``[…]`` that are not ignored."""
    from torch.nn.functional import cross_entropy

    loss, count = 0.0, 0
    for logits, targets in predictions:
        outputs = logits.flatten(0, -2).float()
        some = cross_entropy(outputs, targets.flatten(), ignore_index=ignored, reduction="sum")
        loss += float(some)
        count += int((targets != ignored).sum())
    return math.exp(loss / count) if loss / count < 700 else math.inf  # where math.exp overflows


def _bleu(model: "torch.nn.Module", part: "PairPart", scale: Scale) -> float:
    """Return sacrebleu's BLEU, 0 to 100, of at most ``decoded`` sentences of a part."""
    from sacrebleu import corpus_bleu

    chosen = _spread(len(part), scale.options["decoded"] or len(part))
    made = translations(model, part, chosen, scale.options["beams"])
    return float(corpus_bleu(made, [[part.references[i] for i in chosen]]).score)


def _samples(model: "torch.nn.Module", part: "PairPart") -> str:
    """Return translations of sentences that were not trained on, and how many of them are right."""
    chosen = _spread(len(part), JUDGED)
    made = translations(model, part, chosen, beams=1)
    # As the tokeniser has them: it may know no capitals.
    references = [
        part.tokenizer.decode(ids)
        for ids in part.tokenizer.encode([part.references[i] for i in chosen])
    ]
    right = sum(ours == theirs for ours, theirs in zip(made, references, strict=True))
    shown = [chosen.index(i) for i in chosen[:: max(1, len(chosen) // SHOWN)]][:SHOWN]
    rows = [f"{part.sources[chosen[k]]}\t{made[k]}\t{references[k]}" for k in shown]
    heading = f"{right} of {len(chosen)} test sentences are translated as the reference has them"
    return "\n".join([heading, "", "source\ttranslation\treference", *rows, ""])


def translations(
    model: "torch.nn.Module", part: "PairPart", chosen: list[int], beams: int
) -> list[str]:
    """Return the text of a part's chosen sentences as the model translates them."""
    import torch

    from robustlr.tasks.models.decoding import beam_search, greedy

    translator = cast("TranslationTransformer", model)
    made: dict[int, str] = {}
    # Sentences of like length are decoded together.
    by_length = sorted(chosen, key=lambda i: part.source_lengths[i])
    for start in range(0, len(by_length), DECODED_TOGETHER):
        some = by_length[start : start + DECODED_TOGETHER]
        sources = part.take(torch.tensor(some)).inputs
        longest = min(part.longest, TOKENS_A_TOKEN * sources.shape[1] + TOKENS_MORE)
        ids = (
            greedy(translator, sources, longest)
            if beams == 1
            else beam_search(translator, sources, longest, beams)
        )
        made |= {i: part.tokenizer.decode(line) for i, line in zip(some, ids.tolist(), strict=True)}
    return [made[i] for i in chosen]


def _spread(length: int, count: int) -> list[int]:
    """Return up to ``count`` places evenly spread over ``length``."""
    count = min(length, count)
    return [i * length // count for i in range(count)]
