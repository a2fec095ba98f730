"""Text that needs no network: what its makers promise, over all of what they make."""

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path

import pytest

from robustlr.errors import UnavailableError
from robustlr.tasks.data import cldr, cldr_amounts, cldr_names, lohelp, pydoc
from robustlr.tasks.data.corpora import Parts
from robustlr.tasks.data.splits import linked, split, split_pairs

PARTS = ["train", "validation", "test"]


def _pairs(part: Mapping[str, list[str]]) -> list[tuple[str, str]]:
    return list(zip(part["en"], part["de"], strict=True))


def _check_lines(parts: Parts) -> None:
    """Check that lines are lines, and that no two parts share one."""
    assert list(parts) == PARTS
    for language in parts["train"]:
        sets = [set(parts[part][language]) for part in PARTS]
        assert all(sets)
        assert all(one.isdisjoint(other) for one, other in combinations(sets, 2))
        lines = set.union(*sets)
        assert all(line and line == " ".join(line.split()) for line in lines)


def _check_shares(sizes: list[int]) -> None:
    train, *held_out = [size / sum(sizes) for size in sizes]
    assert train < 0.93
    assert all(0.035 < share <= 0.05 for share in held_out)


# Splits


def test_items_that_share_a_key_however_indirectly_are_one_group() -> None:
    assert linked(["ab", "c", "bd", "", "ed", "f", "cf"]) == [[0, 2, 4], [1, 5, 6], [3]]


def test_every_kind_is_in_every_part_by_weight() -> None:
    kinds = ["few"] * 100 + ["many"] * 900
    parts = split([[number] for number in range(1000)], kinds=kinds)
    assert sorted(index for part in parts.values() for index in part) == list(range(1000))
    for part in ("validation", "test"):
        assert [sum(kinds[index] == kind for index in parts[part]) for kind in ("few", "many")] == [
            5,
            45,
        ]
    heavy = split([[number] for number in range(101)], weights=[1000] + [1] * 100)
    assert 0 in heavy["train"]
    assert [len(heavy[part]) for part in ("validation", "test")] == [55, 45]


def test_a_sentence_with_two_translations_is_in_one_part() -> None:
    pairs = [(f"en {number // 2}", f"de {(number + 1) // 4}") for number in range(2000)]
    parts = split_pairs(pairs)
    assert sorted(pair for part in parts.values() for pair in _pairs(part)) == sorted(pairs)
    chained = {
        part: [set(texts[language]) for language in ("en", "de")] for part, texts in parts.items()
    }
    for one, other in combinations(PARTS, 2):
        assert not chained[one][0] & chained[other][0]
        assert not chained[one][1] & chained[other][1]


# Python's documentation


def test_pydoc_is_paragraphs_each_in_one_part_and_once() -> None:
    parts = pydoc.corpus()
    _check_lines(parts)
    lines = [line for part in PARTS for line in parts[part]["en"]]
    unnumbered = [re.sub(r"\[\d+\]", "", line).strip() for line in lines]
    assert len(unnumbered) == len(set(unnumbered))
    _check_shares([sum(map(len, parts[part]["en"])) for part in PARTS])
    assert 250_000 < sum(map(len, lines)) < 700_000


def test_pydoc_joins_what_the_source_breaks() -> None:
    text = "Heading\n*******\n\nA quote-\ndelimited word, and\nsome more.\n\n   x = 1 -\\\n     2\n"
    expected = ["Heading", "A quote-delimited word, and some more.", r"x = 1 -\ 2"]
    assert pydoc._paragraphs(text) == expected


# CLDR


def test_cldr_shares_no_sentence_between_parts_and_is_one_to_one() -> None:
    parts = cldr.corpus()
    _check_lines(parts)
    pairs = [pair for part in parts.values() for pair in _pairs(part)]
    assert len(pairs) == len({english for english, _ in pairs}) == len({de for _, de in pairs})
    assert len(pairs) > 50_000
    assert sum(max(map(len, map(str.split, pair))) <= 20 for pair in pairs) > 0.99 * len(pairs)
    _check_shares([len(parts[part]["en"]) for part in PARTS])


def test_every_kind_of_cldr_is_in_every_part() -> None:
    places = {pair: part for part, texts in cldr.corpus().items() for pair in _pairs(texts)}
    for kind, pairs in cldr.pairs_by_kind().items():
        assert pairs, kind
        if len(pairs) >= 20:
            counts = [sum(places[pair] == part for pair in pairs) for part in PARTS]
            assert counts[1] == counts[2] == len(pairs) // 20, kind


DRAWN = {**cldr_amounts.DRAWN, **cldr_names.DRAWN}


@pytest.mark.parametrize("kind", DRAWN)
def test_as_many_pairs_are_drawn_as_asked_for(kind: str) -> None:
    _, count = DRAWN[kind]
    assert 0.95 * count <= len(cldr.pairs_by_kind()[kind]) <= count


def test_true_translations() -> None:
    pairs = {pair for part in cldr.corpus().values() for pair in _pairs(part)}
    assert pairs >= {
        ("one", "eins"),
        ("twenty-one", "einundzwanzig"),
        ("one hundred and one", "einhunderteins"),
        ("seventy-seventh", "siebenundsiebzigste"),
        ("nineteen eighty-four", "neunzehnhundertvierundachtzig"),
        ("1 meter", "1 Meter"),
        ("1 second", "1 Sekunde"),
        ("Germany", "Deutschland"),
        ("Austria", "Österreich"),
        ("German", "Deutsch"),
        ("Swiss Franc", "Schweizer Franken"),
        ("Central European Summer Time", "Mitteleuropäische Sommerzeit"),
        ("Wednesday", "Mittwoch"),
        ("March", "März"),
    }


def test_numbers_and_units_agree() -> None:
    kinds = cldr.pairs_by_kind()
    wrong = re.compile(r"einstausend|(?<!^)\beins (?!Komma)|hunderteins (?!Komma)")
    for kind in ("cardinals", "ordinals", "spoken measures", "durations", "spoken money"):
        assert not [german for _, german in kinds[kind] if wrong.search(german)], kind
    for english, german in kinds["large numbers"]:
        for one, other in (("billion", "Milliarden"), ("trillion", "Billionen")):
            assert (one in english) == (other in german)
    figures = re.compile(r"\d+")
    for kind in ("measures", "rates", "written decimals", "percentages", "money"):
        for english, german in kinds[kind]:
            assert figures.findall(english) == figures.findall(german)


def test_text_follows_no_hash_seed() -> None:
    script = (
        "import hashlib, json; from robustlr.tasks.data import cldr, pydoc;"
        "text = json.dumps([pydoc.corpus(), cldr.corpus()]);"
        "print(pydoc.version(), cldr.version(), hashlib.md5(text.encode()).hexdigest())"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1
    assert outputs.pop().startswith(f"{pydoc.version()} {cldr.version()} ")


# LibreOffice's help


def _page(body: str) -> str:
    return (
        '<!DOCTYPE html><html><head><meta charset="utf-8"></head><body><p id="menu">Menu</p>'
        f'<div id="DisplayArea" itemscope="true">\n{body}\n</div><div id="SearchFrame"></div>'
        '<p id="bm_module" dir="auto">x</p></body></html>'
    )


def _install(folder: Path, pages: Mapping[str, tuple[str, str]]) -> Path:
    for name, bodies in pages.items():
        for language, body in zip(("en-US", "de"), bodies, strict=True):
            path = folder / language / "text" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(_page(body), "utf-8")
    return folder


def _pairs_of(folder: Path) -> set[tuple[str, str]]:
    return {pair for part in lohelp.corpus(folder).values() for pair in _pairs(part)}


def test_paragraphs_of_the_help_are_paired_by_id(tmp_path: Path) -> None:
    english = """
        <h1 id="hd_1" dir="auto">\n<a name="x"></a>First&nbsp;Steps</h1>
        <p id="par_2" class="paragraph">Press <span class="emph">OK</span>\n&amp; go on.<br>Now.</p>
        <p id="par_3">LibreOffice</p><p id="par_4">Only here</p><p class="embedded">A copy</p>
        <p id="par_5" class="code">x = 1 ' one</p><p id="par_6">Twice</p><p id="par_6">Thrice</p>"""
    german = """
        <p id="par_2" class="paragraph">Klicken Sie auf <span class="emph">OK</span>.</p>
        <h1 id="hd_1" dir="auto">Erste Schritte</h1><p class="embedded">Eine Kopie</p>
        <p id="par_3">LibreOffice</p><p id="par_4"></p>
        <p id="par_5" class="code">x = 1 ' eins</p><p id="par_6">Dreimal</p><p id="par_6">Zwei</p>"""
    folder = _install(tmp_path, {"shared/01/a.html": (english, german)})
    assert _pairs_of(folder) == {
        ("First Steps", "Erste Schritte"),
        ("Press OK & go on. Now.", "Klicken Sie auf OK."),
    }


def test_the_help_names_the_keys_of_one_system_alone(tmp_path: Path) -> None:
    def paragraph(mac: str, default: str) -> str:
        return (
            '<p id="par_1">(<span id="sw1" class="switchinline"><span hidden="true" id="MACx" '
            f'class="MAC">{mac}</span><span hidden="true" id="defaultx">'
            f'<span class="keycode">{default}</span></span></span>+N)</p>'
        )

    bodies = paragraph("Command", "Ctrl"), paragraph("Befehl", "Strg")
    assert _pairs_of(_install(tmp_path, {"a.html": bodies})) == {("(Ctrl+N)", "(Strg+N)")}


def test_the_help_is_split(tmp_path: Path) -> None:
    def body(language: str) -> str:
        texts = (f'<p id="par_{number}">{language} {number // 2}</p>' for number in range(400))
        return "\n".join(texts)

    parts = lohelp.corpus(_install(tmp_path, {"a.html": (body("no"), body("nein"))}))
    _check_lines(parts)
    assert [len(_pairs(parts[part])) for part in PARTS] == [180, 10, 10]


@pytest.mark.parametrize("missing", ["en-US", "de"])
def test_help_that_is_not_there_is_told_where_to_get_it(tmp_path: Path, missing: str) -> None:
    _install(tmp_path, {"a.html": ("", "")})
    (tmp_path / missing).rename(tmp_path / "other")
    with pytest.raises(UnavailableError, match=r"ROBUSTLR_LOHELP .*\.$") as caught:
        lohelp.corpus(tmp_path)
    assert f"{tmp_path / missing} has no help" in str(caught.value)
    assert "libreoffice-help-en-us and libreoffice-help-de" in str(caught.value)


@pytest.mark.parametrize("spoilt", [b"", b"<html>", _page("\xe4").encode("latin-1"), b"\0" * 99])
def test_a_damaged_page_of_the_help_is_named(tmp_path: Path, spoilt: bytes) -> None:
    _install(tmp_path, {"a.html": ('<p id="a">Yes</p>', '<p id="a">Ja</p>')})
    page = tmp_path / "de" / "text" / "a.html"
    page.write_bytes(spoilt)
    with pytest.raises(UnavailableError, match=r"\.$") as caught:
        lohelp.corpus(tmp_path)
    assert str(caught.value).startswith(f"{page} is damaged (")
    assert "\n" not in str(caught.value)


def test_help_of_another_layout_is_refused(tmp_path: Path) -> None:
    _install(tmp_path, {"a.html": ("<div>Yes</div>", "<div>Ja</div>")})
    with pytest.raises(UnavailableError, match=f"{tmp_path} has no paragraph in both"):
        lohelp.corpus(tmp_path)


def test_the_help_is_where_the_variable_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ROBUSTLR_LOHELP", raising=False)
    assert lohelp.help_folder() == lohelp.PACKAGED
    monkeypatch.setenv("ROBUSTLR_LOHELP", "~/help")
    assert lohelp.help_folder() == Path.home() / "help"


@pytest.mark.skipif(
    not (lohelp.help_folder() / "de").exists(),
    reason="Debian's packages libreoffice-help-en-us and libreoffice-help-de are not here",
)
def test_the_real_help() -> None:
    parts = lohelp.corpus(lohelp.help_folder())
    _check_lines(parts)
    pairs = [pair for part in parts.values() for pair in _pairs(part)]
    assert len(pairs) == len(set(pairs)) > 30_000
    assert not [pair for pair in pairs if pair[0] == pair[1]]
    _check_shares([len(parts[part]["en"]) for part in PARTS])
