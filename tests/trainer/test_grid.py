"""The cells of a sweep: what a file means, and what is refused before anything starts."""

from __future__ import annotations

import json
import re
from itertools import product
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from labelstore.command.command_line import read_command
from labelstore.command.console import Console
from labelstore.command.flags import from_flags
from labelstore.errors import InputError
from pipeline.__main__ import COMMANDS as PIPELINE
from trainer.__main__ import COMMANDS as TRAINER
from trainer.grid import MAX_NAME, Task, read_grid
from trainer.runs_config import SweepConfig
from trainer.sweep import sweep

PAPERS = Path(__file__).resolve().parents[2] / "examples" / "papers"

BUILD = """
[build]
images = "train"
teacher = ["convnet-d3"]
weights = ["w.safetensors"]
size = 32
views = 4
"""
TRAIN = """
[train]
store = "{store}"
images = "train"
student = "convnet-d3"
epochs = 6
"""


def tasks(tmp_path: Path, text: str) -> list[Task]:
    (tmp_path / "grid.toml").write_text(text)
    return read_grid(tmp_path / "grid.toml", Path("out"))


def test_each_combination_is_a_run_and_each_store_is_built_once(tmp_path: Path) -> None:
    found = tasks(tmp_path, BUILD + "flip = [0.0, 0.5]\n" + TRAIN + 'loss = ["gift", "kl"]\nseed = [0, 1, 2]\n')
    assert [task.name for task in found[:2]] == ["flip=0.0", "flip=0.5"]
    wanted = [f"flip={f},loss={loss},seed={seed}" for f, loss, seed in product((0.0, 0.5), ("gift", "kl"), range(3))]
    assert [task.name for task in found[2:]] == wanted
    for task in found[2:]:
        assert task.values["store"] == task.needs == Path("out/stores") / task.name.partition(",")[0]
        assert task.folder == Path("out/runs") / task.name


def test_commands_read_the_words_as_they_were_meant(tmp_path: Path) -> None:
    build, train = tasks(tmp_path, BUILD + "augment = [['dsa'], []]\nmean = [0.1, 0.2, 0.3]\n" + TRAIN)[0:3:2]
    config = read_command(PIPELINE["build"], "build", build.words).config
    assert (config.crops.augment, config.teacher.mean, config.store) == (("dsa",), (0.1, 0.2, 0.3), build.folder)
    config = read_command(TRAINER["train"], "train", train.words).config
    assert (config.store, config.run, config.epochs) == (build.folder, train.folder, 6)


def test_a_list_is_one_value_of_a_flag_that_takes_lists(tmp_path: Path) -> None:
    (task,) = tasks(tmp_path, TRAIN.replace("{store}", "s") + "seeds = [0, 1, 2]\n")
    assert task.values["seeds"] == (0, 1, 2)
    assert (task.name, task.work) == ("run", 18.0)
    found = tasks(tmp_path, TRAIN.replace("{store}", "s") + "seeds = [[0, 1], [2]]\n")
    assert [task.name for task in found] == ["seeds=0+1", "seeds=2"]


def test_rows_are_values_that_go_together_and_take_the_place_of_others(tmp_path: Path) -> None:
    rows = """
[[cell]]
name = "a"
build.images = "set a"
train.images = "set a"
[[cell]]
name = "b"
build.images = "set b"
train.images = "set b"
train.loss = ["mse"]
"""
    found = tasks(tmp_path, BUILD + TRAIN + 'loss = ["gift", "kl"]\n' + rows)
    runs = [(task.name, task.values["images"], task.values["loss"]) for task in found if task.command == "train"]
    assert [task.name for task in found if task.command == "build"] == ["a", "b"]
    assert runs == [
        ("a,loss=gift", Path("set a"), "gift"),
        ("a,loss=kl", Path("set a"), "kl"),
        ("b,loss=mse", Path("set b"), "mse"),
    ]


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    values=st.lists(st.text("ab/.=, \u00e9\u202e'*$~-", min_size=1, max_size=150), min_size=1, max_size=6, unique=True)
)
def test_names_of_folders_are_safe_and_unique(tmp_path: Path, values: list[str]) -> None:
    listed = ", ".join(json.dumps(value, ensure_ascii=False) for value in values)
    names = [task.name for task in tasks(tmp_path, TRAIN.replace("{store}", "s") + f"student-weights = [{listed}]\n")]
    assert len(set(names)) == len(values)
    for name in names:
        assert re.fullmatch(r"[A-Za-z0-9._+=,-]+", name)
        assert not name.startswith((".", "-"))
        assert len(name) <= MAX_NAME + 9


def test_a_longer_list_keeps_the_names_that_were_there(tmp_path: Path) -> None:
    before = {task.name for task in tasks(tmp_path, BUILD + TRAIN + "lr = [0.1]\n")}
    after = {task.name for task in tasks(tmp_path, BUILD + TRAIN + "lr = [0.2, 0.1, 1]\n")}
    assert before < after


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (TRAIN.replace("epochs", "epoch"), r"\[train\]: no flag 'epoch' of this command; did you mean epochs\?"),
        (BUILD.replace("[build]", "[biuld]"), r"found biuld; did you mean build\?"),
        ("", "expected flags in .build. or .train., found none"),
        (BUILD + TRAIN + "lr = ['x']\n", r"\[train\]: lr: expected a number, found 'x'"),
        (BUILD + TRAIN + "lr = []\n", "lr: expected a value or a list of some, found an empty list"),
        (BUILD + TRAIN + "lr = [0.1, 0.1]\n", "lr: expected different values"),
        (BUILD + TRAIN + "warmup-epochs = [1, 6]\n", r"\[train\] warmup-epochs=6: --warmup-epochs: expected 0 to 5"),
        (BUILD + "store = 's'\n" + TRAIN, r"\[build\]: store: the sweep sets it"),
        (BUILD + TRAIN + "run-folder = 's'\n", r"\[train\]: run-folder: the sweep sets it"),
        (BUILD + "batch = [8, 0]\n" + TRAIN, r"\[build\] batch=0: --batch: expected at least 1"),
        (TRAIN, r"\{store\} needs a build; expected flags in \[build\], found none"),
        (BUILD + TRAIN.replace("{store}", "s"), r"expected \{store\} in a flag"),
        (BUILD + TRAIN.replace("store = ", "# "), r'\[train\]: expected store = "\{store\}", .*found no store'),
        (BUILD + TRAIN.replace("student =", "student-weights ="), r"\[train\] run: expected a value for student"),
        (BUILD + TRAIN + "[[cell]]\ntrain.los = 'kl'\n", r"\[\[cell\]\] 1 \[train\]: no flag 'los'.*did you mean loss"),
        (BUILD + TRAIN + "[[cell]]\nbuilds = 1\n", r"\[\[cell\]\] 1: expected name, build and train, found builds"),
        (BUILD + TRAIN + "[cell]\nname = 'a'\n", r"expected \[\[cell\]\]"),
        ("train = 1\n", "train: expected a table of flags, found 1"),
        ("[train\n", "expected TOML"),
        (TRAIN.replace("{store}", "s") + "gamma = 0.2\nloss = ['gift', 'kl']\n", "loss=kl: .* does not use --gamma"),
        (TRAIN.replace("{store}", "s") + "seed = 1\nseeds = [2, 3]\n", "--seed 1, --seeds: expected one of them"),
    ],
)  # fmt: skip
def test_mistakes_are_named_before_anything_starts(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        tasks(tmp_path, text)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BUILD + TRAIN.replace("convnet-d3", "convnet-d33"), r"\[train\] run: network 'convnet-d33'"),
        (
            BUILD.replace("convnet-d3", "resnet18") + TRAIN,
            r"\[build\] store: network 'resnet18'",
        ),
        (BUILD + TRAIN + "optimizer = ['SGD', 'AdamWW']\n", r"optimizer=AdamWW: --optimizer: .*did you mean AdamW"),
        (
            BUILD + TRAIN + "optimizer-args = '{\"beta\": 1}'\n",
            r"run: optimiser AdamW: unknown arguments beta",
        ),
    ],
)
def test_misspelt_networks_and_optimisers_are_named_before_anything_starts(
    tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "grid.toml").write_text(text)
    config = from_flags(SweepConfig, file=tmp_path / "grid.toml", run_folder=tmp_path / "out")
    with pytest.raises(InputError, match=message) as error:
        sweep(config, Console())
    assert len(str(error.value).splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.toml: cannot be read"):
        read_grid(tmp_path / "none.toml", tmp_path)


def test_a_recipe_is_checked_with_its_flags_and_gives_the_epochs(tmp_path: Path) -> None:
    text = TRAIN.replace("{store}", "s").replace("epochs = 6\n", "") + "recipe = 'rded'\n"
    (task,) = tasks(tmp_path, text + "temperature = 4.0\n")
    assert task.work == 300
    with pytest.raises(InputError, match="--loss mse does not use --temperature"):
        tasks(tmp_path, text + "loss = 'mse'\ntemperature = 4.0\n")


def test_a_run_without_a_store_is_made_once_and_needs_no_build(tmp_path: Path) -> None:
    rows = "[[cell]]\nname = 'stored'\ntrain.store = '{store}'\n[[cell]]\nname = 'other'\ntrain.store = 's'\n"
    train = TRAIN.replace('store = "{store}"\n', "").replace('images = "train"', 'images = "{images}"')
    found = tasks(tmp_path, BUILD + "flip = [0.0, 0.5]\n" + train + rows)
    assert [(task.name, task.needs and task.needs.name) for task in found] == [
        ("flip=0.0", None),
        ("flip=0.5", None),
        ("flip=0.0,stored", "flip=0.0"),
        ("flip=0.5,stored", "flip=0.5"),
        ("other", None),
    ]
    assert {task.values["images"] for task in found} == {Path("train")}


@pytest.mark.parametrize(
    ("paper", "builds", "runs", "name"),
    [
        ("gift", 18, 18 * 4 * 3, "tiny-convnet,images=rded-ipc10,loss=gift,seed=2"),
        ("rded", 24, 24 * 3, "cifar10-resnet18,images=ipc50,seed=0"),
        ("thousand_images", 16, 16 * 5, "imagenet-ipc200,seed=4"),
        ("deg", 4, 8 * 3 + 4 * 3, "tiny-hard,seed=2,images=generated-ipc50"),
        ("hello", 6, (6 + 5 + 6) * 3, "imagenet-projector,images=ipc10,seed=2"),
    ],
)
def test_the_tables_of_the_papers_are_sweeps(
    paper: str, builds: int, runs: int, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = from_flags(SweepConfig, file=PAPERS / f"{paper}.toml", run_folder=tmp_path / "out", dry_run=True)
    assert sweep(config, Console(as_json=True)) == 0
    values = json.loads(capsys.readouterr().out)
    commands = [task["command"] for task in values["tasks"]]
    assert (commands.count("build"), commands.count("train")) == (builds, runs)
    assert name in {task["name"] for task in values["tasks"]}
    assert f"--test-images sets/{'imagenet' if paper == 'hello' else 'tiny'}/test" in values["missing"]
    assert not (tmp_path / "out").exists()
