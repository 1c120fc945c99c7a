"""No call in the project lets a file bring code along."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = [path for folder in ("gammatune", "scripts", "benchmarks") for path in sorted((ROOT / folder).rglob("*.py"))]
# What each call must say of itself, whatever its library's default is
SAFE = {
    "from_pretrained": ("trust_remote_code", False),
    "torch.load": ("weights_only", True),
    "np.load": ("allow_pickle", False),
}
UNSAFE = ("pickle.load", "pickle.loads", "joblib.load", "yaml.load", "eval", "exec", "os.system")


def find_calls(source: str):
    """Name, both with its module and without, and keywords of each call."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            keywords = {word.arg: getattr(word.value, "value", None) for word in node.keywords}
            yield {name, name.rpartition(".")[2]}, keywords


def find_unsafe(source: str) -> list[str]:
    found = []
    for names, keywords in find_calls(source):
        found += [name for name in names & SAFE.keys() if keywords.get(SAFE[name][0]) is not SAFE[name][1]]
        # A bare eval is Python's, model.eval is not
        found += [name for name in names & set(UNSAFE) if "." in name or names == {name}]
        found += ["shell"] * bool(keywords.get("shell"))
    return found


def test_every_call_that_could_run_code_of_a_file_refuses_to():
    assert {str(path): find_unsafe(path.read_text()) for path in SOURCES if find_unsafe(path.read_text())} == {}


@pytest.mark.parametrize(
    "call",
    [
        "AutoTokenizer.from_pretrained(folder)",
        "AutoConfig.from_pretrained(folder, trust_remote_code=True)",
        "torch.load(path, weights_only=False)",
        "np.load(path)",
        "pickle.load(file)",
        "eval(text)",
        "subprocess.run(command, shell=True)",
    ],
)
def test_an_unsafe_call_is_found(call):
    assert find_unsafe(call)
    assert not find_unsafe("model.eval()")
