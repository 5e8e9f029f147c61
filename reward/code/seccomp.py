"""Builds the system call filter (seccomp) of sandbox cells, which allows only the calls that Python code needs.

An allow-list, so that a call a later kernel adds is refused. Of programs, sockets (but for stream pairs of the cell
itself), other processes, mounts, namespaces, keys, tracing, bpf and io_uring nothing is left.
"""

import struct

# name:x86_64:aarch64, by Linux's syscall_64.tbl and include/uapi/asm-generic/unistd.h.
_CALLS = """
# files
read:0:63 write:1:64 close:3:57 fstat:5:80 lseek:8:62 pread64:17:67 pwrite64:18:68 readv:19:65 writev:20:66
preadv:295:69 pwritev:296:70 preadv2:327:286 pwritev2:328:287 open:2:- openat:257:56 openat2:437:437 creat:85:-
stat:4:- lstat:6:- newfstatat:262:79 statx:332:291 access:21:- faccessat:269:48 faccessat2:439:439 readlink:89:-
readlinkat:267:78 getdents:78:- getdents64:217:61 getcwd:79:17 chdir:80:49 fchdir:81:50 mkdir:83:-
mkdirat:258:34 rmdir:84:- unlink:87:- unlinkat:263:35 rename:82:- renameat:264:38 renameat2:316:276 link:86:-
linkat:265:37 symlink:88:- symlinkat:266:36 truncate:76:45 ftruncate:77:46 fallocate:285:47 fsync:74:82
fdatasync:75:83 umask:95:166 statfs:137:43 fstatfs:138:44 sendfile:40:71 copy_file_range:326:285
fadvise64:221:223 dup:32:23 dup2:33:- dup3:292:24 pipe:22:- pipe2:293:59 close_range:436:436
# waiting
poll:7:- ppoll:271:73 select:23:- pselect6:270:72 epoll_create:213:- epoll_create1:291:20 epoll_ctl:233:21
epoll_wait:232:- epoll_pwait:281:22 epoll_pwait2:441:441 eventfd:284:- eventfd2:290:19 timerfd_create:283:85
timerfd_settime:286:86 timerfd_gettime:287:87
# sockets that are there
sendto:44:206 recvfrom:45:207 shutdown:48:210 getsockname:51:204
getpeername:52:205 getsockopt:55:209
# memory
mmap:9:222 mprotect:10:226 munmap:11:215 brk:12:214 mremap:25:216 madvise:28:233 msync:26:227 mlock:149:228
munlock:150:229 membarrier:324:283
# threads
futex:202:98 set_robust_list:273:99 set_tid_address:218:96 rseq:334:293 sigaltstack:131:132 sched_yield:24:124
sched_getaffinity:204:123 sched_getparam:143:121 sched_getscheduler:145:120 sched_get_priority_max:146:125
sched_get_priority_min:147:126 getcpu:309:168 getpriority:140:141
# time
nanosleep:35:101 clock_nanosleep:230:115 clock_gettime:228:113 clock_getres:229:114 gettimeofday:96:169
time:201:- times:100:153 alarm:37:- setitimer:38:103 getitimer:36:102 pause:34:-
# signals
rt_sigaction:13:134 rt_sigprocmask:14:135 rt_sigreturn:15:139 rt_sigpending:127:136 rt_sigtimedwait:128:137
rt_sigsuspend:130:133 restart_syscall:219:128
# the process
getpid:39:172 getppid:110:173 gettid:186:178 getuid:102:174 geteuid:107:175 getgid:104:176 getegid:108:177
getresuid:118:148 getresgid:120:150 getgroups:115:158 getpgrp:111:- getpgid:121:155 getsid:124:156
getrusage:98:165 getrlimit:97:163 capget:125:90 uname:63:160 sysinfo:99:179 getrandom:318:278 exit:60:93
exit_group:231:94 wait4:61:260 waitid:247:95
"""

# Of files: allowed where a cell sees none but its own and what is mounted read-only.
_METADATA_CALLS = """
chmod:90:- fchmod:91:52 fchmodat:268:53 utime:132:- utimes:235:- futimesat:261:- utimensat:280:88
"""

_FILE_RECEIVING_CALLS = "recvmsg:47:212"

# Allowed for some arguments only.
_CALLS_BY_ARGUMENT = """
clone:56:220 fork:57:- vfork:58:- clone3:435:435 kill:62:129 tkill:200:130 tgkill:234:131 prctl:157:167
ioctl:16:29 fcntl:72:25 prlimit64:302:261 socketpair:53:199
"""

_MACHINES = {"x86_64": (1, 0xC000003E), "aarch64": (2, 0xC00000B7)}  # column above; include/uapi/linux/audit.h
_LAST_KNOWN = 456  # above it ENOSYS, for which libraries have another way; below it EPERM

_ALLOW, _KILL, _EPERM, _ENOSYS = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026  # include/uapi/linux/seccomp.h
_LOAD, _EQUAL, _ABOVE, _NOT_BELOW, _ANY_BIT, _AND, _RETURN = 0x20, 0x15, 0x25, 0x35, 0x45, 0x54, 0x06
_NUMBER, _ARCH, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data, whose arguments are 8 bytes each

_SELF = 0x5E1F5E1F  # stands for the cell's own process id
_NEW_NAMESPACES_OR_SIBLING = 0x7E028000  # CLONE_NEW* and CLONE_PARENT
_THREAD = 0x00010000  # CLONE_THREAD
_PRCTL = (15, 16)  # the name of a thread
_IOCTL = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)  # TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX
_FCNTL = (0, 1, 2, 3, 4, 1030, 1032)  # no locks, which hold for other cells; no F_SETOWN, F_SETSIG, which signal them
_AF_UNIX, _SOCK_STREAM, _SOCK_TYPE = 1, 1, 0xF


class UnknownMachineError(Exception):
    """Raised when there is no table of system call numbers for this machine's processor."""


def _pack_instruction(operation: int, value: int, then: int = 0, otherwise: int = 0) -> bytes:
    """Packs one BPF instruction of the filter program into bytes."""
    return struct.pack("=HBBI", operation, then, otherwise, value)


def _load_argument(number: int) -> bytes:
    """Returns the BPF instruction that loads the low 32 bits of a system call's argument."""
    return _pack_instruction(_LOAD, _ARGUMENTS + 8 * number)


def _allow_values(number: int, values: tuple[int, ...]) -> bytes:
    """Returns BPF instructions that allow a system call if its argument is one of the given values."""
    tests = b"".join(_pack_instruction(_EQUAL, value, len(values) - position) for position, value in enumerate(values))
    return _load_argument(number) + tests + _pack_instruction(_RETURN, _EPERM) + _pack_instruction(_RETURN, _ALLOW)


def _build_argument_filters(processes: bool, signals: bool) -> dict[str, bytes]:
    """Returns the BPF instructions for each system call, by name, that is allowed for some arguments only."""
    may_fork = _pack_instruction(_RETURN, _ALLOW if processes else _EPERM)
    own_process_only = _pack_instruction(_RETURN, _ALLOW) if signals else _allow_values(0, (_SELF,))
    clone = (
        _load_argument(0)
        + _pack_instruction(_ANY_BIT, _NEW_NAMESPACES_OR_SIBLING, 0, 1)
        + _pack_instruction(_RETURN, _EPERM)
        + _pack_instruction(_ANY_BIT, _THREAD, 0, 1)
        + _pack_instruction(_RETURN, _ALLOW)
        + may_fork
    )
    stream_pair = (
        _load_argument(0)
        + _pack_instruction(_EQUAL, _AF_UNIX, 1)
        + _pack_instruction(_RETURN, _EPERM)
        + _load_argument(1)
        + _pack_instruction(_AND, _SOCK_TYPE)
        + _pack_instruction(_EQUAL, _SOCK_STREAM, 1)
        + _pack_instruction(_RETURN, _EPERM)
        + _pack_instruction(_RETURN, _ALLOW)
    )
    return {
        "clone": clone,
        "clone3": _pack_instruction(_RETURN, _ENOSYS),  # its flags cannot be seen; the C library then takes clone
        "fork": may_fork,
        "vfork": may_fork,
        "kill": own_process_only,
        "tkill": _pack_instruction(_RETURN, _ALLOW if signals else _EPERM),
        "tgkill": own_process_only,
        "prctl": _allow_values(0, _PRCTL),
        "ioctl": _allow_values(1, _IOCTL),
        "fcntl": _allow_values(1, _FCNTL),
        "prlimit64": _allow_values(0, (0,)),
        "socketpair": stream_pair,
    }


def _find_ranges(numbers: list[int]) -> list[tuple[int, int]]:
    """Groups sorted numbers into ranges of consecutive ones, given by their first and last numbers."""
    ranges: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1] = (ranges[-1][0], number)
        else:
            ranges.append((number, number))
    return ranges


def _allow_ranges(ranges: list[tuple[int, int]]) -> bytes:
    """Returns BPF instructions that allow the call numbers in the given ranges, found by binary search."""
    if len(ranges) == 1:
        low, high = ranges[0]
        is_inside = _pack_instruction(_NOT_BELOW, low, 0, 1) + _pack_instruction(_ABOVE, high, 0, 1)
        return is_inside + _pack_instruction(_RETURN, _EPERM) + _pack_instruction(_RETURN, _ALLOW)
    middle = len(ranges) // 2
    lower = _allow_ranges(ranges[:middle])
    return _pack_instruction(_NOT_BELOW, ranges[middle][0], len(lower) // 8) + lower + _allow_ranges(ranges[middle:])


def _parse_call_table(calls: str, column: int) -> dict[str, int]:
    """Parses one column of a system call table and returns each call's number by its name."""
    words = [word.split(":") for line in calls.splitlines() if not line.startswith("#") for word in line.split()]
    return {word[0]: int(word[column]) for word in words if word[column] != "-"}


def build_filter(
    machine: str, *, processes: bool, signals: bool, metadata: bool, receives_files: bool = False
) -> bytes:
    """Builds the seccomp filter program without the process id, which `bind_filter` fills in.

    `processes` lets the cell fork; `signals` lets it signal whatever it sees, which must be its own processes alone,
    else it may signal none but itself; `metadata` lets it change rights and times of files, which must be its own;
    `receives_files` lets it take open files from its channel.
    """
    if machine not in _MACHINES:
        raise UnknownMachineError(f"no table of system calls for {machine}; there is one for {', '.join(_MACHINES)}")
    column, architecture = _MACHINES[machine]
    by_arguments = _build_argument_filters(processes, signals)
    instructions = (
        _pack_instruction(_LOAD, _ARCH)
        + _pack_instruction(_EQUAL, architecture, 1)
        + _pack_instruction(_RETURN, _KILL)
        + _pack_instruction(_LOAD, _NUMBER)
    )
    for name, number in _parse_call_table(_CALLS_BY_ARGUMENT, column).items():
        instructions += _pack_instruction(_EQUAL, number, 0, len(by_arguments[name]) // 8) + by_arguments[name]
    instructions += _pack_instruction(_ABOVE, _LAST_KNOWN, 0, 1) + _pack_instruction(_RETURN, _ENOSYS)
    calls = _CALLS + _METADATA_CALLS * metadata + _FILE_RECEIVING_CALLS * receives_files
    return instructions + _allow_ranges(_find_ranges(list(_parse_call_table(calls, column).values())))


def bind_filter(filter_program: bytes, pid: int) -> bytes:
    """Fills a process id into a filter program and returns it ready for `syscalls.set_syscall_filter`."""
    return filter_program.replace(struct.pack("=I", _SELF), struct.pack("=I", pid))
