"""The data's part of ``robustlr doctor``: which data sets of the tasks are on this machine."""

import os
from collections.abc import Iterator
from pathlib import Path

from robustlr.doctor import Check
from robustlr.errors import UnavailableError
from robustlr.registry import tasks
from robustlr.tasks.data import corpora, lohelp, published
from robustlr.tasks.data.folder import _classes
from robustlr.tasks.data.images import DATA_SETS
from robustlr.tasks.data.text import WEB

INSTALLED = {"digits": "scikit-learn", "pydoc": "Python", "cldr": "Babel and num2words"}
"""The data sets that come with packages, and with which."""


def data_checks() -> Iterator[Check]:
    """Yield a check for each data set that a task names; nothing is downloaded or made."""
    scales = [scale for task in tasks().values() for scale in task.scales.values()]
    for name in dict.fromkeys(scale.data for scale in scales):
        if name in DATA_SETS or name in corpora.LANGUAGES or name == WEB:
            try:
                yield Check(f"data {name}", "ok", _found(name))
            except UnavailableError as error:
                found, _, advice = str(error).removesuffix(".").partition(": ")
                yield Check(f"data {name}", "note", found, advice)
            except OSError as error:
                yield Check(f"data {name}", "note", str(error), "make that readable")


def _found(name: str) -> str:
    """Return where a data set is, or what it will be made from.

    Raises:
        UnavailableError: it is not here; after a colon the text says what to do.
    """
    if name in INSTALLED:
        return f"comes with {INSTALLED[name]}"
    if name == "imagenet":
        return _imagenet()
    if name in DATA_SETS:
        return _archives(name)
    return _text(name)


def _imagenet() -> str:
    chosen = os.environ.get("ROBUSTLR_IMAGENET")
    folder = Path(chosen).expanduser() if chosen else published.data_folder() / "imagenet"
    counts = [len(_classes(folder, part)) for part in ("train", "val")]
    return f"{folder}: {counts[0]} classes to train and {counts[1]} to test"


def _archives(name: str) -> str:
    archives = published._archives(name)
    packaged = [published.PACKAGED / archive.path.name for archive in archives]
    missing = [each for each in archives if not published._exist(each.unpacked)]
    if not missing:
        return str(archives[0].unpacked[0].parent)
    if name == "fashion-mnist" and published._exist(packaged):
        return f"{published.PACKAGED}, of Debian's package"
    if all(archive.path.exists() for archive in missing):
        return f"{missing[0].path.parent}, to be unpacked at its first use"
    lacking = [archive for archive in missing if not archive.path.exists()]
    wanted = ", ".join(archive.urls[0] for archive in lacking)
    package = ", or install dataset-fashion-mnist" if name == "fashion-mnist" else ""
    raise UnavailableError(
        f"not in {published.data_folder()}: downloaded at its first use; "
        f"without a network put {wanted} into {lacking[0].path.parent}{package}"
    )


def _text(name: str) -> str:
    if name == WEB:
        folder, files = published.data_folder() / f"{WEB}-gpt2", list(corpora.PARTS)
    else:
        folder, files = published.data_folder() / name, corpora._names(name)
    missing = [file for file in files if not (folder / file).exists()]
    if folder.exists() and missing:
        raise UnavailableError(
            f"{folder} lacks {', '.join(missing)}: put what is missing there, or delete the folder"
        )
    if folder.exists():
        return str(folder)
    if name.startswith("lohelp"):
        for language in ("en-US", "de"):
            lohelp._pages(lohelp.help_folder() / language)
        return f"made from {lohelp.help_folder()} at its first use"
    raise UnavailableError(
        f"not in {published.data_folder()}: downloaded at its first use with "
        f"pip install 'robustlr[text]'; without a network copy {folder} from a machine that has it"
    )
