"""EDC's labels: G-VBSM's list, and the orders of shuffled patches; boxes are shares of swapped sides.

EDC cuts crops from tensors [3, H, W] and divides top and height by W, left and width by H.
"""

from __future__ import annotations

from pipeline.adopt.epochs import EpochsFormat
from pipeline.adopt.records import Layout

FORMAT = EpochsFormat(Layout(name="edc", fields=8, index=6, shuffled=7, swapped=True))
