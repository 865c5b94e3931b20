"""Bad input gets one or two lines and exit code 2, and leaves every file as it was."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

SHORT = ("--max-steps", 3, "--dtype", "float32", "--learning-rate", "0.01")
TASK = ("--task", "tasks/colours")

Refused = Callable[..., str]


@pytest.fixture
def refused(ella: Any, tmp_path: Path) -> Refused:
    """Runs a command that must be refused; gives what it said after checking what it left."""

    def call(*arguments: object, leaves: tuple[str, ...] = (), **options: Any) -> str:
        with _unchanged(tmp_path, leaves):
            done = ella(*arguments, code=2, **options)
        lines = done.stderr.splitlines()
        assert done.stdout == ""
        assert 1 <= len(lines) <= 2, done.stderr
        assert lines[0].startswith("error: "), done.stderr
        return str(done.stderr)

    return call


@contextmanager
def _unchanged(folder: Path, leaves: tuple[str, ...] = ()) -> Iterator[None]:
    """No file under `folder` is new, gone or other than before, but for those below `leaves`."""

    def contents() -> dict[str, bytes | None]:
        found = {str(path.relative_to(folder)): path for path in folder.rglob("*")}
        return {
            name: path.read_bytes() if path.is_file() else None
            for name, path in found.items()
            if not name.startswith(leaves or "\0")
            # A lock is an empty file that says nothing and is never removed.
            and not (name.endswith(".lock") and not path.stat().st_size)
        }

    before = contents()
    yield
    assert contents() == before


@pytest.fixture(scope="module")
def made(
    tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path, tiny_gpt2: Path
) -> dict[str, Path]:
    """Adapters on two bases, and the past of the first of them; made in this process."""
    from ella_cli.config import TrainSettings
    from ella_cli.model.base import load_base
    from ella_cli.past import accumulate
    from ella_cli.tasks import load_task
    from ella_cli.training.assignment import Assignment
    from ella_cli.training.task import train_task

    folder = tmp_path_factory.mktemp("made")
    settings = TrainSettings(max_steps=2, limit=16)
    for name, model, demo in (
        ("llama", tiny_llama, "demo-topic"),
        ("second", tiny_llama, "demo-mood"),
        ("gpt2", tiny_gpt2, "demo-topic"),
    ):
        base = load_base(str(model), dtype="float32", device="cpu")
        assignment = Assignment(demo, [load_task(demo, limit=16)])
        train_task(base, assignment, settings, folder / name)
    accumulate([folder / "llama"], folder / "past.safetensors")
    return {path.name: path for path in folder.iterdir() if not path.name.startswith(".")}


@pytest.fixture
def here(made: dict[str, Path], own_tasks: Path, tmp_path: Path) -> Path:
    """The process's folder: own tasks, adapters llama, second and gpt2, and llama's past."""
    for name, path in made.items():
        (shutil.copytree if path.is_dir() else shutil.copyfile)(path, tmp_path / name)
    return tmp_path


def _cut(path: Path, share: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


def test_a_past_that_is_missing_or_cut(refused: Refused, here: Path, tiny_llama: Path) -> None:
    train = ("train", *TASK, "--model", tiny_llama, *SHORT, "-o", "a2", "--past")
    assert "no W_past file nowhere.safetensors" in refused(*train, "nowhere.safetensors")
    past = here / "past.safetensors"
    _cut(past, 0.99)
    assert "past.safetensors is not a sound safetensors file" in refused(*train, past.name)


def test_an_adapter_that_is_missing_or_cut(refused: Refused, here: Path) -> None:
    add = ("accumulate", "--past", "past.safetensors")
    assert "nothing-there does not exist" in refused(*add, "nothing-there")
    weights = here / "llama" / "adapter_model.safetensors"
    _cut(weights, 0.9)
    assert "adapter_model.safetensors is not a sound safetensors" in refused(*add, "llama")
    weights.unlink()
    assert "has no adapter_model.safetensors" in refused(*add, "llama")


def test_a_base_model_that_is_cut(refused: Refused, here: Path, tiny_llama: Path) -> None:
    shutil.copytree(tiny_llama, here / "base")
    _cut(here / "base" / "model.safetensors", 0.9)
    said = refused("train", *TASK, "--model", "base", *SHORT, "-o", "a2")
    assert "cannot load the model base" in said


def test_an_adapter_of_another_base_model(refused: Refused, here: Path, tiny_llama: Path) -> None:
    said = refused("accumulate", "gpt2", "--past", "past.safetensors")
    assert "keep one past per base model" in said
    model = ("--model", tiny_llama, "--dtype", "float32")
    evaluate = ("eval", "--order", "tasks/animals", *model, "-o", "scores", "-q", "--adapters")
    train = ("train", *TASK, *model, "-o", "a2", "--earlier", "gpt2", "--method", "seqlora")
    assert "made on a base with fingerprint" in refused(*train)
    # A foreign adapter has no fingerprint; its modules say that it does not fit.
    (here / "gpt2" / "ella.json").unlink()
    said = refused(*evaluate, "gpt2")
    assert "an update of transformer.h.0.attn.c_attn, which this model lacks" in said


def test_a_past_of_another_base_model(refused: Refused, here: Path, tiny_gpt2: Path) -> None:
    train = ("train", *TASK, "--model", tiny_gpt2, *SHORT, "-o", "a2")
    said = refused(*train, "--past", "past.safetensors")
    assert "made on a base with fingerprint" in said


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("single", "single does not stand on a sum of updates"),
        ("seqlora", "name the last adapter with --earlier instead of --past"),
        ("olora", "olora needs the earlier adapters themselves beside their sum"),
    ],
)
def test_a_past_that_the_method_makes_nothing_of(
    refused: Refused, here: Path, method: str, words: str
) -> None:
    train = ("train", *TASK, "--model", "./nowhere", "-o", "a2", "--method", method)
    assert words in refused(*train, "--past", "past.safetensors")


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("ella", "accumulate them into a past and name that with --past"),
        ("single", "single makes nothing of earlier adapters"),
        ("olora", "olora trains on top of the earlier adapters' sum"),
    ],
)
def test_earlier_adapters_that_the_method_makes_nothing_of(
    refused: Refused, here: Path, method: str, words: str
) -> None:
    train = ("train", *TASK, "--model", "./nowhere", "-o", "a2", "--method", method)
    assert words in refused(*train, "--earlier", "llama")


def test_a_second_weight_without_the_first(refused: Refused, own_tasks: Path) -> None:
    train = ("train", *TASK, "--model", "./nowhere", "-o", "a2", "--method", "olora")
    assert "--olora-l2 with --lambda 0" in refused(*train, "--lambda", 0, "--olora-l2", 0.5)


def test_an_adapter_of_another_rank_layout(refused: Refused, here: Path, tiny_llama: Path) -> None:
    train = ("train", *TASK, "--model", tiny_llama, *SHORT, "-o", "a2", "--method", "seqlora")
    said = refused(*train, "--earlier", "llama", "--lora-rank", 4)
    assert "of rank 8 and scale 4, asked for is 32 × 32 of rank 4 and scale 8" in said
    config = here / "llama" / "adapter_config.json"
    document = json.loads(config.read_text())
    config.write_text(json.dumps(document | {"r": 16}))
    said = refused("accumulate", "llama", "--past", "new.safetensors")
    assert "for rank 16" in said


def test_an_adapter_that_lacks_modules(refused: Refused, here: Path, tiny_llama: Path) -> None:
    train = ("train", *TASK, "--model", tiny_llama, *SHORT, "-o", "a2")
    wider = ("--earlier", "llama", "--target-modules", "q_proj,v_proj,k_proj")
    said = refused(*train, *wider, "--method", "olora", "--past", "past.safetensors")
    assert "no update for model.layers.0.self_attn.k_proj" in said


def test_a_past_that_is_not_the_sum_of_the_earlier_adapters(
    refused: Refused, here: Path, tiny_llama: Path
) -> None:
    train = ("train", *TASK, "--model", tiny_llama, *SHORT, "-o", "a2", "--method", "olora")
    said = refused(*train, "--earlier", "second", "--past", "past.safetensors")
    assert "is not the sum of the 1 adapters of --earlier" in said


def test_a_setting_that_a_file_names_twice(refused: Refused, own_tasks: Path) -> None:
    for twice in ("learning-rate: 1e-3\nlearning_rate: 5\n", "lam: 3\nlambda: 4\n"):
        (own_tasks.parent / "run.yaml").write_text(twice)
        assert "twice, as" in refused("train", *TASK, "--config", "run.yaml", "-o", "a2")
    (own_tasks.parent / "run.yaml").write_text("seed: 1\nseed: 2\n")
    assert "it names seed twice" in refused("train", *TASK, "--config", "run.yaml", "-o", "a2")


def test_modules_that_name_none_or_all_and_some(
    refused: Refused, own_tasks: Path, tiny_llama: Path
) -> None:
    train = ("train", *TASK, "--model", tiny_llama, *SHORT, "-o", "a2", "--target-modules")
    assert "names no module" in refused(*train, ",")
    assert "all-linear beside lm_head" in refused(*train, "all-linear,lm_head")


def test_a_past_that_lacks_a_module(refused: Refused, here: Path, tiny_llama: Path) -> None:
    train = ("train", *TASK, "--model", tiny_llama, *SHORT, "-o", "a2")
    said = refused(*train, "--past", "past.safetensors", "--target-modules", "q_proj,k_proj")
    assert "the past lacks 2 of 4 adapted modules" in said
    assert "--target-modules" in said


def test_a_dora_adapter(refused: Refused, here: Path, tiny_llama: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    config = LoraConfig(r=4, use_dora=True, target_modules=["q_proj"])
    get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_llama), config).save_pretrained(
        here / "dora"
    )
    assert "DoRA" in refused("accumulate", "dora", "--past", "past.safetensors")
    assert "DoRA" in refused("inspect", "adapter", "dora")


def test_an_unknown_task_shows_near_names(refused: Refused, here: Path, tiny_llama: Path) -> None:
    said = refused("run", "--order", "yelp,amazn", "--model", tiny_llama, "-o", "run")
    assert "no task is called 'amazn'" in said
    assert "did you mean amazon?" in said


def test_old_rows_only_where_a_method_learns_them_again(
    refused: Refused, here: Path, tiny_llama: Path
) -> None:
    train = ("train", *TASK, "--model", tiny_llama, "-o", "new", "--past", "wpast.safetensors")
    said = refused(*train, "--replay", "demo-mood")
    assert "ella learns no old rows again" in said
    said = refused(*train, "--method", "replay")
    assert "name them with --replay TASK" in said


def test_an_empty_label_set(refused: Refused, here: Path, tiny_llama: Path) -> None:
    (here / "tasks" / "colours" / "labels.json").write_text("[]")
    assert "empty label set" in refused("train", *TASK, "--model", tiny_llama, "-o", "a2")


def test_t5_in_fp16(refused: Refused, here: Path, tiny_t5: Path) -> None:
    said = refused("train", *TASK, "--model", tiny_t5, "--dtype", "float16", "-o", "a2")
    assert "overflow in float16" in said
    assert "--dtype bfloat16" in said


# After one step no loss has met the weights.
@pytest.mark.parametrize(("steps", "words"), [(20, "the loss became"), (1, "after step 1;")])
def test_numbers_that_overflow_keep_the_last_good_state(
    steps: int, words: str, refused: Refused, here: Path, tiny_llama: Path
) -> None:
    import torch
    from safetensors.torch import load_file

    wild = ("--learning-rate", 1e38, "--max-grad-norm", 1e20, "--max-steps", steps, "-q")
    train = ("train", *TASK, "--model", tiny_llama, *SHORT, *wild)
    # The adapter that was there is not touched.
    said = refused(*train, "-o", "llama", leaves=("llama.last-good",))
    assert words in said
    assert "llama.last-good" in said
    kept = load_file(here / "llama.last-good" / "adapter_model.safetensors")
    assert kept
    assert all(torch.isfinite(weight).all() for weight in kept.values())


def test_a_folder_of_other_things_is_not_replaced(
    refused: Refused, here: Path, tiny_llama: Path
) -> None:
    train = ("train", *TASK, "--model", tiny_llama, *SHORT, "-o", "tasks")
    assert "tasks holds other things" in refused(*train)


def test_no_room_for_an_adapter(refused: Refused, here: Path, tiny_llama: Path) -> None:
    train = ("train", *TASK, "--model", tiny_llama, *SHORT, "-q")
    for folder, room in (("a2", 2000), ("llama", 7000)):
        assert "cannot use" in refused(*train, "-o", folder, largest_file=room)


# Where it fails: the factors (8.2 kB), the optimizer's state (11 kB or more).
@pytest.mark.parametrize("room", [7000, 10000])
def test_no_room_for_a_checkpoint(
    refused: Refused, here: Path, tiny_llama: Path, room: int
) -> None:
    train = ("train", *TASK, "--model", tiny_llama, *SHORT, "-q", "--save-steps", 1, "-o", "a2")
    assert "checkpoint-1" in refused(*train, largest_file=room)


def test_no_room_for_a_past(refused: Refused, here: Path) -> None:
    for past in ("past.safetensors", "new.safetensors"):
        said = refused("accumulate", "second", "--past", past, largest_file=4096)
        assert "cannot use" in said
    export = ("export", "--past", "past.safetensors", "--as", "dense", "-o", "dense")
    assert "cannot use" in refused(*export, largest_file=4096)


def test_no_room_for_a_run(refused: Refused, here: Path, tiny_llama: Path) -> None:
    run = ("run", "--order", "tasks/colours", "--model", tiny_llama, *SHORT, "-q", "-o", "run")
    assert "run.json" in refused(*run, largest_file=256, leaves=("run",))
    assert [path.name for path in (here / "run").rglob("*")] == [".run.lock"]


@pytest.mark.parametrize(
    ("modules", "words"),
    [("q_proj,lm_head", "whose curvature cannot"), ("q_proj,vproj", "has no module vproj")],
)
def test_modules_that_cannot_be_adapted_leave_no_run_behind(
    refused: Refused, here: Path, tiny_llama: Path, modules: str, words: str
) -> None:
    run = ("run", "--order", "tasks/colours", "--model", tiny_llama, *SHORT, "-q", "-o", "run")
    assert words in refused(*run, "--target-modules", modules)


@pytest.mark.parametrize(
    ("command", "what"),
    [
        (("train", "--tsk", "x"), "no such option: --tsk (Possible options: --task)"),
        (("run", "--cells", "some", "-o", "x"), "'some' is not one of 'all', 'figures'"),
        (("run",), "missing option '--output-dir'"),
        (("trian",), "no such command 'trian'"),
        (("run", "-o"), "option '-o' requires an argument"),
        (("inspect", "energy"), "missing argument 'past'"),
        (("train", *TASK, "--importance", "0", "-o", "x"), "should be greater than 0"),
        (("run", "--importance", "x", "-o", "x"), "'x' is neither a number nor auto"),
        (("run", "--lambda", "1e3,much", "-o", "x"), "'much' is neither a number nor auto"),
        (("train", "--limit", "0", "--task", "a", "-o", "x"), "limit = 0: input should be greater"),
    ],
)
def test_a_command_line_that_cannot_be_read(
    refused: Refused, command: tuple[str, ...], what: str
) -> None:
    said = refused(*command)
    assert what in said
    assert "--help`" in said or "`ella config-schema`" in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "--config", "keys.yaml", "-o", "r"], "a key that is no word"),
        (["run", "--config", "date.yaml", "-o", "r"], "cannot read settings"),
        (["run", "--order", "demo", "--lambda", "0,1", "-o", "r"], "names 2 values"),
        (["run", "--order", "demo", "--lambda", "0,1", "--dry-run", "-o", "r"], "names 2 values"),
        (["run", "--order", "demo", "--first-stage", "no", "--dry-run", "-o", "r"], "no is not a"),
        (["run", "--order", "1", "--data", "no", "--dry-run", "-o", "r"], "--data no is not a"),
        (["run", "--order", "demo", "--num-train-epochs", "inf", "-o", "r"], "num-train-epochs"),
        (["demo", "--max-steps", 0], "max-steps = 0"),
        (["train", "--task", "demo-topic", "--device", "gpu", "-o", "a"], "--device gpu"),
        (["eval", "--run", "r", "-o", "s"], "into its own folder"),
        (["plan", "--flops", 0], "--flops"),
    ],
)
def test_settings_that_cannot_be(
    refused: Refused, tmp_path: Path, arguments: list[object], words: str
) -> None:
    (tmp_path / "keys.yaml").write_text("1: 2\n")
    (tmp_path / "date.yaml").write_text("seed: 2024-13-45\n")
    assert words in refused(*arguments)


@pytest.mark.parametrize("kind", ["adapter", "past", "run"])
def test_a_name_that_the_system_refuses(kind: str, refused: Refused) -> None:
    said = refused("inspect", kind, "a" * 300)
    assert "File name too long" in said


def test_results_with_a_number_that_no_float_holds(refused: Refused, tmp_path: Path) -> None:
    document = {"order": ["a"], "matrix": [[0.5]], "base": [10**400]}
    (tmp_path / "results.json").write_text(json.dumps(document))
    assert "not the results of a run" in refused("report", "results.json")
