"""The files that MNIST, Fashion-MNIST and CIFAR are published as: to download, to check, to read.

Names, addresses and checksums are those of torchvision's data set classes, and so is the layout of
the folder: one that torchvision has filled is read as it is, and the other way round.
"""

import fcntl
import gzip
import math
import os
import pickle
import socket
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple
from urllib.error import HTTPError

import torch
from torch import Tensor

from robustlr.errors import UnavailableError
from robustlr.task import Batch

PACKAGED = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package dataset-fashion-mnist has its files."""

PATIENCE_SECONDS = 60.0
"""How long a server may be silent; torchvision alone would wait for ever."""


def data_folder() -> Path:
    """Return the folder of downloaded data: ROBUSTLR_DATA, or ~/.cache/robustlr/data."""
    chosen = os.environ.get("ROBUSTLR_DATA")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "robustlr" / "data"


def read_mnist(name: str, training: int, test: int) -> tuple[Batch, Batch]:
    """Return the ``training`` and ``test`` images of "mnist" or "fashion-mnist".

    Inputs are uint8 ``[n, 1, 28, 28]``, targets int64 ``[n]``. Fashion-MNIST is read from Debian's
    package if the data folder has none.

    Raises:
        UserError: a file is damaged, or cannot be downloaded.
    """
    files = _files(name)

    def part(count: int, images: Path, labels: Path) -> Batch:
        return Batch(_idx(images, count, 28, 28).unsqueeze(1), _idx(labels, count).long())

    return part(training, *files[:2]), part(test, *files[2:])


def read_cifar(name: str) -> tuple[Batch, Batch]:
    """Return the training and test images of "cifar10" or "cifar100".

    Inputs are uint8 ``[n, 3, 32, 32]``, targets int64 ``[n]``; CIFAR-100's are its fine classes.

    Raises:
        UserError: a file is damaged, or cannot be downloaded.
    """
    kind = _torchvision(name)
    checksums = [checksum for _, checksum in kind.train_list + kind.test_list]
    *train, test = (_batch(*each) for each in zip(_files(name), checksums, strict=True))
    return Batch(*(torch.cat(tensors) for tensors in zip(*train, strict=True))), test


def _idx(path: Path, *shape: int) -> Tensor:
    """Return a file in MNIST's idx format, uint8 of ``shape``, which its header has to confirm."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise _damaged(path, str(error)) from error
    header = struct.pack(f">{1 + len(shape)}i", 0x800 + len(shape), *shape)
    if not content.startswith(header):
        raise _damaged(path, f"its header is not that of {' × '.join(map(str, shape))} bytes")
    expected = len(header) + math.prod(shape)
    if len(content) != expected:
        raise _damaged(path, f"it has {len(content)} bytes, not {expected}")
    flat = torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=len(header))
    return flat.reshape(shape)


def _batch(path: Path, checksum: str) -> Batch:
    """Return one of CIFAR's pickles, which is not opened unless it is the published one."""
    from torchvision.datasets.utils import check_md5

    if not check_md5(path, checksum):
        raise _damaged(path, "its checksum is not that of the published file")
    with path.open("rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy 2.4.0 to 2.4.4, of Python 2's pickles
        content = pickle.load(file, encoding="latin1")
    labels = content["labels" if "labels" in content else "fine_labels"]
    return Batch(torch.from_numpy(content["data"]).reshape(-1, 3, 32, 32), torch.tensor(labels))


def _damaged(path: Path, what: str) -> UnavailableError:
    return UnavailableError(
        f"{path} is damaged ({what}): replace it, or delete it to have it unpacked or downloaded anew."
    )


class _Archive(NamedTuple):
    """A published file: where it can be had, its place here, and what is unpacked from it."""

    urls: list[str]
    checksum: str
    path: Path
    unpacked: list[Path]


def _torchvision(name: str) -> Any:
    """Return torchvision's class of a data set."""
    from torchvision import datasets

    classes = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST"}
    return getattr(datasets, classes.get(name, name.upper()))


def _archives(name: str) -> list[_Archive]:
    kind, folder = _torchvision(name), data_folder()
    if name.startswith("cifar"):
        files = [folder / kind.base_folder / file for file, _ in kind.train_list + kind.test_list]
        return [_Archive([kind.url], kind.tgz_md5, folder / kind.filename, files)]
    folder = folder / kind.__name__ / "raw"
    archives = []
    for file, checksum in kind.resources:
        urls = [mirror + file for mirror in kind.mirrors]
        archives.append(_Archive(urls, checksum, folder / file, [folder / Path(file).stem]))
    return archives


def _files(name: str) -> list[Path]:
    """Return the files of a data set in torchvision's order; get and unpack those that are missing."""
    archives = _archives(name)
    files = [path for archive in archives for path in archive.unpacked]
    packaged = [PACKAGED / archive.path.name for archive in archives]
    if _exist(files):
        return files
    if name == "fashion-mnist" and _exist(packaged):
        return packaged  # Debian compressed them anew: torchvision's checksums do not hold
    try:
        with lock(data_folder() / f"{name}.lock"):
            for archive in archives:
                if not _exist(archive.unpacked):  # another process may have got it by now
                    failure = _download(archive)
                    if failure is not None:
                        raise _unavailable(name, archives, failure)
                    _unpack(archive)
    except OSError as error:
        raise UnavailableError(
            f"{name} cannot be put into {data_folder()} ({error}): "
            f"mend that, or set ROBUSTLR_DATA to another folder."
        ) from error
    return files


def _exist(paths: list[Path]) -> bool:
    return all(path.exists() for path in paths)


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold the lock file ``path``, once no other process holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _download(archive: _Archive) -> Exception | None:
    """Get an archive that is not there yet from any of its addresses, or return the first failure."""
    from torchvision.datasets.utils import download_url

    failures: list[Exception] = []
    path, timeout = archive.path, socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE_SECONDS)
    try:
        for url in archive.urls:
            try:
                download_url(url, path.parent, path.name, archive.checksum)
            except (OSError, RuntimeError, HTTPException) as error:
                failures.append(error)
                if isinstance(error, HTTPError):
                    error.close()  # it holds the connection
            else:
                return None
    finally:
        socket.setdefaulttimeout(timeout)
    return failures[0]


def _unpack(archive: _Archive) -> None:
    """Unpack beside the archive, then move each file into its place, so that none is ever half there."""
    from torchvision.datasets.utils import extract_archive

    folder = archive.path.parent
    with TemporaryDirectory(dir=folder) as temporary:
        extract_archive(archive.path, temporary)
        for file in list(Path(temporary).rglob("*")):
            if file.is_file():
                target = folder / file.relative_to(temporary)
                target.parent.mkdir(exist_ok=True)
                file.replace(target)


def _unavailable(name: str, archives: list[_Archive], failure: Exception) -> UnavailableError:
    """Return the sentence that says what to get by hand, and why it could not be downloaded."""
    from torchvision.datasets.utils import check_md5

    # torchvision raises RuntimeError where the checksum of what has arrived is wrong.
    cut_short = isinstance(failure, RuntimeError)
    reason = "what arrived is not it" if cut_short else getattr(failure, "reason", "") or failure
    for urls, checksum, path, _ in archives:
        if path.exists() and not check_md5(path, checksum):
            return UnavailableError(
                f"{path} is not the published file (its checksum is another), and that could not be "
                f"downloaded ({reason}): delete it and try again, or put {urls[0]} in its place."
            )
    missing = [archive for archive in archives if not archive.path.exists()]
    wanted = ", ".join(archive.urls[0] for archive in missing if not _exist(archive.unpacked))
    package = ", or install Debian's package dataset-fashion-mnist" if "fashion" in name else ""
    return UnavailableError(
        f"{name} could not be downloaded ({reason}): "
        f"put {wanted} into {archives[0].path.parent}{package}."
    )
