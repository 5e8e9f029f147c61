"""The stand-in for a candidate's function or object, which tests can call and read but not compare."""

from collections.abc import Callable, Iterator
from typing import Any

Ask = Callable[..., Any]


class RefusedError(BaseException):
    """Raised when a test may not use a value. It is no Exception, so that tests do not catch it."""


class RemoteObject:
    """A stand-in, in the test code's process, for a function or object of the candidate's code.

    A candidate's own class may answer calls with values, for those are compared here. It may not compare: `==`,
    `in`, `<` and arithmetic would hand it the expected value and believe its answer. For the same reason a function
    has no attributes, and what it returns is plain or again a function: `f(x).startswith("a")` asks a real string.
    Objects come only from calls of a class, which is a name that begins with a capital, and from their methods.
    """

    __slots__ = ("_ask", "_of_class", "_target")

    def __init__(self, ask: Ask, target: list[Any], *, of_class: bool) -> None:
        object.__setattr__(self, "_ask", ask)
        object.__setattr__(self, "_target", target)
        object.__setattr__(self, "_of_class", of_class)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return object.__getattribute__(self, "_ask")("call", self, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _ask_candidate(self, "get", name)

    def __setattr__(self, name: str, value: Any) -> None:
        _ask_candidate(self, "set", name, value)

    def __len__(self) -> int:
        return int(_ask_candidate(self, "len"))

    def __getitem__(self, key: Any) -> Any:
        return _ask_candidate(self, "item", key)

    def __setitem__(self, key: Any, value: Any) -> None:
        _ask_candidate(self, "put", key, value)

    def __delitem__(self, key: Any) -> None:
        _ask_candidate(self, "drop", key)

    def __iter__(self) -> Iterator[Any]:
        return iter(_ask_candidate(self, "iter"))

    def __str__(self) -> str:
        return str(_ask_candidate(self, "str"))

    def __repr__(self) -> str:
        return str(_ask_candidate(self, "repr"))

    def __int__(self) -> int:
        return int(_ask_candidate(self, "int"))

    def __float__(self) -> float:
        return float(_ask_candidate(self, "float"))

    def __bool__(self) -> bool:
        return True

    def __enter__(self) -> Any:
        return _ask_candidate(self, "enter")

    def __exit__(self, *error: object) -> None:
        _ask_candidate(self, "exit", None, None, None)

    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        if other is None or other is self:
            return other is self
        raise RefusedError

    def __ne__(self, other: object) -> bool:
        return not self == other


def get_target(remote: RemoteObject) -> Any:
    """Returns the name or handle by which the other process knows a remote object."""
    return object.__getattribute__(remote, "_target")


def comes_from_class(remote: RemoteObject) -> bool:
    """Returns whether a remote object is a class of the candidate's code or an instance that came from one."""
    return bool(object.__getattribute__(remote, "_of_class"))


def _ask_candidate(remote: RemoteObject, operation: str, *args: Any) -> Any:
    """Runs an operation on a remote object in the candidate's process.

    Raises RefusedError if it is a plain function.
    """
    if not comes_from_class(remote):
        raise RefusedError
    return object.__getattribute__(remote, "_ask")(operation, remote, args, {})


def _reject_operation(self: RemoteObject, *others: object) -> Any:
    """Raises RefusedError for any operation that is not allowed on remote objects."""
    raise RefusedError


for _name in ("contains", "lt", "le", "gt", "ge", "add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul"):
    setattr(RemoteObject, f"__{_name}__", _reject_operation)
for _name in ("radd", "rsub", "rmul", "rtruediv", "rfloordiv", "rmod", "rpow", "and", "or", "xor"):
    setattr(RemoteObject, f"__{_name}__", _reject_operation)
for _name in ("neg", "pos", "abs", "invert", "round", "floor", "ceil", "trunc", "index", "format", "divmod", "rdivmod"):
    setattr(RemoteObject, f"__{_name}__", _reject_operation)
