"""What each kind of error means to whoever started a command."""

import errno

import pytest

from gammatune.errors import UserError, as_written, exit_code_of, plain_name, write_as


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (UserError("Say which."), 2, "gammatune: Say which.\n"),
        (KeyboardInterrupt(), 130, "gammatune: Interrupted; what was written is kept, and the same command continues "),
        (KeyboardInterrupt("Stopped in mid-answer."), 130, "gammatune: Stopped in mid-answer.\n"),
        (
            OSError(errno.ENOSPC, "No space left", "a.csv"),
            2,
            "gammatune: Cannot write a.csv (No space left on device): free some ",
        ),
    ],
)
def test_what_a_user_can_correct_is_one_sentence_and_a_code(capsys, error, code, sentence):
    assert exit_code_of(error, "gammatune: ", folder_choice="--out") == code
    told = capsys.readouterr().err
    assert told.startswith(sentence) and told.count("\n") == 1
    assert ("another folder with --out;" in told) == isinstance(error, OSError)


@pytest.mark.parametrize("error", [ZeroDivisionError("x"), OSError(errno.EIO, "broken disk"), ValueError("x")])
def test_a_defect_keeps_its_traceback(error):
    with pytest.raises(type(error)) as raised:
        exit_code_of(error)
    assert raised.value is error


def test_keys_are_called_what_the_user_called_them():
    write_as("policy.Short", "policy.a_module.Short")
    assert as_written("policy.Short") == "policy.a_module.Short"
    assert as_written("policy.Short.gamma") == "policy.a_module.Short.gamma"
    assert as_written("policy.Shorter.gamma") == "policy.Shorter.gamma"


@pytest.mark.parametrize("text", ["fixed-5", "smollm2-draft-135m", "été", "a.b+c", "_x"])
def test_a_plain_name_is_returned(text):
    assert plain_name(text, "tasks.name") == text


@pytest.mark.parametrize(
    "text", ["", ".", "..", "../x", "/abs", "a/b", "a\\b", ".hidden", "-x", "a b", "a\n", "a\0b", "x" * 101]
)
def test_what_could_leave_its_folder_is_no_plain_name(text):
    with pytest.raises(UserError, match=r"^tasks\.name '.*' is no plain name: .*\.$"):
        plain_name(text, "tasks.name")
