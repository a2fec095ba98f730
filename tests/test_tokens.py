"""Tokenisers, and the windows of tokens that language models read."""

import json
import math
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from robustlr.errors import UserError
from robustlr.scale import Scale
from robustlr.task import Batch
from robustlr.tasks.data import corpora, hub, text, tokens
from robustlr.tasks.data.corpora import PARTS
from robustlr.tasks.data.text import StreamPart, load_text, unigram_perplexity
from robustlr.tasks.data.tokens import BOS, EOS, PAD, UNKNOWN, load_tokenizer
from robustlr.training import batches
from tests.helpers import ROOT
from tests.test_corpora import gpt2_file

WORDS = [" b <unk> a a \n", "\n", " a c , d \n"]
GERMAN = ["Zwei Hunde, im Park.", "Der Hund im Park!", "Im Café: der Hund"]
ENGLISH = ["Two dogs, in a park.", "The dog in the park!", "In a café: the dog's dog"]


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A data folder with a text in words, and with pairs."""
    monkeypatch.setenv("ROBUSTLR_DATA", str(tmp_path))
    for folder in ("wikitext-2", "multi30k", "gpt2"):
        (tmp_path / folder).mkdir()
    for number, part in enumerate(PARTS):
        _put(f"{tmp_path}/wikitext-2/{part}.en", [*WORDS * 5, f" only{part} \n"])
        _put(f"{tmp_path}/multi30k/{part}.de", [f"{line} {number}\n" for line in GERMAN])
        _put(f"{tmp_path}/multi30k/{part}.en", [f"{line} {number}\n" for line in ENGLISH])
    text._load.cache_clear()
    yield tmp_path
    text._load.cache_clear()


def _put(path: str, lines: list[str]) -> None:
    Path(path).write_text("".join(lines), encoding="utf-8")


def _sentence(call: Callable[[], object]) -> str:
    """Return the error of a call, which is one sentence."""
    with pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    assert message.endswith(".")
    assert "\n" not in message
    return message


# Tokenisers


def test_words_are_those_of_all_parts_by_frequency() -> None:
    """Equally frequent ones are in alphabetical order, and the text's <unk> is the unknown word."""
    tokenizer = load_tokenizer("wikitext-2", "word", 100)
    names = [tokenizer.decode([number]) for number in range(len(tokenizer))]
    assert names[4:] == ["a", ",", "b", "c", "d", "onlytest", "onlytrain", "onlyvalidation"]
    assert tokenizer.encode([" a <unk> onlytest \n", "", "A"]) == [
        [4, UNKNOWN, names.index("onlytest")],
        [],
        [UNKNOWN],
    ]
    assert tokenizer.decode([BOS, 4, UNKNOWN, EOS, PAD]) == "a <unk>"
    small = load_tokenizer("wikitext-2", "word", 6)
    assert len(small) == 6
    assert small.encode(["a , b"]) == [[4, 5, UNKNOWN]]


def test_lower_case_words_are_known_if_a_language_has_them_three_times() -> None:
    tokenizer = load_tokenizer("multi30k", "lower-word", 100)
    names = {tokenizer.decode([number]) for number in range(4, len(tokenizer))}
    # "park" is there twice in each of the languages, and that is not enough.
    assert names == {"im", "in", "0", "dog", "the"}
    ids = tokenizer.encode(["THE Dog, im café!"])
    assert tokenizer.decode(ids[0]) == "the dog <unk> im <unk> <unk>"
    assert set(ids[0]) <= {UNKNOWN, *range(4, len(tokenizer))}


@given(line=st.text(st.characters(exclude_categories=["Cs"])))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
def test_byte_pairs_give_back_any_text(line: str) -> None:
    tokenizer = load_tokenizer("multi30k", "bpe", 280)
    assert len(tokenizer) == 280
    for whole in (line, f"<eos>{line}<pad> <unk>"):
        (ids,) = tokenizer.encode([whole])
        assert all(UNKNOWN < number < 280 for number in ids)
        assert tokenizer.decode([BOS, *ids, EOS, PAD, PAD]) == whole


def test_byte_pairs_are_learnt_from_both_languages_of_the_training_part(data: Path) -> None:
    tokenizer = load_tokenizer("multi30k", "bpe", 300)
    for line in ("Hund", " dog"):
        assert len(tokenizer.encode([line])[0]) < len(line)
    first = load_tokenizer("multi30k", "bpe", 300).encode(ENGLISH)
    _put(f"{data}/multi30k/test.en", ["zzzz zzzz\n"] * 3)
    assert load_tokenizer("multi30k", "bpe", 300).encode(ENGLISH) == first


@pytest.mark.parametrize("kind", ["bpe", "word", "lower-word"])
def test_a_tokeniser_is_made_once_and_is_the_same_in_every_process(kind: str, data: Path) -> None:
    """Two processes make it at the same time, with other hashes of strings."""
    code = (
        "import hashlib; from robustlr.tasks.data import tokens;"
        f"tokens.load_tokenizer('multi30k', {kind!r}, 290)"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env={**os.environ, **more})
        for more in ({"PYTHONHASHSEED": "1"}, {"PYTHONHASHSEED": "2"})
    ]
    assert [process.wait(60) for process in started] == [0, 0]
    (file,) = (data / "multi30k").glob(f"{kind}-290-*.json")
    theirs = file.read_bytes()
    file.unlink()
    load_tokenizer("multi30k", kind, 290)
    assert file.read_bytes() == theirs
    changed = file.stat().st_mtime_ns
    load_tokenizer("multi30k", kind, 290)
    assert file.stat().st_mtime_ns == changed
    assert not list(data.rglob("tmp*"))


def test_another_text_has_another_tokeniser(data: Path) -> None:
    assert load_tokenizer("wikitext-2", "word", 100).encode(["new"]) == [[UNKNOWN]]
    _put(f"{data}/wikitext-2/train.en", [" new \n"])
    assert load_tokenizer("wikitext-2", "word", 100).encode(["new"]) != [[UNKNOWN]]


def test_gpt2s_own_is_read_from_its_file(data: Path) -> None:
    (data / "gpt2" / "tokenizer.json").write_bytes(gpt2_file())
    tokenizer = load_tokenizer("wikitext-2", "gpt2", 50_257)
    assert len(tokenizer) == 50_257
    assert tokenizer.end == 50_256
    (ids,) = tokenizer.encode(["A dog <|endoftext|> é\n"])
    assert tokenizer.end not in ids
    assert tokenizer.decode([*ids, tokenizer.end]) == "A dog <|endoftext|> é\n"


def test_what_no_tokeniser_can_be_is_one_sentence(data: Path) -> None:
    assert 'no kind of tokens is named "words"; did you mean "word"?' in str(
        _raised(lambda: load_tokenizer("wikitext-2", "words", 100))
    )
    assert "no corpus is named" in str(_raised(lambda: load_tokenizer("wiki", "word", 100)))
    for kind, vocabulary, message in (
        ("bpe", 259, 'vocabulary = 259: tokens = "bpe" needs at least 260.'),
        ("word", 4, 'vocabulary = 4: tokens = "word" needs at least 5.'),
        ("gpt2", 50_304, 'vocabulary = 50304: tokens = "gpt2" has 50257 pieces.'),
    ):
        found = _sentence(lambda k=kind, v=vocabulary: load_tokenizer("wikitext-2", k, v))  # type: ignore[misc]
        assert found == message
    load_tokenizer("wikitext-2", "bpe", 300)
    (file,) = (data / "wikitext-2").glob("bpe-300-*.json")
    file.write_text("<html>")
    assert f"{file} is not a tokeniser" in _sentence(
        lambda: load_tokenizer("wikitext-2", "bpe", 300)
    )
    (data / "gpt2" / "tokenizer.json").write_text(json.dumps({"version": "1.0"}))
    assert "gpt2/tokenizer.json is not" in _sentence(
        lambda: load_tokenizer("wikitext-2", "gpt2", 50_257)
    )


def _raised(call: Callable[[], object]) -> UserError:
    with pytest.raises(UserError) as caught:
        call()
    return caught.value


# Windows


def _stream(part: str, kind: str = "word", vocabulary: int = 100) -> list[int]:
    """Return a part's tokens, encoded a line at a time."""
    tokenizer = load_tokenizer("wikitext-2", kind, vocabulary)
    lines = corpora.corpus("wikitext-2")[part]["en"]
    return [number for line in lines for number in (*tokenizer.encode([line])[0], EOS)]


@pytest.mark.parametrize(("kind", "vocabulary"), [("word", 100), ("bpe", 270)])
@pytest.mark.parametrize("context", [1, 3, 7])
def test_windows_follow_one_another_in_the_text(kind: str, vocabulary: int, context: int) -> None:
    splits = load_text(
        "wikitext-2", tokens=kind, vocabulary=vocabulary, context=context, device="cpu"
    )
    for name, part in zip(PARTS, splits, strict=True):
        assert isinstance(part, Batch)
        stream = _stream(name, kind, vocabulary)
        assert part.inputs.dtype == part.targets.dtype == torch.int64
        assert part.inputs.shape == part.targets.shape == (len(part), context)
        assert len(stream) - context <= len(part) * context + 1 <= len(stream) + 1
        assert part.inputs.flatten().tolist() == stream[: len(part) * context]
        assert part.targets.flatten().tolist() == stream[1 : len(part) * context + 1]


def test_a_text_is_encoded_once(data: Path) -> None:
    options: dict[str, Any] = {"tokens": "bpe", "vocabulary": 270, "device": "cpu"}
    first = load_text("wikitext-2", context=5, **options)
    assert load_text("wikitext-2", context=5, **options) is first
    files = {path: path.stat().st_mtime_ns for path in data.rglob("bpe-270-*/*")}
    assert len(files) == 3
    load_text("wikitext-2", context=6, **options)
    assert {path: path.stat().st_mtime_ns for path in files} == files


def test_the_unigram_perplexity_is_that_of_smoothed_counts() -> None:
    train, validation = (Counter(_stream(part, vocabulary=9)) for part in PARTS[:2])
    total = train.total() + 9
    surprise = sum(
        count * -math.log((train[number] + 1) / total) for number, count in validation.items()
    )
    expected = math.exp(surprise / validation.total())
    assert unigram_perplexity("wikitext-2", "word", 9) == pytest.approx(expected, rel=1e-12)


def test_what_no_text_can_be_is_one_sentence(data: Path) -> None:
    def load(name: str, **changed: Any) -> Callable[[], object]:
        options = {"tokens": "bpe", "vocabulary": 270, "context": 5, "device": "cpu", **changed}
        return lambda: load_text(name, **options)

    assert 'no text is named "multi30k"' in str(_raised(load("multi30k")))
    assert "vocabulary = 65537: ids are kept in 16" in _sentence(
        load("wikitext-2", vocabulary=65_537)
    )
    assert 'tokens = "gpt2" and vocabulary = 50257 alone' in _sentence(load("openwebtext"))
    length = len(_stream("train", "bpe", 270))
    assert f"train of wikitext-2 has {length} tokens, too few" in _sentence(
        load("wikitext-2", context=length)
    )
    load("wikitext-2", context=length - 1)
    folder = next(data.glob("wikitext-2/bpe-270-*/"))
    (folder / "test").write_bytes(b"")
    text._load.cache_clear()
    assert f"{folder / 'test'} cannot be read" in _sentence(load("wikitext-2"))


@pytest.fixture
def web(data: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Documents that the hub would yield as those of OpenWebText."""
    (data / "gpt2" / "tokenizer.json").write_bytes(gpt2_file())
    documents = [f"Document {number}.\n\nIt ends." for number in range(4_003)]
    monkeypatch.setattr(hub, "documents", lambda otherwise: iter(documents))
    return documents


def _load_web(context: int, device: str = "cpu") -> list[StreamPart]:
    splits = load_text(
        "openwebtext", tokens="gpt2", vocabulary=50_257, context=context, device=device
    )
    parts = [part for part in splits if isinstance(part, StreamPart)]
    assert len(parts) == 3
    return parts


def test_a_large_text_is_read_from_its_file_as_it_is_needed(web: list[str]) -> None:
    tokenizer = load_tokenizer("openwebtext", "gpt2", 50_257)
    # Of 2,000 documents the first is for validation and the second for the test.
    expected = {
        "validation": web[::2_000],
        "test": web[1::2_000],
        "train": [text for place, text in enumerate(web) if place % 2_000 > 1],
    }
    for name, part in zip(PARTS, _load_web(context=4), strict=True):
        joined = [
            number for ids in tokenizer.encode(expected[name]) for number in (*ids, tokenizer.end)
        ]
        assert len(part) == (len(joined) - 1) // 4
        index = torch.randperm(len(part), generator=torch.Generator().manual_seed(0))[:50]
        batch = part.take(index, seed=3)
        assert batch.inputs.dtype == batch.targets.dtype == torch.int64
        for place, window, following in zip(
            index.tolist(), *map(torch.Tensor.tolist, batch), strict=True
        ):
            assert window == joined[4 * place : 4 * place + 4]
            assert following == joined[4 * place + 1 : 4 * place + 5]


def test_the_ids_of_a_large_text_can_be_copied_from_another_machine(
    web: list[str], data: Path
) -> None:
    (part, *_) = _load_web(context=4)
    (data / "gpt2" / "tokenizer.json").write_text("lost")
    text._load.cache_clear()
    (again, *_) = _load_web(context=4)
    index = torch.arange(3)
    assert torch.equal(again.take(index).inputs, part.take(index).inputs)


def test_a_large_text_can_be_trained_on(web: list[str]) -> None:
    (part, *_) = _load_web(context=16)
    scale = Scale(steps=5, batch_size=8, warmup=0.0)
    first, second = (list(batches(part, scale, seed=1)) for _ in range(2))
    assert [batch.inputs.shape for batch in first] == [(8, 16)] * 5
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.inputs, other.inputs)
    assert not torch.equal(first[0].inputs, first[1].inputs)


def test_the_perplexity_of_a_large_text_is_counted_in_pieces(
    web: list[str], data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = unigram_perplexity("openwebtext", "gpt2", 50_257)
    monkeypatch.setattr(text, "COUNTED", 1_000)
    assert unigram_perplexity("openwebtext", "gpt2", 50_257) == whole
    train, validation = (
        np.fromfile(data / "openwebtext-gpt2" / part, dtype=np.uint16) for part in PARTS[:2]
    )
    counts = np.bincount(train, minlength=50_257) + 1
    assert whole == pytest.approx(np.exp(-np.log(counts / counts.sum())[validation].mean()))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_windows_can_be_on_a_cuda_device(web: list[str]) -> None:
    index = torch.arange(6)
    for one, other in zip(_load_web(context=4), _load_web(context=4, device="cuda"), strict=True):
        for expected, found in zip(one.take(index[:2]), other.take(index[:2]), strict=True):
            assert found.device.type == "cuda"
            assert torch.equal(found.cpu(), expected)


def test_every_kind_is_documented() -> None:
    for kind in (*tokens.KINDS, "gpt2"):
        assert f'"{kind}":' in str(load_tokenizer.__doc__)


def test_gpt2_sees_lines_end_as_they_do_in_the_file(data: Path) -> None:
    """Perplexities of WikiText-103 would not compare with published ones otherwise."""
    (data / "wikitext-103").mkdir()
    (data / "gpt2" / "tokenizer.json").write_bytes(gpt2_file())
    for part in PARTS:
        _put(f"{data}/wikitext-103/{part}.en", [" = A dog = \n", "\n", " A dog , é \n"])
    tokenizer = load_tokenizer("wikitext-103", "gpt2", 50_257)
    windows = load_text("wikitext-103", tokens="gpt2", vocabulary=50_257, context=2, device="cpu")
    batch = windows.train.take(torch.arange(len(windows.train)))
    stream = [int(batch.inputs[0, 0]), *batch.targets.flatten().tolist()]
    whole = tokenizer.encode([" = A dog = \n", "\n", " A dog , é \n"])
    assert stream == [number for ids in whole for number in ids][: len(stream)]
    assert "\n" in tokenizer.decode(stream)
