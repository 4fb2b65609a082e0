"""The table of formats of existing labels: each entry reads the folder given to `adopt`.

Nothing that takes long to import is imported here: the names of the table are the choices of a flag.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, TypeAlias

from labelstore.command.flags import Choices
from labelstore.tables import Table

if TYPE_CHECKING:
    from pipeline.adopt.labels import Format

FORMATS: Table[Format] = Table(
    {
        "sre2l": "pipeline.adopt.sre2l:FORMAT",
        "g-vbsm": "pipeline.adopt.g_vbsm:FORMAT",
        "edc": "pipeline.adopt.edc:FORMAT",
        "fkd": "pipeline.adopt.fkd:FORMAT",
    }
)
"""By name. A line names the `Format` in the file of a format."""
FormatName: TypeAlias = Annotated[str, Choices(FORMATS)]
