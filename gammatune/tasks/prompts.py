"""From a conversation to token ids, the way each model was trained to be asked."""

import signal
import threading
from contextlib import contextmanager

from gammatune.errors import UserError

VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
# Some chat templates print today's date into the prompt; a fixed one keeps a run repeatable.
PROMPT_DATE = "26 Jul 2024"
TEMPLATE_S = 5.0  # a chat template is a program of the checkpoint's; an honest one takes milliseconds


def build_prompt(template: str, tokenizer, turns: list[str], answers: list[str]) -> list[int]:
    """Token ids of a conversation up to the point where the assistant speaks.

    turns: n >= 1 user turns. answers: the n - 1 earlier answers of the same arm, as text. template: vicuna, llama-2,
    plain, or tokenizer (the tokenizer's own chat template). A beginning-of-sequence token comes first exactly once where
    the tokenizer or its template adds one. Raises UserError for an unknown template, and for a tokenizer whose own is
    missing or cannot be rendered.
    """
    if template == "tokenizer":
        return tokenizer.encode(apply_own_template(tokenizer, turns, answers), add_special_tokens=False)
    return tokenizer.encode(prompt_text(template, turns, answers))


def answer_text(tokenizer, ids: list[int]) -> str:
    """A generated answer as the text that goes into the next turn's prompt: no special tokens, no outer white space."""
    return tokenizer.decode(ids, skip_special_tokens=True).strip()


def prompt_text(template: str, turns: list[str], answers: list[str]) -> str:
    """The conversation as one string, without the beginning-of-sequence token. Raises UserError for an unknown template."""
    if template not in WRITERS:
        raise UserError(f"The chat template {template} is not known: choose one of tokenizer, {', '.join(WRITERS)}.")
    return WRITERS[template](list(zip(turns[:-1], answers, strict=True)), turns[-1])


def apply_own_template(tokenizer, turns: list[str], answers: list[str]) -> str:
    if not getattr(tokenizer, "chat_template", None):
        raise UserError(
            "This tokenizer has no chat template of its own: set model_pair.chat_template to vicuna, llama-2 or plain."
        )
    messages = [{"role": "user", "content": turns[0]}]
    for answer, turn in zip(answers, turns[1:], strict=True):
        messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": turn}]
    settings = {"tokenize": False, "add_generation_prompt": True, "date_string": PROMPT_DATE}
    try:
        with at_most(TEMPLATE_S):
            return tokenizer.apply_chat_template(messages, **settings)
    except Exception as error:  # it runs in jinja's sandbox, and whatever it does may fail
        reason = next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")
        raise UserError(
            f"The tokenizer's own chat template cannot be rendered ({type(error).__name__}: {reason}): set "
            "model_pair.chat_template to vicuna, llama-2 or plain."
        ) from error


@contextmanager
def at_most(seconds: float):
    """Raises TimeoutError in a block that takes longer. Without a limit outside the main thread, which alone has signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_):
        raise TimeoutError(f"it takes more than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def write_vicuna(past: list[tuple[str, str]], turn: str) -> str:
    """Vicuna v1.1 to v1.5, as FastChat writes it."""
    history = "".join(f"USER: {asked} ASSISTANT: {answered}</s>" for asked, answered in past)
    return f"{VICUNA_SYSTEM} {history}USER: {turn} ASSISTANT:"


def write_llama_2(past: list[tuple[str, str]], turn: str) -> str:
    """Llama-2-chat with an empty system prompt, as FastChat writes it."""
    history = "".join(f"[INST] {asked} [/INST] {answered} </s><s>" for asked, answered in past)
    return f"{history}[INST] {turn} [/INST]"


def write_plain(past: list[tuple[str, str]], turn: str) -> str:
    """For models without a chat format: everything said so far, one piece per line, and a new line for the answer."""
    return "".join(f"{asked}\n{answered}\n" for asked, answered in past) + f"{turn}\n"


WRITERS = {"vicuna": write_vicuna, "llama-2": write_llama_2, "plain": write_plain}
