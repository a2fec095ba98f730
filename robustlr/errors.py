"""The one error class for what a user can mend, and the sentences that name the nearest valid name."""

import difflib
import math
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

MANY = 40
"""How many valid names a sentence lists at most."""


class UserError(Exception):
    """What was wrong, where, and what to do, in one sentence; the command line prints it alone."""


class UnavailableError(UserError):
    """What this machine lacks and another may have: data, weights, a package, room on a disk.

    A worker that meets it gives its trial back and stops.
    """


class StorageError(UserError):
    """The database is away, full or locked: the same call can be made again later."""


def seconds(variable: str, default: float) -> float:
    """Return the seconds that an environment variable says.

    Raises:
        UserError: it is no positive number.
    """
    text = os.environ.get(variable, str(default))
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise UserError(f'{variable} is "{text}"; write a number of seconds above 0, or unset it')
    return value


def say(message: str) -> None:
    """Print a line to standard error, also where its disk is full."""
    with suppress(OSError):
        print(message, file=sys.stderr, flush=True)


def is_out_of_memory(error: object) -> bool:
    """Return whether a device's memory or the machine's was too small, in torch's many words."""
    texts = ("out of memory", "can't allocate memory", "STATUS_ALLOC_FAILED")
    return isinstance(error, MemoryError) or any(text in str(error) for text in texts)


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Explain imports of the block that fail because an optional part is not installed.

    Raises:
        UserError: how to install it.
    """
    try:
        yield
    except ImportError as error:
        raise UserError(f"{error}; install it: pip install 'robustlr[{name}]'") from error


def did_you_mean(name: str, valid: Iterable[str]) -> str:
    """Return a clause that names the valid name nearest to ``name``, or lists the valid names."""
    names = list(valid)
    nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if nearest:
        return f'did you mean "{nearest[0]}"?'
    if len(names) > MANY:
        names = [*names[:MANY], f"and {len(names) - MANY} more"]
    return f"there is: {', '.join(names)}." if names else "there is none."


def unknown(kind: str, name: str, valid: Iterable[str]) -> UserError:
    """Return the error for a ``kind`` (task, optimizer, study, …) that nothing is named after."""
    return UserError(f'no {kind} is named "{name}"; {did_you_mean(name, valid)}')
