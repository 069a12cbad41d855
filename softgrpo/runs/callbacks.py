"""What a run writes while it trains, and how it stops when asked."""

from __future__ import annotations

import json
import math
import signal
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import reduce
from transformers import TrainerCallback

from softgrpo.evaluation import Record, Sampling, deal
from softgrpo.files import naming, sync, write_whole
from softgrpo.reports import read_logs
from softgrpo.rollout import RolloutEngine
from softgrpo.runs.display import Display
from softgrpo.thinking import SoftTrace
from softgrpo.together import gathered, num_processes, process_number, together


@dataclass(eq=False)
class MetricsLog(TrainerCallback):
    """One JSON line a log, on the disk at once; a resumed run goes on where its checkpoint was."""

    path: Path  # the metrics.jsonl

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # What came after the checkpoint is trained, and logged, once more.
        if self.path.exists():
            keep_until(self.path, state.global_step)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        row = {"step": state.global_step, "time": round(time.time(), 3)}
        # JSON knows no NaN and no infinity.
        row |= {k: v if math.isfinite(v or 0) else None for k, v in (logs or {}).items()}
        with naming(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        sync(self.path)  # a checkpoint is on the disk as well, and its metrics should not lack


def keep_until(path: Path, step: int) -> None:
    """Drop the lines after a step, and what is no line of a log."""
    # The summary that ends a run carries its last step; a run that goes on makes another.
    kept = [row for row in read_logs(path) if row["step"] <= step and "train_runtime" not in row]
    write_whole(path, "".join(json.dumps(row) + "\n" for row in kept))


@dataclass(eq=False)
class SampleKeeper(TrainerCallback):
    """Completions of the same few problems with the same noise, every so many steps.

    Every process has one and makes its share; process 0 writes.
    """

    folder: Path  # gets step-N.jsonl and step-N.safetensors
    every: int  # steps
    sampling: Sampling  # of which problems; one sample each
    engine: RolloutEngine
    precision: Callable[[], AbstractContextManager[Any]]  # in which it is to generate

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.every:
            return
        with together():
            self.engine.sync()
        with together(), self.precision():
            made = self._make_share()
        kept = [sample for share in gathered(made) for sample in share]
        with together():
            if process_number() == 0:
                kept.sort(key=lambda sample: sample[0].sequence)
                self._write(self.folder / f"step-{state.global_step}", kept)

    def _make_share(self) -> list[tuple[Record, SoftTrace]]:
        sampling, made = self.sampling, []
        for part in deal(sampling, (), num_processes())[process_number()]:
            rollouts = sampling.generate(self.engine, part)
            for sequence, rollout in zip(part, rollouts, strict=True):
                made.append((sampling.to_record(sequence, rollout), rollout.trace))
        return made

    def _write(self, path: Path, kept: list[tuple[Record, SoftTrace]]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with path.with_suffix(".jsonl").open("w", encoding="utf-8") as file:
            for record, _ in kept:
                problem = self.sampling.problems[record.sequence]
                shown = {"question": problem.question, "gold": problem.answer, **asdict(record)}
                file.write(json.dumps(shown) + "\n")
        SoftTrace.cat([trace for _, trace in kept]).save(path.with_suffix(".safetensors"))


class Interrupt(TrainerCallback):
    """Ctrl-C and SIGTERM: finish the step and save; the second time, or out of training, stop.

    A context manager: inside it the two signals are its own, in the main thread; Python lets no
    other have any. A signal may come to one process alone, or to two on both sides of a step's end;
    where one has to stop, all do.
    """

    def __init__(self, display: Display) -> None:
        self.requested = False  # whether training was stopped by it; the same in every process
        self._display = display
        self._is_asked = False
        self._is_training = False
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._handlers[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *error: Any) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: Any) -> None:
        if not self._is_training or self._is_asked:
            raise KeyboardInterrupt
        self._is_asked = True
        self._display.say("\nfinishing this step, then saving; once more stops at once")

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._is_training = True

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        asked = torch.tensor(float(self._is_asked), device=args.device)
        self.requested = bool(reduce(asked, reduction="sum") > 0)
        if self.requested:
            control.should_log = control.should_save = control.should_training_stop = True

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._is_training = False
