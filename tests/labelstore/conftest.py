from __future__ import annotations

from collections.abc import Iterator

import pytest

from labelstore.durable import disk


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_the_disk() -> Iterator[None]:
    """Flushing is what these tests would spend most of their time on; its order has tests of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(disk, "sync_file", lambda _path: None)
        patch.setattr(disk, "sync_folder", lambda _path: None)
        yield
