"""The lock that keeps a second process out of a run's folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from labelstore.durable import locking, removing
from labelstore.errors import InputError
from pipeline.images.manifest_cache import CACHE
from trainer.file_names import CACHES, CONFIG, LATENT_CACHE, LOCK
from trainer.latents import LATENTS

CACHE_PROOFS = {**dict.fromkeys(CACHES, CACHE), LATENT_CACHE: LATENTS}


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Lock a run's folder against other processes; the system releases the lock however this process ends.

    A call that is refused before its run has started leaves nothing behind.

    Raises:
        InputError: when the folder contains something else than a run.
        LeaseError: when another process trains there.
    """
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(
            f"{folder}: expected a folder, found a file in its place; give another --run-folder"
        ) from error
    except OSError as error:
        raise InputError(f"{folder}: cannot be created ({error.strerror}); give another --run-folder") from error
    others = [
        path
        for path in folder.iterdir()
        if path.name != LOCK and not (path.name in CACHE_PROOFS and removing.may_go(path, CACHE_PROOFS[path.name]))
    ]
    if others and not (folder / CONFIG).exists():
        raise InputError(f"{folder}: expected an empty folder or a run, found other files; give another --run-folder")
    busy = f"{folder}: another process trains in this folder; wait for it, or give another --run-folder"
    with locking.hold(folder / LOCK, busy, "give another --run-folder"):
        try:
            yield
        finally:
            if not (folder / CONFIG).exists():
                caches = ((folder / name, proof) for name, proof in CACHE_PROOFS.items())
                for path, proof in (*caches, (folder / LOCK, removing.EMPTY)):
                    if removing.may_go(path, proof):
                        removing.remove(path, proof)
                if made:
                    removing.remove_folder(folder)
