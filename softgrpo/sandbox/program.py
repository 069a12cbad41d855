"""Untrusted Python, run in a sandboxed process.

Not for trusted code that is merely slow: what runs here sees no file of the user's, no network and
no other process. Linux only, for root and for ordinary users; every layer is the kernel's own:

- namespaces: no network device, not even loopback; no process outside can be seen or signalled; the
  file system is the interpreter's library and the system's, read-only, and an empty, bounded
  temporary directory, which is the working directory, HOME and TMPDIR;
- the end: what the program started lives in its process namespace, and the kernel ends a namespace
  with its first process, however its members daemonise, ignore signals or fork;
- no privileges: root becomes nobody, all capabilities are dropped and cannot come back, and a
  system call filter refuses sockets of every family, locks, tracing, keyrings and new namespaces;
- limits: processor time, wall time, memory, processes, open files, file sizes, disk and output.

A layer that this machine refuses is not left out: `SandboxUnavailable` names it. Who runs in a
container that may be lost sets SOFTGRPO_CODE_SANDBOX=limits, which keeps the limits alone: there a
program can read, write, send and kill whatever its user can.

Threat model: the program is hostile and may know all of this. Not held off: a flaw in the kernel or
the processor, and what can be learnt from timing. The system's libraries and the names of the
directories above the interpreter's can be read. Before Linux 5.14 processes are counted for the
user and not for the sandbox, so there a program may be refused the processes it may have.
"""

import marshal
import os
import secrets
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from types import CodeType
from typing import IO, Any, Literal, Self

_CHILD = Path(__file__).with_name("child.py")
_LOADER = (
    "import marshal, sys; code, request = marshal.load(sys.stdin.buffer); exec(code); run(request)"
)
_VARIABLE = "SOFTGRPO_CODE_SANDBOX"
_GRACE = 10.0  # seconds until a supervisor that does not answer is killed


class SandboxUnavailable(RuntimeError):
    """This machine does not let the sandbox be built; the message names what is missing."""


@dataclass(frozen=True)
class Limits:
    """What a program may use."""

    # The slowest gold solution of HumanEval and MBPP takes 2.5 seconds of an idle core.
    cpu_seconds: int = 10  # of processor time, of each process
    wall_seconds: float = 30.0  # by the clock, of all of it
    memory_bytes: int = 512 * 2**20  # of address space, of each process
    processes: int = 4  # threads too, at a time
    open_files: int = 32  # of each process
    file_bytes: int = 2**20  # of a file, and of each of the two outputs
    disk_bytes: int = 16 * 2**20  # of all files together


@dataclass(frozen=True)
class SandboxResult:
    """How a program ended."""

    # `exit`: by itself or by a signal, that of a limit included; `time`: its wall time was over;
    # `stopped`: by `SandboxedProgram.stop`.
    ended: str
    # The exit status, 128 + n after signal n; None unless `ended` is `exit`. The program chooses
    # it, so it proves nothing.
    exit_code: int | None
    stdout: str  # what it printed, cut at the limit; whatever is no UTF-8 is replaced
    stderr: str  # the same of its standard error
    seconds: float  # from start to end by the clock


class SandboxedProgram:
    """A program that runs in its sandbox from the moment this object is made.

    A context manager: on the way out the program and all it started are gone.
    """

    def __init__(
        self,
        program: str | CodeType,
        *,
        limits: Limits | None = None,
        call: tuple[str, tuple[Any, ...]] | None = None,
        fds: Sequence[int] = (),
    ) -> None:
        """Starts it; for the arguments and errors see `run_python`."""
        limits = limits or Limits()
        self._limits = limits
        self._started = time.monotonic()
        self._report: tuple[str, str] | None = None
        self._resources = ExitStack()
        try:
            isolated = _isolated()
            # In memory: on a disk that is full, a right program would print nothing and be wrong.
            files = [self._open(os.memfd_create("softgrpo"), "w+b") for _ in range(3)]
            request_file, *outputs = [file.fileno() for file in files]
            # Opened a second time: the program may change the mode of the description it is given.
            self._outputs = [self._open(f"/proc/self/fd/{fd}", "rb") for fd in outputs]
            request = {
                "program": program,
                "call": call,
                "limits": asdict(limits),
                "outputs": outputs,
                "readable": _readable() if isolated else None,
                "directory": None if isolated else self._make_directory(),
                "parent": os.getpid(),
            }
            marshal.dump((compiled(_CHILD), request), files[0])
            files[0].seek(0)
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-X", "utf8", "-c", _LOADER],
                stdin=request_file,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env={},
                cwd="/",
                pass_fds=[*fds, *outputs],
                start_new_session=True,  # Ctrl-C is for the parent to handle
            )
        except BaseException as error:
            self._resources.close()
            if isinstance(error, OSError):
                raise OSError(f"cannot start a sandbox at the moment: {error}") from error
            raise

    def result(self) -> SandboxResult:
        """Waits for the end.

        Raises:
            SandboxUnavailable: The sandbox could not be built, so the program was not run.
            OSError: Nor was it, as the machine has no memory, process or file left for it.
        """
        report, errors = self._wait(self._limits.wall_seconds + _GRACE)
        seconds = time.monotonic() - self._started
        if self._process.returncode == -signal.SIGTERM:  # before it could listen
            report = "stopped"
        # The first line counts: the supervisor reports the end of what refused, too.
        kind, _, detail = report.partition("\n")[0].partition(" ")
        if kind == "exhausted":
            raise OSError(f"cannot start a sandbox at the moment: {detail}")
        if kind == "refused":
            raise SandboxUnavailable(
                f"cannot sandbox untrusted code on this machine: {detail}. In a container that may "
                f"be lost, {_VARIABLE}=limits runs it without isolation, with limits on time and "
                "memory alone"
            )
        if kind not in ("exit", "time", "stopped"):
            raise RuntimeError(
                f"the sandbox's supervisor ended with status {self._process.returncode}: {errors}"
            )
        return SandboxResult(
            ended=kind,
            exit_code=int(detail) if detail else None,
            stdout=self._read(self._outputs[0]),
            stderr=self._read(self._outputs[1]),
            seconds=seconds,
        )

    def stop(self) -> None:
        """Ends the program and all it started; returns when they are gone."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            self._wait(_GRACE)
        except BaseException:
            # The supervisor's death is the death of the namespace's first process, and so of all.
            self._process.kill()
            self._process.communicate()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        with self._resources:
            self.stop()

    def _wait(self, seconds: float) -> tuple[str, str]:
        """What the supervisor reports, and its own errors."""
        if self._report is None:
            self._report = self._process.communicate(timeout=seconds)
        return self._report

    def _open(self, file: str | int, mode: Literal["rb", "w+b"]) -> IO[bytes]:
        return self._resources.enter_context(open(file, mode))

    def _make_directory(self) -> str:
        directory = tempfile.mkdtemp()
        self._resources.callback(_remove, directory)
        return directory

    def _read(self, file: IO[bytes]) -> str:
        return file.read(self._limits.file_bytes).decode("utf-8", "replace")


def run_python(
    program: str | CodeType,
    *,
    limits: Limits | None = None,
    call: tuple[str, tuple[Any, ...]] | None = None,
    fds: Sequence[int] = (),
) -> SandboxResult:
    """Runs a program in a sandbox, to its end.

    Args:
        program: Python, as source or compiled, run as `__main__` with the standard library alone.
        limits: What it may use; `Limits()` by default.
        call: A function of the program to call when it has run, and its arguments: plain data, as
            `marshal` takes it.
        fds: Open file descriptors that it is given, under the same numbers.

    Raises:
        SandboxUnavailable: The sandbox could not be built, so the program was not run.
        OSError: Nor was it, as the machine has no memory, process or file left for it.
    """
    with SandboxedProgram(program, limits=limits, call=call, fds=fds) as running:
        return running.result()


@cache
def compiled(path: Path) -> CodeType:
    """A trusted program that is run many times, compiled once."""
    return compile(path.read_bytes(), path.name, "exec")


def _remove(directory: str) -> None:
    """Deletes what a program left in a folder, and the folder; all its processes are gone.

    Every folder inside is emptied into the outermost and deleted: programs leave trees deeper than
    Python's stack and than a path may be long, and folders that nobody may enter.
    """
    with suppress(OSError):
        if not stat.S_ISDIR(os.lstat(directory).st_mode):
            os.unlink(directory)  # a link in its place: what it leads to is somebody else's
            return
        os.chmod(directory, 0o700)
        while entries := list(os.scandir(directory)):
            for entry in entries:
                if not entry.is_dir(follow_symlinks=False):
                    os.unlink(entry.path)
                    continue
                os.chmod(entry.path, 0o700)
                for inner in list(os.scandir(entry.path)):
                    if inner.is_dir(follow_symlinks=False):
                        os.chmod(inner.path, 0o700)
                    os.rename(inner.path, os.path.join(directory, secrets.token_hex(16)))
                os.rmdir(entry.path)
        os.rmdir(directory)


def _isolated() -> bool:
    choice = os.environ.get(_VARIABLE, "full")
    if choice not in ("full", "limits"):
        raise ValueError(f"{_VARIABLE}={choice!r}: must be full or limits")
    if sys.platform != "linux":
        raise SandboxUnavailable(
            f"untrusted code is sandboxed on Linux only, and this is {sys.platform}: run it in a "
            "Linux container or virtual machine"
        )
    return choice == "full"


def _readable() -> tuple[str, ...]:
    """Directories the program may read: the standard library, and libraries its modules load."""
    library = os.path.dirname(os.__file__)
    wanted = (os.path.join(sys.base_prefix, "lib"), library, "/lib", "/lib64", "/usr/lib")
    paths: list[str] = []
    for path in (*wanted, "/usr/lib64"):
        inside = any(path == other or path.startswith(other + "/") for other in paths)
        if os.path.isdir(path) and not inside:
            paths.append(path)
    return tuple(paths)
