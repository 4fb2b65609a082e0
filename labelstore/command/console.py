"""The output of every command: progress, one summary, exit codes. Only commands use it, not the libraries below them.

With ``--json`` standard output carries one JSON object, the summary, and all else goes to standard error.
Exit codes: 0 done, 1 failure, 2 bad input, 130 and 143 stopped by SIGINT and SIGTERM.
"""

from __future__ import annotations

import io
import json
import os
import shlex
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from types import FrameType
from typing import TYPE_CHECKING, TextIO

from labelstore.command.names import printable
from labelstore.errors import GiftwrapError, InputError, MismatchError, reason
from labelstore.storage_table import without_credentials

if TYPE_CHECKING:
    from labelstore.spec import Json

PLAIN_INTERVAL_S = 10.0


class Stopped(BaseException):
    """SIGTERM arrived; like KeyboardInterrupt, not an Exception, so that nothing swallows it."""


def _print(text: str, out: TextIO) -> None:
    """Print text that may hold names from elsewhere: nothing in it but line breaks reaches a terminal as a command.

    Credentials in addresses are left out.
    """
    shown = printable(without_credentials(text), keep="\n")
    encoding = getattr(out, "encoding", None) or "utf-8"
    print(shown.encode(encoding, "backslashreplace").decode(encoding), file=out, flush=True)


class Progress:
    """Work done so far of a known total; drawn as one live line on a terminal, as plain lines elsewhere."""

    def __init__(self, name: str, total: int, unit: str, out: TextIO) -> None:
        self._name, self._total, self._unit, self._out = name, total, unit, out
        self._done = self._before = 0
        self._start = self._printed_at = time.monotonic()
        self._live = out.isatty()

    def reach(self, done: int, total: int, note: str = "") -> None:
        """Print that ``done`` of ``total`` is done, for totals that are known only during the work."""
        self._total = total
        self.advance(done - self._done, note)

    def resume_at(self, done: int) -> None:
        """Count work of an earlier run as done; the rate is of this one."""
        self._done = self._before = done

    def advance(self, count: int = 1, note: str = "") -> None:
        """Count work as done and print it, at most five times a second (live) or every ten seconds (plain)."""
        self._done += count
        now = time.monotonic()
        if now - self._printed_at >= (0.2 if self._live else PLAIN_INTERVAL_S) or self._done == self._total:
            self._printed_at = now
            end = "" if self._live else "\n"
            start = "\r\x1b[2K" if self._live else ""
            print(f"{start}{self._line(now, note)}", end=end, file=self._out, flush=True)

    def _line(self, now: float, note: str) -> str:
        elapsed = max(now - self._start, 1e-9)
        rate = (self._done - self._before) / elapsed
        left = (self._total - self._done) / rate if rate else float("inf")
        text = (
            f"{self._name} {self._done:,}/{self._total:,} {self._unit} "
            f"({100 * self._done / max(self._total, 1):.0f} %), {rate:,.1f} {self._unit}/s, "
        )
        text += f"{duration(elapsed)} taken" if self._done == self._total else f"{duration(left)} left"
        return printable(f"{text}, {note}") if note else text

    def close(self) -> None:
        """End the live line."""
        if self._live and self._done:
            print(file=self._out, flush=True)


class _Discard(io.StringIO):
    """Discards what is written to it."""

    def write(self, text: str) -> int:
        """Count it."""
        return len(text)


class Console:
    """The output of a command: lines and progress, then one summary.

    Args:
        as_json: all but the summary goes to standard error.
        silent: nothing is printed; another process prints for this one.
    """

    def __init__(self, *, as_json: bool = False, silent: bool = False) -> None:
        self.as_json, self._silent = as_json, silent
        lines, self._summary = sys.stderr if as_json else sys.stdout, sys.stdout
        self._out: TextIO = _Discard() if silent else lines

    @property
    def standard_output(self) -> TextIO:
        """The stream for the summary; with --json nothing else is printed there."""
        return self._summary

    def line(self, text: str) -> None:
        """One line of text."""
        _print(text, self._out)

    def warn(self, text: str) -> None:
        """One warning, on standard error."""
        _print(f"warning: {text}", self._out if self._silent else sys.stderr)

    def report(self, notes: Iterable[str] = (), warnings: Iterable[str] = ()) -> None:
        """Notes, and then warnings, a line each."""
        for note in notes:
            self.line(note)
        for warning in warnings:
            self.warn(warning)

    @contextmanager
    def progress(self, name: str, total: int, unit: str) -> Iterator[Progress]:
        """A progress display for ``total`` units of work."""
        progress = Progress(name, total, unit, self._out)
        try:
            yield progress
        finally:
            progress.close()

    def summary(self, values: Mapping[str, Json], text: str) -> None:
        """The last word: ``values`` as one JSON object with ``--json``, else ``text``."""
        if self.as_json and not self._silent:
            print(json.dumps(dict(values)), file=self._summary, flush=True)
        else:
            self.line(text)


def duration(seconds: float) -> str:
    """Seconds as text: 42 s, 3 min 05 s, 2 h 10 min."""
    if seconds == float("inf"):
        return "unknown time"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def byte_count(count: float) -> str:
    """A number of bytes as text: 1.5 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def quantity(count: int, noun: str) -> str:
    """A count with its noun: 1 epoch, 1,200 epochs, 2 classes."""
    ending = "" if count == 1 else "es" if noun.endswith(("s", "x")) else "s"
    return f"{count:,} {noun}{ending}"


def run_command(command: Callable[[], int | None], *, restart: Sequence[str] = ()) -> int:
    """Run a command and turn its end into an exit code.

    Args:
        command: the command; returns 0 or None when all is well, 1 when what it checked is not.
        restart: the words before the arguments that run it again, where that continues the work; else none.
    """

    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise Stopped

    def print_error(error: object, notes: Sequence[str] = ()) -> None:
        """Name the error, and how to resume where it notes that something is kept, unless this command was refused."""
        _print("\n".join([f"error: {error}", *notes]), sys.stderr)
        if notes and restart and not isinstance(error, MismatchError):
            print_how_to_resume()

    def print_how_to_resume() -> None:
        words = shlex.join([*restart, *map(without_credentials, sys.argv[1:])])
        print(f"resume with: {words}", file=sys.stderr, flush=True)

    signal.signal(signal.SIGTERM, stop)
    if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    plainly, warnings.formatwarning = warnings.formatwarning, _one_line
    try:
        return command() or 0
    except GiftwrapError as error:
        print_error(error, notes_of(error))
        return error.exit_code
    except BrokenPipeError:
        # The reader went away (`| head`): nothing more can be printed, and Python's flush at exit must not fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (KeyboardInterrupt, Stopped) as stopped:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not cut off what is printed here
        print("\nstopped; what was finished is kept", file=sys.stderr, flush=True)
        if restart:
            print_how_to_resume()
        return 143 if isinstance(stopped, Stopped) else 130
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if not package or find_spec(package):
            raise
        print_error(not_installed(package))
        return InputError.exit_code
    except OSError as error:
        again = "; mend that and type the same command again, what was finished is kept" if restart else ""
        print_error(f"{reason(error)}{again}", notes_of(error))
        return 1
    except MemoryError as error:
        print_error(f"out of memory: {error}", notes_of(error))
        return 1
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        warnings.formatwarning = plainly


def _one_line(
    message: Warning | str,
    category: type[Warning],  # noqa: ARG001  as `warnings` calls it
    filename: str,  # noqa: ARG001
    lineno: int,  # noqa: ARG001
    line: str | None = None,  # noqa: ARG001
) -> str:
    """A warning of the code below a command as the command's own are written, without the place in the code."""
    return f"warning: {message}\n"


def not_installed(module: str) -> str:
    """The message about a module that commands need."""
    return (
        f"{module}: not installed, and this command needs it; `pip install .` in the source tree of giftwrap installs "
        f"all that commands need (docs/STORE.md: how Python reads a store without it)"
    )


def notes_of(error: BaseException) -> Sequence[str]:
    """The notes that were added to an error."""
    return getattr(error, "__notes__", ())
