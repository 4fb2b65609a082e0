"""SRe2L's labels, and those of CV-DD: a list of six a batch; which images they are of is in the order of a sampler."""

from __future__ import annotations

from pipeline.adopt.epochs import EpochsFormat
from pipeline.adopt.records import Layout

FORMAT = EpochsFormat(Layout(name="sre2l", fields=6))
