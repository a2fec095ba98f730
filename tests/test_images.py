"""Image data sets: what is downloaded, checked and read.

Every file here is made in the format of the published one and travels the real way: from a server
on this machine through torchvision's download and checksum. Only sizes and checksums are ours.
"""

import gzip
import hashlib
import io
import json
import socket
import struct
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from robustlr.errors import UserError
from robustlr.task import Batch, LabelledPart, Part, Splits
from robustlr.tasks.data import folder, images, published
from robustlr.tasks.data.images import DATA_SETS, load
from tests.helpers import ROOT, serving

TRAIN, VALIDATION, TEST = 50, 10, 20


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The empty data folder of a machine without packaged data."""
    monkeypatch.setenv("ROBUSTLR_DATA", str(tmp_path / "data"))
    monkeypatch.delenv("ROBUSTLR_IMAGENET", raising=False)
    monkeypatch.setattr(published, "PACKAGED", tmp_path / "packaged")
    images._load.cache_clear()
    yield tmp_path / "data"
    images._load.cache_clear()


class _Handler(SimpleHTTPRequestHandler):
    server: "_Server"

    def do_GET(self) -> None:
        if self.headers["Method"] != "HEAD":  # how torchvision asks where an address leads
            self.server.downloads.append(self.path)
            time.sleep(self.server.delay)
        super().do_GET()

    def copyfile(self, source: Any, outputfile: Any) -> None:
        content = source.read()
        outputfile.write(content[: len(content) // 2] if self.server.cut else content)

    def log_message(self, *args: Any) -> None:
        pass


class _Server(ThreadingHTTPServer):
    """A server of ``folder`` that can be slow, and can break off half way through a file."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), partial(_Handler, directory=str(folder)))
        self.folder, self.delay, self.cut = folder, 0.0, False
        self.downloads: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_port}"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[_Server]:
    (tmp_path / "served").mkdir()
    with _Server(tmp_path / "served") as server, serving(server):
        yield server


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def _examples(count: int, *shape: int, classes: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """Return images of which no two are alike, with labels that follow from the pixels."""
    pixels = np.random.default_rng(count).integers(256, size=(count, *shape), dtype=np.uint8)
    return pixels, _label(pixels, classes)


def _label(pixels: np.ndarray, classes: int = 10) -> np.ndarray:
    flat = pixels.reshape(len(pixels), -1)
    return np.asarray(flat.sum(1, dtype=np.int64) % classes)


def _idx(values: np.ndarray) -> bytes:
    header = struct.pack(f">{1 + values.ndim}i", 0x800 + values.ndim, *values.shape)
    return header + bytes(values.astype(np.uint8))


def _mnist_files() -> dict[str, bytes]:
    """Return the four files of an MNIST by name, as they are before gzip."""
    train, test = _examples(TRAIN + VALIDATION, 28, 28), _examples(TEST, 28, 28)
    return {
        "train-images-idx3-ubyte": _idx(train[0]),
        "train-labels-idx1-ubyte": _idx(train[1]),
        "t10k-images-idx3-ubyte": _idx(test[0]),
        "t10k-labels-idx1-ubyte": _idx(test[1]),
    }


def _python2_pickle(content: object) -> bytes:
    """Pickle with the opcodes of Python 2, in which CIFAR was published: strings are bytes."""
    match content:
        case dict():
            pairs = b"".join(
                _python2_pickle(key) + _python2_pickle(content[key]) for key in content
            )
            return b"}(" + pairs + b"u"
        case list():
            return b"](" + b"".join(map(_python2_pickle, content)) + b"e"
        case int():
            return b"J" + struct.pack("<i", content)
        case str():
            return b"T" + struct.pack("<i", len(content)) + content.encode("latin1")
    assert isinstance(content, np.ndarray)
    assert content.dtype == np.uint8
    rows, columns = (_python2_pickle(int(side)) for side in content.shape)
    dtype = (
        b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNN"
        + 2 * (b"J" + b"\xff" * 4)
        + b"K\x00tb"
    )
    flat = b"T" + struct.pack("<i", content.size) + bytes(content)
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    return array + b"(K\x01" + rows + columns + b"\x86" + dtype + b"\x89" + flat + b"tb"


def _cifar_files(name: str) -> dict[str, bytes]:
    """Return the batches of a CIFAR and its list of class names."""
    classes = DATA_SETS[name].classes
    pixels, labels = _examples(TRAIN + VALIDATION, 3072, classes=classes)
    key = "labels" if name == "cifar10" else "fine_labels"
    parts = np.split(np.arange(len(pixels)), 5 if name == "cifar10" else 1)
    names = [f"data_batch_{n}" for n in range(1, 6)] if name == "cifar10" else ["train"]
    batches = {file: (pixels[part], labels[part]) for file, part in zip(names, parts, strict=True)}
    batches["test_batch" if name == "cifar10" else "test"] = _examples(TEST, 3072, classes=classes)
    contents: dict[str, Any] = {}
    for file, (inputs, targets) in batches.items():
        contents[file] = {"batch_label": file, key: targets.tolist(), "data": inputs}
    contents["batches.meta" if name == "cifar10" else "meta"] = {"label_names": ["a", "b"]}
    return {file: b"\x80\x02" + _python2_pickle(value) + b"." for file, value in contents.items()}


def _publish(name: str, served: Path) -> dict[str, Any]:
    """Put a small data set into ``served``; return what torchvision's class has to know of it."""
    if "mnist" in name:
        resources = []
        for file, content in _mnist_files().items():
            packed = gzip.compress(content)
            (served / f"{file}.gz").write_bytes(packed)
            resources.append([f"{file}.gz", _md5(packed)])
        return {"resources": resources}
    kind = published._torchvision(name)
    files = _cifar_files(name)
    with tarfile.open(served / kind.filename, "w:gz") as tar:
        for file, content in files.items():
            entry = tarfile.TarInfo(f"{kind.base_folder}/{file}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    checksums = [[file, _md5(content)] for file, content in files.items()]
    packed = (served / kind.filename).read_bytes()
    return {"tgz_md5": _md5(packed), "train_list": checksums[:-2], "test_list": checksums[-2:-1]}


def _teach(patch: pytest.MonkeyPatch, name: str, known: dict[str, Any], url: str) -> None:
    """Tell torchvision's class of the small data set and of its address."""
    kind = published._torchvision(name)
    addresses = {"mirrors": [url]} if "mnist" in name else {"url": url + kind.filename}
    for key, value in {**known, **addresses}.items():
        patch.setattr(kind, key, value)
    facts = replace(DATA_SETS[name], train=TRAIN, validation=VALIDATION, test=TEST)
    patch.setitem(DATA_SETS, name, facts)


PUBLISHED = ("mnist", "fashion-mnist", "cifar10", "cifar100")


@pytest.fixture(params=PUBLISHED)
def name(request: pytest.FixtureRequest, server: _Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a data set that the server has."""
    name = str(request.param)
    _teach(monkeypatch, name, _publish(name, server.folder), f"{server.url}/")
    return name


@pytest.fixture
def cifar10(server: _Server, monkeypatch: pytest.MonkeyPatch) -> str:
    _teach(monkeypatch, "cifar10", _publish("cifar10", server.folder), f"{server.url}/")
    return "cifar10"


def _resident(part: Part) -> Batch:
    """Return a part as the batch that it is unless it is a folder."""
    assert isinstance(part, Batch)
    return part


def _check(name: str, splits: Splits[LabelledPart]) -> None:
    """Every image is in one part, once, with its label; test images are in the published order."""
    facts = DATA_SETS[name]
    shape = (facts.channels, facts.size, facts.size)
    assert [len(part) for part in splits] == [TRAIN, VALIDATION, TEST]
    for part in map(_resident, splits):
        assert part.inputs.dtype == torch.uint8
        assert part.targets.dtype == torch.int64
        assert part.inputs.shape == (len(part), *shape)
        labels = _label(part.inputs.numpy(), facts.classes)
        assert part.targets.tolist() == labels.tolist()
    published_train, _ = _examples(TRAIN + VALIDATION, *shape)
    published_test, _ = _examples(TEST, *shape)
    ours = np.concatenate([_resident(part).inputs.numpy() for part in splits[:2]])
    assert {image.tobytes() for image in ours} == {image.tobytes() for image in published_train}
    assert np.array_equal(_resident(splits.test).inputs, published_test)


def _sentence(name: str, **options: Any) -> str:
    """Return the error of a load, which is one sentence."""
    with pytest.raises(UserError) as caught:
        load(name, **options)
    text = str(caught.value)
    assert text.endswith(".")
    assert "\n" not in text
    return text


def test_a_data_set_is_downloaded_once_and_then_read_from_the_folder(
    name: str, server: _Server, data: Path
) -> None:
    first = load(name)
    _check(name, first)
    assert load(name, size=DATA_SETS[name].size, device="cpu") is first
    count = len(server.downloads)
    assert count == len(published._archives(name))
    images._load.cache_clear()
    _check(name, load(name))
    assert len(server.downloads) == count
    assert not list(data.rglob("tmp*"))


@pytest.mark.filterwarnings("ignore:dtype")  # NumPy 2.4.0 to 2.4.4, of Python 2's pickles
def test_torchvision_reads_the_folder_too(name: str, server: _Server, data: Path) -> None:
    ours = load(name).test
    if "cifar" in name:
        meta = published._torchvision(name).meta
        file = data / published._torchvision(name).base_folder / meta["filename"]
        meta = {**meta, "md5": _md5(file.read_bytes()), "key": "label_names"}
        theirs = type("Small", (published._torchvision(name),), {"meta": meta})(data, train=False)
    else:
        theirs = published._torchvision(name)(data, train=False)
    assert [label for _, label in theirs] == ours.targets.tolist()


def test_the_split_is_the_same_every_time(cifar10: str) -> None:
    """The permutation is that of NumPy's frozen RandomState(0)."""
    pixels, _ = _examples(TRAIN + VALIDATION, 3, 32, 32)
    order = np.random.RandomState(0).permutation(TRAIN + VALIDATION)
    splits = load(cifar10)
    assert np.array_equal(_resident(splits.validation).inputs, pixels[order[:VALIDATION]])
    assert np.array_equal(_resident(splits.train).inputs, pixels[order[VALIDATION:]])


def test_a_download_that_breaks_off_is_named_and_then_repaired(
    name: str, server: _Server, data: Path
) -> None:
    server.cut = True
    archive = published._archives(name)[0]
    text = _sentence(name)
    assert f"{archive.path} is not the published file" in text
    assert archive.urls[0] in text
    server.cut = False
    _check(name, load(name))


def test_without_a_network_the_sentence_says_what_to_put_where(
    name: str, server: _Server, data: Path, nowhere: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = published._torchvision(name)
    monkeypatch.setattr(kind, "mirrors", [f"{nowhere}/"], raising=False)
    monkeypatch.setattr(kind, "url", f"{nowhere}/{getattr(kind, 'filename', '')}", raising=False)
    text = _sentence(name)
    assert "Connection refused" in text
    assert ("dataset-fashion-mnist" in text) == (name == "fashion-mnist")
    for archive in published._archives(name):  # do as we are told
        assert archive.urls[0] in text
        assert f"into {archive.path.parent}" in text
        archive.path.parent.mkdir(parents=True, exist_ok=True)
        archive.path.write_bytes((server.folder / archive.path.name).read_bytes())
    last = published._archives(name)[-1]
    last.path.write_bytes(b"<html>Please log in</html>")
    assert f"{last.path} is not the published file" in _sentence(name)
    last.path.write_bytes((server.folder / last.path.name).read_bytes())
    _check(name, load(name))


def test_the_next_mirror_is_asked_if_one_fails(
    server: _Server, nowhere: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _teach(monkeypatch, "mnist", _publish("mnist", server.folder), f"{server.url}/")
    kind = published._torchvision("mnist")
    monkeypatch.setattr(kind, "mirrors", [f"{nowhere}/", f"{server.url}/absent/", f"{server.url}/"])
    _check("mnist", load("mnist"))


def test_a_server_that_is_silent_is_given_up(
    server: _Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = _publish("cifar10", server.folder)
    monkeypatch.setattr(published, "PATIENCE_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        _teach(monkeypatch, "cifar10", known, url)
        assert "cifar10 could not be downloaded (timed out)" in _sentence("cifar10")
    assert socket.getdefaulttimeout() is None


def test_a_damaged_archive_in_the_folder_is_replaced(
    name: str, server: _Server, data: Path
) -> None:
    archive = published._archives(name)[0]
    archive.path.parent.mkdir(parents=True)
    archive.path.write_bytes((server.folder / archive.path.name).read_bytes()[:100])
    _check(name, load(name))


@pytest.mark.parametrize("spoil", ["shorter", "longer", "empty", "another"])
def test_a_damaged_unpacked_file_is_named(name: str, spoil: str, data: Path) -> None:
    load(name)
    for archive in published._archives(name):
        for path in archive.unpacked:
            content = path.read_bytes()
            changed = {"shorter": content[:-1], "longer": content + b"0", "empty": b""}
            path.write_bytes(changed.get(spoil, b"\x80" + content[1:-1] + b"?"))
            images._load.cache_clear()
            assert f"{path} is damaged" in _sentence(name)
            path.unlink()
            _check(name, load(name))


def test_a_folder_that_cannot_be_written_is_named(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ROBUSTLR_DATA", str(tmp_path / "file"))
    text = _sentence(name)
    assert f"cannot be put into {tmp_path / 'file'}" in text
    assert "ROBUSTLR_DATA" in text


def test_two_processes_download_once(
    server: _Server, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = _publish("cifar10", server.folder)
    server.delay = 0.3
    code = (
        "import json, sys, pytest\n"
        "from tests.test_images import _check, _teach, load\n"
        "_teach(pytest.MonkeyPatch(), 'cifar10', *json.loads(sys.argv[1]))\n"
        "print('ready', flush=True)\n"
        "input()\n"
        "_check('cifar10', load('cifar10'))\n"
    )
    command = [sys.executable, "-c", code, json.dumps([known, f"{server.url}/"])]
    with subprocess.Popen(
        command, cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        _teach(monkeypatch, "cifar10", known, f"{server.url}/")
        assert other.stdout.readline() == "ready\n"
        other.stdin.write("\n")
        other.stdin.flush()
        _check("cifar10", load("cifar10"))  # while the other does so too
    assert other.returncode == 0
    assert server.downloads == ["/cifar-10-python.tar.gz"]
    assert _md5((data / "cifar-10-python.tar.gz").read_bytes()) == known["tgz_md5"]


def _package(monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Install a small dataset-fashion-mnist; its gzip is not the published one's."""
    published.PACKAGED.mkdir()
    paths = {}
    for file, content in _mnist_files().items():
        paths[file] = published.PACKAGED / f"{file}.gz"
        paths[file].write_bytes(gzip.compress(content, compresslevel=1))
    facts = replace(DATA_SETS["fashion-mnist"], train=TRAIN, validation=VALIDATION, test=TEST)
    monkeypatch.setitem(DATA_SETS, "fashion-mnist", facts)
    return paths


def test_fashion_mnist_is_read_from_debians_package(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _package(monkeypatch)
    _check("fashion-mnist", load("fashion-mnist"))
    assert not data.exists()


@pytest.mark.parametrize("file", list(_mnist_files()))
def test_a_damaged_file_of_the_package_is_named(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _package(monkeypatch)[file]
    whole = path.read_bytes()
    wrong_count = bytearray(gzip.decompress(whole))
    wrong_count[7] += 1
    for spoilt in (whole[:-30], b"not gzip", gzip.compress(bytes(wrong_count)), b""):
        path.write_bytes(spoilt)
        assert f"{path} is damaged" in _sentence("fashion-mnist")


@pytest.mark.skipif(
    not published.PACKAGED.exists(), reason="Debian's package dataset-fashion-mnist is not here"
)
def test_the_real_fashion_mnist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(published, "PACKAGED", Path("/usr/share/datasets/fashion-mnist"))
    facts, splits = DATA_SETS["fashion-mnist"], load("fashion-mnist")
    assert [len(part) for part in splits] == [facts.train, facts.validation, facts.test]
    assert splits.test.targets.bincount().tolist() == [1000] * 10
    pixels = torch.cat([_resident(part).inputs for part in splits[:2]]).double() / 255
    assert (pixels.mean().item(), pixels.std().item()) == pytest.approx(
        (*facts.mean, *facts.std), abs=5e-5
    )


def test_digits_are_the_same_images_in_the_same_parts() -> None:
    splits = load("digits")
    facts = DATA_SETS["digits"]
    assert [len(part) for part in splits] == [facts.train, facts.validation, facts.test]
    content = b"".join(
        tensor.numpy().tobytes() for part in map(_resident, splits) for tensor in part
    )
    assert _md5(content) == "c4a8e992a4e14a95de639ead38be8a24"
    pixels = _resident(splits.train).inputs.double() / 255
    assert (pixels.mean().item(), pixels.std().item()) == pytest.approx(
        (*facts.mean, *facts.std), abs=5e-5
    )


@pytest.mark.parametrize("size", [16, 28, 32])
def test_digits_in_another_size_are_the_same_digits(size: int) -> None:
    small, large = load("digits"), load("digits", size=size)
    for one, other in zip(map(_resident, small), map(_resident, large), strict=True):
        assert other.inputs.shape == (len(one), 1, size, size)
        assert other.inputs.dtype == torch.uint8
        assert torch.equal(one.targets, other.targets)
        means = one.inputs.float().mean((1, 2, 3)), other.inputs.float().mean((1, 2, 3))
        assert torch.allclose(*means, atol=6)


def test_a_data_set_can_be_made_smaller(cifar10: str) -> None:
    own, small = _resident(load(cifar10).test), _resident(load(cifar10, size=16).test)
    assert small.inputs.shape == (TEST, 3, 16, 16)
    assert (small.inputs.double().mean() - own.inputs.double().mean()).abs() < 1


def test_facts_fit_one_another() -> None:
    for facts in DATA_SETS.values():
        assert len(facts.mean) == len(facts.std) == facts.channels
        assert all(0 < value < 1 for value in (*facts.mean, *facts.std))
        assert facts.source


def test_an_unknown_name_is_told_the_nearest() -> None:
    with pytest.raises(UserError, match=r'no data set .* "cifar-10"; did you mean "cifar10"\?'):
        load("cifar-10")


# Image folders


@pytest.fixture
def imagenet(data: Path) -> Path:
    """Three classes of JPEGs of every shape and colour; 12 training images each, 2 for test."""
    root, random = data / "imagenet", np.random.default_rng(0)
    shapes = [(40, 30), (30, 40), (64, 64), (200, 20), (97, 51)]
    for part, count in (("train", 12), ("val", 2)):
        for place, name in enumerate(("n03", "n01", "n02")):
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                width, height = shapes[number % len(shapes)]
                pixels = random.integers(256, size=(height, width, 3), dtype=np.uint8)
                mode = ("RGB", "L", "CMYK")[(number + place) % 3]
                path = root / part / name / f"{name}_{number}.JPEG"
                Image.fromarray(pixels).convert(mode).save(path, "JPEG")
    (root / "train" / "n01" / ".DS_Store").write_text("")
    (root / "train" / "LOC_synset_mapping.txt").write_text("")
    return root


def _all(part: Any, seed: int | None = None) -> Batch:
    batch = part.take(torch.arange(len(part)), seed)
    assert isinstance(batch, Batch)
    return batch


def test_an_image_folder_is_split_and_numbered(imagenet: Path) -> None:
    splits = load("imagenet")
    assert [len(part) for part in splits] == [30, 6, 6]
    assert splits.test.targets.tolist() == [0, 0, 1, 1, 2, 2]
    files: set[str] = set()
    for part in splits:
        assert isinstance(part, folder.ImageFolderPart)
        assert part.targets.dtype == torch.int64
        for file, target in zip(part.files, part.targets.tolist(), strict=True):
            assert file.startswith(f"n0{target + 1}/n0{target + 1}_")
        names = {f"{part.folder.name}/{file}" for file in part.files}
        assert not files & names
        files |= names
    assert len(files) == 42
    inputs, targets = splits.test.take(torch.tensor([5, 0]))
    assert inputs.shape == (2, 3, 224, 224)
    assert inputs.dtype == torch.uint8
    assert inputs.is_contiguous()
    assert targets.tolist() == [2, 0]


def test_validation_takes_fifty_images_of_a_class_at_most() -> None:
    files = [[f"{name}/{number}" for number in range(1300)] for name in "ab"]
    rest, picked = folder._split(files)
    assert [len(names) for names in picked] == [50, 50]
    assert [sorted(one + two) for one, two in zip(rest, picked, strict=True)] == [
        sorted(names) for names in files
    ]
    assert folder._split(files)[1] == picked


def test_images_are_cut_at_the_centre_as_torchvision_does(imagenet: Path) -> None:
    from torchvision.transforms import (
        CenterCrop,
        Compose,
        Resize,
    )

    part = load("imagenet").train
    assert isinstance(part, folder.ImageFolderPart)
    theirs = Compose([Resize(256), CenterCrop(224)])
    ours = part.take(torch.arange(5)).inputs
    for image, file in zip(ours, part.files, strict=False):
        expected = np.array(theirs(Image.open(part.folder / file).convert("RGB")))
        assert torch.equal(image, torch.from_numpy(expected).permute(2, 0, 1))


def test_random_crops_follow_from_seed_and_place_alone(imagenet: Path) -> None:
    part = load("imagenet", size=24).train
    assert isinstance(part, folder.ImageFolderPart)
    whole = _all(part, seed=3).inputs
    index = torch.tensor([7, 2, 7])
    assert torch.equal(part.take(index, 3).inputs, whole[index])
    part.threads = 1
    assert torch.equal(_all(part, seed=3).inputs, whole)
    assert not torch.equal(_all(part, seed=4).inputs, whole)
    assert not torch.equal(_all(part).inputs, whole)


def _shares(boxes: list[Any], width: int, height: int) -> Any:
    """Return area, log ratio and place of boxes (left, top, right, bottom), as shares."""
    left, top, right, bottom = np.array(boxes).T
    assert (left >= 0).all()
    assert (top >= 0).all()
    assert (right <= width).all()
    assert (bottom <= height).all()
    across, down = right - left, bottom - top
    area, ratio = across * down / (width * height), np.log(across / down)
    return np.stack([area, ratio, (left + right) / (2 * width), (top + bottom) / (2 * height)])


@pytest.mark.parametrize(("width", "height"), [(500, 375), (100, 400), (100, 30)])
def test_random_crops_are_distributed_as_torchvisions(width: int, height: int) -> None:
    from torchvision.transforms import RandomResizedCrop

    random, image = np.random.default_rng(0), torch.empty(3, height, width)
    ours: list[Any] = [folder.random_box(width, height, random) for _ in range(1500)]
    theirs: list[Any] = []
    torch.manual_seed(0)
    for _ in range(1500):
        top, left, down, across = RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3])
        theirs.append((left, top, left + across, top + down))
    shares = 0.02, 0.1, 0.5, 0.9, 0.98
    for one, other in zip(
        *(_shares(boxes, width, height) for boxes in (ours, theirs)), strict=True
    ):
        assert np.quantile(one, shares) == pytest.approx(np.quantile(other, shares), abs=0.06)


def test_a_shape_that_no_random_crop_fits_is_cut_at_the_centre() -> None:
    random = np.random.default_rng(0)
    assert folder.random_box(1000, 30, random) == (480, 0, 520, 30)
    assert folder.random_box(30, 1000, random) == (0, 480, 30, 520)


def test_a_file_that_is_no_image_is_named(imagenet: Path) -> None:
    splits = load("imagenet", size=16)
    first, *_ = sorted((imagenet / "val" / "n01").iterdir())
    for spoilt in (first.read_bytes()[:300], b"<html>", b""):
        first.write_bytes(spoilt)
        with pytest.raises(UserError, match=f"{first} is not an image") as caught:
            splits.test.take(torch.tensor([1, 0]))
        assert str(caught.value).endswith(".")


def test_a_missing_image_folder_is_told_what_goes_where(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert f"{data}/imagenet/train/CLASS/" in _sentence("imagenet")
    monkeypatch.setenv("ROBUSTLR_IMAGENET", str(tmp_path / "mine"))
    assert f"{tmp_path}/mine/val/CLASS/" in _sentence("imagenet")


@pytest.mark.parametrize("part", ["train", "val"])
def test_a_class_that_only_one_part_has_is_named(imagenet: Path, part: str) -> None:
    other = {"train": "val", "val": "train"}[part]
    (imagenet / part / "n02").rename(imagenet / part / ".n02")
    assert f"{imagenet / part} has no folder n02, which {imagenet / other}" in _sentence("imagenet")
    (imagenet / part / "n02").mkdir()
    images._load.cache_clear()
    assert f"{imagenet / part / 'n02'} holds no image" in _sentence("imagenet")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_parts_can_be_on_a_cuda_device(imagenet: Path) -> None:
    for name in ("digits", "imagenet"):
        for one, other in zip(load(name, size=16), load(name, size=16, device="cuda"), strict=True):
            index = torch.arange(6)
            expected, batch = one.take(index, 0), other.take(index.cuda(), 0)
            assert batch.inputs.device.type == batch.targets.device.type == "cuda"
            assert torch.equal(batch.inputs.cpu(), expected.inputs)
            assert torch.equal(batch.targets.cpu(), expected.targets)


# Augmentation
