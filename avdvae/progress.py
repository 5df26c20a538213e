"""How far long work has come, in the terminal."""

from __future__ import annotations


def progress_bar(percent: bool = False, shown: bool = True):
    """A bar with the time that is left; `percent` in place of counts, for work whose parts take unlike times."""
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
