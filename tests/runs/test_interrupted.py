"""However a run ends, starting it again gives what one undisturbed run gives: nothing lost, nothing repeated."""

import json
import os
import shutil
import signal
import time
from dataclasses import replace
from functools import partial
from itertools import count

import pytest
from comparing import logged, statuses
from killing import (
    ENDED_WELL,
    TOLD,
    count_writes,
    differences,
    disturbed,
    fill_disk,
    in_child,
    kill,
    samplers,
    signal_and_wait,
    start_command,
    stored,
)

from gammatune.errors import Stopped, UserError, explain, stopping_quietly
from gammatune.runs.runner import Runner
from gammatune.runs.store import Kept, read_log, read_run
from gammatune.studies.replay_check import check_replay


def a_run(make_runner, make_recorder, results):
    """Three questions, one of two turns; a policy that carries its state over questions."""
    runner = make_runner(results, arms=("policy=hf_heuristic", "policy.hf_heuristic.carry=never"))
    return runner.run, runner.folder.path


def a_second_pass(make_runner, make_recorder, results):
    """Over a finished run."""
    make_runner(results, arms=("policy=gammatune_plus",)).run()
    runner = make_runner(results, "repetitions=2", arms=("policy=gammatune_plus",))
    return runner.run, runner.folder.path


def a_recording(make_runner, make_recorder, results):
    recorder = make_recorder(results)
    return recorder.run, recorder.recording.folder


def check_ends(make, start, folder, step: int) -> int:
    """Kill the work at every step-th write, and fill the disk there; each time, the same work again must give what
    undisturbed work gives. How many ends were tried.

    The work is made ready once and forked from there, so that a trial costs little more than the run itself.
    """
    work, place = make(folder)
    prepared = folder.parent / "prepared"
    shutil.copytree(folder, prepared)
    writes = count_writes(work, folder)
    wanted, tried = stored(place), 0
    for end in (kill, fill_disk):
        for number in range(start, len(writes), step):
            shutil.rmtree(folder)
            shutil.copytree(prepared, folder)
            ended = disturbed(work, folder, number, end)
            about = f"{end.__name__} at write {number}, {writes[number]}"
            if end is fill_disk and ended == ENDED_WELL:
                assert not any(event.startswith(GROWING) for event in writes[number:]), about
            else:
                assert ended == (-signal.SIGKILL if end is kill else TOLD), about
            assert in_child(work) == ENDED_WELL, about
            assert not differences(stored(place), wanted), about
            tried += 1
    return tried


GROWING = ("open", "os.rename", "os.mkdir")


@pytest.mark.parametrize("work", [a_run, a_second_pass, a_recording])
@pytest.mark.parametrize(
    ("start", "step"), [pytest.param(1, 7, id="every-7th"), pytest.param(0, 1, id="all", marks=pytest.mark.slow)]
)
def test_a_kill_or_a_full_disk_at_any_write_changes_nothing(make_runner, make_recorder, tmp_path, work, start, step):
    (tmp_path / "results").mkdir()
    tried = check_ends(partial(work, make_runner, make_recorder), start, tmp_path / "results", step)
    assert tried > 30 / step


@pytest.fixture(scope="module")
def finished(make_runner, tmp_path_factory):
    """The folder of a finished run of one pass."""
    runner = make_runner(tmp_path_factory.mktemp("finished"))
    runner.run()
    return runner.folder.path


DERIVED = ("pieces.json", "done.json", "acceptance.parquet", "run.json", "config.json", "provenance.json")


@pytest.mark.parametrize("name", DERIVED)
@pytest.mark.parametrize("damage", ["missing", "cut short", "changed"])
def test_what_is_made_of_answers_is_made_again(make_runner, finished, on_answer, tmp_path, capsys, name, damage):
    folder = tmp_path / finished.name
    shutil.copytree(finished, folder)
    on_answer(interrupt_after(0))
    file = next(file for file in sorted(folder.rglob(name)))
    content = file.read_bytes()
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(content[:-20] if damage == "cut short" else content[:60] + b"7" + content[60:])
    make_runner(tmp_path).run()
    assert not differences(stored(folder), stored(finished))
    told = f"gammatune: {file} is damaged or was changed, so it is made again.\n"
    assert capsys.readouterr().err.count(told) == (damage != "missing")


def test_a_damaged_line_costs_the_answers_from_there_on(make_runner, finished, on_answer, tmp_path, capsys):
    folder = tmp_path / finished.name
    shutil.copytree(finished, folder)
    log = next(folder.glob("fixed-*/turns.jsonl"))
    lines = log.read_text().splitlines(keepends=True)
    log.write_text(lines[0] + lines[1].replace('"drafted"', '"drifted"') + "".join(lines[2:]))
    with pytest.raises(UserError, match="turns.jsonl was changed or cut short after it was finished"):
        make_runner(tmp_path).run()
    (log.parent / "done.json").unlink()
    answered = []
    on_answer(lambda made, policy: answered.append(policy.name))
    make_runner(tmp_path).run()
    assert answered == ["fixed"] * 3
    assert not differences(stored(folder), stored(finished))
    assert f"{log} is damaged after its first 1 questions, so the others are answered again.\n" in capsys.readouterr().err


def test_a_folder_in_the_place_of_a_file_is_named(make_runner, finished, tmp_path):
    shutil.copytree(finished, tmp_path / finished.name)
    file = tmp_path / finished.name / "pieces.json"
    file.unlink()
    file.mkdir()
    with pytest.raises(UserError, match="pieces.json is no regular file: move it away and run the same command again.$"):
        make_runner(tmp_path).run()


def test_arms_without_a_baseline_come_right_with_it_even_after_a_kill(make_runner, finished, on_answer, tmp_path):
    """Killed after the baseline's last word, before theirs: nothing is left to answer then."""

    def fail(made, policy):
        if policy.name == "ar":
            raise RuntimeError("no memory")

    on_answer(fail)
    make_runner(tmp_path).run()
    on_answer(lambda made, policy: None)
    work, folder = make_runner(tmp_path).run, tmp_path / finished.name
    before = folder.parent.parent / "before"
    shutil.copytree(folder, before)
    writes = count_writes(work, folder)
    words = [place for place, event in enumerate(writes) if event.startswith("os.rename") and ".done.json." in event]
    shutil.rmtree(folder)
    shutil.copytree(before, folder)
    assert disturbed(work, folder, words[1], kill) == -signal.SIGKILL
    assert [json.loads(file.read_text())["status"] for file in sorted(folder.glob("*/done.json"))] == ["ok"] + ["error"] * 3
    on_answer(interrupt_after(0))
    make_runner(tmp_path).run()
    assert not differences(stored(folder), stored(finished))


def interrupt_after(answers):
    """An action that lets that many answers through and is Ctrl-C at the next."""
    seen = count(1)

    def action(made, policy):
        if next(seen) > answers:
            raise KeyboardInterrupt

    return action


@pytest.mark.parametrize("answers", [2, 5])
def test_a_run_interrupted_again_and_again_equals_an_undisturbed_one(make_runner, undisturbed, on_answer, tmp_path, answers):
    """Two passes of four arms over four turns; one policy carries its state over questions, one watches the draft.

    Its acceptance table too: the check at the end compares every round with its replay.
    """
    starts = 0
    while True:
        starts += 1
        runner = make_runner(tmp_path, "repetitions=2")
        on_answer(interrupt_after(answers))
        try:
            runner.run()
        except KeyboardInterrupt:
            continue
        break
    assert starts > 5
    assert logged(runner) == logged(undisturbed)
    assert set(statuses(runner).values()) == {"ok"}
    check = check_replay(read_run(runner.folder.path))
    assert (check.arms, check.differing, check.other_text) == (3, 0, 0) and check.rounds > 100


def test_an_interrupt_inside_a_question_keeps_its_first_turn_out(make_runner, undisturbed, on_answer, tmp_path):
    """The last question has two turns: each arm's 3rd answer is its first turn, the 4th its second."""
    runner = make_runner(tmp_path)
    on_answer(interrupt_after(15))
    with pytest.raises(KeyboardInterrupt):
        runner.run()
    lengths = sorted(len(turns) for turns in logged(runner).values())
    assert lengths == [2, 4, 4, 4]
    assert not any(cell.done_file.exists() for cell in runner.folder.cells)


def test_a_second_pass_continues_the_same_cells(make_runner, undisturbed, on_answer, tmp_path):
    once = make_runner(tmp_path)
    once.run()
    first = {cell.arm.label: cell.turns_file.read_text() for cell in once.folder.cells}
    twice = make_runner(tmp_path, "repetitions=2")
    assert twice.folder.path == once.folder.path
    on_answer(interrupt_after(3))
    with pytest.raises(KeyboardInterrupt):
        twice.run()
    started = [cell for cell in twice.folder.cells if cell.turns_file.read_text() != first[cell.arm.label]]
    assert started and not any(cell.done_file.exists() for cell in started)
    on_answer(lambda made, policy: None)
    twice = make_runner(tmp_path, "repetitions=2")
    twice.run()
    assert logged(twice) == logged(undisturbed)
    assert all(cell.turns_file.read_text().startswith(first[cell.arm.label]) for cell in twice.folder.cells)


def test_a_finished_run_is_not_decoded_again(make_runner, on_answer, tmp_path):
    make_runner(tmp_path).run()
    runner = make_runner(tmp_path)
    before = logged(runner)
    on_answer(interrupt_after(0))
    runner.run()
    assert logged(runner) == before


def test_a_log_cut_at_any_byte_of_its_last_question_grows_back(make_runner, undisturbed, tmp_path):
    """On the four turns of one pass, the last two of which are one question."""
    cell, questions = make_runner(tmp_path).folder.cells[2], undisturbed.questions
    log = [line.turn for line in read_log(undisturbed.folder.cells[2].turns_file)][:4]
    turns = [replace(turn, rounds=turn.rounds[:1], output_ids=turn.output_ids[: turn.rounds[0].emitted]) for turn in log]
    cell.create()
    cell.append(turns[:2])
    kept = cell.turns_file.stat().st_size
    cell.append(turns[2:])
    whole = cell.turns_file.read_bytes()
    for length in range(kept, len(whole)):
        cell.turns_file.write_bytes(whole[:length])
        found = cell.resume(questions)
        assert cell.turns_file.stat().st_size == found.bytes == kept
        assert (found.complete, found.last) == ({(0, 9), (0, 2)}, turns[1])
    cell.append(turns[2:])
    assert cell.turns_file.read_bytes() == whole
    assert cell.resume(questions) == Kept({(0, 9), (0, 2), (0, 5)}, turns[3], len(whole))


def test_a_full_disk_loses_nothing(make_runner, undisturbed, on_answer, tmp_path):
    runner = make_runner(tmp_path, "repetitions=2")
    log = runner.folder.cells[1].turns_file
    aside, seen = tmp_path / "aside.jsonl", count(1)

    def fill_disk(made, policy):
        if next(seen) == 9:
            log.rename(aside)
            log.symlink_to("/dev/full")

    on_answer(fill_disk)
    with pytest.raises(OSError) as raised:
        runner.run()
    assert explain(raised.value).startswith("Cannot write the results (No space left on device): free some space")
    log.unlink()
    aside.rename(log)
    runner = make_runner(tmp_path, "repetitions=2")
    runner.run()
    assert logged(runner) == logged(undisturbed)


@pytest.fixture
def words(small, tmp_path):
    """A run of some seconds."""
    longer = (
        "policy=[fixed,hf_heuristic]",
        "policy.hf_heuristic.carry=never",
        "decode.max_new_tokens=60",
        "acceptance=false",
    )
    return [*small, *longer, "acceptance=false", f"results={tmp_path / 'results'}"]


def start_run(words, tmp_path) -> int:
    """See `start_command`; its first answers are on disk."""
    return start_command(["run", *words], tmp_path / "errors.txt", tmp_path / "results", begun="*/*/turns.jsonl")


def start_recording(words, tmp_path) -> int:
    """See `start_command`; its first question is on disk."""
    folder = tmp_path / "results"
    words = [word for word in words if not word.startswith(("policy", "results", "acceptance"))]
    return start_command(["record", *words, f"--out={folder}"], tmp_path / "errors.txt", folder, begun="*/parts/[0-9]*")


@pytest.mark.parametrize(
    ("start", "kept"), [(start_run, "complete answers are kept in "), (start_recording, "what was written is kept")]
)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_asked_to_end_it_ends_with_a_sentence_that_says_how_to_go_on(words, tmp_path, start, kept, number):
    assert signal_and_wait(start(words, tmp_path), number) == 128 + number
    err = (tmp_path / "errors.txt").read_text()
    assert kept in err.splitlines()[-1] and err.endswith("the same command continues from there.\n"), err
    assert "Traceback" not in err and err.count("Interrupted") == 1
    assert not list(tmp_path.rglob(".*.part")) and not samplers(tmp_path)


def test_a_signal_that_is_ignored_stays_ignored():
    """As under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stopping_quietly():
            os.kill(os.getpid(), signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        with pytest.raises(Stopped), stopping_quietly():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_killed_run_goes_on_and_a_second_process_is_refused_meanwhile(words, make_config, tmp_path):
    child = start_run(words, tmp_path)
    with pytest.raises(UserError, match="Another process is already running .*: wait for it, or choose another folder"):
        Runner(make_config(*words)).run()
    assert signal_and_wait(child, signal.SIGKILL) == -signal.SIGKILL
    config = make_config(*words)
    runner = Runner(config)
    turns = {label: len(turns) for label, turns in logged(runner).items()}
    assert 0 < sum(turns.values()) < 12
    runner.run()
    config.results = str(tmp_path / "whole")
    whole = Runner(config)
    whole.run()
    assert logged(runner) == logged(whole)
    until = time.monotonic() + 10
    while samplers(tmp_path):  # the killed run's own ends when it finds its parent gone
        assert time.monotonic() < until
        time.sleep(0.1)
