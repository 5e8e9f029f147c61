"""The filter's program, run here on made-up calls: so the tables of machines that this one is not are tested too."""

import struct

import pytest

from qwen_align.reward.code import seccomp
from qwen_align.reward.code.seccomp import bind_filter, build_filter

ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
ALLOW, KILL, EPERM, ENOSYS = 0x7FFF0000, 0x80000000, 0x50001, 0x50026
PID = 77


def outcome(code: bytes, architecture: int, number: int, *arguments: int) -> int:
    """What the kernel's interpreter of such programs returns (include/uapi/linux/bpf_common.h)."""
    padded = [*arguments, *[0] * (6 - len(arguments))]
    data = struct.pack("=IIQ6Q", number, architecture, 0, *padded)
    place, value = 0, 0
    while True:
        operation, then, otherwise, constant = struct.unpack_from("=HBBI", code, 8 * place)
        place += 1
        if operation == 0x20:
            (value,) = struct.unpack_from("=I", data, constant)
        elif operation == 0x54:
            value &= constant
        elif operation == 0x06:
            return constant
        else:
            holds = {
                0x15: value == constant,
                0x25: value > constant,
                0x35: value >= constant,
                0x45: value & constant != 0,
            }
            place += then if holds[operation] else otherwise


def number(machine: str, name: str) -> int:
    column = list(ARCHITECTURES).index(machine) + 1
    return {
        **seccomp._parse_call_table(seccomp._CALLS, column),
        **seccomp._parse_call_table(seccomp._CALLS_BY_ARGUMENT, column),
    }[name]


@pytest.fixture(params=ARCHITECTURES)
def machine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def filtering(machine: str, *, processes: bool = False, signals: bool = False, **more: bool) -> bytes:
    wanted = {"metadata": False, **more}
    return bind_filter(build_filter(machine, processes=processes, signals=signals, **wanted), PID)


def test_every_number(machine: str) -> None:
    """Nothing but the listed calls is allowed without a look at the arguments."""
    column = list(ARCHITECTURES).index(machine) + 1
    allowed = set(seccomp._parse_call_table(seccomp._CALLS, column).values())
    argued = set(seccomp._parse_call_table(seccomp._CALLS_BY_ARGUMENT, column).values())
    assert not allowed & argued
    code = filtering(machine)
    found = {one: outcome(code, ARCHITECTURES[machine], one) for one in range(1000)}
    assert {one for one, what in found.items() if what == ALLOW} - argued == allowed
    assert {what for one, what in found.items() if one <= 456 and one not in allowed | argued} == {EPERM}
    assert {what for one, what in found.items() if one > 456} == {ENOSYS}


@pytest.mark.parametrize(
    ("option", "calls"),
    [("metadata", seccomp._METADATA_CALLS), ("receives_files", seccomp._FILE_RECEIVING_CALLS)],
)
def test_calls_that_only_some_cells_may_make(machine: str, option: str, calls: str) -> None:
    numbers = set(seccomp._parse_call_table(calls, list(ARCHITECTURES).index(machine) + 1).values())
    assert numbers
    for code, expected in ((filtering(machine), EPERM), (filtering(machine, **{option: True}), ALLOW)):
        assert {outcome(code, ARCHITECTURES[machine], one) for one in numbers} == {expected}


@pytest.mark.parametrize("number_of_call", [73, 222, 223], ids=["flock", "timer_create", "timer_settime"])
def test_no_lock_and_no_timer_that_other_cells_share(number_of_call: int) -> None:
    code = filtering("x86_64", metadata=True, receives_files=True, processes=True, signals=True)
    assert outcome(code, ARCHITECTURES["x86_64"], number_of_call) == EPERM


def test_other_tables_of_calls(machine: str) -> None:
    code = filtering(machine)
    for other in (0, 0x40000003, 0x40000028, *set(ARCHITECTURES.values()) - {ARCHITECTURES[machine]}):
        assert outcome(code, other, number(machine, "read")) == KILL
    assert outcome(code, ARCHITECTURES[machine], 0x40000000 | number(machine, "read")) == ENOSYS  # x32's read


# name, arguments, what a plain cell, one that may fork, and one in its own pid namespace get
ARGUED = [
    ("clone", (0x3D0F00,), ALLOW, ALLOW, ALLOW, "a thread as glibc makes it"),
    ("clone", (0x1200011,), EPERM, ALLOW, EPERM, "a fork as glibc makes it"),
    ("clone", (0x4111,), EPERM, ALLOW, EPERM, "a vfork"),
    ("clone", (0x10000000 | 0x10000,), EPERM, EPERM, EPERM, "a thread in a new user namespace"),
    ("clone", (0x8011,), EPERM, EPERM, EPERM, "a sibling"),
    ("clone3", (1, 88), ENOSYS, ENOSYS, ENOSYS, "its flags are out of sight"),
    ("kill", (PID, 9), ALLOW, ALLOW, ALLOW, "itself"),
    ("kill", (1, 9), EPERM, EPERM, ALLOW, "another"),
    ("kill", (2**32 - 1, 9), EPERM, EPERM, ALLOW, "all"),
    ("kill", (0, 9), EPERM, EPERM, ALLOW, "its group"),
    ("tgkill", (PID, 80, 6), ALLOW, ALLOW, ALLOW, "a thread of its own: abort()"),
    ("tgkill", (1, 1, 9), EPERM, EPERM, ALLOW, "another's"),
    ("tkill", (1, 9), EPERM, EPERM, ALLOW, "whose thread cannot be seen"),
    ("prctl", (15, 0), ALLOW, ALLOW, ALLOW, "a thread's name"),
    ("prctl", (22, 0), EPERM, EPERM, EPERM, "another filter"),
    ("ioctl", (0, 0x5401), ALLOW, ALLOW, ALLOW, "isatty"),
    ("ioctl", (0, 0x5412), EPERM, EPERM, EPERM, "TIOCSTI"),
    ("ioctl", (0, 2**32 + 0x5412), EPERM, EPERM, EPERM, "TIOCSTI, under bits the kernel does not look at"),
    ("fcntl", (0, 3), ALLOW, ALLOW, ALLOW, "flags"),
    ("fcntl", (0, 5), EPERM, EPERM, EPERM, "F_GETLK, which tells of other cells' locks"),
    ("fcntl", (0, 6), EPERM, EPERM, EPERM, "F_SETLK, which holds for other cells"),
    ("fcntl", (0, 37), EPERM, EPERM, EPERM, "F_OFD_SETLK"),
    ("fcntl", (0, 8), EPERM, EPERM, EPERM, "F_SETOWN"),
    ("fcntl", (0, 10), EPERM, EPERM, EPERM, "F_SETSIG"),
    ("prlimit64", (0, 7), ALLOW, ALLOW, ALLOW, "its own limits"),
    ("prlimit64", (1, 7), EPERM, EPERM, EPERM, "another's"),
    ("socketpair", (1, 0x80801), ALLOW, ALLOW, ALLOW, "streams, with flags"),
    ("socketpair", (1, 2), EPERM, EPERM, EPERM, "datagrams"),
    ("socketpair", (30, 1), EPERM, EPERM, EPERM, "TIPC"),
]


@pytest.mark.parametrize("case", ARGUED, ids=lambda case: f"{case[0]}: {case[-1]}")
def test_arguments(machine: str, case: tuple[str, tuple[int, ...], int, int, int, str]) -> None:
    name, arguments, plain, forking, owning, _ = case
    codes = (filtering(machine), filtering(machine, processes=True), filtering(machine, signals=True))
    assert [outcome(code, ARCHITECTURES[machine], number(machine, name), *arguments) for code in codes] == [
        plain,
        forking,
        owning,
    ]


def test_unknown_machine() -> None:
    with pytest.raises(seccomp.UnknownMachineError, match="riscv64; there is one for x86_64, aarch64"):
        build_filter("riscv64", processes=False, signals=False, metadata=False)
