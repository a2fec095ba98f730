"""Transformers that translate: published corpora, and German and English that need no download.

Paper scale is that of Learning by Turning for Multi30k (which the paper calls WMT16 En-De; its code
translates German to English, and sums the loss over tokens) and of Rotational Equilibrium for IWSLT-14.
Differences from the authors' code: words are split by a plainer rule than spaCy's; IWSLT's two languages
share one vocabulary of 10,000 byte pairs; its BLEU is sacrebleu's, of text as the hub has it. As that
paper says, and not its script, IWSLT's embeddings have no weight decay.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from robustlr.scale import Scale
from robustlr.tasks._text import translation

if TYPE_CHECKING:
    import torch


def _multi30k(vocabulary: int, longest: int, **options: Any) -> "torch.nn.Module":
    from robustlr.tasks.models.translation import multi30k_transformer

    return multi30k_transformer(vocabulary, longest, **options)


def _iwslt(vocabulary: int, longest: int, **options: Any) -> "torch.nn.Module":
    from robustlr.tasks.models.translation import iwslt_transformer

    return iwslt_transformer(vocabulary, longest, **options)


_PAIRS: Mapping[str, Any] = {"source": "de", "target": "en", "by_tokens": True}
_PROTOCOL: Mapping[str, Any] = {"summed": False, "beams": 1, "decoded": 200}
_SMALL: Mapping[str, Any] = {
    **_PAIRS,
    **_PROTOCOL,
    "tokens": "bpe",
    "vocabulary": 1000,
    "longest": 40,
    "layers": 2,
    "heads": 4,
    "width": 64,
    "hidden": 128,
    "dropout": 0.1,
}

multi30k_transformer = translation(
    name="multi30k-transformer",
    summary="A 6+6-layer transformer from German to English on Multi30k (Learning by Turning).",
    vocabulary=9521,
    scales={
        "small": Scale(
            data="cldr",
            options={**_SMALL, "summed": True, "by_tokens": False},
            steps=200,
            batch_size=16,
            schedule="triangle",
            label_smoothing=0.1,
            evaluations=3,
            worst=1000,
        ),
        "paper": Scale(
            data="multi30k",
            options={
                **_PAIRS,
                **_PROTOCOL,
                "summed": True,
                "by_tokens": False,
                "tokens": "lower-word",
                "vocabulary": 9521,
                "longest": 100,
                "layers": 6,
                "heads": 8,
                "width": 512,
                "hidden": 2048,
                "dropout": 0.1,
            },
            epochs=100,
            batch_size=128,
            schedule="triangle",
            label_smoothing=0.1,
            evaluations=100,
        ),
    },
    build=_multi30k,
)

iwslt14_transformer = translation(
    name="iwslt14-transformer",
    summary="Transformer-S from German to English on IWSLT-14 (Rotational Equilibrium).",
    bleu=True,
    vocabulary=10_000,
    scales={
        "small": Scale(
            data="cldr",
            options={**_SMALL, "gains": False, "decay_embeddings": False},
            steps=1000,
            batch_size=192,
            schedule="cosine",
            warmup=4000 / 22021,
            label_smoothing=0.1,
            evaluations=2,
        ),
        "paper": Scale(
            data="iwslt14",
            options={
                **_PAIRS,
                **_PROTOCOL,
                "beams": 5,
                "decoded": 0,
                "tokens": "bpe",
                "vocabulary": 10_000,
                "longest": 256,
                "layers": 6,
                "heads": 4,
                "width": 512,
                "hidden": 1024,
                "dropout": 0.3,
                "gains": False,
                "decay_embeddings": False,
            },
            steps=22_021,
            batch_size=4096,
            schedule="cosine",
            warmup=4000 / 22021,
            label_smoothing=0.1,
            evaluations=10,
        ),
    },
    build=_iwslt,
)

_CLDR = Scale(
    data="cldr",
    # To German, which has one way to write a number where English has it in digits or in words.
    options={
        **_SMALL,
        "source": "en",
        "target": "de",
        "decay_embeddings": False,
        "dropout": 0.0,
    },
    steps=2400,
    batch_size=256,
    schedule="cosine",
    warmup=0.1,
    evaluations=4,
)

cldr_translation = translation(
    name="cldr-translation",
    summary="A small transformer from English to German: numbers, dates, amounts and names (CLDR).",
    vocabulary=1000,
    scales={"small": _CLDR},
    build=_iwslt,
)

lohelp_translation = translation(
    name="lohelp-translation",
    summary="The same from English to German help texts of LibreOffice, from Debian packages.",
    vocabulary=2000,
    scales={
        "small": replace(
            _CLDR, data="lohelp", options={**_CLDR.options, "vocabulary": 2000, "longest": 100}
        )
    },
    build=_iwslt,
)
