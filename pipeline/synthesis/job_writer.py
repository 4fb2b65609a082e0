"""Jobs that are written while the next ones are made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from pipeline.synthesis.files import File
from pipeline.synthesis.making import Partial, write_job
from pipeline.synthesis.method import Job, Made


class JobWriter:
    """Writes made jobs in a thread, one after the other, while the next one is made; at most one waits.

    A context manager: leaving it waits until all is written.

    Args:
        partial: where.
        files_of: the files of what a job has made.
    """

    def __init__(self, partial: Partial, files_of: Callable[[Job, Made], Sequence[File]]) -> None:
        self._partial, self._files_of = partial, files_of
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="giftwrap-writer")
        self._pending: Future[None] | None = None

    def __enter__(self) -> JobWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._pool.shutdown()
        if kind is None:
            self.finish()

    def write(self, number: int, job: Job, made: Made) -> None:
        """Write a job once the one before it is written; raises what went wrong with that one."""
        self.finish()
        self._pending = self._pool.submit(write_job, self._partial, number, job, made, self._files_of)

    def finish(self) -> None:
        """Wait for the job that is being written; raises what went wrong with it."""
        pending, self._pending = self._pending, None
        if pending:
            pending.result()
