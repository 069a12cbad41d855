"""Two processes that do something together both go on, or both stop for the same reason."""

from __future__ import annotations

import json

import pytest

from tests.helpers import run_processes

pytestmark = pytest.mark.alone

PROGRAM = """
import json, os, signal, sys, time
import torch.distributed as dist
from softgrpo.rewards import RewardError
from softgrpo.together import gathered, together
dist.init_process_group("gloo")
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
rank, told = dist.get_rank(), {}

class Odd(Exception):  # it cannot be made from what pickle keeps of it
    def __init__(self, a, b):
        super().__init__(f"{a} and {b}")

def attempt(name, action):
    try:
        with together():
            action()
        told[name] = "done"
    except (Exception, KeyboardInterrupt) as error:
        told[name] = f"{type(error).__name__}: {error}"
        if name == "one fails":
            told["has its cause"] = error.__cause__ is not None
        if name == "disk":
            told["errno"] = error.errno

def fail(error, *ranks):
    if rank in ranks:
        raise error

def fail_with_cause():
    if rank == 1:
        raise RewardError("reward 'r'") from KeyError("k")

def interrupted_while_waiting():
    if rank == 0:
        time.sleep(4)
        return
    # When this process has long been waiting for the other.
    if os.fork() == 0:
        time.sleep(2)
        os.kill(os.getppid(), signal.SIGINT)
        os._exit(0)

attempt("none fails", lambda: None)
attempt("one fails", fail_with_cause)
attempt("both fail", lambda: fail(ValueError(f"of {rank}"), 0, 1))
attempt("interrupted", lambda: fail(KeyboardInterrupt(), 1))
attempt("interrupted while it waits", interrupted_while_waiting)
attempt("odd", lambda: fail(Odd("a", "b"), 0))
attempt("disk", lambda: fail(OSError(28, "No space left on device", "/x"), 1))
attempt("afterwards", lambda: None)
told["gathered"] = gathered({"rank": rank})
with open(f"{sys.argv[1]}/{rank}.json", "w") as file:
    json.dump(told, file)
dist.destroy_process_group()
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    folder = tmp_path_factory.mktemp("together")
    run_processes(PROGRAM, str(folder), processes=2, timeout=60)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize(
    ("name", "outcome"),
    [
        ("none fails", "done"),
        ("one fails", "RewardError: reward 'r'"),
        ("both fail", "ValueError: of 0"),
        ("interrupted", "KeyboardInterrupt: "),
        ("interrupted while it waits", "KeyboardInterrupt: "),
        ("odd", "RuntimeError: Odd: a and b"),
        ("disk", "OSError: [Errno 28] No space left on device: '/x'"),
        ("afterwards", "done"),
    ],
)
def test_both_end_alike(name, outcome, told):
    for rank in (0, 1):
        if (name, rank) == ("odd", 0):  # its own is as it was raised
            assert told[rank][name] == "Odd: a and b"
        else:
            assert told[rank][name] == outcome


def test_the_cause_is_known_where_it_was(told):
    assert [both["has its cause"] for both in told] == [False, True]


def test_an_error_of_the_system_keeps_its_number(told):
    assert [both["errno"] for both in told] == [28, 28]


def test_what_is_gathered_is_in_the_order_of_the_processes(told):
    assert [both["gathered"] for both in told] == [[{"rank": 0}, {"rank": 1}]] * 2
