"""What commands have in common: their options, the database they open, the tables they print."""

import json
import sys
from ipaddress import ip_address
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from robustlr.storage import Storage

Url = Annotated[
    str,
    typer.Option(
        "--storage",
        envvar="ROBUSTLR_STORAGE",
        help="sqlite:///FILE, postgresql://…, grpc://HOST:PORT, or @FILE with such a URL in it.",
    ),
]
Source = Annotated[str, typer.Argument(help="A study file, or the name of a study that ships.")]
AtScale = Annotated[
    str | None, typer.Option("--scale", help='Another scale than the file\'s, such as "paper".')
]
Name = Annotated[str, typer.Argument(help="The study's name in the database.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Devices = Annotated[
    str | None,
    typer.Option(help='"all" GPUs, "cpu", or GPU numbers as in "0,2"; default: what there is.'),
]
PerDevice = Annotated[
    int | None,
    typer.Option(min=1, help="Workers on each device; default: one a GPU, one a CPU core."),
]
MemoryFraction = Annotated[
    float | None, typer.Option(help="What a worker may take of its GPU's memory, as in 0.45.")
]
Fuse = Annotated[
    str | None,
    typer.Option(
        envvar="ROBUSTLR_FUSE",
        metavar="K|auto",
        help="Train up to K trials of a cell as one program in each worker; auto: where it is faster.",
    ),
]
Only = Annotated[list[str] | None, typer.Option(help="An analysis to write; may be repeated.")]
Host = Annotated[
    str, typer.Option(help="Address to listen on; all but this machine's own are public.")
]
DEFAULT_URL = "sqlite:///robustlr.db"
LOOPBACK = "127.0.0.1"


def open_database(url: str, *, create: bool = False) -> "Storage":
    """Open the database at a URL."""
    from robustlr.storage import open_storage

    return open_storage(url, create=create)


def warn_unless_loopback(host: str) -> None:
    """Say who can come in."""
    try:
        is_own = ip_address(host).is_loopback
    except ValueError:  # a name
        is_own = host == "localhost"
    if not is_own:
        print(
            f"robustlr: whoever reaches {host} can read and delete these studies: there is no "
            "password",
            file=sys.stderr,
        )


def print_rows(rows: list[dict[str, Any]], as_json: bool) -> None:
    """Print rows as JSON or as a table whose columns are as wide as their values."""
    if as_json:
        print(json.dumps(rows))
        return
    if not rows:
        return
    table = [list(rows[0]), *([str(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for line in table:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        print("  ".join(cells).rstrip())
