"""How far an experiment is: bars on a terminal, plain lines elsewhere, nothing for machines."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self, TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Column


class Reporter:
    """Hears what is going on and shows nothing: for ``--json`` and for use as a library.

    A task has a name and a number of steps; one is open at a time.
    """

    def begin(self, task: str, steps: int = 1) -> None:
        """Open a task; the one before is done."""

    def step(self, note: str = "") -> None:
        """Count one step of the open task, with a few words about it."""

    def say(self, text: str) -> None:
        """Show one line."""

    def close(self) -> None:
        """Give the terminal back."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.begin("")
        self.close()


class PlainReporter(Reporter):
    """One line a step with the seconds since the start: for logs and pipes."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout
        self._started = time.monotonic()
        self._task, self._steps, self._done = "", 1, 0

    def begin(self, task: str, steps: int = 1) -> None:
        """Open a task and show its name; an empty name opens none."""
        self._task, self._steps, self._done = task, steps, 0
        if task:
            self.say(task)

    def step(self, note: str = "") -> None:
        """Show the count, and the note if there is one."""
        self._done += 1
        if note:
            count = f" {self._done}/{self._steps}" if self._steps > 1 else ""
            self.say(f"{self._task}{count}: {note}")

    def say(self, text: str) -> None:
        """Show one line, at once."""
        print(f"[{time.monotonic() - self._started:6.1f} s] {text}", file=self._stream, flush=True)


class BarReporter(Reporter):
    """A bar a task, left standing when it is done."""

    def __init__(self, console: Console) -> None:
        # The note is what gives way on a narrow terminal.
        self._progress = Progress(
            SpinnerColumn(finished_text="[green]✓"),
            TextColumn("{task.description}", table_column=Column(min_width=22, no_wrap=True)),
            BarColumn(bar_width=12, table_column=Column(min_width=12)),
            MofNCompleteColumn(table_column=Column(min_width=5, no_wrap=True)),
            TimeElapsedColumn(table_column=Column(min_width=7, no_wrap=True)),
            TextColumn(
                "{task.fields[note]}", table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)
            ),
            console=console,
            expand=True,
        )
        self._task: TaskID | None = None
        self._total = 1
        self._progress.start()

    def begin(self, task: str, steps: int = 1) -> None:
        """Open a bar, after the one before is filled; an empty name opens none."""
        if self._task is not None:
            self._progress.update(self._task, completed=self._total)
        self._task, self._total = None, steps
        if task:
            self._task = self._progress.add_task(task, total=steps, note="")

    def step(self, note: str = "") -> None:
        """Move the bar on by one; an empty note leaves the last one."""
        if self._task is not None:
            self._progress.advance(self._task)
            if note:
                self._progress.update(self._task, note=note)

    def say(self, text: str) -> None:
        """Show one line above the bars."""
        self._progress.console.print(text, highlight=False, markup=False)

    def close(self) -> None:
        """Give the terminal back; an unfinished bar stays unfinished."""
        self._progress.stop()


def reporter_for_terminal() -> Reporter:
    """Return bars when standard output is a terminal, plain lines when it is not."""
    console = Console()
    return BarReporter(console) if console.is_terminal else PlainReporter()
