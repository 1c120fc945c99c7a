"""Checkpoints by a stranger, a broken download or a slip: what model_pair.*.path names, and shapes typed by hand."""

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from random import Random

from bad_inputs.case import SMALL, Case, write_questions

LOCAL = (*SMALL, "model_pair=vicuna-68m-7b", "model_pair.target.path=target", "model_pair.chat_template=plain")
TARGET = (*LOCAL, "drafter=lookup")  # no draft is read
BOTH = (*LOCAL, "model_pair.draft.path=draft")
TEMPLATE = (*TARGET, "model_pair.chat_template=tokenizer")
SHAPE = "model_pair.{role}.shape.{change}"


@cache
def whole() -> Path:
    """A small Llama with its tokenizer, made once and copied for each case."""
    sys.path.append(str(Path(__file__).parents[1] / "models"))
    from tiny_checkpoints import save_llama, save_tokenizer

    folder = Path(tempfile.mkdtemp())
    save_llama(folder, save_tokenizer(folder))
    return folder


def broken(damage: Callable[[Path], None], role: str = "target") -> Callable[[Path], None]:
    """A step that makes whole checkpoints and then damages one."""

    def prepare(folder: Path) -> None:
        write_questions(folder)
        for name in ("target", "draft"):
            shutil.copytree(whole(), folder / name)
        damage(folder / role)

    return prepare


def edit(file: str, **changes) -> Callable[[Path], None]:
    """Other values in a JSON file; one that is not there starts empty."""

    def damage(folder: Path) -> None:
        path = folder / file
        content = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(content | changes))

    return damage


def rewrite(file: str, content: str | bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / file).write_bytes(content.encode() if isinstance(content, str) else content)


def in_place_of(file: str, make: Callable[[Path], None]) -> Callable[[Path], None]:
    """Something else where a file was."""

    def damage(folder: Path) -> None:
        (folder / file).unlink(missing_ok=True)
        make(folder / file)

    return damage


def index(content: object) -> Callable[[Path], None]:
    """An index of shards in place of the weights, which lie outside the folder."""

    def damage(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder.parent / "outside.safetensors")
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / "model.safetensors.index.json").write_text(text)

    return damage


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def fewer_rows(folder: Path) -> None:
    """A model of 50 tokens beside a tokenizer of 259."""
    from tiny_checkpoints import save_llama

    save_llama(folder, 50)


class Touch:
    """Unpickled, it makes a file."""

    def __reduce__(self):
        return Path.touch, (Path("RAN"),)


def pickled(folder: Path) -> None:
    """Weights that are a program; whether it runs is asked in tests/models/test_pair.py."""
    import torch

    (folder / "model.safetensors").unlink()
    torch.save({"lm_head.weight": Touch()}, folder / "pytorch_model.bin")


def ranked(name: str, content: bytes) -> Case:
    def prepare(folder: Path) -> None:
        write_questions(folder)
        (folder / "r.npy").write_bytes(content)

    words = (*SMALL, "model_pair.draft.vocabulary=20", "model_pair.draft.ranking=r.npy")
    return Case(f"ranking {name}", words, "ranking r.npy", prepare)


def npy(header: str, body: bytes = b"") -> bytes:
    text = header.encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + body


def numbers(*ids: int, kind: str = "<i4") -> bytes:
    width = int(kind[2])
    body = b"".join(i.to_bytes(width, "little", signed=True) for i in ids)
    return npy(f"{{'descr': '{kind}', 'fortran_order': False, 'shape': ({len(ids)},)}}", body)


def bad(name: str, says: str, damage: Callable[[Path], None], words: tuple[str, ...] = TARGET, **more) -> Case:
    return Case(name, words, says, broken(damage), **more)


def bad_config(name: str, says: str, code: int | tuple[int, ...] = 2, **changes) -> Case:
    return bad(name, f"config.json.*{says}", edit("config.json", **changes), code=code)


def bad_rope(name: str, says: str, **settings) -> Case:
    return bad_config(name, says, rope_parameters={"rope_type": "default", "rope_theta": 1e4} | settings)


def bad_end(name: str, says: str, end: object) -> Case:
    return bad(name, says, edit("generation_config.json", eos_token_id=end))


def bad_template(name: str, says: str, template: str) -> Case:
    return bad(name, says, rewrite("chat_template.jinja", template), TEMPLATE)


def bad_index(name: str, says: str, content: object) -> Case:
    return bad(name, says, index(content))


def bad_shape(name: str, says: str, *changes: str) -> Case:
    """The same changes to both shapes of the tiny pair."""
    words = [SHAPE.format(role=role, change=change) for role in ("target", "draft") for change in changes]
    return Case(name, (*SMALL, *words), says, write_questions)


DEEP = "[" * 100_000
RANGE = "must be a whole number from"
OWN_TOKENS = edit("tokenizer_config.json", tokenizer_class="Tokens", auto_map={"AutoTokenizer": [None, "own.Tokens"]})
CONFIGS = [
    bad_config("heads of 21", "odd|RoPE", hidden_size=63, num_attention_heads=3, num_key_value_heads=3, head_dim=21),
    bad_config("heads that do not divide", ": num_key_value_heads=3 must divide", num_key_value_heads=3),
    bad_config("negative layers", f": num_hidden_layers=-1 {RANGE}", num_hidden_layers=-1),
    bad_config("text as a size", "is not a model's settings", hidden_size="wide"),
    bad_config("no heads", "zero|num_attention_heads=0", num_attention_heads=0),
    bad_config("one token", f": vocab_size=1 {RANGE}", vocab_size=1),
    bad_config("10**10 layers", f": num_hidden_layers=10000000000 {RANGE}", num_hidden_layers=10**10),
    bad_config("10**10 tokens", f": vocab_size=10000000000 {RANGE}", vocab_size=10**10),
    bad_config("no context", f": max_position_embeddings=0 {RANGE}", max_position_embeddings=0),
    bad("a petabyte", "needs .* GiB", edit("config.json", hidden_size=2**20, intermediate_size=2**22, head_dim=64)),
    bad_rope("rope_theta nan", "RoPE", rope_theta=float("nan")),
    bad_rope("rope_theta 0", "RoPE", rope_theta=0.0),
    bad_rope("rope of no known kind", "", rope_type="spiral"),
    bad_rope("rope factor as text", "", rope_type="linear", factor="x"),
    bad_config("activation of no known kind", "spin", hidden_act="spin"),
    bad_config("architectures a string", "architectures", architectures="LlamaForCausalLM"),
    bad_config("architectures a number", "architectures", architectures=[5]),
    bad_config("dtype of no known kind", "", (0, 2), dtype="float99"),
    bad_config("labels without end", "num_labels=1000000000", num_labels=10**9),
    bad_config("eps nan", "rms_norm_eps=nan", rms_norm_eps=float("nan")),
    bad_config("tuples in place of outputs", "can run|exit", (0, 2), return_dict=False),
    bad_config("another layout", ".tensors of other sizes.", intermediate_size=96),
    bad_config("weights of its own choice", "transformers_weights", transformers_weights="../outside.safetensors"),
    bad_config("attention code of a hub", "", 0, attn_implementation="somebody/attention"),
    bad("config no JSON", "target/config.json is damaged", rewrite("config.json", "{")),
    bad("config deep", "target/config.json is damaged", rewrite("config.json", DEEP)),
    bad("config a folder", "has no config.json in target", in_place_of("config.json", Path.mkdir)),
    bad("config a loop", "has no config.json in target", in_place_of("config.json", lambda path: path.symlink_to(path))),
    bad("config a pipe", "config.json is no regular file", in_place_of("config.json", os.mkfifo)),
    bad("config huge", "config.json is larger than any", lambda folder: os.truncate(folder / "config.json", 2**40)),
    bad(
        "own model",
        "wants to run its own code .own.M in",
        edit("config.json", model_type="own", auto_map={"AutoConfig": "own.M"}),
    ),
]
TOKENIZERS = [
    bad_end("end as text", "ends answers with token 'two'|generation_config", "two"),
    bad_end("end beyond the vocabulary", "ends answers with token 999, but its tokens are 0 to 258", [2, 999]),
    bad_end("ends in a list of lists", r"ends answers with token \[2\]", [[2]]),
    bad_end("end below zero", "ends answers with token -1", -1),
    bad_end("no end", "names no end-of-sequence token", []),
    bad("generation_config no object", "generation_config.json is damaged", rewrite("generation_config.json", "[1]")),
    bad("tokenizer garbage", "tokenizer of target target in target cannot be read", rewrite("tokenizer.json", "{}")),
    bad("tokenizer a pipe", "tokenizer.json is no regular file", in_place_of("tokenizer.json", os.mkfifo)),
    bad("tokenizer_config deep", "tokenizer_config.json is damaged", rewrite("tokenizer_config.json", DEEP)),
    bad("own tokenizer", "tokenizer of target target wants to run its own code .own.Tokens in target", OWN_TOKENS),
    bad("tokens beyond the model", "makes token [0-9]+ of 0 to 49 of question", fewer_rows),
    bad_template("template broken", "chat template cannot be rendered .TemplateSyntaxError", "{% for %}"),
    bad_template("template that looks outside", "cannot be rendered .SecurityError", "{{ ''.__class__.__mro__[1] }}"),
    bad_template("template that raises", "cannot be rendered .TemplateError: no", "{{ raise_exception('no') }}"),
    bad_template("template that divides", "cannot be rendered .ZeroDivisionError", "{{ 1 / 0 }}"),
    bad_template("template of a petabyte", "cannot be rendered .MemoryError", "{{ 'a' * 10**15 }}"),
    bad_template("template without an outcome", "makes no tokens at all of question", "{# #}"),
]
WEIGHTS = [
    bad("weights cut", "model.safetensors is truncated or corrupt", cut),
    bad("weights a pipe", "model.safetensors is no regular file", in_place_of("model.safetensors", os.mkfifo)),
    bad("weights a pickle", "pytorch_model.bin is a pickle .* could run code", pickled),
    bad_index("index to the outside", "names '../outside.safetensors'", {"weight_map": {"a": "../outside.safetensors"}}),
    bad_index("index to anywhere", "names '/etc/passwd'", {"weight_map": {"a": "/etc/passwd"}}),
    bad_index("index to a pickle", "names 'model.bin'", {"weight_map": {"a": "model.bin"}}),
    bad_index("index of numbers", "names '5'", {"weight_map": {"a": 5}}),
    bad_index("index without a map", "is no index of weight files", {}),
    bad_index("index a number", "index.json is damaged", "7"),
    bad_index("index no JSON", "index.json is damaged", "{"),
    bad_index("index without its shards", "lacks 1 of 1 weight files", {"weight_map": {"a": "a.safetensors"}}),
    bad("an adapter", "is an adapter for another model", edit("adapter_config.json", peft_type="LORA")),
    Case("draft's tokenizer", BOTH, "draft draft .* cannot be read", broken(rewrite("tokenizer.json", "[]"), "draft")),
]
SHAPES = [
    bad_shape("shape of odd heads", "hidden_size=60", "hidden_size=60"),
    bad_shape("shape with 3 heads of 64", "num_key_value_heads=2 must divide", "num_attention_heads=3"),
    bad_shape("shape of one token", f"vocab_size=1 {RANGE}", "vocab_size=1"),
    bad_shape("shape of 10**10 tokens", f"vocab_size=10000000000 {RANGE}", "vocab_size=10000000000"),
    bad_shape("shape of terabytes", "needs .* GiB", "hidden_size=1048576", "num_attention_heads=1024"),
    bad_shape("shape with rope_theta nan", "shape.rope_theta=nan must be a finite number above 0", "rope_theta=nan"),
    bad_shape("shape with negative layers", f"num_hidden_layers=-3 {RANGE}", "num_hidden_layers=-3"),
    bad_shape("shape with text", "shape.hidden_size is wrong", "hidden_size=wide"),
    Case("path of an unknown user", (*TARGET, "model_pair.target.path='~nobody/x'"), "is no folder", write_questions),
    Case("path of 5,000 letters", (*TARGET, f"model_pair.target.path={'a' * 5000}"), "is no folder", write_questions),
]
RANKINGS = [
    ranked("of 72 TiB", npy("{'descr': '<i8', 'fortran_order': False, 'shape': (9895604649984,)}")),
    ranked("of objects", npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", b"\x80\x04N.")),
    ranked("with a program for a header", npy("__import__('os').abort()")),
    ranked("of fractions", npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1,)}", bytes(4))),
    ranked("with negative ids", numbers(*range(-1, 30))),
    ranked("with ids twice", numbers(*range(30), 3)),
    ranked("empty", b""),
]


def bad_gguf(name: str, says: str, damage: Callable[[Path], None] = lambda path: None, role: str = "target", **how) -> Case:
    """A GGUF file that is written in another way (how), or damaged, for one model of the pair."""

    def prepare(folder: Path) -> None:
        whole()  # puts tiny_checkpoints on the path
        from tiny_checkpoints import write_gguf

        write_questions(folder)
        os.environ["GAMMATUNE_CACHE"] = str(folder / "cache")  # where its settings go
        for each in ("target", "draft"):
            write_gguf(folder / f"{each}.gguf", **(how if each == role else {}))
        damage(folder / f"{role}.gguf")

    words = [f"model_pair.{each}.path={each}.gguf" for each in ("target", "draft")]
    return Case(name, (*SMALL, "model_pair=vicuna-68m-7b", "model_pair.chat_template=plain", *words), says, prepare)


def shorter(count: int) -> Callable[[Path], None]:
    return lambda path: os.truncate(path, path.stat().st_size - count)


GGUFS = [
    bad_gguf("GGUF cut short", "target.gguf is not read as a model .it ends before its tensor", shorter(100)),
    bad_gguf(
        "GGUF header cut", "draft.gguf is not read .* the middle of its header", lambda p: os.truncate(p, 900), "draft"
    ),
    bad_gguf(
        "GGUF a pointer", "it does not begin like a GGUF", lambda p: p.write_text("version https://git-lfs.github.com\n")
    ),
    bad_gguf("GGUF empty", "target.gguf is not read as a model .it is empty", lambda path: os.truncate(path, 0)),
    bad_gguf("GGUF missing", "model_pair.draft.path=draft.gguf is no file", Path.unlink, "draft"),
    bad_gguf("GGUF a folder", "path=target.gguf is no file", lambda path: (path.unlink(), path.mkdir())),
    bad_gguf("GGUF of gemma", "target.gguf holds a model of architecture gemma, so it cannot decode", architecture="gemma"),
    bad_gguf("GGUF without words", "target.gguf holds no tokenizer", vocabulary=None),
    bad_gguf("GGUF of other words", "have different tokenizers .260 and 260 tokens", role="draft", vocabulary="llama"),
    bad_gguf("GGUF without a layer", "target.gguf does not fill its own settings", kept=lambda name: "layers.1" not in name),
    bad_gguf("GGUF scaled", "target.gguf scales its RoPE frequencies", qwen2__rope__scaling__type="yarn"),
]
CASES = [*CONFIGS, *TOKENIZERS, *WEIGHTS, *SHAPES, *RANKINGS, *GGUFS]

ODD = (
    None,
    True,
    -1,
    0,
    1,
    3,
    2**31,
    10**30,
    0.5,
    float("nan"),
    float("inf"),
    "",
    "x",
    "\x1b[2J",
    [],
    [5],
    {},
    {"a": 1},
    [[]],
)
JSON_FILES = ("config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json")


def fuzz(random: Random, count: int) -> Iterator[Case]:
    """Checkpoints with one random thing changed; some still work."""
    for number in range(count):
        file = random.choice((*JSON_FILES, "model.safetensors", "model.safetensors.index.json"))
        damage = change_value if file in JSON_FILES and random.random() < 0.8 else change_bytes
        prepare = broken(damage(file, random.getrandbits(64)))
        yield Case(f"{number}: {damage.__name__} of {file}", random.choice((TARGET, TEMPLATE)), ".", prepare, code=(0, 2))


def change_value(file: str, seed: int) -> Callable[[Path], None]:
    """Another value for one key of a JSON file, at whatever depth, or a key less."""

    def damage(folder: Path) -> None:
        random, path = Random(seed), folder / file
        content = json.loads(path.read_text())
        node = content
        while True:
            key = random.choice(list(node) if isinstance(node, dict) else range(len(node)))
            if not isinstance(node[key], dict | list) or not node[key] or random.random() < 0.3:
                break
            node = node[key]
        if random.random() < 0.15:
            del node[key]
        else:
            node[key] = random.choice(ODD)
        path.write_text(json.dumps(content))

    return damage


def change_bytes(file: str, seed: int) -> Callable[[Path], None]:
    """A few other bytes near the beginning, where headers are, or an end that is missing."""

    def damage(folder: Path) -> None:
        random, path = Random(seed), folder / file
        if file.endswith("index.json"):
            index({"weight_map": {"a": "../outside.safetensors", "b": "x.safetensors"}})(folder)
        content = bytearray(path.read_bytes())
        for _ in range(random.randint(1, 4)):
            content[random.randrange(min(len(content), 2000))] = random.randrange(256)
        path.write_bytes(content[: random.randrange(len(content))] if random.random() < 0.3 else content)

    return damage
