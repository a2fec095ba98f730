"""Text corpora: what is read, made once, and downloaded.

The hub is a server on this machine with files in the layout of the published ones, and the real
libraries read from it; they take its address at import, so that is done in processes of their own.
"""

import io
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

import pandas as pd
import pytest

from robustlr.errors import UnavailableError, UserError
from robustlr.tasks.data import corpora, hub
from robustlr.tasks.data.corpora import PARTS, corpus, corpus_folder, fingerprint, make_once
from tests.helpers import ROOT, serving


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The empty data folder."""
    monkeypatch.setenv("ROBUSTLR_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


def _put(folder: Path, **texts: str) -> None:
    """Write train, validation and test in each language."""
    folder.mkdir(parents=True, exist_ok=True)
    for part in PARTS:
        for language, text in texts.items():
            (folder / f"{part}.{language}").write_bytes(f"{part}\n{text}".encode())


def _sentence(call: Callable[[], object]) -> str:
    """Return the error of a call, which is one sentence."""
    with pytest.raises(UserError) as caught:
        call()
    return _checked(str(caught.value))


def _checked(text: str) -> str:
    assert text.endswith(".")
    assert "\n" not in text
    return text


def test_files_that_are_there_are_read(data: Path) -> None:
    _put(data / "multi30k", de="Ein Hund.\r\nZwei\u2028Äpfel .\n", en="A dog.\nTwo\x0bapples .")
    parts = corpus("multi30k")
    assert list(parts) == list(PARTS)
    for part in PARTS:
        assert parts[part] == {
            "de": [part, "Ein Hund.", "Zwei\u2028Äpfel ."],
            "en": [part, "A dog.", "Two\x0bapples ."],
        }


def test_a_text_in_one_language_keeps_its_empty_lines(data: Path) -> None:
    _put(data / "wikitext-2", en="\n = A = \n\n b <unk> \n\n")
    assert corpus("wikitext-2")["train"]["en"] == ["train", "", " = A = ", "", " b <unk> ", ""]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("test.de", None, "{folder} lacks test.de: put"),
        ("train.de", b"", "{folder}/train.de is empty: put"),
        ("train.en", b"\n \n", "{folder}/train.en is empty: put"),
        ("validation.en", b"ok\nfine\n\xff", "line 3 of {folder}/validation.en is not UTF-8"),
        ("train.en", b"a\nb\nc", "train.de has 2 lines and {folder}/train.en has 3 lines: equal"),
        ("train.en", b"a\n \n", "line 2 of {folder}/train.en is empty: write"),
    ],
)
def test_damaged_files_are_named(
    data: Path, file: str, content: bytes | None, message: str
) -> None:
    folder = data / "iwslt14"
    _put(folder, de="gut", en="good")
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_bytes(content)
    assert message.format(folder=folder) in _sentence(lambda: corpus("iwslt14"))


def test_an_unknown_corpus_is_named() -> None:
    with pytest.raises(UserError, match='no corpus is named "wikitext"'):
        corpus("wikitext")


def test_a_fingerprint_follows_the_text_alone(data: Path) -> None:
    _put(data / "wikitext-2", en="a\nb")
    _put(data / "wikitext-103", en="a\nb")
    first = fingerprint("wikitext-2")
    assert re.fullmatch("[0-9a-f]{12}", first)
    assert fingerprint("wikitext-103") == first
    (data / "wikitext-2" / "test.en").write_text("test\na\nc")
    assert fingerprint("wikitext-2") != first


def test_text_that_a_package_brings_is_made_once_and_named_after_its_version(data: Path) -> None:
    from robustlr.tasks.data import pydoc

    parts = corpus("pydoc")
    assert parts == pydoc.corpus()
    assert corpus_folder("pydoc") == data / pydoc.version()
    (data / pydoc.version() / "test.en").write_text("mine\n")
    assert corpus("pydoc")["test"] == {"en": ["mine"]}


def test_only_one_of_several_makes_what_all_wait_for(data: Path) -> None:
    made: list[Path] = []

    def make(path: Path) -> None:
        made.append(path)
        time.sleep(0.2)
        path.write_text("whole")

    def read(_: int) -> str:
        make_once(data / "file", make)
        return (data / "file").read_text()

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(read, range(4))) == ["whole"] * 4
    assert len(made) == 1
    assert {path.name for path in data.iterdir()} == {"file", "file.lock"}


def test_what_breaks_off_leaves_nothing(data: Path) -> None:
    def fail(path: Path) -> None:
        path.mkdir()
        (path / "half").touch()
        raise UnavailableError("no more")

    with pytest.raises(UnavailableError, match="no more"):
        make_once(data / "folder", fail)
    assert {path.name for path in data.iterdir()} == {"folder.lock"}
    make_once(data / "folder", lambda path: path.mkdir())
    assert (data / "folder").is_dir()


def test_a_data_folder_that_cannot_be_written_is_named(data: Path) -> None:
    data.write_text("a file")
    assert f"{data}/wikitext-2 cannot be written" in _sentence(lambda: corpus("wikitext-2"))


def test_two_processes_make_the_same_corpus_at_the_same_time(data: Path) -> None:
    code = "from robustlr.tasks.data.corpora import *; print(fingerprint('pydoc'))"
    started = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=ROOT)
        for _ in range(2)
    ]
    printed = [process.communicate(timeout=60)[0].decode().strip() for process in started]
    assert printed == [fingerprint("pydoc")] * 2
    assert not list(data.glob("tmp*"))


# The hub


class _Handler(BaseHTTPRequestHandler):
    """The few answers of the hub's interface that ``datasets`` and ``huggingface_hub`` ask for."""

    protocol_version = "HTTP/1.1"
    server: "_Hub"

    def do_GET(self) -> None:
        repository, revision, path = self._asked()
        files = self.server.files.get((repository, revision), {})
        if "/api/" in self.path and files:
            self._listed(files, repository, revision, path)
        elif path in files:
            self._sent(files[path], revision)
        else:
            known = "EntryNotFound" if files or self.path == "/" else "RepoNotFound"
            self._answer(200 if self.path == "/" else 404, b"", {"X-Error-Code": known})

    def do_HEAD(self) -> None:
        self.do_GET()

    def _asked(self) -> tuple[str, str, str]:
        """Return the repository, revision and path that are asked for."""
        kinds = r"^(?:/api)?(?:/datasets)?/([^/]+/[^/]+)/(?:resolve|tree|revision)"
        found = re.match(rf"{kinds}/([^/?]+)/?([^?]*)", unquote(self.path))
        return (found[1], found[2], found[3]) if found else ("", "", "")

    def _listed(
        self, files: Mapping[str, bytes], repository: str, revision: str, folder: str
    ) -> None:
        """Answer with what a folder holds, or with what the repository is."""
        if "/tree/" not in self.path:
            siblings = [{"rfilename": path} for path in files]
            facts = {"id": repository, "sha": revision, "siblings": siblings, "tags": []}
            self._answer(200, json.dumps(facts).encode())
            return
        entries = {}
        for path, content in files.items():
            if PurePosixPath(path).is_relative_to(folder):
                first = PurePosixPath(path).relative_to(folder).parts[0]
                child = str(PurePosixPath(folder, first))
                kind = "file" if child == path else "directory"
                entries[child] = {"type": kind, "path": child, "size": len(content), "oid": "0"}
        self._answer(200, json.dumps(list(entries.values())).encode())

    def _sent(self, content: bytes, revision: str) -> None:
        headers = {"ETag": f'"{len(content)}"', "X-Repo-Commit": revision}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if wanted and self.command == "GET":
            first, last = int(wanted[1]), int(wanted[2] or len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            self._answer(206, content[first : last + 1], headers)
        else:
            self._answer(200, content, headers)

    def _answer(
        self, status: int, content: bytes, headers: Mapping[str, str] | None = None
    ) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *args: Any) -> None:
        pass


class _Hub(ThreadingHTTPServer):
    """A server of ``files`` by repository and revision, and then by path."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[tuple[str, str], dict[str, bytes]] = {}
        self.url = f"http://127.0.0.1:{self.server_port}"

    def publish(self, name: str, files: dict[str, bytes]) -> None:
        source = hub.SOURCES[name]
        self.files.setdefault((source.repository, source.revision), {}).update(files)


@pytest.fixture
def server() -> Iterator[_Hub]:
    with _Hub() as server, serving(server):
        yield server


def _parquet(column: str, values: list[Any]) -> bytes:
    file = io.BytesIO()
    pd.DataFrame({column: values}).to_parquet(file, index=False)
    return file.getvalue()


def gpt2_file() -> bytes:
    """Return a tokenizer.json with GPT-2's parts and number of pieces; its pairs are ours."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [(one, two) for one in letters for two in letters][:50_000]
    pieces = [*letters, *(one + two for one, two in merges)]
    numbers = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(numbers, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|endoftext|>", special=True)])
    return tokenizer.to_str().encode()


WIKITEXT = ["", " = A = \n", "", " b <unk> @-@ c \n"]
PAIRS = [{"de": "Ein Hund .", "en": "A dog ."}, {"de": " Zwei  Äpfel\n", "en": "Two apples"}]
DOCUMENTS = [f"Document {number}\n\nends." for number in range(4_002)]


@pytest.fixture
def published(server: _Hub) -> _Hub:
    """The server with everything in the layout of the true repositories."""
    for configuration, name in (
        ("wikitext-2-v1", "wikitext-2"),
        ("wikitext-103-raw-v1", "wikitext-103"),
    ):
        for part in PARTS:
            # The larger one's training part is in two files.
            for number in range(count := 1 + ("103" in name and part == "train")):
                path = f"{configuration}/{part}-{number:05}-of-{count:05}.parquet"
                server.publish(name, {path: _parquet("text", [*WIKITEXT, f" {part} {number} \n"])})
    lines = "".join(json.dumps(pair) + "\n" for pair in PAIRS).encode()
    server.publish("multi30k", {f"{file}.jsonl": lines for file in ("train", "val", "test")})
    translations = _parquet("translation", PAIRS)
    server.publish("iwslt14", {f"de-en/{part}/0000.parquet": translations for part in PARTS})
    for number, some in enumerate((DOCUMENTS[:1_500], DOCUMENTS[1_500:])):
        path = f"plain_text/train-{number:05}-of-00002.parquet"
        server.publish("openwebtext", {path: _parquet("text", some)})
    revision = "607a30d783dfa663caf39e06633721c8d4cfcd7e"
    server.files["openai-community/gpt2", revision] = {"tokenizer.json": gpt2_file()}
    return server


SMALL = f"""
import json, sys, time
from dataclasses import replace
from robustlr.errors import UserError
from robustlr.tasks.data import hub
from robustlr.tasks.data.corpora import corpus
from robustlr.tasks.data.text import load_text
from robustlr.tasks.data.tokens import load_tokenizer
def web():
    splits = load_text("openwebtext", tokens="gpt2", vocabulary=50257, context=8, device="cpu")
    return [len(part) for part in splits]
calls = {{
    name: lambda name=name: corpus(name)
    for name in ("wikitext-2", "wikitext-103", "multi30k", "iwslt14")
}}
calls["gpt2"] = lambda: load_tokenizer("wikitext-103", "gpt2", 50257).encode(["a <|endoftext|>"])
calls["openwebtext"] = web
rows = {{"wikitext-2": [5] * 3, "wikitext-103": [10, 5, 5], "openwebtext": [{len(DOCUMENTS)}]}}
"""
"""What every process begins with: the calls by name, and the rows of our small files."""

ALL = """
for name, source in hub.SOURCES.items():
    counts = dict(zip(source.files, rows.get(name, [2] * 3)))
    hub.SOURCES[name] = replace(source, rows=counts)
print(json.dumps({name: call() for name, call in calls.items()}))
"""

REFUSED = """
errors = {}
for name in sys.argv[1:]:
    try:
        started = time.monotonic()
        calls[name]()
    except UserError as error:
        errors[name] = str(error), time.monotonic() - started
print(json.dumps(errors))
"""


def _run(code: str, *names: str, folder: Path, **environment: str) -> Any:
    """Return what a process of its own prints as JSON."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment = {**clean, **environment, "HF_HOME": str(folder / "hf")}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SMALL + code, *names],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_published_corpora_are_downloaded_and_then_read_from_the_folder(
    published: _Hub, data: Path, tmp_path: Path, nowhere: str
) -> None:
    for address in (published.url, nowhere):  # the second time nothing is asked for
        found = _run(ALL, folder=tmp_path, HF_ENDPOINT=address)
        for name, counts in (("wikitext-2", [1, 1, 1]), ("wikitext-103", [2, 1, 1])):
            for part, count in zip(PARTS, counts, strict=True):
                lines = [
                    line
                    for number in range(count)
                    for line in ["", " = A = ", "", " b <unk> @-@ c ", f" {part} {number} "]
                ]
                assert found[name][part] == {"en": lines}
        for name in ("multi30k", "iwslt14"):
            pairs = {"de": ["Ein Hund .", "Zwei Äpfel"], "en": ["A dog .", "Two apples"]}
            assert found[name] == dict.fromkeys(PARTS, pairs)
        assert len(found["gpt2"][0]) > 1
        assert found["openwebtext"][0] > 1_000 * found["openwebtext"][1] > 0
    assert not list(data.glob("tmp*"))


def test_what_is_not_the_published_corpus_is_refused(
    published: _Hub, data: Path, tmp_path: Path
) -> None:
    published.publish("iwslt14", {"de-en/train/0000.parquet": b"<html>Please log in</html>"})
    published.files.pop(("openai-community/gpt2", "607a30d783dfa663caf39e06633721c8d4cfcd7e"))
    found = _run(REFUSED, "multi30k", "iwslt14", "gpt2", folder=tmp_path, HF_ENDPOINT=published.url)
    assert "multi30k could not be read" in _checked(found["multi30k"][0])
    assert "train has 2 rows, not 29000" in found["multi30k"][0]
    assert "iwslt14 could not be read" in _checked(found["iwslt14"][0])
    assert "tokenizer.json" in _checked(found["gpt2"][0])
    assert not (data / "multi30k").exists()


@pytest.mark.parametrize("offline", [False, True])
def test_without_a_network_a_sentence_says_at_once_what_to_put_where(
    nowhere: str, data: Path, tmp_path: Path, offline: bool
) -> None:
    environment = {"HF_HUB_OFFLINE": "1"} if offline else {"HF_ENDPOINT": nowhere}
    wanted = {
        "wikitext-2": f"put train.en, validation.en, test.en into {data}/wikitext-2,",
        "multi30k": "train.de, train.en, validation.de, validation.en, test.de, test.en into",
        "gpt2": f"tokenizer.json of openai-community/gpt2 into {data}/gpt2",
        "openwebtext": f"tokenizer.json of openai-community/gpt2 into {data}/gpt2",
    }
    found = _run(REFUSED, *wanted, folder=tmp_path, **environment)
    for name, text in wanted.items():
        assert text in _checked(found[name][0])
        assert found[name][1] < 5


def test_without_a_network_a_large_text_can_be_copied(
    nowhere: str, data: Path, tmp_path: Path
) -> None:
    (data / "gpt2").mkdir(parents=True)
    (data / "gpt2" / "tokenizer.json").write_bytes(gpt2_file())
    found = _run(REFUSED, "openwebtext", folder=tmp_path, HF_ENDPOINT=nowhere)
    assert f"copy {data}/openwebtext-gpt2 from" in _checked(found["openwebtext"][0])


def test_the_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, data: Path) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    text = _sentence(lambda: corpora.corpus("wikitext-2"))
    assert "pip install 'robustlr[text]'" in text
    assert f"put train.en, validation.en, test.en into {data}/wikitext-2" in text
