"""The kind of file system of a folder, which decides on which hosts a lock holds."""

from __future__ import annotations

import re
from pathlib import Path

MOUNTS = Path("/proc/self/mountinfo")
# File systems that several hosts share. A lock of a folder may hold only within a host (NFS, FUSE).
NETWORK = frozenset(
    ("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "virtiofs", "afs", "ceph", "lustre", "gpfs", "beegfs", "orangefs",
     "ocfs2", "gfs2", "pvfs2", "panfs", "wekafs", "fuse", "fuseblk")
)  # fmt: skip
_ESCAPED = re.compile(r"\\([0-7]{3})")


def is_network(folder: Path, mounts: Path = MOUNTS) -> bool:
    """Whether other hosts may see a folder too, by the kind of its file system.

    Args:
        folder: which exists.
        mounts: the system's table of mounts; without one, no folder counts as on a network.
    """
    kind = kind_of(folder.resolve(), mounts)
    return kind.partition(".")[0] in NETWORK


def kind_of(folder: Path, mounts: Path = MOUNTS) -> str:
    """The kind of the file system that a folder is on, such as ``ext4`` or ``fuse.sshfs``; empty when unknown.

    Args:
        folder: absolute, without symbolic links.
        mounts: the system's table of mounts, as `proc(5)` describes mountinfo.
    """
    try:
        lines = mounts.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return ""
    found, depth = "", -1
    for line in lines:
        before, separator, after = line.partition(" - ")
        fields = before.split(" ")
        if not separator or len(fields) < 5:
            continue
        point = Path(_ESCAPED.sub(lambda match: chr(int(match[1], 8)), fields[4]))
        # Of two mounts at one place the later one hides the other.
        if folder.is_relative_to(point) and len(point.parts) >= depth:
            found, depth = after.split(" ")[0], len(point.parts)
    return found
