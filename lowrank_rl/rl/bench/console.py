"""What a person sees while the benchmark runs: bars on a terminal, plain lines elsewhere."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

EVERY = 15.0     # seconds between plain lines of one task
BARS = 16        # shown at once; a cluster runs more tasks than a screen has lines


class Display:
    """``with Display(total) as display``: one bar per running task and one for all; or lines if not on a terminal."""

    def __init__(self, total: int) -> None:
        self.console = Console(highlight=False, soft_wrap=True)
        self.total, self.finished = total, 0
        self.bars: dict[str, TaskID] = {}
        self.last: dict[str, float] = {}
        self.progress = Progress(TextColumn("{task.description}"), BarColumn(bar_width=24), TimeElapsedColumn(),
                                 TextColumn("{task.fields[words]}"), console=self.console, transient=True)
        self.live = self.console.is_terminal

    def __enter__(self) -> Self:
        if self.live:
            self.progress.start()
            self.overall = self.progress.add_task("all", total=self.total, words="")
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.live:
            self.progress.stop()

    def start(self, name: str) -> None:
        self.last[name] = time.monotonic()
        if self.live:
            self._show(name)
            self._count()
        else:
            self._line(f"{name}: started")

    def say(self, name: str, words: str, share: float) -> None:
        if self.live:
            if self._show(name):
                self.progress.update(self.bars[name], completed=share, words=words)
                self._count()
        elif time.monotonic() - self.last[name] >= EVERY:
            self.last[name] = time.monotonic()
            self._line(f"{name}: {words} ({share:.0%})")

    def again(self, name: str, words: str) -> None:
        """It ended without success and will be started again."""
        self._end(name)
        self._line(f"{name}: {words}")

    def finish(self, name: str, words: str) -> None:
        self.finished += 1
        self._end(name)
        self._line(f"{name}: {words}")

    def _show(self, name: str) -> bool:
        """Whether it has a bar, which it gets as soon as there is room."""
        if name not in self.bars and len(self.bars) < BARS:
            self.bars[name] = self.progress.add_task(name, total=1.0, words="")
        return name in self.bars

    def _end(self, name: str) -> None:
        self.last.pop(name, None)
        if name in self.bars:
            self.progress.remove_task(self.bars.pop(name))
        if self.live:
            self._count()

    def _count(self) -> None:
        more = len(self.last) - len(self.bars)
        self.progress.update(self.overall, completed=self.finished, words=f"{more} more at work" if more else "")

    def _line(self, text: str) -> None:
        self.console.print(f"{time.strftime('%H:%M:%S')} [{self.finished}/{self.total}] {text}", markup=False)
