"""What is wrong with a study file, in sentences."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import BaseModel

from robustlr.errors import did_you_mean
from robustlr.findings import Arm, Finding
from robustlr.space import Span

_KINDS = {
    "tuple_type": "a list",
    "dict_type": "a table",
    "model_type": "a table",
    "string_type": "text",
    "int_type": "a whole number",
    "float_type": "a number",
}


def sentence(error: Any, document: type[BaseModel]) -> str:
    """Return pydantic's error as one sentence that names the key, the value and what is valid.

    ``document`` is what the file as a whole describes.
    """
    path = [str(part) for part in error["loc"]]
    if len(path) > 1 and path[0] == "findings":
        path[1] = str(int(path[1]) + 1)  # as people count
    path = [p for p in path if p not in ("values", "space", "bool", "int", "float", "str")]
    path = ["class" if p == "target" else p for p in path]
    key, value, kind = ".".join(path), error["input"], error["type"]
    if error["loc"] and error["loc"][-1] in ("bool", "int", "float", "str"):
        return f"{key} = {as_toml(value)}: this must be a number, text, true or false"
    shown = key if isinstance(value, dict) else f"{key} = {as_toml(value)}"
    if kind == "extra_forbidden":
        return f'no key is named "{key}"; {did_you_mean(path[-1], _valid(path, document))}'
    if kind == "missing":
        return f"the key {key} is missing"
    if kind == "too_short":
        return f"{key} is empty: it needs at least one value"
    if kind == "literal_error":
        names = [
            word.strip(" '") for word in error["ctx"]["expected"].replace(" or ", ",").split(",")
        ]
        return f"{shown}: {did_you_mean(str(value), names)}"
    if kind in _KINDS:
        return f"{shown}: this must be {_KINDS[kind]}"
    message = error["msg"].removeprefix("Value error, ")
    return f"{shown}: {message[0].lower()}{message[1:]}" if key else message


def _valid(path: Sequence[str], document: type[BaseModel]) -> Iterable[str]:
    """Return the keys that are valid where ``path`` ends."""
    if len(path) == 1:
        return document.model_fields
    if path[0] == "findings":
        return Finding.model_fields if len(path) == 3 else Arm.model_fields
    return Span.model_fields


def as_toml(value: Any) -> str:
    """Return a value as the file would write it."""
    return json.dumps(value, ensure_ascii=False, default=str)
