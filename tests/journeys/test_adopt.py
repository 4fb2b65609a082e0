"""Labels of SRe2L's writer are adopted, trained on, and compared with the same labels in a store of our own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from labelstore import AuditRows, BlockData, LabelStore
from labelstore.format.arrays import AUDIT_BLOCK
from pipeline.build.filling import AUDIT_CROPS
from pipeline.render.audit import pixels_digest
from pipeline.replay.source import Replayer, open_source
from pipeline.teacher.engine.spec import TeacherSpec, make_members
from pipeline.teacher.labeller import label_crops
from pipeline.teacher.teacher import Teacher, make_teacher
from tests.journeys.world import CLASSES, SIDE, giftwrap
from tests.pipeline.adopt.taught import MEAN, STD, Taught, taught
from tests.pipeline.adopt.writers import Writer

EPOCHS = 3


def labelled_by_us(source: Replayer, teacher: Teacher, path: Path) -> None:
    """A store of the same crops, rendered and labelled by this software."""
    adopted = source.store
    identity = replace(
        adopted.identity, origin="built", seed=0, engine=dict(teacher.engine), teacher=dict(teacher.identity)
    )
    store = LabelStore.create(
        path, identity, image_digests=adopted.image_digests, targets=adopted.targets, views=EPOCHS
    )
    with store.lease() as writer:
        for block in store.missing():
            views, (start, stop) = range(*store.block_views(block)), store.positions(block)
            crops = [source.crops(view, start, stop) for view in views]
            rows = [adopted.rows(view, slice(start, stop)) for view in views]
            logits = np.stack([label_crops(teacher, each, row) for each, row in zip(crops, rows, strict=True)])
            head = crops[0][:AUDIT_CROPS].numpy()
            writer.write(
                block,
                BlockData(
                    logits=logits,
                    rows=np.stack([row.values for row in rows]),
                    pixels_digest=pixels_digest(crops[0]),
                    audit=AuditRows(head, logits[0, :AUDIT_CROPS].astype(np.float16)) if block == AUDIT_BLOCK else None,
                ),
            )
        writer.seal()


def train(made: Taught, store: Path, run: Path) -> None:
    ended = giftwrap(
        "trainer", "train", "--store", store, "--images", made.images, "--student", "convnet-d2", "--student-args",
        '{"width": 8}', "--loss", "gift", "--epochs", 6, "--batch-size", 7, "--lr", 0.01, "--threads", 1,
        "--test-images", made.images, "--run", run,
    )  # fmt: skip
    assert ended.code == 0, ended.err


@pytest.mark.long
def test_adopted_labels_train_the_student_that_our_own_train(tmp_path: Path) -> None:
    made = taught(tmp_path / "taught")
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002  as SRe2L draws
    writer = Writer(images=made.images, network=made.network, size=SIDE, mean=MEAN, std=STD)
    labels = writer.write(tmp_path / "labels", EPOCHS)
    words = ["pipeline", "adopt", labels, "--images", made.images, "--size", SIDE, "--threads", 1, *made.teacher]
    looked = giftwrap(*words, "--store", tmp_path / "dry", "--dry-run")
    assert looked.code == 0, looked.err
    assert "agree with the folders on" in looked.out
    assert not list(tmp_path.glob("dry*"))
    ended = giftwrap(*words, "--store", tmp_path / "adopted")
    assert ended.code == 0, ended.err
    spec = TeacherSpec(
        members=make_members(("convnet-d2",), (str(made.weights),), [{"width": 16, "norm": "batch"}], (), ()),
        mean=MEAN,
        std=STD,
        batch=32,
        threads=1,
    )
    source = open_source(tmp_path / "adopted", made.images, threads=1)
    labelled_by_us(source, make_teacher(spec, size=SIDE, classes=CLASSES), tmp_path / "ours")
    source.close()
    ours, theirs = (LabelStore.open(tmp_path / name).read(2, slice(None)).logits for name in ("ours", "adopted"))
    assert np.abs(ours - theirs).max() < 0.01
    train(made, tmp_path / "adopted", tmp_path / "runs/adopted")
    train(made, tmp_path / "ours", tmp_path / "runs/ours")
    compared = giftwrap("trainer", "compare", tmp_path / "runs/adopted", tmp_path / "runs/ours", "--json")
    assert compared.code == 0, compared.err
    accuracies = [
        giftwrap("trainer", "evaluate", "--run", tmp_path / "runs" / name, "--json").summary["top1"]
        for name in ("adopted", "ours")
    ]
    assert abs(accuracies[0] - accuracies[1]) <= 100 / 24 + 0.01  # one image
    assert accuracies[0] > 50
