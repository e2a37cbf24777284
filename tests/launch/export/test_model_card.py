import pytest
from recorded_runs import evaluation_record, step_record, write_lines, write_records

from launch.export.model_card import model_card
from launch.run_records import known_config, read_run
from shared.episodes import Task


@pytest.fixture
def folder(tmp_path):
    return write_records(tmp_path / "mine", 4, **{"model.path": "models/some", "environment.held_out": 0.25})


def card(folder, step=4) -> str:
    run = read_run(folder)
    return model_card(run, known_config(run), step)


def test_the_card_says_what_the_run_was_and_came_to(folder):
    text = card(folder)
    assert "versions below 5 do not read that" in text
    assert text.startswith("---\nlibrary_name: transformers\n")
    assert "# mine, step 4" in text
    assert "4 of 4 steps from `some`, in bfloat16, seed 0" in text
    assert "A share of 0.25 of them was never trained on." in text
    assert "| task | problems | step 0 | step 4 |" in text
    assert "| deduction | 10 | 0.250 | 0.650 |" in text
    assert "| mean of tasks |  | 0.250 | 0.650 |" in text
    assert "| episodes | 400 |" in text
    assert "license" not in text.partition("\n---\n")[0]


@pytest.mark.parametrize(
    ("tasks", "said"),
    [
        (["deduction", "abduction", "induction"], "with y (deduction), x (abduction) or p (induction) hidden."),
        (["deduction", "induction"], "with y (deduction) or p (induction) hidden."),
        (["induction"], "with p (induction) hidden."),
    ],
)
def test_the_card_names_the_tasks_that_the_run_played(tmp_path, tasks, said):
    folder = write_records(tmp_path / "mine", 4, **{"model.path": "models/some", "environment.tasks": tasks})
    text = card(folder)
    assert said in text
    assert f"primezero play --model . --propose {tasks[0]}\n" in text


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_card_has_the_model_served_in_the_dtype_of_its_training(tmp_path, dtype):
    text = card(write_records(tmp_path / "mine", 4, **{"model.path": "models/some", "model.dtype": dtype}))
    assert f"vllm serve . --served-model-name primezero --dtype {dtype}\n" in text
    assert ("serves float32 weights in 16 bits" in text) == (dtype == "float32")


def test_the_card_of_a_checkpoint_knows_nothing_of_what_came_later(folder):
    text = card(folder, step=3)
    assert "| task | problems | step 0 | step 2 |" in text
    assert "| episodes | 300 |" in text


def test_the_card_of_one_task_without_other_evaluations(folder):
    write_lines(folder / "evaluations.jsonl", [evaluation_record(0, [Task.INDUCTION]) | {"held_out_accuracy": 0.125}])
    text = card(folder)
    assert "| induction | 10 | 0.250 | 0.250 |" in text
    assert "| held out, mean |  | 0.125 | 0.125 |" in text
    assert "| deduction" not in text
    (folder / "evaluations.jsonl").unlink()
    assert "had not been evaluated" in card(folder)


def test_names_cannot_break_the_card(tmp_path):
    folder = write_records(tmp_path / "a|b\n# c", 1, **{"run.name": "x", "model.path": "models/`rm`"})
    write_lines(folder / "metrics.jsonl", [step_record(1)])
    text = card(folder, 1)
    assert "# a∣b␊# c, step 1" in text
    assert "`'rm'`" in text
