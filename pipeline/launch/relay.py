"""Print the output of remote ranks."""

from __future__ import annotations

import codecs
import sys
from typing import Any, TextIO


class Held:
    """Lines of a stream; those from an error on are held back until it is known whether they are the command's.

    Args:
        out: where they are written.
        prefix: before each line.
        holds: whether errors are held back.

    Attributes:
        holds_all: whether all lines are held back from now on.
    """

    def __init__(self, out: TextIO, prefix: str = "", *, holds: bool = False) -> None:
        self._out, self._prefix, self._holds = out, prefix, holds
        self.holds_all = False
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._begun, self._held = "", ""

    def add(self, data: bytes) -> None:
        """Write the lines that are whole; hold back the rest."""
        *lines, self._begun = (self._begun + self._decoder.decode(data)).split("\n")
        for line in lines:
            if self.holds_all or self._held or (self._holds and line.startswith("error: ")):
                self._held += self._prefix + line + "\n"
            else:
                self._out.write(self._prefix + line + "\n")
        self._out.flush()

    def finish(self) -> None:
        """Write what was held back."""
        end = self._prefix + self._begun + "\n" if self._begun else ""
        self._out.write(self._held + end)
        self._out.flush()
        self._begun = self._held = ""


class Relay:
    """Prints what a rank prints, while it runs.

    Args:
        ray: the module.
        actor: of the rank.
        out: where its standard output goes; its standard error goes to this process's.
        prefix: before each of its lines.
    """

    def __init__(self, ray: Any, actor: Any, out: TextIO, prefix: str = "") -> None:
        self._ray, self._actor = ray, actor
        self._streams = (Held(out, prefix), Held(sys.stderr, prefix, holds=True))
        self._offsets = [0, 0]
        self._asked: Any = None

    def poll(self) -> None:
        """Print new output since the last call, without waiting."""
        if self._asked is None:
            self._asked = self._actor.printed.remote(self._offsets)
        if self._ray.wait([self._asked], timeout=0)[0]:
            self._take()

    def hold(self) -> None:
        """Hold back all that comes from now on, until `finish`."""
        for stream in self._streams:
            stream.holds_all = True

    def finish(self) -> None:
        """Print all that is left, errors included."""
        while self._take():
            pass
        for stream in self._streams:
            stream.finish()

    def _take(self) -> bool:
        """Print the next piece of output; returns whether there was one. Output of a lost rank is only in its logs."""
        asked, self._asked = self._asked or self._actor.printed.remote(self._offsets), None
        try:
            pieces: tuple[bytes, ...] = self._ray.get(asked)
        except self._ray.exceptions.RayError:
            return False
        for index, (stream, piece) in enumerate(zip(self._streams, pieces, strict=True)):
            self._offsets[index] += len(piece)
            stream.add(piece)
        return any(pieces)
