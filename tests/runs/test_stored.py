"""What is on disk is named by its content, and refused in one sentence where it cannot be continued."""

import shutil

import pytest

from gammatune.errors import UserError
from gammatune.files import hold_folder, read_json, write_json


@pytest.fixture
def stored(undisturbed, make_runner, tmp_path):
    """A copy of a finished run; call it to start that run again."""
    shutil.copytree(undisturbed.folder.path, tmp_path / undisturbed.folder.path.name)
    again = make_runner(tmp_path, "repetitions=2")
    assert again.folder.path.parent == tmp_path
    return again


def change_json(path, **fields):
    write_json(path, read_json(path, "remake it") | fields)


def edit_lines(path, edit):
    lines = path.read_text().splitlines(keepends=True)
    edit(lines)
    path.write_text("".join(lines))


def break_a_line(lines):
    lines[3] = lines[3][:50] + "\0" + lines[3][51:]


def age_a_line(lines):
    lines[3] = lines[3].replace('"schema":2', '"schema":3')


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (
            lambda cell: edit_lines(cell.turns_file, break_a_line),
            "turns.jsonl was changed or cut short after it was finished",
        ),
        (lambda cell: edit_lines(cell.turns_file, lambda lines: lines.pop()), "turns.jsonl was changed or cut short"),
        (lambda cell: cell.turns_file.unlink(), "turns.jsonl was changed or cut short"),
        (lambda cell: (cell.done_file.unlink(), edit_lines(cell.turns_file, age_a_line)), "line 4 was written by a newer"),
        (lambda cell: change_json(cell.done_file, schema=3), "done.json was written by a newer gammatune"),
        (lambda cell: change_json(cell.folder.parent / "run.json", schema=3), "run.json was written by a newer gammatune"),
        (lambda cell: change_json(cell.folder / "config.json", pair="another"), "config.json does not describe this run"),
        (lambda cell: change_json(cell.folder / "config.json", schema=3), "config.json was written by a newer gammatune"),
        (lambda cell: change_json(cell.folder / "provenance.json", device="another"), "times of two machines do not mix"),
        (lambda cell: change_json(cell.folder / "provenance.json", schema=3), "provenance.json was written by a newer"),
    ],
    ids=[
        "changed",
        "line missing",
        "no log",
        "newer line",
        "newer done",
        "newer run",
        "another pair",
        "newer config",
        "another machine",
        "newer provenance",
    ],
)
def test_a_stored_run_that_cannot_be_continued_is_refused(stored, damage, sentence):
    damage(stored.folder.cells[1])
    before = {path: path.read_bytes() for path in stored.folder.path.glob("*/turns.jsonl")}
    with pytest.raises(UserError, match=sentence) as refused:
        stored.run()
    assert "\n" not in str(refused.value) and str(refused.value).endswith(".")
    assert before == {path: path.read_bytes() for path in stored.folder.path.glob("*/turns.jsonl")}


def test_a_folder_that_cannot_be_written_is_refused(make_runner, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"Cannot write to .* \(Not a directory\): choose another folder with results="):
        make_runner(tmp_path / "file" / "results").run()


def test_equal_content_has_one_name_and_other_content_another(make_runner, tmp_path):
    one, same, other = (
        make_runner(tmp_path / name, *extra)
        for name, extra in (
            ("a", ()),
            ("b", ("tasks.path=" + str(copy_questions(make_runner, tmp_path)),)),
            ("c", ("policy.fixed.gamma=4",)),
        )
    )
    names = [[cell.folder.name for cell in runner.folder.cells] for runner in (one, same, other)]
    assert names[0] == names[1] and one.folder.path.name == same.folder.path.name
    assert one.folder.path.name != other.folder.path.name
    assert [a == b for a, b in zip(names[0], names[2], strict=True)] == [True, False, True, True]


def copy_questions(make_runner, folder):
    source = make_runner(folder).config.tasks.path
    return shutil.copy(source, folder / "elsewhere.jsonl")


def test_a_run_is_locked_while_it_runs_and_free_afterwards(make_runner, tmp_path):
    first, second = make_runner(tmp_path), make_runner(tmp_path)
    with hold_folder(first.folder.path), pytest.raises(UserError, match="Another process is already running"):
        second.run()
    second.run()


def test_a_plan_tells_finished_started_and_new_cells_apart(make_runner, undisturbed, tmp_path):
    plan = make_runner(tmp_path).describe_plan()
    assert [line.split()[-1] for line in plan.splitlines()[1:]] == ["new"] * 4
    assert not any(tmp_path.iterdir())
    undisturbed_plan = undisturbed.describe_plan().splitlines()
    assert [line.split()[-1] for line in undisturbed_plan[1:]] == ["ok"] * 4
    started = make_runner(tmp_path)
    cell = started.folder.cells[0]
    cell.create()
    cell.append([])
    assert started.describe_plan().splitlines()[1].endswith("started")


def test_json_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "done.json"
    write_json(path, {"status": "ok"})
    with pytest.raises(TypeError):
        write_json(path, {("no", "key"): 1})
    assert read_json(path, "remake it") == {"schema": 2, "status": "ok"}
    assert [file.name for file in tmp_path.iterdir()] == ["done.json"]
