"""Standard output and errors that outlive their reader: ``... | head`` ends no run."""

import io
import os
import stat
import sys
from typing import Any


class _Pipe(io.FileIO):
    """A pipe that takes whatever comes, and drops it once nobody reads it."""

    def write(self, data: Any, /) -> int:
        """Write, or drop; returns how many bytes are done with."""
        try:
            return super().write(data)
        except BrokenPipeError:
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, self.fileno())
            os.close(nothing)
            return len(data)


def outlive_readers() -> None:
    """Let this process go on when what it prints into is closed, as by ``head``.

    A run of hours is not lost with the terminal that watched it, and help that is cut short ends
    without a traceback.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not getattr(sys, f"__{name}__") or stream is None:
            continue  # someone replaced it, such as a notebook
        if not stat.S_ISFIFO(os.fstat(stream.fileno()).st_mode):
            continue
        stream.flush()
        pipe = io.BufferedWriter(_Pipe(stream.fileno(), "w", closefd=False))
        kept = {"encoding": stream.encoding, "errors": stream.errors}
        lines = {"line_buffering": stream.line_buffering, "write_through": stream.write_through}
        setattr(sys, name, io.TextIOWrapper(pipe, **kept, **lines))
