"""Every setting reaches the run, and every slip is refused in one sentence before anything heavy is loaded."""

import subprocess
import sys
from dataclasses import fields
from functools import reduce
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import MissingConfigException
from omegaconf import OmegaConf
from other_settings import ONLY_ONE, OTHER_SETTINGS, RULES, other_values

from gammatune.compose import compose_config, read_config, start_arms
from gammatune.config import Checkpoint, DecodeConfig, PairConfig, RuntimeConfig, Shape, TasksConfig
from gammatune.errors import explain
from gammatune.policies import POLICIES
from gammatune.policies.base import settings_of, with_settings
from gammatune.runs.runner import Runner
from gammatune.runs.store import open_run

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "gammatune" / "configs"
OPTIONS = [(path.parent.name, path.stem) for path in sorted(CONFIGS.glob("*/*.yaml"))]
POLICY_NAMES = ", ".join(sorted(POLICIES))

# Another valid value for every field, with what else it needs
DECODE = {"name": "x", "max_new_tokens": 7, "temperature": 0.5, "top_p": 0.9, "top_k": 5}
TASKS = {"name": "x", "source": "demo", "path": "q.jsonl", "checksum": "a" * 64, "include": "[qa]", "limit": 1, "seed": 3}
TASKS["overlong"] = "skip"
RUNTIME = {"name": "eager", "device": "cpu", "dtype": "bf16", "threads": 3}
SHAPE = {
    "hidden_size": 128,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 250,
    "max_position_embeddings": 256,
    "rope_theta": 5000.0,
    "tie_word_embeddings": True,
    "head_dim": 32,
    "model_type": "qwen2",
}
CHECKPOINT = {"id": "x", "revision": "main", "path": "/x", "quantization": "int8", "cpu_quantization": "int8", "gated": True}
DRAFT_ONLY = {"vocabulary": 9, "ranking": "/x.npy", "borrows_tables": True}
TARGET_ONLY = {"ends": "[x]"}
PAIR = {"name": "x", "source": "hub", "dtype": "bf16", "cpu_dtype": "bf16", "chat_template": "vicuna", "weights": "random"}
POLICY_FIELDS = [(name, f.name) for name in RULES for f in fields(POLICIES[name].rule)]


def names(schema) -> set:
    return {f.name for f in fields(schema)}


def test_the_tables_above_name_every_field():
    assert names(DecodeConfig) == set(DECODE) and names(TasksConfig) == set(TASKS) and names(RuntimeConfig) == set(RUNTIME)
    assert names(Shape) == set(SHAPE) and names(Checkpoint) == {*CHECKPOINT, *DRAFT_ONLY, *TARGET_ONLY, "shape", "gguf"}
    assert names(PairConfig) == {*PAIR, "target", "draft"}
    assert {key for _, key in POLICY_FIELDS} == set(OTHER_SETTINGS)


@pytest.mark.parametrize(("group", "name"), OPTIONS)
def test_every_shipped_file_composes_and_starts_with_its_command(make_config, group, name):
    config = make_config(f"{group}={name}")
    assert f"\n# python run.py {group}={name}" in (CONFIGS / group / f"{name}.yaml").read_text()
    if group != "experiment":
        assert getattr(config, group).name == name


def test_every_policy_composes_to_its_defaults_and_knows_its_name(make_config):
    composed = make_config(f"policy=[{','.join(POLICIES)}]").policy
    assert {name: (type(policy), policy.name, settings_of(policy)) for name, policy in composed.items()} == {
        name: (option.rule, name, settings_of(option())) for name, option in POLICIES.items()
    }


@pytest.mark.parametrize("path", sorted((CONFIGS / "experiment").glob("*.yaml")), ids=lambda path: path.stem)
def test_an_experiment_beats_the_defaults_and_the_command_line_beats_it(compose_run, path):
    written = OmegaConf.load(path)
    groups = {key.split()[-1].strip("/"): choice for entry in written.pop("defaults") for key, choice in entry.items()}
    plain, composed = compose_run(), compose_run(f"experiment={path.stem}")
    assert OmegaConf.masked_copy(OmegaConf.merge(composed, written), list(composed)) == composed
    assert composed != plain
    assert composed.tasks.name == groups["tasks"] and list(composed.policy) == list(groups["policy"])
    told = compose_run(
        f"experiment={path.stem}", "tasks=qa", "policy=fixed", "decode.max_new_tokens=5", "starts=[2]", "tasks.limit=9"
    )
    assert (told.tasks.name, list(told.policy), told.decode.max_new_tokens) == ("qa", ["fixed"], 5)
    assert (told.starts, told.tasks.limit) == ([2], 9)


PLAIN_FIELDS = {
    **{f"decode.{key}": value for key, value in DECODE.items()},
    **{f"runtime.{key}": value for key, value in RUNTIME.items()},
    **{f"model_pair.{key}": value for key, value in PAIR.items()},
    **{f"model_pair.{role}.{key}": value for role in ("target", "draft") for key, value in CHECKPOINT.items()},
    **{f"model_pair.draft.{key}": value for key, value in DRAFT_ONLY.items()},
    **{f"model_pair.target.{key}": value for key, value in TARGET_ONLY.items()},
    **{f"model_pair.{role}.shape.{key}": value for role in ("target", "draft") for key, value in SHAPE.items()},
    "starts": "[4,5]",
    "repetitions": 3,
    "seed": 8,
    "results": "elsewhere",
    "plan": True,
    "acceptance": False,
}


def test_every_override_reaches_its_field(make_config):
    tasks = {f"tasks.{key}": value for key, value in TASKS.items()} | {"tasks.source": "specbench"}  # which has a path
    together = PLAIN_FIELDS | tasks
    config = make_config(*(f"{key}={value}" for key, value in together.items()))
    for key, value in together.items():
        assert str(reduce(getattr, key.split("."), config)).replace(" ", "").replace("'", "") == str(value), key


def test_an_override_reaches_its_policy_and_names_another_cell(make_config):
    """Every setting of every rule at once, against the defaults; then each alone names a cell of its own."""
    changes = [(name, key, other_values(name, key)[0]) for name, key in POLICY_FIELDS if (name, key) not in ONLY_ONE]
    words = [f"policy.{name}.{key}={value}".replace(" ", "") for name, key, value in changes]
    changed = make_config(f"policy=[{','.join(RULES)}]", *words).policy
    for name, key, value in changes:
        plain = POLICIES[name]()
        assert getattr(changed[name], key) == value != getattr(plain, key), (name, key)
        assert cell_name(plain) != cell_name(with_settings(plain, **{key: value})), (name, key)


@pytest.mark.parametrize(
    ("words", "identity"),
    [
        (["drafter=suffix", "drafter.suffix.max_tree_depth=9"], {"name": "suffix", "max_tree_depth": 9}),
        (["drafter=lookup", "drafter.longest=4"], {"name": "lookup", "longest": 4}),
        (["drafter=[lookup]", "drafter.lookup.longest=4"], {"name": "lookup", "longest": 4}),
        (["drafter=[model,suffix]"], [{"name": "model"}, {"name": "suffix", "max_tree_depth": 24}]),
        (
            ["drafter=[lookup,suffix,model]", "drafter.lookup.longest=7", "drafter.suffix.min_token_prob=0"],
            [{"name": "lookup", "longest": 7}, {"name": "suffix", "min_token_prob": 0.0}, {"name": "model"}],
        ),
    ],
)
def test_a_drafter_or_a_list_of_them_composes_with_its_settings(words, identity):
    found = compose_config([*words, "policy=fixed"]).drafter.identity
    wanted = {"members": identity} if isinstance(identity, list) else identity
    pairs = zip(found["members"], wanted["members"], strict=True) if "members" in wanted else [(found, wanted)]
    assert all(each.items() >= other.items() for each, other in pairs)


def test_a_preset_is_another_cell_than_the_same_numbers_under_the_rules_name():
    assert cell_name(POLICIES["tuned_fixed"]()).startswith("tuned_fixed-1-")
    assert cell_name(POLICIES["tuned_fixed"]()).split("-")[-1] != cell_name(POLICIES["fixed"](gamma=1)).split("-")[-1]


def cell_name(policy) -> str:
    (cell,) = open_run(Path("x"), "x", {}, start_arms(policy, [])).cells
    return cell.folder.name


@pytest.fixture(scope="module")
def folder_of(compose_run, small):
    """folder_of(*overrides) -> name of the run's folder. Keys are set on one composed config, groups compose anew."""
    plain = compose_run(*small, "policy=fixed")

    def name(*overrides):
        groups = any(word.startswith(("policy=", "tasks=")) for word in overrides)
        if groups:
            composed = compose_run(*small, "policy=fixed", *overrides)
        else:
            composed = OmegaConf.merge(plain, OmegaConf.from_dotlist(list(overrides)))
        return Runner(read_config(composed)).folder.path.name

    return name


HASHED = [(f"decode.{key}={value}",) for key, value in DECODE.items() if key != "name"] + [
    ("decode.name=x",),
    ("seed=8",),
    ("starts=[4]",),
    ("policy=[fixed,gammatune]",),
    ("runtime.dtype=fp16",),
    ("runtime.threads=1",),
    ("tasks.name=x",),
    ("tasks.include=[qa]",),
    ("tasks.limit=1",),
    ("tasks.limit=2", "tasks.seed=1"),
    ("tasks=demo", "tasks.path=null", "tasks.checksum=pinned", "tasks.overlong=skip"),
    ("model_pair.name=x",),
    ("model_pair.cpu_dtype=bf16",),
    ("model_pair.draft.vocabulary=9",),
    ("model_pair.draft.vocabulary=10",),
    ("model_pair.draft.shape.num_hidden_layers=2",),
    *(
        (f"model_pair.target.shape.{key}={value}", f"model_pair.draft.shape.{key}={value}")
        for key, value in SHAPE.items()
        if key != "num_hidden_layers"
    ),
]


def test_whatever_changes_a_result_changes_the_name_of_its_folder(folder_of):
    found = {overrides: folder_of(*overrides) for overrides in [(), *HASHED]}
    assert len(set(found.values())) == len(found)


@pytest.mark.parametrize(
    "override", ["results=elsewhere", "plan=true", "tasks.overlong=skip", "repetitions=5", "model_pair.dtype=bf16"]
)
def test_what_changes_no_result_does_not(folder_of, override):
    """model_pair.dtype counts on a GPU only; tasks.path is covered where runs are named by content."""
    assert folder_of(override) == folder_of()


REFUSED = {
    "policy=gamatune": f"policy=gamatune is not known: choose one of {POLICY_NAMES}.",
    "policy=[fixed,gamatune]": f"policy=gamatune is not known: choose one of {POLICY_NAMES}.",
    "policy=": f"policy= is not known: choose one of {POLICY_NAMES}.",
    "policy=null": "policy=null is not known: choose one of ",
    "model_pair=vicuna": "model_pair=vicuna is not known: choose one of llama-3.1-8b-70b, ",
    "tasks=qq": "tasks=qq is not known: choose one of demo, ",
    "decode=beam": "decode=beam is not known: choose one of greedy, sample.",
    "runtime=fast": "runtime=fast is not known: choose one of ",
    "experiment=paper": "experiment=paper is not known: choose one of demo, paper_grid, reference.",
    "polcy=fixed": "The run has no setting polcy: choose one of model_pair, tasks, policy, ",
    "+polcy=fixed": "The run has no setting polcy: choose one of model_pair, tasks, policy, ",
    "policy.fixed.gama=3": "policy.fixed has no setting gama: choose one of carry, stop_token, gamma.",
    "+policy.fixed.gama=3": "policy.fixed has no setting gama: choose one of carry, stop_token, gamma.",
    "+policy.foo.gamma=3": "policy.foo is no policy: choose from ",
    "+tasks.lmit=3": "tasks has no setting lmit: choose one of name, source, ",
    "model_pair.target.shape.width=3": "model_pair.target.shape has no setting width: choose one of hidden_size, ",
    "policy.fixed.gamma=abc": "policy.fixed.gamma is wrong: Value 'abc' of type 'str' could not be converted to Integer.",
    "policy.fixed.gamma=2.5": "policy.fixed.gamma is wrong: Value '2.5' of type 'float' could not be converted to Integer.",
    "starts=3": "starts is wrong: Invalid value assigned: int is not a ListConfig, list or tuple.",
    "plan=maybe": "plan is wrong: Value 'maybe' is not a valid bool",
    "policy.fixed.gamma=-1": "Fixed.gamma=-1 is out of range: it must be 0 or more.",
    "policy.gammatune.gamma=0": "GammaTune.gamma=0 is out of range",
    "policy.gammatune.eta=1.5": "GammaTune.eta=1.5 is out of range: it must be between 0 and 1.",
    "policy.gammatune.eta=nan": "GammaTune.eta=nan is out of range: it must be between 0 and 1.",
    "policy.gammatune.delta=-1": "GammaTune.delta=-1 is out of range: it must be 0 or more.",
    "policy.gammatune.gamma_min=0": "GammaTune.gamma_min=0 is out of range: it must be 1 or more.",
    "policy.gammatune.gamma_max=0": "GammaTune.gamma_max=0 is out of range: it must be gamma_min (1) or more.",
    "policy.gammatune.full=all": "GammaTune.full=all is out of range: it must be one of planned, drafted.",
    "policy.gammatune.clip_expand=yes": "GammaTune.clip_expand=",
    "policy.gammatune.carry=always": "GammaTune.carry=always is out of range: it must be one of turn, question, never.",
    "policy.gammatune_plus.tau=1.1": "GammaTunePlus.tau=1.1 is out of range: it must be between 0 and 1.",
    "policy.gammatune_plus.stop_token=drop": "GammaTunePlus.stop_token=drop is out of range",
    "policy=hf_confidence policy.hf_confidence.threshold=-0.1": "HFConfidence.threshold=-0.1 is out of range",
    "policy=hf_heuristic policy.hf_heuristic.gamma=0": "HFHeuristic.gamma=0 is out of range: it must be 1 or more.",
    "decode.temperature=-1": "decode.temperature=-1.0 is out of range: it must be 0 (greedy), or between 1e-30 and 1e+30",
    "decode.top_p=0": "decode.top_p=0.0 is out of range: it must be between 1e-30, which fp32 can tell from 0, and 1.",
    "decode.top_p=1.01": "decode.top_p=1.01 is out of range",
    "decode.top_k=-1": "decode.top_k=-1 is out of range: it must be 0 (off) or more.",
    "decode.max_new_tokens=0": "decode.max_new_tokens=0 is out of range: it must be 1 or more.",
    "tasks.limit=0": "tasks.limit=0 must be 1 or more (or null for all).",
    "tasks.include=[poems]": "tasks.include names poems, which is no task or category: choose from ",
    "repetitions=0": "repetitions=0 must be 1 or more and at most 1,000.",
    "starts=[1,-2]": "starts=[1, -2] must hold numbers of 0 or more.",
    "starts=[0,1]": "GammaTune.gamma=0 is out of range: it must be 1 or more (fixed gamma 0 is policy=ar).",
    "starts=[3,4,3]": "starts=[3, 4, 3] names a gamma twice: list each once.",
    "runtime.threads=0": "runtime.threads=0 must be 1 or more and at most ",
    "runtime.dtype=fp8": "runtime.dtype=fp8 is not known: choose one of None, fp32, fp16, bf16.",
    "runtime.name=fast": "runtime.name=fast is not known: choose one of ",
    "model_pair.chat_template=alpaca": "model_pair.chat_template=alpaca is not known: choose one of tokenizer, vicuna, ",
    "model_pair.target.quantization=int4": "model_pair.*.quantization=int4 is not known: choose one of None, int8.",
    "model_pair.draft.vocabulary=0": "model_pair.draft.vocabulary=0 must be 1 or more (or null for all tokens).",
    "model_pair.draft.vocabulary=all": "model_pair.draft.vocabulary is wrong: Value 'all' of type 'str' could not be",
    "model_pair.target.vocabulary=9": "model_pair.target.vocabulary=9 would change the answers: set it to null, and ",
    "policy.fixed.gamma=[": "The argument policy.fixed.gamma=[ cannot be read: write a list as policy.fixed.gamma=[A,B]",
    "policy": "The argument policy cannot be read: write KEY=VALUE",
}


@pytest.mark.parametrize(("arguments", "sentence"), REFUSED.items())
def test_a_slip_is_refused_in_one_sentence(arguments, sentence):
    with pytest.raises(Exception) as error:  # noqa: B017, PT011  Hydra's and OmegaConf's errors have no parent in common
        compose_config(arguments.split())
    told = explain(error.value)
    assert told.startswith(sentence) and "\n" not in told


@pytest.mark.parametrize("arguments", ["policy=gamatune", "policy.fixed.gama=3", "starts=[0,1]", "policy"])
def test_run_tells_a_slip_before_it_does_anything(call_run, monkeypatch, arguments):
    """One of each kind: a choice, a key, a value that only the checked objects refuse, and a word that is none."""
    monkeypatch.setitem(sys.modules, "gammatune.runs.runner", None)
    ended = call_run(arguments)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith(f"gammatune: {REFUSED[arguments]}")
    assert ended.err.count("\n") == 1
    assert not any(Path.cwd().iterdir())


def test_a_config_that_is_missing_is_no_choice_of_a_group():
    with pytest.raises(MissingConfigException) as error:
        compose_config([], name="absent")
    assert explain(error.value) == f"absent is missing from {CONFIGS}: install gammatune again."


def test_a_slip_is_refused_before_torch_is_imported():
    """One argument is refused while composing, the other once the config is an object."""
    program = (
        "import runpy, sys\n"
        "for slip in ('policy=gamatune', 'starts=[0]'):\n"
        "    sys.argv = ['run.py', slip]\n"
        "    try: runpy.run_path('run.py', run_name='__main__')\n"
        "    except SystemExit as ended: assert ended.code == 2\n"
        "sys.exit('torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and len(done.stderr.splitlines()) == 2, done.stderr


def test_hydra_is_left_clean(make_config):
    make_config()
    assert not GlobalHydra.instance().is_initialized()
