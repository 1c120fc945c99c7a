"""python scripts/answer_prompts.py PAIR --out FOLDER: a target's greedy answers to our own prompts, as plain text.

One file for each kind of prompt. `rank_tokens.py` counts their tokens, as the ranking of a reduced draft vocabulary:

    python scripts/answer_prompts.py qwen2.5-coder-0.5b-1.5b --out build/answers
    python scripts/rank_tokens.py TOKENIZER_FOLDER build/answers --most 32768 --out token_ranking.npy

PAIR is the name of a model pair, other settings such as model_pair.target.path=FOLDER may follow. The target decodes with
its draft's help, whole vocabulary. Prompts draw on texts of four Debian packages (see gammatune/training/texts.py). With
--specbench question.jsonl, none that shares 13 words in a row with a question there is asked. A file that is there is kept,
so a call that was cut goes on.
"""

import argparse
import sys
from pathlib import Path

from tqdm import tqdm

from gammatune.compose import compose_config
from gammatune.config import RunConfig
from gammatune.decoding.loop import Engine, build_engine, generate_speculative
from gammatune.errors import UserError, exit_code_of
from gammatune.files import write_text
from gammatune.models.pair import load_pair
from gammatune.policies.gammatune import GammaTune
from gammatune.policies.session import PolicySession
from gammatune.tasks.prompts import answer_text, build_prompt
from gammatune.training.overlaps import Overlaps, find_questions
from gammatune.training.prompts import Writer
from gammatune.training.recipe import KINDS, Recipe
from gammatune.training.texts import FILE, load_texts, make_texts


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pair", metavar="PAIR", help="model pair, as in model_pair=PAIR")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="further settings of a run")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="of prompts (all)")
    parser.add_argument("--prompts", type=int, default=40, help="of each kind (%(default)s)")
    parser.add_argument("--answer-tokens", type=int, default=128, help="longest answer (%(default)s)")
    parser.add_argument("--specbench", type=Path, help="question.jsonl: its questions are never asked")
    return parser


def load_engine(config: RunConfig) -> Engine:
    config.model_pair.draft.vocabulary = None  # its ranking may be what is being made
    pair = load_pair(config.model_pair, config.runtime.device, config.runtime.dtype)
    return build_engine(pair, config.runtime.name, threads=config.runtime.threads, release=True)


def answer(engine: Engine, config: RunConfig, question: str) -> str:
    prompt = build_prompt(engine.pair.chat_template, engine.pair.tokenizer, [question], [])
    made = generate_speculative(engine, prompt, PolicySession(GammaTune()), config.decode)
    return answer_text(engine.pair.tokenizer, made.output_ids)


def answer_all(options: argparse.Namespace) -> None:
    folder = options.out.with_name(f"{options.out.name}-texts")
    overlaps = Overlaps(find_questions(options.specbench).questions if options.specbench else ())
    make_texts(folder)
    writer = Writer(load_texts(folder / FILE, "rename it and call again"), held_out=False, document=Recipe().document)
    missing = [kind for kind in options.kinds if not (options.out / f"{kind}.txt").exists()]
    if not missing:
        return
    words = [f"model_pair={options.pair}", f"decode.max_new_tokens={options.answer_tokens}", *options.settings]
    config = compose_config(words)
    engine = load_engine(config)
    options.out.mkdir(parents=True, exist_ok=True)
    for kind in missing:
        chats = writer.write([kind] * options.prompts, f"rank {kind}")
        kept = [chat for chat in chats if not overlaps.found(chat.turns)]
        answers = [answer(engine, config, chat.turns[0]) for chat in tqdm(kept, desc=kind, disable=None, file=sys.stderr)]
        write_text(options.out / f"{kind}.txt", "\n".join(answers) + "\n")
        print(f"{kind}: {len(chats)} prompts, {len(chats) - len(kept)} dropped", flush=True)


def main(words: list[str]) -> int:
    try:
        options = build_parser().parse_intermixed_args(words)
        if options.prompts < 1:
            raise UserError(f"--prompts {options.prompts} must be 1 or more.")
        answer_all(options)
    except (Exception, KeyboardInterrupt) as error:
        return exit_code_of(error, folder_choice="--out FOLDER")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
