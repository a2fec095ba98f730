"""A database behind one process: many workers share its few connections, ``grpc://host:port``.

The process answers Optuna's own clients too. Ours call the methods of ``Storage``, with arguments and
results as JSON; what those may be is read off the methods' type hints. One Python process answers,
on a few threads: that is its ceiling.
"""

import inspect
import traceback
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import Any, get_type_hints
from urllib.parse import urlsplit

import grpc
import optuna
import pydantic
from optuna.exceptions import ExperimentalWarning
from optuna.storages._grpc import servicer
from optuna.storages._grpc.auto_generated import api_pb2_grpc
from pydantic_core import to_json

from robustlr.database import ANSWER_SECONDS, shown
from robustlr.errors import StorageError, UserError, say
from robustlr.storage import Storage

METHODS = (
    "cells",
    "claim",
    "columns",
    "complete",
    "create_study",
    "delete_study",
    "descriptions",
    "fail",
    "failures",
    "give_back",
    "progress",
    "read_file",
    "reclaim",
    "release",
    "remove_file",
    "renew",
    "repeat",
    "report",
    "requeue_failed",
    "spec",
    "status",
    "study_names",
    "write_file",
)
"""What a client can call; what a ``Storage`` has beside them it makes of these."""

BYTES = pydantic.ConfigDict(val_json_bytes="base64")
SERVICE = "/robustlr.Storage/"
THREADS = 10
OPTIONS = [
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_receive_message_length", -1),  # checkpoints and tables are as large as they are
]


AWAY = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
)
"""What a proxy says that is ending, or too busy."""


@cache
def _arguments(method: str) -> type[pydantic.BaseModel]:
    """Return the model of a method's arguments."""
    function = getattr(Storage, method)
    hints = get_type_hints(function)
    parameters = list(inspect.signature(function).parameters.values())[1:]
    fields: dict[str, Any] = {
        p.name: (hints[p.name], ... if p.default is inspect.Parameter.empty else p.default)
        for p in parameters
    }
    return pydantic.create_model(method, __config__=BYTES, **fields)


@cache
def _result(method: str) -> type[pydantic.BaseModel]:
    """Return the model of a method's result."""
    hint = get_type_hints(getattr(Storage, method))["return"]
    return pydantic.create_model(f"{method}_result", __config__=BYTES, result=(hint, ...))


def serve(url: str, host: str, port: int) -> None:
    """Answer for the database at ``url`` until the process ends.

    Raises:
        UserError: the database cannot be opened, or the port not be used.
    """
    storage = Storage(url)
    server = grpc.server(ThreadPoolExecutor(THREADS), options=OPTIONS)
    optunas = servicer.OptunaStorageProxyService(storage.as_optuna())
    api_pb2_grpc.add_StorageServiceServicer_to_server(optunas, server)  # type: ignore[no-untyped-call]
    server.add_generic_rpc_handlers([_Handler(storage)])
    host = f"[{host}]" if ":" in host else host
    try:
        taken = server.add_insecure_port(f"{host}:{port}")
    except RuntimeError:
        taken = 0
    if taken != port:
        raise UserError(f"{host}:{port} cannot be used; try another --port")
    server.start()
    print(f"grpc://{host}:{port} stands for {storage.shown_url} (Ctrl-C ends it)", flush=True)
    server.wait_for_termination()


class _Handler(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Answers calls of ``METHODS``."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        method = details.method.removeprefix(SERVICE)
        if not details.method.startswith(SERVICE) or method not in METHODS:
            return None
        return grpc.unary_unary_rpc_method_handler(partial(self._answer, method))

    def _answer(self, method: str, request: bytes, context: grpc.ServicerContext) -> bytes:
        try:
            given = _arguments(method).model_validate_json(request)
            arguments = {name: getattr(given, name) for name in type(given).model_fields}
            result = getattr(self._storage, method)(**arguments)
            return to_json({"result": result}, bytes_mode="base64")
        except StorageError as error:
            context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
        except UserError as error:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
        except Exception as error:  # of an unknown kind; the server goes on
            say(traceback.format_exc())
            context.abort(grpc.StatusCode.INTERNAL, f"{type(error).__name__}: {error}")
        raise AssertionError("abort does not return")


class RemoteStorage(Storage):
    """A database that a proxy answers for.

    Args:
        url: ``grpc://host:port``.

    Raises:
        UserError: the URL is none.
    """

    def __init__(self, url: str) -> None:
        parsed = urlsplit(url)
        try:
            address, port = parsed.hostname, parsed.port
        except ValueError:
            address, port = None, None
        if not (address and port):
            raise UserError(f'"{shown(url)}" is no proxy\'s URL; write grpc://host:port')
        if parsed.username or parsed.password:
            raise UserError(f'"{shown(url)}" names a user; a proxy asks for none: grpc://host:port')
        self.shown_url = url
        self._address, self._port = address, port
        self._channel = grpc.insecure_channel(f"{address}:{port}", OPTIONS)

    def __exit__(self, *error: object) -> None:
        self._channel.close()

    def as_optuna(self) -> optuna.storages.BaseStorage:
        """Return the proxy as Optuna's storage."""
        with warnings.catch_warnings(action="ignore", category=ExperimentalWarning):
            return optuna.storages.GrpcStorageProxy(host=self._address, port=self._port)

    def _call(self, method: str, *values: Any, **named: Any) -> Any:
        names = list(_arguments(method).model_fields)
        arguments = {**dict(zip(names, values, strict=False)), **named}
        request = to_json(arguments, bytes_mode="base64")
        call = self._channel.unary_unary(f"{SERVICE}{method}")
        try:
            answer = call(request, timeout=ANSWER_SECONDS + 15)  # the database has its own limit
        except grpc.RpcError as error:
            raise self._explained(error) from None
        return _result(method).model_validate_json(answer).result  # type: ignore[attr-defined]

    def _explained(self, error: Any) -> Exception:
        code, details = error.code(), error.details()
        if code == grpc.StatusCode.FAILED_PRECONDITION:
            return UserError(details)
        if code in AWAY:
            return StorageError(f"the storage {self.shown_url} does not work: {details}")
        if code == grpc.StatusCode.UNIMPLEMENTED:
            return UserError(
                f"{self.shown_url} is no proxy of this version of robustlr: robustlr storage serve"
            )
        return RuntimeError(details)


def _remote(method: str) -> Callable[..., Any]:
    def call(self: RemoteStorage, *values: Any, **named: Any) -> Any:
        return self._call(method, *values, **named)

    call.__doc__ = getattr(Storage, method).__doc__
    return call


for _name in METHODS:
    setattr(RemoteStorage, _name, _remote(_name))
