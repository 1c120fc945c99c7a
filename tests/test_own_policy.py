"""A policy from outside the package: a file in the current folder, named by its path, or an installed plug-in."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from gammatune import cli
from gammatune.compose import compose_config, plan_arms
from gammatune.errors import UserError, explain
from gammatune.policies import POLICIES, Policy
from gammatune.registry import Registry
from gammatune.report import style
from gammatune.report.names import policy_name
from gammatune.runs.store import read_run
from gammatune.studies.replay_check import check_replay

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "results" / "reference" / "smollm2-draft-135m-demo-2828959329"


def example(page: str) -> str:
    """The policy that a page shows."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    return next(block for block in blocks if "class Halving" in block)


HALVING = example("README.md")


def test_both_pages_show_the_same_policy():
    assert example("docs/policies.md") == HALVING


OTHERS = {
    "others.py": """
        from dataclasses import dataclass, field
        from typing import ClassVar

        from gammatune.policies import Policy
        from gammatune.policies.fixed import Fixed

        @dataclass
        class Halving(Fixed):
            title: ClassVar[str] = "halving, always"
            colour: ClassVar[str] = "#123456"

        @dataclass
        class Named(Fixed):
            name: ClassVar[str] = "my_fixed"

        class Undecorated(Policy):
            gamma: int = 3

        @dataclass
        class Odd(Policy):
            seen: set = field(default_factory=set)

        @dataclass
        class Unmade(Policy):
            gamma: int = 3

            def reset(self):
                self.share = 1 / (self.gamma - 3)

        def plan(): ...
        """,
    "torn.py": "x = 1\nclass Halving(:\n    pass\n",
    "lacking.py": "import json\n\nimport no_such_library\n",
    "failing.py": "\n\n\nlength = 1 / 0\n",
    "empty.py": "",
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with the files above; what is imported from it is forgotten afterwards."""
    known = set(sys.modules)
    for name, text in (OTHERS | {"my_module.py": HALVING}).items():
        (tmp_path / name).write_text(dedent(text))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    yield tmp_path
    for name in set(sys.modules) - known:
        if Path(getattr(sys.modules[name], "__file__", None) or "/").parent == tmp_path:
            del sys.modules[name]


def test_a_file_in_the_current_folder_is_a_policy_of_a_run(folder, small):
    """In a process of its own, as the docs tell it."""
    command = [sys.executable, ROOT / "run.py", "policy=[fixed,my_module.Halving]", "policy.my_module.Halving.gamma=6"]
    done = subprocess.run([*command, *small, "results=r"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    arms = json.loads(done.stdout.splitlines()[-1])["arms"]
    assert [(arm["policy"], arm["exact"]) for arm in arms] == [("ar", True), ("fixed-5", True), ("Halving-6", True)]
    assert "\nHalving " in done.stdout


def test_its_replay_is_checked_where_its_class_is_known(folder, call_run, small):
    (Path.cwd() / "my_module.py").write_text(HALVING)
    ended = call_run(*small, "policy=my_module.Halving", f"results={folder / 'r'}")
    assert ended.code == 0
    run = read_run(ended.last_line["run_dir"])
    assert [r.state for r in run.arm("Halving-8").turns[0].rounds][0] == {"gamma_now": 8}
    assert "1 drafting arms are identical to their replay" in check_replay(run).sentence()
    POLICIES.dotted.clear()  # as in another process, which has not been told of it
    found = check_replay(read_run(run.path))
    assert found.rounds == 0 and "Not checked: Halving-8 (policy Halving is not known here" in found.sentence()


def test_a_sweep_of_runs_takes_it(folder, call_run, small):
    (Path.cwd() / "my_module.py").write_text(HALVING)
    words = ("policy=my_module.Halving", "policy.my_module.Halving.gamma=2,3")
    ended = call_run("-m", *small, *words, f"results={folder / 'r'}")
    assert ended.code == 0
    lines = [json.loads(line) for line in ended.out.splitlines() if line.startswith("{")]
    assert [line["arms"][1]["policy"] for line in lines] == ["Halving-2", "Halving-3"]


def test_headline_and_sweep_take_it(folder, capfd):
    table = [str(TABLE), "--cost-ratio", "10"]
    assert cli.main(["headline", *table, "--json", "policy=my_module.Halving", "policy.my_module.Halving.gamma=2"]) == 0
    assert list(json.loads(capfd.readouterr().out)) == ["ar", "fixed", "oracle", "Halving"]
    assert cli.main(["sweep", *table, "policy.my_module.Halving.gamma=1,2"]) == 0
    assert "\nWinner: policy.my_module.Halving.gamma=" in capfd.readouterr().out


def test_names_are_the_classes_own_and_never_another_ones(folder):
    chosen = "policy=[fixed,my_module.Halving,others.Halving,others.Named]"
    labels = [arm.label for arm in plan_arms(compose_config([chosen, "policy.others.Halving.gamma=2"]))]
    assert labels == ["ar", "fixed-5", "Halving-8", "others_Halving-2", "my_fixed-5"]
    titles = [policy_name(name) for name in ("others_Halving", "my_fixed", "Halving")]
    assert titles == ["halving, always", "my_fixed", "Halving"]
    assert style.colour("others_Halving") == "#123456"
    assert list(compose_config(["policy=gammatune.policies.fixed.Fixed"]).policy) == ["fixed"]
    assert "Halving" not in POLICIES and "Halving" not in POLICIES.options


REFUSED = {
    "policy.my_module.Halving.gama=3": "policy.my_module.Halving has no setting gama: choose one of carry, stop_token, ",
    "+policy.my_module.Halving.gama=3": "policy.my_module.Halving has no setting gama: choose one of carry, stop_token, ",
    "policy.my_module.Halving.gamma=x": "policy.my_module.Halving.gamma is wrong: Value 'x' of type 'str' could not be ",
    "policy.my_module.Halving.carry=day": "Halving.carry=day is out of range: it must be one of turn, question, never.",
    "policy.my_modul.Halving.gamma=3": "policy=my_modul.Halving: there is no module my_modul: put my_modul.py into the ",
    "policy=my_modul.Halving": "policy=my_modul.Halving: there is no module my_modul: put my_modul.py into the current ",
    "policy=my_module.inner.Halving": "policy=my_module.inner.Halving: there is no module my_module.inner: put ",
    "policy=my_module.Halvin": "policy=my_module.Halvin: my_module has no class Halvin: choose one of my_module.Halving.",
    "policy=empty.Halving": "policy=empty.Halving: empty has no class Halving: define one in {folder}/empty.py.",
    "policy=others.plan": "policy=others.plan is no policy: derive its class from gammatune.policies.Policy.",
    "policy=others.ClassVar": "policy=others.ClassVar is no policy: derive its class from gammatune.policies.Policy.",
    "policy=others.Undecorated": "policy=others.Undecorated is no dataclass, so its settings are unknown: write @dataclass ",
    "policy=others.Odd": "policy=others.Odd has a setting that no config can hold (",
    "policy=torn.Halving": "policy=torn.Halving: {folder}/torn.py, line 2, cannot be read (invalid syntax): correct ",
    "policy=lacking.Halving": "policy=lacking.Halving: {folder}/lacking.py, line 3, fails with ModuleNotFoundError: ",
    "policy=others.Unmade": "policy.others.Unmade cannot be made: ZeroDivisionError: division by zero.",
    "policy=failing.Halving": "policy=failing.Halving: {folder}/failing.py, line 4, fails with ZeroDivisionError: ",
}


@pytest.mark.parametrize(("word", "sentence"), REFUSED.items())
def test_what_is_wrong_with_it_is_told_in_one_sentence(folder, word, sentence):
    with pytest.raises(Exception) as error:  # noqa: B017, PT011  Hydra's and OmegaConf's errors have no parent in common
        compose_config([word] if word.startswith("policy=") else ["policy=my_module.Halving", word])
    told = explain(error.value)
    assert told.startswith(sentence.format(folder=folder)) and "\n" not in told


def test_run_tells_it_too(folder, call_run):
    ended = call_run("policy=no_such.Halving")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("gammatune: policy=no_such.Halving: there is no module no_such")
    assert ended.err.count("\n") == 1


PLUGIN = """\
[gammatune.policies]
halving = my_module:Halving
fixed = others:Halving
undecorated = others:Undecorated
lacking = lacking:Halving
"""


@pytest.fixture
def installed(folder):
    """The folder as an installed distribution with entry points."""
    about = folder / "own_policies-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: own-policies\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(PLUGIN)
    return folder


def test_an_installed_plug_in_is_a_choice(installed, tmp_path_factory):
    """From another folder, with broken ones beside it."""
    words = ["headline", TABLE, "--cost-ratio", "10", "--json", "policy=[fixed,halving]", "policy.halving.gamma=4"]
    done = subprocess.run(
        [sys.executable, "-m", "gammatune", *words],
        cwd=tmp_path_factory.mktemp("elsewhere"),
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(installed), str(ROOT)])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert list(json.loads(done.stdout)) == ["ar", "fixed", "oracle", "halving"]


def test_a_broken_plug_in_is_told_where_it_is_named_and_a_shipped_name_is_not_taken_over(installed, monkeypatch):
    monkeypatch.syspath_prepend(installed)
    registry = Registry("policy", Policy, [POLICIES["fixed"].rule], "gammatune.policies", several=True)
    assert list(registry.plugins.found) == ["halving", "fixed"]
    assert registry.options["fixed"].rule is POLICIES["fixed"].rule
    assert registry.read_words(["policy=[fixed,halving]"]) == ["policy=[fixed,halving]"]
    for name, reason in (("undecorated", "is no dataclass"), ("lacking", "lacking.py, line 3, fails with Module")):
        with pytest.raises(UserError, match=f"^policy={name} of the installed own-policies: .*{reason}"):
            registry.read_words([f"policy={name}"])


def test_a_group_with_one_choice_has_its_settings_under_its_own_name(folder):
    """As for drafters: drafter=my_module.X drafter.my_module.X.gamma=3 is drafter=X drafter.gamma=3."""
    registry = Registry("drafter", Policy, [POLICIES["fixed"].rule], "gammatune.none")
    words = ["drafter=my_module.Halving", "drafter.my_module.Halving.gamma=3", "drafter.carry=never"]
    others = ["policy=[a.B]", "--multirun"]
    assert registry.read_words([*words, *others]) == ["drafter=Halving", "drafter.gamma=3", "drafter.carry=never", *others]


def test_a_group_may_have_one_choice_or_a_list(folder):
    """As drafters have: of one, settings stand under the group, of a list under each name."""
    registry = Registry("drafter", Policy, [POLICIES["fixed"].rule], "gammatune.none", several=None)
    for words, read in (
        (["drafter=fixed", "drafter.fixed.gamma=3"], ["drafter=fixed", "drafter.gamma=3"]),
        (["drafter=fixed", "drafter.gamma=3"], ["drafter=fixed", "drafter.gamma=3"]),
        (["drafter=[fixed]", "drafter.fixed.gamma=3"], ["drafter=[fixed]", "drafter.fixed.gamma=3"]),
        (["drafter=my_module.Halving", "drafter.fixed.gamma=3"], ["drafter=Halving", "drafter.fixed.gamma=3"]),
        (
            ["drafter=[fixed,my_module.Halving]", "drafter.my_module.Halving.gamma=3", "drafter.fixed.gamma=2"],
            ["drafter=[fixed,Halving]", "drafter.Halving.gamma=3", "drafter.fixed.gamma=2"],
        ),
    ):
        assert registry.read_words(words) == read


def test_a_policy_from_elsewhere_has_a_colour_that_no_shipped_one_has():
    """Told apart by eye, and the same in every figure."""
    shipped = [option.colour for option in POLICIES.values()]
    assert len(set(shipped)) == len(POLICIES) and style.colour("Halving") in style.OTHERS
    assert min(distance(other, colour) for other in style.OTHERS for colour in shipped) > 50
    assert {style.colour(f"policy {number}") for number in range(100)} == set(style.OTHERS)


def distance(one: str, other: str) -> float:
    """Of two colours by "redmean", close to what the eye tells apart: 765 from black to white."""
    (r1, g1, b1), (r2, g2, b2) = ([int(colour[place : place + 2], 16) for place in (1, 3, 5)] for colour in (one, other))
    red = (r1 + r2) / 2
    return ((2 + red / 256) * (r1 - r2) ** 2 + 4 * (g1 - g2) ** 2 + (2 + (255 - red) / 256) * (b1 - b2) ** 2) ** 0.5


#: class -> (its body, what done.json says of its arm, empty where nothing is wrong)
MISBEHAVING = {
    "Negative": ("def plan(self): return -3", "plan() returned -3, but gamma must be a whole number of 0 or more."),
    "Half": ("def plan(self): return 2.5", "plan() returned 2.5, but gamma must be"),
    "NotANumber": ("def plan(self): return float('nan')", "plan() returned nan, but gamma must be"),
    "Endless": ("def plan(self): return float('inf')", "plan() returned inf, but gamma must be"),
    "Huge": ("def plan(self): return 10**9", ""),
    "Beyond": ("def plan(self): return 10**30", "plan() returned 1000000000000000000000000000000, but gamma must be"),
    "OfNumpy": ("def plan(self): return np.int64(3)", ""),
    "OfTorch": ("def plan(self): return torch.tensor(3)", ""),
    "Nothing": ("def plan(self): return None", "plan() returned None, but gamma must be"),
    "Text": ("def plan(self): return '3'", "plan() returned '3', but gamma must be"),
    "Missing": ("def plan(self): return {}['length']", "plan() raised KeyError: 'length'."),
    "Zero": ("def plan(self): return 1 // 0", "plan() raised ZeroDivisionError: integer division or modulo by zero."),
    "Lost": ("def plan(self): return self.length", "plan() raised AttributeError: "),
    "Leaving": ("def plan(self): sys.exit('enough')", "plan() raised SystemExit: enough."),
    "Recursive": ("def plan(self): return self.plan()", "plan() raised RecursionError: maximum recursion depth exceeded"),
    "Changing": ("def observe(self, r): r.accepted = r.drafted = 99", ""),
    "Keeping": ("def observe(self, r): self.last = r", "observe() kept the Round"),
    "NumpyState": ("def state(self): return {'mean': np.float32(0.5), 'n': np.int64(2)}", ""),
    "WrongState": (
        "def state(self): return {'mean': float('nan')}",
        "state() returned nan for 'mean', but it must be a finite",
    ),
    "NoState": ("def state(self): pass", "state() returned None, but it must be a dict of numbers."),
    "NumpyBool": ("watches_draft = True\n    def keep_drafting(self, s): return np.bool_(s.top1 > 0.5)", ""),
    "NoAnswer": (
        "watches_draft = True\n    def keep_drafting(self, s): pass",
        "keep_drafting() returned None, but it must be True or False.",
    ),
    "Resetting": (
        "def reset(self):\n        if hasattr(self, 'used'): 1 / 0\n    def plan(self): self.used = 1; return 2",
        "reset() raised ZeroDivisionError",
    ),
    "Torn": ("@property\n    def drafts(self): raise OSError('gone')", "drafts raised OSError: gone."),
    "Printing": ("def plan(self): print('planning'); return 2", ""),
    "Undrafting": ("drafts = False", "plan() returned 4, but a policy whose drafts is False must return 0."),
    "Decimal": ("gamma: float = 2.5\n    def plan(self): return 2", ""),
    "Sleeping": ("def observe(self, r): time.sleep(0.01)", ""),
}


def write_misbehaving(folder: Path) -> str:
    """modes.py with the classes above; the word that chooses all of them."""
    imports = "sys", "time", "torch", "numpy as np", "dataclasses", "gammatune.policies.fixed"
    text = "".join(f"import {name}\n" for name in imports)
    for name, (body, _) in MISBEHAVING.items():
        text += f"@dataclasses.dataclass\nclass {name}(gammatune.policies.fixed.Fixed):\n    gamma: int = 4\n    {body}\n"
    (folder / "modes.py").write_text(text)
    return f"policy=[fixed,{','.join(f'modes.{name}' for name in MISBEHAVING)}]"


def test_a_policy_that_misbehaves_harms_only_its_own_arm(folder, call_run, small):
    """All kinds side by side in one run: the others are answered, judged, replayed and reported."""
    words = [write_misbehaving(Path.cwd()), *small, "tasks.limit=2", f"results={folder / 'r'}"]
    ended = call_run(*words)
    assert ended.code == 2 and "Traceback" not in ended.err
    run = read_run(ended.last_line["run_dir"])
    good = {"ar", "fixed", *(name for name, (_, wrong) in MISBEHAVING.items() if not wrong)}
    exact = {arm["policy"].partition("-")[0] for arm in ended.last_line["arms"] if arm["exact"]}
    assert exact == {arm.policy for arm in run.arms} == good
    for cell in json.loads((run.path / "run.json").read_text())["arms"]:
        done = json.loads((run.path / cell["cell"] / "done.json").read_text())
        wrong = MISBEHAVING.get(cell["policy"], ("", ""))[1]
        told = re.sub(r"^Question \d, turn \d of \d: ", "", done["error"] or "")
        assert told.startswith(f"Policy {cell['policy']}: {wrong}") if wrong else not told, told
    check = check_replay(run)
    assert (check.arms, check.differing) == (len(good) - 1, 0)
    assert re.search(r"\nSleeping-4 spends \d\d% of its rounds in its own code \(1\d\.\d ms a round\)\.\n", ended.out)
    assert "Huge-4 spends" not in ended.out
