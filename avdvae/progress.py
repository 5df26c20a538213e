"""Progress of long work, in the terminal."""

from __future__ import annotations


def progress_bar(percent: bool = False, shown: bool = True):
    """A bar with the remaining time; `percent` instead of counts, for parts of unequal durations."""
    from rich import progress

    return progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.TaskProgressColumn() if percent else progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        progress.TextColumn("left"),
        progress.TimeRemainingColumn(),
        disable=not shown,
    )
