"""Remote procedure calls in both directions between the candidate's sandbox cell and the tests' cell.

Only plain values and handles are sent.
"""

import builtins
import enum
import functools
import secrets
import types
from collections.abc import Callable
from typing import Any

from qwen_align.reward.code.known_values import (
    MEMBER_TAG,
    NAMED_TUPLE_TAG,
    RemoteMember,
    describe_member,
    describe_named_tuple,
    get_lent_index,
    is_named_tuple,
    read_member,
    read_named_tuple,
)
from qwen_align.reward.code.load_candidate import END_REASONS
from qwen_align.reward.code.numpy_values import ARRAY_TAG, build_array
from qwen_align.reward.code.remote_objects import RefusedError, RemoteObject, comes_from_class, get_target
from qwen_align.reward.code.socket_frames import ClosedError, Frames, TooLargeError
from qwen_align.reward.code.value_serialization import (
    MAX_BYTES,
    NotPlainError,
    decode_value,
    encode_value,
    read_json,
    write_json,
)

_MUTABLE = frozenset({list, dict, set, bytearray})
_FUNCTIONS = frozenset({types.FunctionType, types.BuiltinFunctionType, types.MethodType, type, functools.partial})
_ENDS = frozenset({"SystemExit", "KeyboardInterrupt", "GeneratorExit", "MemoryError"})


class ForgedError(BaseException):
    """Raised when the other process breaks the order of calls and answers, or sends an invalid answer."""


class EndedError(BaseException):
    """Raised when the other process has ended. The message says how, if that is known."""


class RpcPeer:
    """One end of the remote calls between two sandbox cells.

    `names` finds what the other end may call by name; None lets it call only functions lent to it. An answer repeats
    the random number of its call, so that nothing can be answered before it was asked.
    """

    def __init__(self, frames: Frames, names: Callable[[str], Any] | None = None) -> None:
        self.frames = frames
        self.names = names
        self.lent: list[Any] = []
        self.members: dict[tuple[str, str], RemoteMember] = {}
        self.n_calls = 0
        self.failure: BaseException | None = None
        """The last error that was no answer. A test's bare `except:` may take it for what it waits for."""

    def serve_calls(self) -> None:
        """Answers remote calls until the other process ends."""
        while True:
            self._answer_call(self._receive_message())

    def call_remote(self, operation: str, remote: RemoteObject, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Runs an operation in the other process and returns its result.

        Raises the nearest built-in exception if it failed.
        """
        try:
            return self._send_call_and_wait(operation, remote, args, kwargs)
        except (RefusedError, ForgedError, EndedError) as error:
            self.failure = error
            raise

    def _send_call_and_wait(
        self, operation: str, remote: RemoteObject, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Sends a remote call, answers calls that come back meanwhile, and returns the value of the answer."""
        if isinstance(self.failure, ForgedError | EndedError):
            raise self.failure
        self.n_calls += 1
        call_id = secrets.token_hex(8)
        try:
            arguments = [self._encode(args), self._encode(kwargs)]
        except NotPlainError:
            raise RefusedError from None
        self._send_message(write_json(["call", call_id, operation, get_target(remote), *arguments]))
        while (message := self._receive_message())[0] == "call":
            self._answer_call(message)
        kind, answered_id, *content = message
        if answered_id != call_id:
            raise ForgedError
        if kind == "raised":
            raise _rebuild_exception(*content)
        if kind != "value":
            raise RefusedError
        value = self._decode(content[0], of_class=comes_from_class(remote))
        if value is None:
            self._apply_argument_changes(args, content[1])
        return value

    def _apply_argument_changes(self, args: tuple[Any, ...], changed: Any) -> None:
        """Applies the changes that a remote function made to its mutable arguments, if it returned None.

        What one that returns something did to them is kept from the test: its `assert f(xs) == sorted(xs)` would
        pay for emptying `xs`.
        """
        if type(changed) is not list:
            raise ForgedError
        for position, tree in map(_check_list_of_two, changed):
            if type(position) is not int or not 0 <= position < len(args):
                raise ForgedError
            _refill_container(args[position], self._decode(tree))

    def _receive_message(self) -> list[Any]:
        """Receives the next message.

        Raises EndedError if the other process has ended, ForgedError for a malformed message.
        """
        try:
            message = read_json(self.frames.receive_frame())
        except ClosedError:
            raise EndedError from None
        except (NotPlainError, TooLargeError):
            raise ForgedError from None
        shape = [type(part) for part in message] if type(message) is list else []
        if shape[:2] != [str, str] or len(shape) != _LENGTHS.get(message[0]):
            raise ForgedError
        if message[0] == "end":
            raise EndedError(message[1]) if message[1] in END_REASONS else ForgedError
        return message  # type: ignore[no-any-return]

    def _send_message(self, body: bytes) -> None:
        """Sends a message. Raises EndedError if the other process has ended."""
        try:
            self.frames.send_frame(body)
        except ClosedError:
            raise EndedError from None

    def _answer_call(self, message: list[Any]) -> None:
        """Runs a remote call that was received and sends its result."""
        if message[0] != "call":
            raise ForgedError
        _, call_id, operation, called, args, kwargs = message
        self._send_message(self._run_call(call_id, operation, called, args, kwargs))

    def _run_call(self, call_id: str, operation: str, called: Any, args: Any, kwargs: Any) -> bytes:
        """Runs a received call and returns the serialised answer: its value and changed arguments, or its exception."""
        receiver = self._find_called_object(operation, called)
        arguments = self._decode(args)
        try:
            value = _OPERATIONS[operation](receiver, *arguments, **self._decode(kwargs))
            argument_trees = zip(arguments, args["t"], strict=True)
            changed = [
                [position, self._encode(argument)]
                for position, (argument, tree) in enumerate(argument_trees)
                if self._has_argument_changed(argument, tree)
            ]
            body = write_json(["value", call_id, self._encode(value), changed])
            return body if len(body) <= MAX_BYTES else write_json(["not plain", call_id])
        except NotPlainError:
            return write_json(["not plain", call_id])
        except (MemoryError, SystemExit):
            raise
        except Exception as error:  # noqa: BLE001 - whatever a candidate raises is for the test to see
            return write_json(["raised", call_id, *self._describe_error(error)])

    def _find_called_object(self, operation: str, handle: Any) -> Any:
        """Finds the object that a received call is made on, by name or by handle.

        Raises ForgedError if it may not be called.
        """
        kind, key = _check_list_of_two(handle)
        if kind == "name" and self.names is not None:
            return self.names(key)
        if kind != "lent" or type(key) is not int or not 0 <= key < len(self.lent):
            raise ForgedError
        if self.names is None and operation != "call":
            raise ForgedError
        return self.lent[key]

    def _has_argument_changed(self, value: Any, tree: Any) -> bool:
        """Returns whether a mutable argument of a call differs from its earlier encoding."""
        return type(value) in _MUTABLE and self._encode(value) != tree

    def _describe_error(self, error: Exception) -> tuple[list[str], Any]:
        """Returns the class names of an exception and its encoded arguments."""
        names = [error_class.__name__ for error_class in type(error).__mro__]
        try:
            return names, encode_value(error.args)
        except NotPlainError:
            return names, {"t": []}

    def _encode(self, value: Any) -> Any:
        """Encodes a value as a JSON tree in which functions and objects are handles.

        Raises NotPlainError if it cannot be sent.
        """
        return encode_value(value, self._make_handle)

    def _make_handle(self, value: Any) -> Any:
        """Makes the handle under which a function or object can be called remotely.

        Returns None if it may not be sent.
        """
        if isinstance(value, RemoteObject):
            kind, key = get_target(value)
            return {"own": key} if kind == "lent" else {"named": key}
        if self.names is not None and isinstance(value, enum.Enum) and type(type(value)) is enum.EnumMeta:
            self.lent.append(value)
            return {MEMBER_TAG: describe_member(value, len(self.lent) - 1, self._encode)}
        if self.names is not None and is_named_tuple(value):
            self.lent.append(value)
            return {NAMED_TUPLE_TAG: describe_named_tuple(value, len(self.lent) - 1, self._encode)}
        if self.names is None and (index := get_lent_index(value)) is not None:
            return {"own": index}
        is_function = type(value) in _FUNCTIONS
        if self.names is None and not is_function:
            return None
        self.lent.append(value)
        return {"lent": [len(self.lent) - 1, is_function]}

    def _decode(self, tree: Any, *, of_class: bool = False) -> Any:
        """Decodes a JSON tree to its value. Raises ForgedError if the tree stands for no value."""
        try:
            return decode_value(tree, lambda handle: self._resolve_handle(handle, of_class))
        except NotPlainError:
            raise ForgedError from None

    def _resolve_handle(self, tree: dict[str, Any], of_class: bool) -> Any:
        """Returns the object that a handle stands for: a remote object, or this process's own object sent back."""
        [(tag, content)] = tree.items()
        if tag == ARRAY_TAG:
            return build_array(content, self._decode)
        if tag == MEMBER_TAG and self.names is None:
            member = read_member(content, self._decode, self.call_remote)
            known = self.members.setdefault((content[1], content[2]), member)
            return known if known == member else member  # so that `f() is Color.RED` holds for the same member
        if tag == NAMED_TUPLE_TAG and self.names is None:
            return read_named_tuple(content, self._decode)
        if tag == "lent":
            index, is_function = _check_list_of_two(content)
            if is_function is not True and not of_class:
                raise RefusedError
            return RemoteObject(self.call_remote, ["lent", index], of_class=of_class)
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


def _rebuild_exception(names: Any, args: Any) -> BaseException:
    """Builds the nearest built-in exception for a list of class names. Returns RefusedError if there is none."""
    for name in names if type(names) is list else ():
        error_class = getattr(builtins, name, None) if type(name) is str else None
        if isinstance(error_class, type) and issubclass(error_class, Exception) and name not in _ENDS:
            try:
                return error_class(*decode_value(args))
            except (TypeError, NotPlainError):
                continue
    return RefusedError()


def _check_list_of_two(content: Any) -> list[Any]:
    """Returns a value that is a list of two items. Raises ForgedError for anything else."""
    if type(content) is not list or len(content) != 2:
        raise ForgedError
    return content


def _refill_container(old: Any, new: Any) -> None:
    """Replaces the contents of a mutable container in place, keeping nested containers that are still there."""
    if type(old) is not type(new) or type(old) not in _MUTABLE:
        raise ForgedError
    if type(old) is list and len(old) == len(new):
        for position, (old_item, new_item) in enumerate(zip(old, new, strict=True)):
            if type(old_item) is type(new_item) and type(old_item) in _MUTABLE:
                _refill_container(old_item, new_item)
            else:
                old[position] = new_item
    elif type(old) is dict:
        old_items = {key: old[key] for key in new if key in old}
        old.clear()
        old.update(new)
        for key, old_item in old_items.items():
            if type(old_item) is type(new[key]) and type(old_item) in _MUTABLE:
                _refill_container(old_item, new[key])
                old[key] = old_item
    elif type(old) is set:
        old.clear()
        old.update(new)
    else:
        old[:] = new
