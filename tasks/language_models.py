"""Transformers that predict the next token: on published texts, and on Python's documentation.

Paper scale is that of Learning by Turning for Wikitext-2 and of Rotational Equilibrium for GPT2. Texts
are cut into windows that are shuffled for every epoch, where the authors of Wikitext-2's numbers read
20 columns in order and GPT2's drew windows anywhere. Its vocabulary is that of Wikitext-2's own count,
33,278; the two rarest words make room for padding and start. Embeddings have weight decay on OpenWebText
and none on WikiText-103, as in the code that each was run with.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from robustlr.scale import Scale
from robustlr.tasks._text import language_model

if TYPE_CHECKING:
    import torch


def _wikitext(vocabulary: int, context: int, **options: Any) -> "torch.nn.Module":
    from robustlr.tasks.models.language_model import wikitext_transformer

    return wikitext_transformer(vocabulary, context, **options)


def _gpt2(vocabulary: int, context: int, **options: Any) -> "torch.nn.Module":
    from robustlr.tasks.models.language_model import gpt2

    return gpt2(vocabulary, context, **options)


_SMALL_TEXT: Mapping[str, Any] = {"tokens": "bpe", "vocabulary": 512, "context": 64}
_GPT2: Mapping[str, Any] = {
    "tokens": "gpt2",
    "vocabulary": 50304,  # GPT-2's 50,257, made divisible by 64
    "layers": 12,
    "heads": 12,
    "width": 768,
    "standardised": False,
    "gains": False,
}
_SMALL_GPT2: Mapping[str, Any] = {**_GPT2, **_SMALL_TEXT, "layers": 2, "heads": 2, "width": 64}

_WIKITEXT2_SMALL = Scale(
    data="pydoc",
    options={
        **_SMALL_TEXT,
        "context": 32,
        "layers": 2,
        "heads": 2,
        "width": 64,
        "hidden": 64,
        "dropout": 0.1,
        "norm": False,
    },
    steps=200,
    batch_size=32,
    schedule="step",
    milestones=(0.5,),
    evaluations=4,
    worst=512,
)
_WIKITEXT2_PAPER = Scale(
    data="wikitext-2",
    options={
        "tokens": "word",
        "vocabulary": 33278,
        "context": 35,
        "layers": 2,
        "heads": 2,
        "width": 200,
        "hidden": 200,
        "dropout": 0.2,
        "norm": False,
    },
    epochs=20,
    batch_size=20,
    schedule="step",
    milestones=(0.5,),
    evaluations=20,
)

wikitext2_transformer = language_model(
    name="wikitext2-transformer",
    summary="A two-layer transformer without normalisation on Wikitext-2 (Learning by Turning).",
    vocabulary=33278,
    scales={"small": _WIKITEXT2_SMALL, "paper": _WIKITEXT2_PAPER},
    build=_wikitext,
)

wikitext103_gpt2 = language_model(
    name="wikitext103-gpt2",
    summary="GPT2-124M on WikiText-103 (Rotational Equilibrium).",
    vocabulary=50304,
    scales={
        "small": Scale(
            data="pydoc",
            options={**_SMALL_GPT2, "dropout": 0.0, "decay_embeddings": False},
            steps=500,
            batch_size=16,
            schedule="one-cycle",
            warmup=0.02,
            evaluations=4,
            worst=512,
        ),
        "paper": Scale(
            data="wikitext-103",
            options={**_GPT2, "context": 512, "dropout": 0.2, "decay_embeddings": False},
            steps=15_000,
            batch_size=165,
            accumulated=3,
            schedule="one-cycle",
            warmup=0.02,
            evaluations=30,
        ),
    },
    build=_gpt2,
)

openwebtext_gpt2 = language_model(
    name="openwebtext-gpt2",
    summary="GPT2-124M on OpenWebText (Rotational Equilibrium).",
    vocabulary=50304,
    scales={
        "small": Scale(
            data="pydoc",
            options={**_SMALL_GPT2, "dropout": 0.0, "decay_embeddings": True},
            steps=500,
            batch_size=16,
            schedule="cosine",
            warmup=0.05,
            gradient_clip=1.0,
            evaluations=4,
            worst=512,
        ),
        "paper": Scale(
            data="openwebtext",
            options={**_GPT2, "context": 1024, "dropout": 0.0, "decay_embeddings": True},
            steps=5000,
            batch_size=480,
            accumulated=40,
            schedule="cosine",
            warmup=0.05,
            gradient_clip=1.0,
            evaluations=20,
        ),
    },
    build=_gpt2,
)

_PYDOC = Scale(
    data="pydoc",
    options={
        **_SMALL_GPT2,
        "vocabulary": 1024,
        "width": 96,
        "heads": 3,
        "layers": 3,
        "dropout": 0.1,
    },
    steps=600,
    batch_size=16,
    schedule="cosine",
    warmup=0.05,
    evaluations=6,
)

pydoc_lm = language_model(
    name="pydoc-lm",
    summary="A small GPT on Python's own documentation, which every installation has.",
    vocabulary=1024,
    scales={"small": _PYDOC},
    build=_gpt2,
)

lohelp_lm = language_model(
    name="lohelp-lm",
    summary="A small GPT on the English help texts of LibreOffice, from a Debian package.",
    vocabulary=1024,
    scales={"small": replace(_PYDOC, data="lohelp-en")},
    build=_gpt2,
)
