"""Hostile programs harm nothing, leave nothing and end within their limits."""

import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from softgrpo.sandbox import (
    Limits,
    SandboxedProgram,
    SandboxResult,
    SandboxUnavailable,
    run_python,
)
from softgrpo.sandbox import (
    program as sandbox,
)

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="the sandbox is Linux's"),
    pytest.mark.alone,  # it measures by the clock
]

SHORT = Limits(cpu_seconds=1, wall_seconds=3.0)


@contextmanager
def lifeline() -> Iterator[int]:
    """A file descriptor to hand to a program; afterwards nobody may hold it any more."""
    read, write = os.pipe()
    try:
        yield write
        os.close(write)
        os.set_blocking(read, False)
        assert os.read(read, 1) == b"", "something of the program is still running"
    finally:
        os.close(read)


def run_to_nothing(program: str, limits: Limits = SHORT) -> SandboxResult:
    """Runs a program, and checks that it ends in time and that nothing of it is left."""
    started = time.monotonic()
    with lifeline() as fd:
        result = run_python(program, limits=limits, fds=[fd])
    assert time.monotonic() - started < limits.wall_seconds + 3
    return result


def printed(program: str, **limits: Any) -> str:
    """What a program prints that must not fail."""
    result = run_to_nothing(program, Limits(**limits))
    assert (result.ended, result.exit_code) == ("exit", 0), result
    return result.stdout


# ------------------------------------------------------------------------- what is no attack


def test_a_program_runs_as_main_in_an_empty_directory() -> None:
    program = """
import os, sys
print(__name__, os.getcwd() == os.environ["HOME"] == os.environ["TMPDIR"], os.listdir())
print("error", file=sys.stderr)
sys.exit(3)
"""
    result = run_python(program)
    assert (result.ended, result.exit_code) == ("exit", 3)
    assert result.stdout == "__main__ True []\n"
    assert result.stderr == "error\n"


def test_the_standard_library_works() -> None:
    program = """
import asyncio, collections, dataclasses, decimal, hashlib, heapq, itertools, json, math, random
import re, statistics, string, tempfile, threading, typing
threading.Thread(target=print, args=["thread"]).start()
with tempfile.TemporaryFile() as file:
    file.write(b"x")
@dataclasses.dataclass
class Point:
    x: "int"
asyncio.run(asyncio.sleep(0))
print(Point(1), hashlib.sha256(b"").hexdigest()[:4])
"""
    assert sorted(printed(program).split("\n")) == ["", "Point(x=1) e3b0", "thread"]


def test_a_compiled_program_is_called_with_plain_data() -> None:
    code = compile("def f(x, y): print(x, y)", "f", "exec")
    result = run_python(code, call=("f", (1, {"a": b"2", "b": "\ud800"})))
    assert result.stdout == "1 {'a': b'2', 'b': '\\ud800'}\n"


def test_an_error_is_told_on_standard_error() -> None:
    result = run_python("1 / 0")
    assert result.exit_code == 1
    assert result.stderr.endswith("ZeroDivisionError: division by zero\n")


# ------------------------------------------------------------------------------- what it uses up

USES_UP = {
    "an endless loop": "while True: pass",
    "an endless computation in C": "9 ** 9 ** 9 ** 9",
    "an endless sleep": "import time; time.sleep(10**6)",
    "endless output": "while True: print('x' * 10**6)",
    "endless output past errors": """
import os
while True:
    try: os.write(1, b"x" * 10**6)
    except OSError: pass
""",
    "a fork bomb": """
import os
while True:
    try: os.fork()
    except OSError: pass
""",
    "a thread bomb": """
import threading, time
while True:
    try: threading.Thread(target=time.sleep, args=[9]).start()
    except RuntimeError: pass
""",
    "every signal ignored, in a loop": """
import signal
for number in range(1, 65):
    try: signal.signal(number, lambda *_: None)
    except (OSError, ValueError): pass
while True: pass
""",
    "every signal ignored, asleep": """
import signal, time
for number in range(1, 65):
    try: signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError): pass
while True: time.sleep(9)
""",
    "limits lifted": """
import resource
for what in range(16):
    try: resource.setrlimit(what, (-1, -1))
    except (OSError, ValueError): pass
while True: pass
""",
    "no end at the end": """
import atexit
@atexit.register
def forever():
    while True: pass
""",
    "all memory": "x = [0]\nwhile True: x += x",
    "all memory past errors": """
kept = []
while True:
    try: kept.append(bytearray(2**20))
    except MemoryError: pass
""",
    "all memory, shared": """
import mmap
kept = []
while True: kept.append(mmap.mmap(-1, 2**26))
""",
    "deep recursion": """
import sys
sys.setrecursionlimit(10**9)
def f(): return f()
f()
""",
    "deep recursion in C": """
import sys
sys.setrecursionlimit(10**9)
x = []
for _ in range(10**7): x = [x]
repr(x)
""",
    "a syntax bomb": "eval('-' * 10**6 + '1')",
    "a crash": "import ctypes; ctypes.string_at(1)",
}


@pytest.mark.parametrize("program", USES_UP.values(), ids=USES_UP)
def test_a_program_without_end_is_ended(program: str) -> None:
    result = run_to_nothing(program)
    assert result.ended == "time" or result.exit_code != 0
    assert len(result.stdout) <= SHORT.file_bytes


def test_a_loop_ends_with_its_processor_time() -> None:
    result = run_to_nothing("while True: pass", Limits(cpu_seconds=1, wall_seconds=30))
    assert (result.ended, result.exit_code) == ("exit", 128 + signal.SIGKILL)


def test_processes_are_counted() -> None:
    program = """
import os, time
made = 0
while True:
    try:
        if os.fork() == 0: time.sleep(9); os._exit(0)
    except OSError: break
    made += 1
print(made)
"""
    assert printed(program, processes=5) == "4\n"
    # The count is each sandbox's own, whatever else the user runs.
    with SandboxedProgram("import os, time\nfor _ in range(3): os.fork()\ntime.sleep(9)"):
        assert printed(program, processes=5) == "4\n"


def test_memory_is_limited_with_what_no_address_space_counts() -> None:
    program = """
import ctypes, os
for call in (lambda: os.memfd_create("x"), lambda: bytearray(2**28)):
    try: call()
    except (OSError, MemoryError) as error: print(type(error).__name__)
libc = ctypes.CDLL(None)
print(libc.shmget(0, 2**30, 0o1600), libc.msgget(0, 0o1600))
"""
    expected = "PermissionError\nMemoryError\n-1 -1\n"
    assert printed(program, memory_bytes=2**28) == expected


def test_the_disk_is_limited() -> None:
    program = """
import os
def fill(size):
    try:
        for number in range(10**6):
            with open(f"{size}-{number}", "wb", buffering=0) as file: file.write(b"x" * size)
    except OSError: return
fill(2**21)
sizes = [os.path.getsize(name) for name in os.listdir()]
fill(0)
print(max(sizes), sum(sizes), len(os.listdir()) < 2000)
"""
    limits = {"disk_bytes": 2**22, "file_bytes": 2**20}
    assert printed(program, **limits) == f"{2**20} {2**22} True\n"


def test_open_files_are_limited() -> None:
    program = """
import os
try:
    while True: last = os.dup(1)
except OSError: print(last)
"""
    # One less where the supervisor's own pipe has the last number.
    assert int(printed(program, open_files=20)) in (18, 19)


# --------------------------------------------------------------------------- what it reaches for


@pytest.fixture
def secret(tmp_path: Path) -> Iterator[Path]:
    """A file that everybody may read and write, on the file system outside."""
    path = tmp_path / "secret"
    path.write_text("hunter2")
    path.chmod(0o666)
    for directory in (tmp_path, *tmp_path.parents[:2]):
        with suppress(PermissionError):  # pytest's own are closed to others
            directory.chmod(0o777)
    yield path
    assert path.read_text() == "hunter2"
    assert path.stat().st_mode & 0o777 == 0o666
    assert os.listdir(tmp_path) == ["secret"]


def test_no_file_of_the_users_can_be_read(secret: Path) -> None:
    here = [str(secret), __file__, sandbox.__file__, pytest.__file__, sys.executable]
    system = [
        "/etc/passwd",
        "/etc/hostname",
        "/proc/self/environ",
        "/proc/1/status",
        "/sys",
        "/dev",
    ]
    program = f"""
import os
for path in {here + system + [str(Path.home() / ".bashrc")]}:
    assert not os.path.exists(path), path
for directory, _, files in os.walk("/"):
    assert "secret" not in files
"""
    assert printed(program, cpu_seconds=20, wall_seconds=60) == ""


def test_nothing_outside_can_be_written(secret: Path) -> None:
    program = f"""
import os, sys, json
paths = ["/x", "/usr/lib/x", "/lib/x", os.path.dirname(json.__file__) + "/x", {str(secret)!r}]
for path in [*paths, {str(secret.parent / "new")!r}, "../x"]:
    for act in (lambda: open(path, "w"), lambda: os.mkdir(path), lambda: os.symlink("/", path),
                lambda: os.mkfifo(path), lambda: os.chmod(path, 0), lambda: os.truncate(path, 0)):
        try: act()
        except OSError: continue
        print(path)
for act in (lambda: os.chmod(json.__file__, 0o777), lambda: os.remove(json.__file__),
            lambda: os.utime(json.__file__), lambda: os.chmod("/", 0o777),
            lambda: os.rename("/lib", "/tmp/lib"), lambda: os.chroot("/tmp")):
    try: act()
    except OSError: continue
    print("changed")
"""
    before = os.stat(os.__file__)
    assert printed(program) == ""
    assert os.stat(os.__file__) == before


def test_the_environment_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    program = """
import ctypes, os
print(sorted(os.environ))
get = ctypes.CDLL(None).getenv
get.restype = ctypes.c_char_p
print(get(b"SECRET_TOKEN"))
"""
    assert printed(program) == "['HOME', 'LC_CTYPE', 'TMPDIR']\nNone\n"


def test_there_is_no_network(tmp_path: Path) -> None:
    """Servers of each kind wait outside, and nobody comes."""
    servers = []
    for family, kind, address in (
        (socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0)),
        (socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 0)),
        (socket.AF_UNIX, socket.SOCK_STREAM, str(tmp_path / "socket")),
        (socket.AF_UNIX, socket.SOCK_STREAM, f"\0softgrpo-{os.getpid()}"),
    ):
        server = socket.socket(family, kind)
        server.bind(address)
        server.setblocking(False)
        if kind == socket.SOCK_STREAM:
            server.listen()
        servers.append(server)
    targets = [(int(each.family), int(each.type), each.getsockname()) for each in servers]
    program = f"""
import socket
for family, kind, address in {targets!r}:
    try: socket.socket(family, kind).connect(address)
    except PermissionError: print("refused")
for family in range(64):
    for kind in (1, 2, 3, 5):
        try: socket.socket(family, kind)
        except PermissionError: continue
        print("made", family, kind)
try: socket.getaddrinfo("localhost", 80)
except OSError: print("no name")
"""
    assert printed(program) == "refused\n" * 4 + "no name\n"
    for server in servers:
        with server, pytest.raises(BlockingIOError):
            if server.type == socket.SOCK_STREAM:
                server.accept()
            else:
                server.recv(1)


def test_no_process_outside_can_be_reached() -> None:
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(99)"])
    try:
        program = f"""
import ctypes, os, signal
libc = ctypes.CDLL(None, use_errno=True)
outside = [{os.getpid()}, {os.getppid()}, {other.pid}]
assert os.getpid() == 2 and os.getppid() == 1
for pid in outside:
    for act in (lambda: os.kill(pid, 9), lambda: os.killpg(pid, 9), lambda: os.getpgid(pid),
                lambda: os.sched_getaffinity(pid), lambda: os.pidfd_open(pid),
                lambda: os.setpriority(os.PRIO_PROCESS, pid, 19)):
        try: act()
        except OSError: continue
        print("reached", pid)
os.kill(1, signal.SIGKILL)
os.kill(1, signal.SIGTERM)
for pid in (1, *outside):
    for request in (16, 0x4206):  # PTRACE_ATTACH, PTRACE_SEIZE
        assert libc.ptrace(request, pid, 0, 0) == -1
    assert libc.process_vm_readv(pid, 0, 0, 0, 0, 0) == -1 and ctypes.get_errno() == 1
print("alive", flush=True)
try: os.kill(-1, signal.SIGKILL)
except ProcessLookupError: print("nobody else")
"""
        assert printed(program) == "alive\nnobody else\n"
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_only_its_own_files_are_open() -> None:
    program = """
import ctypes, os
def is_open(fd):
    try: os.fstat(fd)
    except OSError: return False
    return True
print([fd for fd in range(10**4) if is_open(fd)])
libc = ctypes.CDLL(None, use_errno=True)
first = os.pidfd_open(1)
print({libc.syscall(438, first, fd, 0) for fd in range(64)}, ctypes.get_errno())  # pidfd_getfd
"""
    assert run_python(program).stdout == "[0, 1, 2]\n{-1} 1\n"


def test_privileges_cannot_be_had() -> None:
    program = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
def refused(result): return result == -1 and ctypes.get_errno() == 1
for flag in (0x10000000, 0x20000, 0x20000000, 0x40000000):
    assert refused(libc.unshare(flag))
assert refused(libc.mount(b"tmpfs", b"/tmp", b"tmpfs", 0, 0))
assert refused(libc.umount2(b"/tmp", 2))
assert libc.syscall(425, 8, ctypes.create_string_buffer(120)) == -1  # io_uring_setup
number = {"x86_64": 56, "aarch64": 220}[os.uname().machine]
assert refused(libc.syscall(number, 0x10000011, 0, 0, 0, 0))  # clone(CLONE_NEWUSER | SIGCHLD)
assert libc.syscall(435, ctypes.create_string_buffer(88), 88) == -1  # clone3
for act in (lambda: os.setuid(0), lambda: os.setgid(0), lambda: os.setgroups([0]),
            lambda: os.mknod("device", 0o20666, 0x103), lambda: os.chown(".", 0, 0)):
    try: act()
    except OSError: continue
    print("allowed")
"""
    assert printed(program) == ""


SHARED_WITH_OTHERS = {
    "a lock of a library": "fcntl.flock(library, fcntl.LOCK_EX)",
    "a shared lock of a library": "fcntl.flock(library, fcntl.LOCK_SH)",
    "a lock of a part of a library": "fcntl.lockf(library, fcntl.LOCK_SH)",
    "a lock of an open file": "fcntl.fcntl(library, 37, struct.pack('hhqqi', 0, 0, 0, 0, 0))",
    "a lease of a library": "fcntl.fcntl(library, fcntl.F_SETLEASE, fcntl.F_RDLCK)",
    "a watch of a folder by signals": "fcntl.fcntl(folder, fcntl.F_NOTIFY, fcntl.DN_CREATE)",
    "large pipes": "fcntl.fcntl(os.pipe()[0], 1031, 2**20)",
    "watches of files": "call(LIBC.inotify_init())",
    "watches of files, newly": "call(LIBC.inotify_init1(0))",
    "watches of everything": "call(LIBC.fanotify_init(0x200, 0))",
    "the kernel's log": "call(LIBC.klogctl(3, ctypes.create_string_buffer(99), 99))",
    "a queue of messages": "call(LIBC.mq_open(b'/x', 0o102, 0o600, None))",
    "locked memory": "call(LIBC.mlock(ctypes.create_string_buffer(9), 9))",
    "a pair of sockets that send to paths": "socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)",
    "such a pair with flags": "socket.socketpair(socket.AF_UNIX, 2 | socket.SOCK_NONBLOCK)",
    "a pair of packets": "socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)",
    "a pair of the network": "socket.socketpair(socket.AF_INET)",
}


@pytest.mark.parametrize("what", SHARED_WITH_OTHERS)
def test_what_others_use_too_is_left_alone(what: str) -> None:
    program = f"""
import ctypes, fcntl, os, socket, struct
LIBC = ctypes.CDLL(None, use_errno=True)
def call(result):
    if result == -1: raise OSError(ctypes.get_errno(), "")
library, folder = open(os.__file__, "rb"), os.open("/tmp", os.O_RDONLY)
try: {SHARED_WITH_OTHERS[what]}
except OSError: print("refused")
"""
    assert printed(program) == "refused\n"


def test_timers_are_counted() -> None:
    program = """
import ctypes
libc, made = ctypes.CDLL(None), 0
while made < 1000 and libc.timer_create(1, None, ctypes.byref(ctypes.c_void_p())) == 0: made += 1
print(made)
"""
    assert int(printed(program)) <= 64


def test_pairs_of_streams_work_as_asyncio_has_them() -> None:
    program = """
import socket
one, other = socket.socketpair()
one.setblocking(False)
one.send(b"x")
print(other.recv(1))
"""
    assert printed(program) == "b'x'\n"


# ------------------------------------------------------------------------------- what stays behind


@pytest.mark.parametrize("last", ["", "os._exit(0)", "os.kill(os.getpid(), 9)", "time.sleep(99)"])
def test_a_daemon_ends_with_its_program(last: str) -> None:
    program = f"""
import os, signal, time
for number in range(1, 65):
    try: signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError): pass
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        while True: time.sleep(1)
    os._exit(0)
time.sleep(0.1)
{last}
"""
    run_to_nothing(program, Limits(wall_seconds=1.0))


def test_a_program_is_stopped() -> None:
    started = time.monotonic()
    with lifeline() as fd, SandboxedProgram("import time; time.sleep(99)", fds=[fd]) as running:
        time.sleep(0.2)
        running.stop()
        assert running.result().ended == "stopped"
    with lifeline() as fd, SandboxedProgram("import time; time.sleep(99)", fds=[fd]) as running:
        pass  # on the way out, whether it has begun or not
    assert time.monotonic() - started < 5


def test_an_interrupt_leaves_nothing() -> None:
    here = threading.get_ident()
    timer = threading.Timer(0.3, signal.pthread_kill, [here, signal.SIGINT])
    # Where the tests run in the background, Ctrl-C is ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        timer.start()
        with lifeline() as fd, pytest.raises(KeyboardInterrupt):
            run_python("import time; time.sleep(99)", fds=[fd])
        timer.join()
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_killed_parent_leaves_nothing() -> None:
    script = """
from softgrpo.sandbox import run_python
run_python("import os; os.fork(); print(flush=True); import time; time.sleep(99)", fds=[FD])
"""
    with lifeline() as fd:
        parent = subprocess.Popen(
            [sys.executable, "-c", script.replace("FD", str(fd))],
            pass_fds=[fd],
            cwd=Path(sandbox.__file__).parents[2],
        )
        time.sleep(1.5)
        assert parent.poll() is None
        parent.kill()
        parent.wait()
        time.sleep(0.5)


def test_programs_leave_no_open_file_and_no_temporary_one(tmp_path: Path) -> None:
    before = os.listdir("/proc/self/fd")
    for program in ("print(1)", "while True: pass"):
        run_python(program, limits=SHORT)
    assert len(os.listdir("/proc/self/fd")) == len(before)


LEAVES = {
    "nested folders": "for _ in range(3000): os.mkdir('x'); os.chdir('x')",
    "folders that nobody may enter": "os.makedirs('a/b/c'); os.chmod('a/b', 0); os.chmod('a', 0)",
    "its own closed": "os.mkdir('a'); os.chmod('.', 0)",
    "links": "os.symlink('/', 'root'); os.symlink('x', 'x'); os.link(sys.argv[0], 'y')",
    "names of no text": "os.mkdir(b'\\xff'); open(b'\\xff/\\xfe\\n', 'w').close()",
    "long names": "for _ in range(20): os.mkdir('x' * 255); os.chdir('x' * 255)",
    "pipes and a huge file of nothing": "os.mkfifo('f'); os.truncate(open('g', 'w').name, 2**20)",
    "many files": "for i in range(5000): open(str(i), 'w').close()",
    "none of it": "os.rmdir(os.getcwd())",
    "a link in its place": "here = os.getcwd(); os.rmdir(here); os.symlink(HOME, here)",
}


@pytest.mark.parametrize("mode", ["full", "limits"])
@pytest.mark.parametrize("leaves", LEAVES)
def test_a_programs_folder_is_deleted(
    leaves: str, mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary, home = tmp_path / "temporary", tmp_path / "home"
    temporary.mkdir()
    home.mkdir()
    (home / "file").write_text("the user's")
    monkeypatch.setenv("SOFTGRPO_CODE_SANDBOX", mode)
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    program = f"import os, sys\nHOME = {str(home)!r}\ntry:\n    exec({LEAVES[leaves]!r})"
    run_to_nothing(f"{program}\nexcept OSError: pass")
    assert os.listdir(temporary) == []
    assert (home / "file").read_text() == "the user's"


# ------------------------------------------------------------------------------- what it prints

ODD_OUTPUT = {
    "nothing at all": "import os; os.closerange(0, 1000); os._exit(0)",
    "no text": "import os; os.write(1, bytes(range(256)))",
    "surrogates": "import sys; sys.stdout.buffer.write('\\ud800'.encode('utf-8', 'surrogatepass'))",
    "a file truncated to its limit": "import os; os.ftruncate(1, 2**20); os._exit(0)",
    # Flags belong to the open file, which the parent reads too.
    "a file that must be read in blocks": """
import fcntl, os
os.write(1, b"x" * 100)
for fd in (1, 2):
    try: fcntl.fcntl(fd, fcntl.F_SETFL, os.O_DIRECT | os.O_NONBLOCK)
    except OSError: pass
    os.lseek(fd, 7, 0)
""",
}


@pytest.mark.parametrize("program", ODD_OUTPUT.values(), ids=ODD_OUTPUT)
def test_odd_output_is_read(program: str) -> None:
    result = run_to_nothing(program)
    assert result.exit_code == 0, result
    assert result.stdout.encode().decode() == result.stdout


def test_surrogates_in_a_program_are_its_own_error() -> None:
    assert run_to_nothing("print('\ud800')").exit_code == 1


# ------------------------------------------------------------------------------ where it is refused

MISSING = {
    "user namespaces": ("_CLONE_NEWUSER = 0x10000000", "_CLONE_NEWUSER = 1"),
    "network namespaces": ("0x40000000,\n}", "1,\n}"),
    "PID namespaces": ("0x20000000", "1"),
    "read-only mounts (Linux 5.12)": ("425, 435, 438, 442", "425, 435, 438, 9999"),
    "pivot_root": ('"/dev/old"))', '"/nowhere"))'),
    "seccomp filters": ("_PR_SET_SECCOMP, 2", "_PR_SET_SECCOMP, 9"),
    "dropping capabilities": ("0x20080522", "1"),
    "system call numbers of": ("os.uname().machine, {}", "'pdp11', {}"),
}


@pytest.mark.parametrize("missing", MISSING)
def test_without_a_layer_nothing_runs(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source = sandbox._CHILD.read_text()
    old, new = MISSING[missing]
    assert source.count(old) == 1
    code = compile(source.replace(old, new), "child", "exec")
    monkeypatch.setattr(sandbox, "compiled", lambda path: code)
    with lifeline() as fd, pytest.raises(SandboxUnavailable) as refusal:
        run_python("import os; os.write(FD, b'it ran')".replace("FD", str(fd)), fds=[fd])
    assert missing in str(refusal.value)
    assert "SOFTGRPO_CODE_SANDBOX=limits" in str(refusal.value)


def test_a_full_disk_changes_no_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    assert printed("open('x', 'w').write('y' * 9); print(open('x').read())") == "y" * 9 + "\n"


def test_without_files_or_processes_it_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    first = os.dup(0)
    os.close(first)
    for more in range(99):  # whichever file it is that there is none left for
        resource.setrlimit(resource.RLIMIT_NOFILE, (first + more, limits[1]))
        try:
            run_python("print(1)")
            break
        except OSError as error:
            assert "cannot start a sandbox at the moment" in str(error)  # noqa: PT017
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert more > 3
    before = os.listdir("/proc/self/fd")
    source = sandbox._CHILD.read_text()
    for fork in ("child = os.fork()", "program = os.fork()"):
        assert source.count(fork) == 1
        failing = source.replace(fork, "raise BlockingIOError(errno.EAGAIN, 'no process left')")
        code = compile(failing, "child", "exec")
        monkeypatch.setattr(sandbox, "compiled", lambda path, code=code: code)
        with pytest.raises(OSError, match="no process left"):
            run_python("print(1)")
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_other_systems_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(SandboxUnavailable, match="darwin"):
        run_python("print(1)")


def test_an_unknown_choice_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOFTGRPO_CODE_SANDBOX", "off")
    with pytest.raises(ValueError, match="must be full or limits"):
        run_python("print(1)")


def test_limits_alone_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOFTGRPO_CODE_SANDBOX", "limits")
    assert printed("import os; print(os.listdir(), os.path.exists('/proc'))") == "[] True\n"
    result = run_to_nothing("while True: pass")
    assert result.exit_code == 128 + signal.SIGKILL
    daemon = "import os, time\nif os.fork() == 0: os.setsid(); os.fork(); time.sleep(99)"
    run_to_nothing(daemon)
    with lifeline() as fd, SandboxedProgram("import time; time.sleep(99)", fds=[fd]):
        pass
