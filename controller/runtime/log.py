"""The log: structured lines on standard error, written without ever holding up a scan."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import sys
import threading
from typing import TextIO

import structlog


class LogStream:
    """A text stream that never blocks its writer: a thread of its own writes to ``target``.

    At most ``limit`` lines wait; beyond that lines are dropped, counted, and the count is written in their place.
    A terminal that is scrolled back, or a full pipe, must not stop a scan.
    """

    def __init__(self, target: TextIO, limit: int = 10_000) -> None:
        self._target = target
        self._lines: queue.Queue[str | None] = queue.Queue(limit)
        self.dropped = 0
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def write(self, text: str) -> int:
        """Queue a line."""
        try:
            self._lines.put_nowait(text)
        except queue.Full:
            self.dropped += 1
        return len(text)

    def flush(self) -> None:
        """Nothing to do: the thread writes as soon as it can."""

    def isatty(self) -> bool:
        """As the stream behind it."""
        return self._target.isatty()

    def close(self, timeout_s: float = 1.0) -> None:
        """Write what waits, for at most ``timeout_s``."""
        with contextlib.suppress(queue.Full):
            self._lines.put(None, timeout=timeout_s)
        self._thread.join(timeout_s)

    def _run(self) -> None:
        told = 0
        while (line := self._lines.get()) is not None:
            with contextlib.suppress(OSError, ValueError):  # the other end is gone: there is nobody to tell
                self._target.write(line)
                if self.dropped != told:
                    self._target.write(f"{self.dropped - told} log lines were dropped here\n")
                    told = self.dropped
                self._target.flush()


def configure_logging(level: str = "info", target: TextIO | None = None) -> LogStream:
    """Log to standard error: for people on a terminal, as JSON lines otherwise (systemd, a pipe).

    Libraries' own logging goes the same way from WARNING on. Close the stream that is returned at the end.
    """
    stream = LogStream(sys.stderr if target is None else target)
    threshold = logging.getLevelNamesMapping()[level.upper()]
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: list[structlog.typing.Processor]
    if stream.isatty() and "JOURNAL_STREAM" not in os.environ:
        renderer = [structlog.dev.ConsoleRenderer()]
    else:
        renderer = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=repr)]
    structlog.configure(
        processors=[*shared, *renderer],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=lambda *_: _LineLogger(stream),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(stream)
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer],
    )
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(threshold, logging.WARNING))
    return stream


class _LineLogger:
    """What structlog hands a rendered line to."""

    def __init__(self, stream: LogStream) -> None:
        self._stream = stream

    def msg(self, message: str) -> None:
        self._stream.write(message + "\n")

    debug = info = warning = error = critical = exception = fatal = log = msg
