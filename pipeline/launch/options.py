"""The flags of Ray, which five commands share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from labelstore.command.flags import OwnAddress
from labelstore.errors import InputError

LOCAL, AUTO = "local", "auto"


@dataclass(frozen=True, kw_only=True, slots=True)
class LaunchOptions:
    """Processes of this command that Ray starts."""

    ray: Annotated[tuple[str, ...] | None, OwnAddress()] = None
    """Run --workers processes under Ray, on the cluster at an address (HOST:PORT, or auto), or without an address on
    this machine."""
    workers: int | None = None
    """With --ray: number of processes that share the work (required)."""
    gpus_per_worker: int | None = None
    """With --ray: GPUs of each process, 0 or 1; left out, 1 with --device cuda, else 0."""

    def __post_init__(self) -> None:
        """Refuse numbers of processes that there cannot be, and flags without --ray."""
        if self.ray is None:
            for name, value in (("workers", self.workers), ("gpus-per-worker", self.gpus_per_worker)):
                if value is not None:
                    raise InputError(f"--{name} {value}: belongs to --ray; give both or neither")
            return
        if len(self.ray) > 1:
            raise InputError(f"--ray: expected one address or none, found {' '.join(self.ray)}; put --ray last")
        if self.workers is None:
            raise InputError("--ray: needs --workers, the number of processes")
        if self.workers < 1:
            raise InputError(f"--workers: expected at least 1, found {self.workers}")
        if self.gpus_per_worker not in (None, 0, 1):
            raise InputError(
                f"--gpus-per-worker: expected 0 or 1, found {self.gpus_per_worker}; a process uses one GPU: give more "
                f"--workers"
            )
        if "://" in self.address:
            raise InputError(
                f"--ray {self.address}: expected HOST:PORT of the cluster's head node, or auto; start the command on a "
                f"node of the cluster"
            )
        host, colon, port = self.address.rpartition(":")
        if self.address not in (LOCAL, AUTO) and not (colon and host and port.isdecimal() and int(port) < 65_536):
            raise InputError(f"--ray: expected HOST:PORT, auto, or no address, found {self.address!r}")

    @property
    def address(self) -> str:
        """Of the cluster; ``local`` where one is started for this command."""
        return self.ray[0] if self.ray else LOCAL

    def gpus(self, device: str) -> int:
        """GPUs of each process.

        Raises:
            InputError: they do not fit --device.
        """
        if device not in ("cpu", "cuda"):
            raise InputError(f"--device {device}: Ray chooses the GPU of each process; give --device cuda")
        wanted = int(device == "cuda")
        found = wanted if self.gpus_per_worker is None else self.gpus_per_worker
        if found != wanted:
            raise InputError(
                f"--gpus-per-worker {found}: --device is {device}, which uses {wanted} GPU a process; give --device "
                f"{'cuda' if found else 'cpu'}, or leave --gpus-per-worker out"
            )
        return found
