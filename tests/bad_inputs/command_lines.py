"""Words that a command cannot take."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from random import Random

from bad_inputs.case import SMALL, Case, write_questions

HUGE = "9" * 30
ENDLESS = "9" * 5000  # more digits than Python reads
PLAN = ("plan=true", "model_pair=tiny-random", "runtime=eager", "tasks.overlong=skip")
TABLE = ("headline", "acceptance.parquet", "--cost-ratio", "9")
GRID = ("sweep", "acceptance.parquet", "--cost-ratio", "9", "policy.fixed.gamma=1,2")


@cache
def table_bytes() -> bytes:
    """A small acceptance table, made once."""
    from tempfile import TemporaryDirectory

    from replay.made_tables import draw_table

    from gammatune.replay.table import write_table

    with TemporaryDirectory() as folder:
        write_table(draw_table(3, questions=4), Path(folder) / "table.parquet")
        return (Path(folder) / "table.parquet").read_bytes()


#: a recording of well under a second
RECORD = ("record", *(word for word in SMALL[1:] if not word.startswith("policy")))


def write_files(folder: Path) -> None:
    """A question file, an acceptance table, and a file in the place of a folder."""
    write_questions(folder)
    (folder / "acceptance.parquet").write_bytes(table_bytes())
    (folder / "file").write_text("")
    (folder / "drafts").mkdir()
    (folder / "drafts" / "feature_draft.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1")


def write_configs(folder: Path) -> None:
    """Configs of a user's own, each with something wrong."""
    files = {
        "bare": "policy: {}",
        "broken": "policy: [fixed",
        "binary": "\x00\x01",
        "lost": "defaults: [schema/run@_here_, nowhere]",
        "alone": "defaults: [schema/run@_here_]",
        "experiment/typo": "# @package _global_\ndefaults: [{override /policy: [gamatune]}]",
        "experiment/key": "# @package _global_\ndecode: {top_kk: 3}",
        "experiment/list": "[1, 2]",
    }
    for name, text in files.items():
        (folder / "own" / f"{name}.yaml").parent.mkdir(parents=True, exist_ok=True)
        (folder / "own" / f"{name}.yaml").write_text(text)


def write_latin(folder: Path) -> None:
    write_configs(folder)
    (folder / "own" / "latin.yaml").write_bytes(b"name: jos\xe9")


def own(word: str, says: str, *more: str) -> Case:
    """A config of a user's own."""
    return Case(f"own {word}"[:60], ("run", "--config-dir=own", word, *more), says, write_configs)


def run(word: str, says: str, *more: str) -> Case:
    """A word that the main job refuses before it loads anything."""
    return Case(f"run {' '.join((word, *more))}"[:60], ("run", *PLAN, word, *more), says)


def record(word: str, says: str, *more: str) -> Case:
    """The same for a setting that `record` reads too, which composes its config in half the time."""
    return Case(f"record {' '.join((word, *more))}"[:60], ("record", *PLAN[1:], word, *more), says)


def small(word: str, says: str = "", *more: str, code: int | tuple[int, ...] = 2) -> Case:
    """A word at the end of a run that would work."""
    return Case(f"small {' '.join((word, *more))}"[:60], (*SMALL, word, *more), says, write_files, code)


def command(words: str, says: str, *more: str) -> Case:
    """Words of another command, TABLE for a good acceptance table."""
    split = [word.replace("TABLE", "acceptance.parquet") for word in words.split()]
    return Case(f"{words}{' '.join(more)}"[:60], (*split, *more), says, write_files)


UNREAD = [
    command(f"{words} {setting}", f"The command {words.split()[0]} does not read {setting.strip('~+').split('=')[0]}; .*: ")
    for words, settings in {
        "headline TABLE --cost-ratio 9": "tasks.limit=1 starts=[1,2] decode=sample model_pair=tiny-random seed=1 plan=true",
        "bounds TABLE --out out": "tasks=demo starts=[1] decode.top_p=0.5 results=x hydra.run.dir=x",
        "sweep TABLE --cost-ratio 9": "starts=[1] decode=sample model_pair=tiny-random tasks.limit=2",
        "record": "policy=fixed starts=[1] repetitions=2 policy.fixed.gamma=3 experiment=demo results=x acceptance=false",
        "prices": "policy=fixed starts=[1] +repetitions=2 experiment=demo plan=true ~policy",
        "advise": "starts=[1] repetitions=2 experiment=demo results=x plan=true acceptance=false prices=x",
        "run": "hydra.run.dir=/proc/1/x hydra.job.chdir=true hydra.mode=MULTIRUN",
    }.items()
    for setting in settings.split()
] + [
    command("import file policy=fixed", "--format specbench reads one file, not 2"),
    command("export nowhere tasks=demo", "cannot take tasks=demo"),
    command("report nowhere seed=1", "cannot take seed=1"),
    command("show nowhere seed=1", "cannot take seed=1"),
    command("paper-tables seed=1", "cannot take seed=1"),
]

OPTIONS = [
    Case("extend nothing", (*RECORD, "--extend", "nowhere"), "There is no acceptance table at nowhere", write_files),
    Case(
        "extend a folder",
        (*RECORD, "--extend", "."),
        "acceptance.parquet cannot be extended, since .* is nothing there",
        write_files,
    ),
    Case("extend no table", (*RECORD, "--extend", "file"), "file is no acceptance table", write_files),
    Case(
        "extend an empty folder",
        (*RECORD, "--extend", "own"),
        "own holds neither an acceptance table nor parts",
        write_latin,
    ),
    Case("no command", (), "required: COMMAND; see gammatune --help"),
    Case("unknown command", ("decode",), "invalid choice: 'decode'"),
    Case("an empty command", ("",), "invalid choice: ''"),
    Case("a command of 100 kB", ("x" * 100_000,), "invalid choice: 'xxx"),
    Case("an option for a command", ("--nope",), "--nope|COMMAND"),
    command("run --nope", "cannot take --nope"),
    command("headline", "required: TABLE; see gammatune headline --help"),
    command("headline TABLE --nope", "cannot take --nope"),
    command("headline TABLE --cost-ratio", "--cost-ratio: expected one argument"),
    command("headline TABLE --cost-ratio nine", "--cost-ratio: nine is no number above 0"),
    command("headline TABLE --cost-ratio 0", "no number above 0"),
    command("headline TABLE --cost-ratio=-1", "no number above 0"),
    command("headline TABLE --cost-ratio nan", "no number above 0"),
    command("headline TABLE --cost-ratio 1e400", "no number above 0"),
    command("headline TABLE --cost-ratio 4 --prices file", "not allowed with"),
    command("headline TABLE", "No prices: give --prices FILE"),
    command("advise --table TABLE", "No prices: give --prices FILE"),
    command("advise --table TABLE --cost-ratio 9", "Of at least 12 questions.* there are 4: give more with tasks.limit"),
    command("advise --table TABLE --cost-ratio 0", "0 is no number above 0"),
    command("advise --table TABLE --cost-ratio 9 tasks=demo", "tasks=demo is not read with --table"),
    command("advise --table TABLE --cost-ratio 9 --minutes 2", "--minutes is not read with --table"),
    command("advise --table file --cost-ratio 9", "file is no acceptance table"),
    command("advise --table", "--table: expected one argument"),
    command("advise --minutes=-1", "-1 is no number above 0"),
    command("advise TABLE", "The command advise does not read acceptance.parquet"),
    command("headline TABLE --prices nowhere", "nowhere"),
    command("headline TABLE --prices .", r"\."),
    command("headline nowhere --cost-ratio 4", "nowhere"),
    command("headline . nowhere --cost-ratio 4", "nowhere"),
    command("headline file --cost-ratio 4", "file"),
    command("headline /dev/null --cost-ratio 4", "/dev/null"),
    command("headline /etc/passwd --cost-ratio 4", "/etc/passwd"),
    command("bounds TABLE", "required: --out"),
    command("bounds TABLE --out out", "use headline"),
    command("bounds TABLE --out out --cost-ratios", "--cost-ratios: expected at least one"),
    command("bounds TABLE --out out --cost-ratios 0", "no number above 0"),
    command("import nowhere", "nowhere"),
    command("import .", r"\."),
    command("import file", "file"),
    command("import file --gamma 0", "gamma"),
    command("import file --gamma -1", "--gamma"),
    command(f"import file --gamma {HUGE}", "--gamma: 999.* is no whole number"),
    command("import file --max-new-tokens 0", "--max-new-tokens: 0 is no whole number"),
    command(f"import file --max-new-tokens {ENDLESS}", "--max-new-tokens: 999"),
    command("import file --schedule nope", "nope"),
    command("import file --schedule svip", "svip"),
    command("import file --out out", "--out out must name a file"),
    command("export nowhere", "nowhere"),
    command("export file", "file"),
    command("report nowhere", "nowhere"),
    command("report /dev/null", "/dev/null"),
    command("show nowhere", "nowhere"),
    command("show .", r"\."),
    command("show nowhere --question x", "--question: invalid int value"),
    command(f"show nowhere --question {ENDLESS}", "--question: invalid int value"),
    command("paper-tables --runs nowhere --reference nowhere --acceptance nowhere", "nowhere"),
    command("record --gamma-max 0", "--gamma-max: 0 is no whole number from 1 to 120"),
    command(f"record --gamma-max {HUGE}", "--gamma-max"),
    command("record --gamma-max 2.5", "--gamma-max: 2.5 is no whole number"),
    command("record model_pair=tiny-random --known nowhere", "nowhere"),
    command("record model_pair=tiny-random --known .", r"known answers \."),
    command("record model_pair=tiny-random decode=sample", "greedy decoding only"),
    command("record model_pair=tiny-random tasks.overlong=skip --out file", "file"),
    command("prices --contexts x", "--contexts x cannot be read"),
    command("prices model_pair=tiny-random --contexts 0", "--contexts 0 must hold"),
    command(f"prices model_pair=tiny-random --contexts {ENDLESS}", "--contexts"),
    command("prices --repeats 0", "--repeats: 0 is no whole number"),
    command("prices --repeats 100000000", "--repeats"),
    command("prices --gamma-max 0", "--gamma-max: 0"),
    command("prices model_pair=tiny-random --out .", "is a folder: name a file with --out"),
    command("prices model_pair=tiny-random --out file/x", "file"),
    command("sweep TABLE --cost-ratio 9", "A grid is over one policy's fields"),
    command("sweep TABLE --cost-ratio 9 policy=fixed", "is no part of a grid"),
    command("sweep TABLE --cost-ratio 9 policy.nope.gamma=1", "is no part of a grid"),
    command("sweep TABLE --cost-ratio 9 policy.fixed.gamma=1 policy.ucb.gamma=1", "one policy's fields"),
    command("sweep TABLE --cost-ratio 9 policy.fixed.nope=1", "no setting nope"),
    command("sweep TABLE --cost-ratio 9 policy.fixed.gamma=range(0,1000000000)", "more than 10,000 values"),
    command("sweep TABLE --cost-ratio 9 policy.fixed.gamma=interval(0,1)", "lists no values"),
    command(f"sweep TABLE --cost-ratio 9 policy.fixed.gamma={HUGE}", "policy.fixed.gamma=999.* is out of range"),
    command(f"sweep TABLE --cost-ratio 9 policy.fixed.gamma={ENDLESS}", "too many digits"),
    command("sweep TABLE --cost-ratio 9 policy.ucb.gamma_max=range(0,9999) policy.ucb.risk=1,2", "19,998 runs"),
    Case("sweep --csv /etc", (*GRID, "--csv", "/etc"), r"Cannot write /etc \(Is a directory\): .* with --csv", write_files),
    Case("sweep --csv in a file", (*GRID, "--csv", "file/x.csv"), "Cannot write file/x.csv .* with --csv", write_files),
    Case("sweep --csv nothing", (*GRID, "--csv", ""), "with --csv", write_files),
    Case("sweep --csv /proc", (*GRID, "--csv", "/proc/x.csv"), "Cannot write /proc/x.csv .* with --csv", write_files),
    Case("headline policy=null", (*TABLE, "policy=null"), "policy=null is not known", write_files),
    Case("headline policy=../x", (*TABLE, "policy=../x"), "policy=../x is not known", write_files),
    Case("headline policy gamma", (*TABLE, "policy=[fixed]", f"policy.fixed.gamma={HUGE}"), "out of range", write_files),
]

HYDRA = [
    run("--config-path=/nope", "--config-path would replace"),
    run("-cp", "--config-path would replace", "/nope"),
    run("-cd", "--config-dir /nope is no folder", "/nope"),
    run("-cd", "expected one argument"),
    run("--config-name=nope", "there is no nope.yaml in .*configs"),
    run("--config-name=../run", "no plain name"),
    run("--experimental-rerun=config.pickle", "reads a pickle"),
    run("--resolve", "--resolve belongs to --cfg"),
    run("--package=decode", "cannot take --package"),
    run("--cfg=jobs", "invalid choice: 'jobs'"),
    run("--cfg=job", "Only one of --multirun, --cfg", "--multirun"),
    run("--cfg=job", "policy=nope is not known", "policy=nope"),
    run("--cfg=job", "no setting nope", "decode.nope=1"),
    run("--cfg=job", "nope", "--resolve", "results='${nope}'"),
    run("--info=defaults", "policy=nope is not known", "policy=nope"),
    run("--info=nope", "invalid choice: 'nope'"),
    run("--shell-completion", "cannot take --shell-completion"),
    run("--multirun", "policy=nope is not known", "policy=fixed,nope"),
    run("--multirun", "more than 10,000 values", "seed=range(0,1000000000)"),
    run("--multirun", "no values", "seed=range(3,1)"),
    run("--multirun", "lists no values", "decode.temperature=interval(0,1)"),
    run("--multirun", "lists no values", "policy=glob(*)"),
    run("hydra/launcher=nope", "hydra/launcher=nope|hydra/launcher/nope"),
    run("hydra/sweeper=../x", "hydra/sweeper"),
    own("--config-name=bare", "has no schema: .*schema/run@_here_|no schema"),
    own("--config-name=broken", "own/broken.yaml"),
    own("--config-name=binary", "own/binary.yaml"),
    own("--config-name=lost", "nowhere"),
    own("--config-name=alone", "model_pair|name"),
    own("--config-name=absent", "there is no absent.yaml in own"),
    own("experiment=typo", "policy=gamatune is not known"),
    own("experiment=key", "no setting top_kk"),
    own("experiment=list", "no setting experiment"),
    Case("own latin", ("run", "--config-dir=own", *PLAN), "own/latin.yaml cannot be read .*utf-8", write_latin),
    own("experiment=absent", "experiment=absent is not known"),
    small("--multirun", "A run of the sweep failed", "policy.fixed.gamma=-1"),
]

WORDS = [
    run("", r"The argument \(empty\) cannot be read: write KEY=VALUE"),
    run(" ", "cannot be read: write KEY=VALUE"),
    run("policy", "The argument policy cannot be read: write KEY=VALUE"),
    run("=fixed", "cannot be read"),
    run("==", "cannot be read"),
    run("policy fixed=1", "cannot be read"),
    run("policy==fixed", "policy==fixed is not known"),
    run("policy=[fixed", r"write a list as policy=\[A,B\]"),
    run("policy={fixed", "cannot be read"),
    run("policy='fixed", "in quotes"),
    run("results=/srv/a{b}", r"in quotes, \"results='/srv/a\{b\}'\"\."),
    run("results=it's", r"in quotes, \"results='it\\+'s'\"|in quotes"),
    run("starts=" + "[" * 3000, "too many digits or brackets|write a list"),
    run("seed=" + "x" * 100_000, "more than 8,192 characters"),
    run("x" * 100_000, "more than 8,192 characters"),
    run("poli\x1b[31mcy=fixed", "cannot be read"),
    run("polcy=fixed\x1b;gone\x07", "no setting polcy"),
    run("policy=fix\ned", "policy=fix.*is not known"),
    run("policy=\u202efixed", "is not known"),
    run("pölicy=fixed", "cannot be read|no setting"),
    run("polcy=fixed", "no setting polcy: choose one of model_pair, tasks"),
    run("+polcy=fixed", "no setting polcy"),
    run("++policy.fixed.gama=1", "no setting gama"),
    run("~polcy", "polcy"),
    run("~decode.top_p", "top_p"),
    run("~experiment=[]", "is not known"),
    run("policy@other=fixed", "policy"),
    run("run=1", "no setting run"),
    run("schema/run=1", "schema"),
    run("_target_=os.system", "_target_"),
    run("policy.fixed._target_=os.system", "_target_"),
]

CHOICES = [
    run("policy=gamatune", "policy=gamatune is not known: choose one of .*gammatune"),
    run("policy=", "policy= is not known"),
    run("policy=null", "policy=null is not known"),
    run("policy={fixed:1}", "is not known"),
    run("policy=1", "policy=1 is not known"),
    run("policy=true", "policy=true is not known"),
    run("policy=[[fixed]]", "policy"),
    run("policy=[fixed,1]", "is not known"),
    run("policy=../tasks/demo", "policy=../tasks/demo is not known"),
    run("policy=/etc/passwd", "policy=/etc/passwd is not known"),
    run("policy=no.such.Module", "there is no module no"),
    run("policy=os.path", "policy=os.path"),
    run("policy=gammatune.policies.fixed.Nope", "no class Nope"),
    run("policy=fixed,svip", "several values to one run: add --multirun"),
    run("tasks=[demo,qa]", "not several: choose one of demo, "),
    run("tasks=null", "tasks=null is not known"),
    run("tasks={a:1}", "is not known"),
    run("model_pair=nope", "model_pair=nope is not known: choose one of .*tiny-random"),
    run("model_pair=[tiny-random,tiny-random]", "not several"),
    run("model_pair=null", "model_pair=null is not known"),
    run("decode=[greedy,sample]", "not several"),
    run("decode=null", "decode=null is not known"),
    run("runtime=null", "runtime=null is not known"),
    run("runtime=fast", "runtime=fast is not known"),
    run("experiment=nope", "experiment=nope is not known"),
    run("experiment=[demo,reference]", "not several"),
    small("drafter=nope", "drafter=nope is not known"),
    small("drafter=[lookup,nope]", "drafter=nope is not known"),
    small("drafter=[suffix,suffix]", "drafter names suffix twice"),
    small("drafter=[]", r"drafter=\[\] names none: list at least one of features, lookup, model, suffix"),
    small("drafter=[[lookup]]", "not several"),
    small("drafter=[lookup,null]", r"drafter=\[lookup,null\] is not known"),
    small("drafter=[lookup,model]", r"drafter=\[lookup,model\] has none from lookup", "policy=svip"),
    small("drafter.suffix.max_tree_depth=1", "drafter.suffix.max_tree_depth=1 is out of range", "drafter=[suffix,model]"),
    small("drafter.sufix.max_tree_depth=9", "drafter has no setting sufix", "drafter=[suffix,model]"),
    small("drafter.longest=9", "drafter has no setting longest: choose one of lookup, model", "drafter=[lookup,model]"),
    small("drafter=features", "drafter.path is not set"),
    small("drafter=features", "holds no feature_draft.safetensors", "drafter.path=nowhere"),
    small("drafter=features", "cannot be read|truncated or corrupt", "drafter.path=drafts"),
    run("policy=[fixed,fixed]", "fixed"),
]

VALUES = [
    run("repetitions=0", "repetitions=0"),
    run("repetitions=-1", "repetitions=-1"),
    run("repetitions=1.5", "repetitions"),
    run("repetitions=x", "repetitions"),
    run("repetitions=100000", "repetitions=100000 must be"),
    run("repetitions=1" + "0" * 20, "repetitions=1000.* must be 1 or more and at most"),
    run(f"repetitions={ENDLESS}", "too many digits"),
    run("seed=x", "seed"),
    run("seed=1.5", "seed"),
    run("seed=null", "seed"),
    run(f"seed={ENDLESS}", "too many digits"),
    run("starts=[-1]", "starts"),
    run("starts=[1,1]", "names a gamma twice"),
    run("starts=3", "starts"),
    run("starts=[x]", "starts"),
    run("starts=[1.5]", "starts"),
    run("starts=[null]", "starts"),
    run("starts=[[1]]", "starts"),
    run("starts=[99999999999999999999]", "starts.*is out of range"),
    run(f"starts=[{ENDLESS}]", "too many digits"),
    run("policy.fixed.gamma=-1", "gamma=-1 is out of range"),
    run("policy.fixed.gamma=1.5", "policy.fixed.gamma"),
    run("policy.fixed.gamma=x", "policy.fixed.gamma"),
    run("policy.fixed.gamma=é", "policy.fixed.gamma is wrong: Value 'é'"),
    run("policy.fixed.gamma=null", "gamma"),
    run("policy.fixed.gamma=[1]", "gamma"),
    run("policy.fixed.gamma={a:1}", "gamma"),
    run("policy.fixed.gamma=1e400", "gamma"),
    run("policy.fixed.gamma=nan", "gamma"),
    run("policy.fixed.gamma=1,2", "several values to one run"),
    run("policy.fixed.gamma=range(1,3)", "several values to one run"),
    run("policy.fixed.gamma=99999999999999999999", "policy.fixed.gamma=99999999999999999999 is out of range"),
    run(f"policy.fixed.gamma={ENDLESS}", "too many digits"),
    run("policy.gammatune.eta=nan", "eta"),
    run("policy.gammatune.eta=1e999", "eta"),
    run("policy.svip.threshold=1", "svip"),
    run("policy.fixed=1", "policy.fixed"),
    run("policy.fixed=null", "policy.fixed"),
    record("model_pair=tiny-random", "shape.hidden_size", "model_pair.target.shape.hidden_size=99999999999"),
    record("decode.max_new_tokens=0", "max_new_tokens=0"),
    run(f"decode.max_new_tokens={HUGE}", "max_new_tokens=999"),
    record("decode.temperature=nan", "temperature"),
    record("decode.temperature=inf", "temperature"),
    record("decode.top_p=2", "top_p"),
    record("decode.top_k=-1", "top_k"),
    record("tasks.limit=0", "limit"),
    run(f"tasks.limit={HUGE}", "tasks.limit=999"),
    record("tasks.include=[nope]", "nope"),
    record("runtime.threads=0", "runtime.threads=0"),
    record("runtime.threads=99999", "runtime.threads=99999 must be"),
    record("runtime.threads=x", "runtime.threads"),
    small("runtime.device=cuda:99", "cuda:99"),
    small("runtime.device=tpu", "tpu"),
    small("runtime.device=''", "device"),
    small("runtime.device=cuda:-1", "cuda:-1"),
    record("runtime.dtype=fp8", "fp8"),
    run("results=null", "results"),
    run("results=", "results= is no folder"),
    run("results=[a]", "results"),
    run("results='${results}'", "results"),
    run("results='${oc.env:NO_SUCH_VARIABLE}'", "NO_SUCH_VARIABLE"),
    run("results='${'", "results"),
    run("plan=maybe", "plan"),
    run("acceptance=x", "acceptance"),
    record("tasks.name=../../x", r"tasks.name '../../x' is no plain name"),
    record("tasks.name=''", "tasks.name '' is no plain name"),
    record("tasks.name=/abs", "tasks.name '/abs' is no plain name"),
    record("model_pair.name=/abs", "model_pair.name '/abs' is no plain name"),
    record("model_pair.name=..", "model_pair.name"),
    record("model_pair.name='a\nb'", "model_pair.name"),
    small("results=file", "Cannot write to file/.*with results=FOLDER"),
    small("results=/dev/null", "Cannot write to /dev/null/.*with results=FOLDER"),
    small("results=/proc", "Cannot write to /proc/.*with results=FOLDER"),
    small("results=" + "x" * 300, "results=FOLDER|xxx"),
    small("results=" + "x" * 300, "results=FOLDER|xxx", "plan=true"),
    small("results=" + "x/" * 2500, "results=FOLDER|x/x"),
    small("tasks.path=nowhere", "nowhere"),
    small("tasks.path=.", r"\."),
    record("model_pair.target.path=/etc/passwd", "model_pair.target.path=/etc/passwd is not read"),
    record("model_pair.draft.ends=[x]", "model_pair.draft.ends=.* is not read"),
    record("model_pair.draft.revision=main", "model_pair.draft.revision=main is not read"),
    small("tasks.path=file", "file"),
]

TAKEN = [
    small(word, "", "plan=true", code=0)
    for word in (
        "results=josé/x",
        "results=a b:c;d=e",
        "results=~x",
        "results=a\\b",
        "~policy.fixed",
        "results='it is [good] {here}'",
        f"seed={HUGE}",
        "seed=-1",
        "policy=[]",
        "policy.fixed.gamma=1000000",
        "repetitions=1000",
        "policy=svip",
        "drafter=[suffix,model]",
        "drafter=suffix",
    )
] + [
    Case("help", ("--help",), code=0),
    Case("help of a command", ("sweep", "--help"), code=0),
    Case("help of run", ("run", "--help"), code=0),
    Case("Hydra's help", ("run", "--hydra-help"), code=0),
    Case("the config", ("run", "--cfg", "job", "--resolve", "decode.top_k=3"), code=0),
]

CASES = UNREAD + OPTIONS + HYDRA + WORDS + CHOICES + VALUES + TAKEN

#: words that work, of which fuzz() spoils one or two
GOOD = (
    ("run", "policy=[fixed,gammatune]", "policy.gammatune.eta=0.5", "starts=[1,2]", "results=out", "decode.top_k=0"),
    ("run", "--multirun", "policy.fixed.gamma=1,2", "seed=3", "repetitions=2", "runtime.threads=1"),
    ("run", "--cfg=job", "--resolve", "tasks.limit=2", "tasks.seed=1", "decode.max_new_tokens=16"),
    ("run", "drafter=lookup", "policy=ucb", "+policy.ucb.gamma=4", "~experiment", "tasks.include=[qa]"),
    ("headline", "acceptance.parquet", "--cost-ratio", "9", "policy=[svip]", "policy.svip.threshold=0.4", "--json"),
    ("sweep", "acceptance.parquet", "--cost-ratio=9", "policy.gammatune.eta=0.1,0.3", "--csv", "grid.csv"),
    ("import", "questions.jsonl", "--schedule", "fixed", "--gamma", "3", "--max-new-tokens", "64", "--out", "x.parquet"),
    ("record", "--gamma-max", "4", "decode.max_new_tokens=4", "--out", "tables", "runtime.dtype=fp32"),
    ("export", "nowhere", "--arm", "fixed-5", "--out", "answers"),
    ("show", "nowhere", "--question", "9", "--arm", "fixed-5"),
)
#: put first, so that what still works takes no time
QUICK = {
    "run": PLAN,
    "record": ("model_pair=tiny-random", "tasks=demo", "tasks.limit=1", "tasks.overlong=skip", "runtime=eager"),
}
VALUES_OF_ALL_KINDS = ("", " ", "null", "true", "-1", "0", "1.5", "1e400", "nan", HUGE, ENDLESS, "é", "\x1b[2J", "\u202e")
VALUES_OF_ALL_KINDS += ("[]", "[1", "{a:1}", "{", "'", "a'b", "[[1]]", "${x}", "${oc.env:HOME}", "1,2", "range(1,9)", "a b")
VALUES_OF_ALL_KINDS += ("..", "file", "x" * 300, "x" * 9000, "~", "$(id)", "a\nb", "gammatune.policies.fixed.Fixed", "a.b.C")
CHARACTERS = " =,.[]{}()'\"$~+-@:\\%é\n\x1b0a"


def fuzz(random: Random, count: int) -> Iterator[Case]:
    """Good command lines with one to three random things wrong; some still work."""
    for number in range(count):
        words = list(random.choice(GOOD))
        for _ in range(random.randint(1, 3)):
            spoil(random, words)
        words[1:1] = QUICK.get(words[0], ())
        yield Case(f"{number}: {' '.join(words)}"[:60], tuple(words), ".", write_files, code=(0, 2))


def spoil(random: Random, words: list[str]) -> None:
    """Change one word after the command: another value, a character more or less, twice, gone, or glued to the next."""
    place = random.randrange(1, len(words))
    word = words[place]
    cut = random.randrange(len(word) + 1)
    key = word.partition("=")[0]
    changes = (
        [f"{key}={random.choice(VALUES_OF_ALL_KINDS)}"],
        [f"{key}={random.choice(VALUES_OF_ALL_KINDS)}"],
        [random.choice(VALUES_OF_ALL_KINDS)],
        [word[:cut] + random.choice(CHARACTERS) + word[cut:]],
        [word[:cut] + word[cut + 1 :]],
        [word, word],
        [word, random.choice(random.choice(GOOD))],
        [word + (words[place + 1] if place + 1 < len(words) else "")],
        [],
    )
    if len(words) > 2:
        words[place : place + 1] = random.choice(changes)
