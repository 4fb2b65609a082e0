"""The labels of SRe2L and CV-DD: a list of six for each batch; their images follow from the order of a sampler."""

from __future__ import annotations

from pipeline.adopt.epochs import EpochsFormat
from pipeline.adopt.records import Layout

FORMAT = EpochsFormat(Layout(name="sre2l", fields=6))
