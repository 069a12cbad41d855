"""The program that confines itself and then runs untrusted Python: `program.py` starts it.

Not imported by softgrpo, and imports nothing of it: `program.py` hands it to a bare interpreter,
compiled, and has `run` called, so that it starts fast. Three processes come of it, so that none
that judges can be reached by what is judged:

- the supervisor keeps the clock, outside of the namespaces; it reports how the program ended;
- the first process of the namespaces builds the sandbox, drops every privilege, and waits. When it
  ends, the kernel ends all the others of its namespace;
- the program.

Every step must succeed: the first that does not is reported, and the program is not run.
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import signal
import struct
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:  # importing typing is a good part of a start
    from collections.abc import Sequence
    from typing import Any

_LIBC = ctypes.CDLL(None, use_errno=True)

# linux/sched.h
_NAMESPACES = {
    "mount": 0x00020000,
    "UTS": 0x04000000,
    "IPC": 0x08000000,
    "PID": 0x20000000,
    "network": 0x40000000,
}
_CLONE_NEWUSER = 0x10000000
# linux/mount.h
_MS_RDONLY, _MS_NOSUID, _MS_NODEV = 1, 2, 4
_MS_BIND, _MS_REC, _MS_PRIVATE = 1 << 12, 1 << 14, 1 << 18
_MNT_DETACH = 2
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
# linux/prctl.h
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP = 1, 4, 22
_PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 36, 38

_NOBODY = 65534
_SIGNALS = 64  # that wait, timers included: they are counted for the user
# On every architecture, like all newer system calls.
_IO_URING_SETUP, _CLONE3, _PIDFD_GETFD, _MOUNT_SETATTR = 425, 435, 438, 442

# Refused to the program, beyond what it has no privilege for. Sockets: a network namespace does not
# hold AF_VSOCK, which reaches the host of a virtual machine; io_uring opens sockets too. Tracing
# reaches the first process. Keyrings belong to no namespace. memfd and System V IPC keep memory
# that no limit counts. Watches of files are counted for the user, outside too. The system's
# libraries are the files that others use: who locks one, waits for none of them. syslog reads the
# kernel's log. The rest is where kernels have been broken out of.
# Refused of fcntl: locks and leases, of files as of their parts, watches of folders, and pipes of
# more than their usual size, which the kernel counts for the user (F_SETLK, F_SETLKW, their 64-bit
# and F_OFD_ forms, F_SETLEASE, F_NOTIFY, F_SETPIPE_SZ).
_FCNTL_REFUSED = (6, 7, 13, 14, 37, 38, 1024, 1026, 1031)
# Of the types of a pair of sockets all but SOCK_STREAM have one of these bits; a datagram socket
# sends to any path, connected or not.
_NOT_STREAM = 0xE

# The numbers on x86_64, and on aarch64; None where there is no such call.
_AUDIT = (0xC000003E, 0xC00000B7)
_NEEDED = {
    "pivot_root": (155, 41),
    "capset": (126, 91),
    "clone": (56, 220),
    "fcntl": (72, 25),
    "socketpair": (53, 199),
}
_REFUSED = {
    "socket": (41, 198),
    "inotify_init": (253, None),
    "inotify_init1": (294, 26),
    "fanotify_init": (300, 262),
    "flock": (73, 32),
    "syslog": (103, 116),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kcmp": (312, 272),
    "pidfd_getfd": (_PIDFD_GETFD, _PIDFD_GETFD),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "memfd_create": (319, 279),
    "shmget": (29, 194),
    "semget": (64, 190),
    "msgget": (68, 186),
    "unshare": (272, 97),
    "setns": (308, 268),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (_IO_URING_SETUP, _IO_URING_SETUP),
}
_ARCHITECTURES: dict[str, dict[str, Any]] = {
    name: {
        "audit": _AUDIT[column],
        **{call: numbers[column] for call, numbers in _NEEDED.items()},
        "refused": [
            numbers[column] for numbers in _REFUSED.values() if numbers[column] is not None
        ],
    }
    for column, name in enumerate(("x86_64", "aarch64"))
}


# The machine has none left at the moment.
_EXHAUSTED = (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE)


class _Missing(Exception):
    """The machine does not do what the sandbox is built of."""


def _need(what: str, result: int) -> None:
    """Raises where a call of the C library failed; `what` says what for."""
    number = ctypes.get_errno()
    if result == -1 and number in _EXHAUSTED:
        raise OSError(number, f"{what}: {os.strerror(number)}")
    if result == -1:
        raise _Missing(f"{what}: {os.strerror(number)}")


def _syscall(number: int, *arguments: Any) -> int:
    return _LIBC.syscall(ctypes.c_long(number), *arguments)


def _prctl(option: int, value: int, pointer: Any = 0) -> int:
    none = ctypes.c_ulong(0)
    return _LIBC.prctl(option, ctypes.c_ulong(value), pointer or none, none, none)


def _write(proc: int, name: str, text: str) -> None:
    """Writes a file of /proc, which need not be mounted any more; `proc` is its open directory."""
    fd = os.open(name, os.O_WRONLY, dir_fd=proc)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _become_nobody() -> None:
    os.setgroups([])
    os.setresgid(_NOBODY, _NOBODY, _NOBODY)
    os.setresuid(_NOBODY, _NOBODY, _NOBODY)
    # Without it the kernel gives this process's own files in /proc to root.
    _need("prctl", _prctl(_PR_SET_DUMPABLE, 1))


def _new_user_namespace(proc: int) -> None:
    """A user namespace that knows this user alone.

    Processes are counted in it afresh, whatever else the user runs.
    """
    uid, gid = os.getuid(), os.getgid()
    _need("user namespaces", _LIBC.unshare(_CLONE_NEWUSER))
    _write(proc, "self/setgroups", "deny")
    _write(proc, "self/uid_map", f"{uid} {uid} 1")
    _write(proc, "self/gid_map", f"{gid} {gid} 1")


def _mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    result = _LIBC.mount(
        source.encode(),
        target.encode(),
        kind.encode() if kind else None,
        ctypes.c_ulong(flags),
        options.encode() or None,
    )
    _need(f"mounting {kind or source}", result)


def _make_read_only(path: str, *, below: bool) -> None:
    """Makes a mount read-only, and those below it too."""
    attributes = struct.pack("4Q", _MS_RDONLY | _MS_NOSUID | _MS_NODEV, 0, 0, 0)
    result = _syscall(
        _MOUNT_SETATTR,
        ctypes.c_int(_AT_FDCWD),
        path.encode(),
        ctypes.c_uint(_AT_RECURSIVE if below else 0),
        attributes,
        ctypes.c_size_t(len(attributes)),
    )
    _need("read-only mounts (Linux 5.12)", result)


def _new_root(pivot_root: int, readable: tuple[str, ...], disk_bytes: int) -> None:
    """An empty file system but for some directories, read-only, and an empty /tmp."""
    _mount("none", "/", None, _MS_REC | _MS_PRIVATE)
    # On a directory that every Linux has and in which no interpreter lies.
    _mount("tmpfs", "/dev", "tmpfs", _MS_NOSUID | _MS_NODEV, "size=1m,mode=755")
    os.mkdir("/dev/old")
    _need("pivot_root", _syscall(pivot_root, b"/dev", b"/dev/old"))
    os.chdir("/")
    for path in readable:
        if os.path.islink(f"/old{path}"):
            os.symlink(os.readlink(f"/old{path}"), path)
            continue
        os.makedirs(path)
        _mount(f"/old{path}", path, None, _MS_BIND | _MS_REC)
        _make_read_only(path, below=True)
    # Packages are the user's; the standard library is not.
    for name in ("site-packages", "dist-packages"):
        packages = os.path.join(os.path.dirname(os.__file__), name)
        if os.path.isdir(packages):
            _mount("tmpfs", packages, "tmpfs", _MS_RDONLY | _MS_NOSUID | _MS_NODEV, "size=4k")
    os.makedirs("/tmp")
    options = f"size={disk_bytes},nr_inodes=1024,mode=777"
    _mount("tmpfs", "/tmp", "tmpfs", _MS_NOSUID | _MS_NODEV, options)
    _need("unmounting the old root", _LIBC.umount2(b"/old", _MNT_DETACH))
    os.rmdir("/old")
    _make_read_only("/", below=False)
    os.chdir("/tmp")


def _drop_privileges(capset: int) -> None:
    header = struct.pack("Ii", 0x20080522, 0)
    _need("dropping capabilities", _syscall(capset, header, bytes(24)))
    _need("no new privileges", _prctl(_PR_SET_NO_NEW_PRIVS, 1))


def _filter_system_calls(machine: dict[str, Any]) -> None:
    """Refuses some system calls with EPERM, and ends a process that calls as another machine."""
    load, equal, at_least, any_bit, back = 0x20, 0x15, 0x35, 0x45, 0x06
    allowed, refused = (back, 0, 0, 0x7FFF0000), (back, 0, 0, 0x00050000 | errno.EPERM)

    def refuse_where(
        number: int, argument: int, test: int, values: Sequence[int]
    ) -> list[tuple[int, int, int, int]]:
        """Of one system call those whose argument, as 32 bits, passes one of some tests."""
        tests = [(test, len(values) - index, 0, value) for index, value in enumerate(values)]
        return [
            (equal, 0, len(tests) + 3, number),
            (load, 0, 0, 16 + 8 * argument),
            *tests,
            allowed,
            refused,
        ]

    code = [
        (load, 0, 0, 4),
        (equal, 1, 0, machine["audit"]),
        (back, 0, 0, 0x80000000),
        (load, 0, 0, 0),
        (at_least, 0, 1, 0x40000000),  # x32 numbers the same calls anew
        refused,
        *(row for number in machine["refused"] for row in ((equal, 0, 1, number), refused)),
        # What clone3 is to do cannot be seen from here. The C library falls back on clone.
        (equal, 0, 1, _CLONE3),
        (back, 0, 0, 0x00050000 | errno.ENOSYS),
        *refuse_where(machine["clone"], 0, any_bit, [_CLONE_NEWUSER]),
        *refuse_where(machine["fcntl"], 1, equal, _FCNTL_REFUSED),
        *refuse_where(machine["socketpair"], 1, any_bit, [_NOT_STREAM]),
        allowed,
    ]
    instructions = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *row) for row in code))
    head = ctypes.create_string_buffer(struct.pack("HP", len(code), ctypes.addressof(instructions)))
    _need("seccomp filters", _prctl(_PR_SET_SECCOMP, 2, head))


def _limit(limits: dict[str, Any], other_processes: int) -> None:
    for what, most in (
        (resource.RLIMIT_CPU, limits["cpu_seconds"]),
        (resource.RLIMIT_AS, limits["memory_bytes"]),
        (resource.RLIMIT_NPROC, limits["processes"] + other_processes),
        (resource.RLIMIT_NOFILE, limits["open_files"]),
        (resource.RLIMIT_FSIZE, limits["file_bytes"]),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
        (resource.RLIMIT_SIGPENDING, _SIGNALS),
    ):
        hard = resource.getrlimit(what)[1]
        limit = most if hard == resource.RLIM_INFINITY else min(most, hard)
        # The hard limit too: what it ends or refuses cannot be caught or lifted.
        resource.setrlimit(what, (limit, limit))


def _die_with_parent(alive: int) -> None:
    """Ends this process when its parent ends, or has ended, who alone holds the other end."""
    _need("prctl", _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL))
    os.set_blocking(alive, False)
    try:
        os.read(alive, 1)
    except BlockingIOError:
        return
    os._exit(1)


def _confine(request: dict[str, Any], machine: dict[str, Any], proc: int, alive: int) -> None:
    """Builds the sandbox around this process, which is the first of its namespaces."""
    root = os.getuid() == 0
    _new_root(machine["pivot_root"], request["readable"], request["limits"]["disk_bytes"])
    if root:
        _become_nobody()
        _new_user_namespace(proc)
    os.close(proc)
    _die_with_parent(alive)  # a change of user would undo it
    # This process counts, and so does the supervisor where it shares the user namespace.
    _limit(request["limits"], other_processes=1 if root else 2)
    _drop_privileges(machine["capset"])
    _filter_system_calls(machine)


def _first_process(request: dict[str, Any], machine: dict[str, Any], proc: int, alive: int) -> None:
    """Builds the sandbox and forks the program, where it returns; then ends as the program ends."""
    _confine(request, machine, proc, alive)
    program = os.fork()
    if program:  # this process owns nothing and shows nothing that a program could want
        os.closerange(0, 2**16)
        _need("prctl", _prctl(_PR_SET_DUMPABLE, 0))
    while program:  # orphans come to this process to be waited for
        ended, status = os.wait()
        if ended == program:
            os._exit(_exit_code(status))


def _limited_process(request: dict[str, Any], alive: int) -> None:
    """Limits this process, which is the program, and isolates it from nothing."""
    _die_with_parent(alive)
    os.chdir(request["directory"])
    _limit(request["limits"], other_processes=1)
    _need("no new privileges", _prctl(_PR_SET_NO_NEW_PRIVS, 1))


def _exit_code(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _end_children() -> None:
    """Kills and reaps children until there are none; those of the dead become this process's."""
    while True:
        for name in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{name}/stat") as file:
                    parent = int(file.read().rpartition(")")[2].split()[1])
                if parent == os.getpid():
                    os.kill(int(name), signal.SIGKILL)
            except OSError:  # it ended meanwhile
                continue
        try:
            os.wait()
        except ChildProcessError:
            return


def _watch(child: int, wall_seconds: float) -> str:
    """Waits for a child, its time or SIGTERM; says which came. The child is gone afterwards."""
    deadline = time.monotonic() + wall_seconds
    while True:
        left = max(0.0, deadline - time.monotonic())
        arrived = signal.sigtimedwait({signal.SIGCHLD, signal.SIGTERM}, left)
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return f"exit {_exit_code(status)}"
        if arrived is None or arrived.si_signo == signal.SIGTERM:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)  # returns when its namespace is empty
            return "time" if arrived is None else "stopped"


def _supervise(request: dict[str, Any], report: int) -> None:
    """Starts the program and returns in its process; in this one it ends when the program ends."""
    isolated = request["directory"] is None
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD, signal.SIGTERM})
    alive, keep = os.pipe()
    try:
        machine = _ARCHITECTURES.get(os.uname().machine, {})
        if isolated:
            if not machine:
                raise _Missing(f"system call numbers of {os.uname().machine} are not known")
            proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
            # Root of a container often may not make namespaces, where nobody may make a user's.
            if os.getuid() != 0 or _LIBC.unshare(_NAMESPACES["mount"]) == -1:
                if os.getuid() == 0:
                    _become_nobody()
                _new_user_namespace(proc)
            for name, flag in _NAMESPACES.items():
                _need(f"{name} namespaces", _LIBC.unshare(flag))
        else:
            _need("subreaper", _prctl(_PR_SET_CHILD_SUBREAPER, 1))
        _need("prctl", _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL))
        if os.getppid() != request["parent"]:
            os._exit(1)
        child = os.fork()
        if child == 0:
            os.close(keep)
            if isolated:
                _first_process(request, machine, proc, alive)
            else:
                _limited_process(request, alive)
            os.close(alive)
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            return
    except (_Missing, OSError, ValueError) as error:
        exhausted = isinstance(error, OSError) and error.errno in _EXHAUSTED
        kind = "exhausted" if exhausted else "refused"
        os.write(report, f"{kind} {error}\n".encode())
        os._exit(1)
    ended = _watch(child, request["limits"]["wall_seconds"])
    if not isolated:
        _end_children()
    os.write(report, ended.encode())
    os._exit(0)


def _become_program(request: dict[str, Any]) -> None:
    """Returns in the program's process alone, with its files and its environment."""
    null, report = os.open("/dev/null", os.O_RDWR), os.dup(1)
    _supervise(request, report)
    given = (null, *request["outputs"])
    for number, fd in enumerate(given):
        os.dup2(fd, number)
    for fd in (report, *given):
        os.close(fd)
    os.environ["HOME"] = os.environ["TMPDIR"] = os.getcwd()


def run(request: dict[str, Any]) -> None:
    """Runs the program that `program.SandboxedProgram` sends; what it raises is raised here."""
    program, call = request["program"], request["call"]
    _become_program(request)
    main = sys.modules["__main__"] = type(sys)("__main__")
    if isinstance(program, str):
        program = compile(program, "<program>", "exec", dont_inherit=True)
    exec(program, main.__dict__)
    if call is not None:
        name, arguments = call
        main.__dict__[name](*arguments)
