"""G-VBSM's labels: SRe2L's list with the indexes of the images."""

from __future__ import annotations

from pipeline.adopt.epochs import EpochsFormat
from pipeline.adopt.records import Layout

FORMAT = EpochsFormat(Layout(name="g-vbsm", fields=7, index=6))
