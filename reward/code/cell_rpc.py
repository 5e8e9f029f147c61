"""Calls between a candidate's cell and the cell of its tests, both ways; only plain values and handles cross."""

import builtins
import functools
import secrets
import types
from collections.abc import Callable
from typing import Any

from qwen_align.reward.code.load_candidate import ENDS
from qwen_align.reward.code.remote_objects import RefusedError, Remote, of_class, target
from qwen_align.reward.code.socket_frames import ClosedError, Frames, TooLargeError
from qwen_align.reward.code.value_serialization import MAX_BYTES, NotPlainError, decode, encode, read, write

_MUTABLE = frozenset({list, dict, set, bytearray})
_FUNCTIONS = frozenset({types.FunctionType, types.BuiltinFunctionType, types.MethodType, type, functools.partial})
_ENDS = frozenset({"SystemExit", "KeyboardInterrupt", "GeneratorExit", "MemoryError"})


class ForgedError(BaseException):
    """The other end broke the order of calls and answers, or its answer is no answer."""


class EndedError(BaseException):
    """The other end is gone; the message says how where it told."""


class Peer:
    """One end. `names` finds what the other end may call by name; None lets it call only functions lent to it.

    An answer repeats the random number of its call, so that nothing can be answered before it was asked.
    """

    def __init__(self, frames: Frames, names: Callable[[str], Any] | None = None) -> None:
        self.frames = frames
        self.names = names
        self.lent: list[Any] = []
        self.n_calls = 0
        self.trouble: BaseException | None = None
        """The last error that was no answer. A test's bare `except:` may take it for what it waits for."""

    def serve(self) -> None:
        """Answers calls for as long as the other end lives."""
        while True:
            self._answer(self._message())

    def call(self, operation: str, on: Remote, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What the other end gives; its exception is raised here as the nearest built-in one."""
        try:
            return self._called(operation, on, args, kwargs)
        except (RefusedError, ForgedError, EndedError) as error:
            self.trouble = error
            raise

    def _called(self, operation: str, on: Remote, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if isinstance(self.trouble, ForgedError | EndedError):
            raise self.trouble
        self.n_calls += 1
        number = secrets.token_hex(8)
        try:
            arguments = [self._tree(args), self._tree(kwargs)]
        except NotPlainError:
            raise RefusedError from None
        self._send(write(["call", number, operation, target(on), *arguments]))
        while (message := self._message())[0] == "call":
            self._answer(message)
        kind, answered, *content = message
        if answered != number:
            raise ForgedError
        if kind == "raised":
            raise _exception(*content)
        if kind != "value":
            raise RefusedError
        value = self._value(content[0], of_class=of_class(on))
        if value is None:
            self._change(args, content[1])
        return value

    def _change(self, args: tuple[Any, ...], changed: Any) -> None:
        """Shows what a function that returns nothing did to its arguments.

        What one that returns something did to them is kept from the test: its `assert f(xs) == sorted(xs)` would
        pay for emptying `xs`.
        """
        if type(changed) is not list:
            raise ForgedError
        for position, tree in map(_pair, changed):
            if type(position) is not int or not 0 <= position < len(args):
                raise ForgedError
            _refill(args[position], self._value(tree))

    def _message(self) -> list[Any]:
        try:
            message = read(self.frames.receive())
        except ClosedError:
            raise EndedError from None
        except (NotPlainError, TooLargeError):
            raise ForgedError from None
        shape = [type(part) for part in message] if type(message) is list else []
        if shape[:2] != [str, str] or len(shape) != _LENGTHS.get(message[0]):
            raise ForgedError
        if message[0] == "end":
            raise EndedError(message[1]) if message[1] in ENDS else ForgedError
        return message  # type: ignore[no-any-return]

    def _send(self, body: bytes) -> None:
        try:
            self.frames.send(body)
        except ClosedError:
            raise EndedError from None

    def _answer(self, message: list[Any]) -> None:
        if message[0] != "call":
            raise ForgedError
        _, number, operation, target, args, kwargs = message
        self._send(self._result(number, operation, target, args, kwargs))

    def _result(self, number: str, operation: str, target: Any, args: Any, kwargs: Any) -> bytes:
        on = self._target(operation, target)
        given = self._value(args)
        try:
            value = _OPERATIONS[operation](on, *given, **self._value(kwargs))
            before = zip(given, args["t"], strict=True)
            changed = [[at, self._tree(one)] for at, (one, tree) in enumerate(before) if self._differs(one, tree)]
            body = write(["value", number, self._tree(value), changed])
            return body if len(body) <= MAX_BYTES else write(["not plain", number])
        except NotPlainError:
            return write(["not plain", number])
        except (MemoryError, SystemExit):
            raise
        except Exception as error:  # noqa: BLE001 - whatever a candidate raises is for the test to see
            return write(["raised", number, *self._raised(error)])

    def _target(self, operation: str, named: Any) -> Any:
        kind, which = _pair(named)
        if kind == "name" and self.names is not None:
            return self.names(which)
        if kind != "lent" or type(which) is not int or not 0 <= which < len(self.lent):
            raise ForgedError
        if self.names is None and operation != "call":
            raise ForgedError
        return self.lent[which]

    def _differs(self, value: Any, tree: Any) -> bool:
        return type(value) in _MUTABLE and self._tree(value) != tree

    def _raised(self, error: Exception) -> tuple[list[str], Any]:
        names = [kind.__name__ for kind in type(error).__mro__]
        try:
            return names, encode(error.args)
        except NotPlainError:
            return names, {"t": []}

    def _tree(self, value: Any) -> Any:
        return encode(value, self._handle)

    def _handle(self, value: Any) -> Any:
        if type(value) is Remote:
            kind, which = target(value)
            return {"own": which} if kind == "lent" else {"named": which}
        is_function = type(value) in _FUNCTIONS
        if self.names is None and not is_function:
            return None
        self.lent.append(value)
        return {"lent": [len(self.lent) - 1, is_function]}

    def _value(self, tree: Any, *, of_class: bool = False) -> Any:
        try:
            return decode(tree, lambda handle: self._of_handle(handle, of_class))
        except NotPlainError:
            raise ForgedError from None

    def _of_handle(self, tree: dict[str, Any], of_class: bool) -> Any:
        [(tag, content)] = tree.items()
        if tag == "lent":
            which, is_function = _pair(content)
            if is_function is not True and not of_class:
                raise RefusedError
            return Remote(self.call, ["lent", which], of_class=of_class)
        if tag == "own" and type(content) is int and 0 <= content < len(self.lent):
            return self.lent[content]
        if tag == "named" and self.names is not None:
            return self.names(content)
        raise ForgedError


_LENGTHS = {"call": 6, "value": 4, "raised": 4, "not plain": 2, "end": 2}
_OPERATIONS: dict[str, Callable[..., Any]] = {
    "call": lambda on, *args, **kwargs: on(*args, **kwargs),
    "get": getattr,
    "set": setattr,
    "len": len,
    "item": lambda on, key: on[key],
    "put": lambda on, key, value: on.__setitem__(key, value),
    "drop": lambda on, key: on.__delitem__(key),
    "iter": iter,
    "str": str,
    "repr": repr,
    "int": int,
    "float": float,
    "enter": lambda on: on.__enter__(),
    "exit": lambda on, *error: on.__exit__(*error),
}


def _exception(names: Any, args: Any) -> BaseException:
    """The nearest built-in exception of those names."""
    for name in names if type(names) is list else ():
        kind = getattr(builtins, name, None) if type(name) is str else None
        if isinstance(kind, type) and issubclass(kind, Exception) and name not in _ENDS:
            try:
                return kind(*decode(args))
            except (TypeError, NotPlainError):
                continue
    return RefusedError()


def _pair(content: Any) -> list[Any]:
    if type(content) is not list or len(content) != 2:
        raise ForgedError
    return content


def _refill(old: Any, new: Any) -> None:
    """Makes `old` hold what `new` holds, keeping the containers inside that are still there."""
    if type(old) is not type(new) or type(old) not in _MUTABLE:
        raise ForgedError
    if type(old) is list and len(old) == len(new):
        for at, (one, other) in enumerate(zip(old, new, strict=True)):
            if type(one) is type(other) and type(one) in _MUTABLE:
                _refill(one, other)
            else:
                old[at] = other
    elif type(old) is dict:
        kept = {key: old[key] for key in new if key in old}
        old.clear()
        old.update(new)
        for key, one in kept.items():
            if type(one) is type(new[key]) and type(one) in _MUTABLE:
                _refill(one, new[key])
                old[key] = one
    elif type(old) is set:
        old.clear()
        old.update(new)
    else:
        old[:] = new
