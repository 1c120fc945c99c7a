"""A pair ready to decode: target, draft, and everything the two must agree on, checked before any weight is read."""

from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace

import numpy as np
import torch
from torch import nn
from transformers.utils import logging as transformers_logging

from gammatune.config import Checkpoint, PairConfig
from gammatune.errors import UserError
from gammatune.models import draft_vocabulary, load, sources
from gammatune.models.devices import choose_device, choose_dtype
from gammatune.models.load import Demand
from gammatune.models.sources import Files
from gammatune.models.tiny import BYTE_VOCAB, ByteTokenizer, TinySettings, build_tiny_models, tiny_shape


@dataclass
class Pair:
    """Target and draft on one device, in eval mode and without gradients."""

    name: str
    target: nn.Module
    draft: nn.Module | None  # None where the drafter is no model
    tokenizer: object
    chat_template: str  # how prompts are rendered, one of config.CHAT_TEMPLATES
    device: torch.device
    dtype: torch.dtype  # of the weights; RoPE frequencies are fp32 always
    eos_ids: tuple[int, ...]  # every id that ends an answer (Llama 3 has several)
    context: int  # positions that both models can address
    #: Rows that both LM heads have. Where a checkpoint pads its head to a round number, logits are cut to
    #: [..., :vocab_size], which drops padding only: the tokenizers are equal and every token of theirs has a row.
    vocab_size: int
    random_weights: bool = False  # speed only: its text means nothing
    identity: dict = field(default_factory=dict)  # which weights these are, for provenance and for the run's hash
    draft_ids: torch.Tensor | None = None  # [N], rising, on the device: ids that the draft can propose; None for all
    quantization: tuple[str | None, str | None] = (None, None)  # of target and draft, as they are held here


def load_pair(config: PairConfig, device: str = "cpu", dtype: str | None = None, with_draft: bool = True) -> Pair:
    """Load and check a pair, or its target alone, for drafters that are no model.

    dtype: fp32, fp16 or bf16; None takes the config's own for that device. with_draft: False leaves config.draft unread
    and Pair.draft None (of the tiny pair the shape is read, since its target grows out of its draft).

    Raises UserError, before any weight is read or downloaded, when the pair cannot work: a checkpoint is missing, gated or
    of another kind, the tokenizers differ, the draft's ranking does not suit them, the memory does not suffice; and while
    loading, when a file is damaged.
    """
    torch_device = choose_device(device)
    torch_dtype = choose_dtype(config, torch_device, dtype)
    with only_errors():
        if config.made_up:
            return build_pair(config, TinySettings(), torch_device, torch_dtype, with_draft)
        return load_checkpoints(settle_quantization(config, torch_device), torch_device, torch_dtype, with_draft)


def settle_quantization(config: PairConfig, device: torch.device) -> PairConfig:
    """The config with `quantization` as the device has it."""
    if device.type != "cpu":
        return config
    roles = {"target": config.target, "draft": config.draft}
    held = {name: replace(role, quantization=role.quantization or role.cpu_quantization) for name, role in roles.items()}
    return replace(config, **held)


@contextmanager
def only_errors():
    """No warnings of transformers: they bring a checkpoint's own names to the terminal, and what counts is refused here."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)


def reduce_draft(pair: Pair, size: int | None, ranking: np.ndarray | None) -> Pair:
    """The pair with a draft that proposes `size` tokens only: every end of an answer and the first of the ranking.

    None leaves it whole. The given pair is not changed; all weights but the new LM head are shared with it. Raises
    UserError when size is above the ranking's length or below the number of ends.
    """
    if size is None:
        return pair
    ids = torch.from_numpy(draft_vocabulary.choose_ids(ranking, size, pair.eos_ids)).to(pair.device)
    identity = pair.identity | {"draft_vocabulary": draft_vocabulary.identify(ids)}
    return replace(pair, draft=freeze(draft_vocabulary.cut_lm_head(pair.draft, ids)), draft_ids=ids, identity=identity)


def roles_of(config: PairConfig, with_draft: bool) -> dict[str, Checkpoint]:
    return {"target": config.target, "draft": config.draft} if with_draft else {"target": config.target}


def load_checkpoints(config: PairConfig, device: torch.device, dtype: torch.dtype, with_draft: bool) -> Pair:
    roles = roles_of(config, with_draft)
    for role, checkpoint in roles.items():
        load.check_int8(checkpoint, role, device)
    files = {role: locate(config, role, with_draft) for role in roles}
    configs = {role: load.read_config(found) for role, found in files.items()}
    tokenizer = load.load_tokenizer(files["target"])
    ranking = None
    if with_draft:
        if not config.draft.borrows_tables:
            draft_tokenizer = load.load_tokenizer(files["draft"])
            check_same_tokens(files, {role: c.vocab_size for role, c in configs.items()}, tokenizer, draft_tokenizer)
        rows = min(c.vocab_size for role, c in configs.items() if not roles[role].borrows_tables)
        ranking = draft_vocabulary.find_ranking(config.draft, rows, files["draft"].folder)
    demands = [Demand(configs[role], roles[role], dtype, f"{files[role].folder}/config.json") for role in roles]
    load.check_memory(config.name, demands, device)

    for found in files.values():
        sources.fetch_weights(found)
    target, draft = load.load_model(files["target"], device, dtype), None
    if with_draft and config.draft.borrows_tables:
        draft = load.load_borrowing_draft(files["draft"], configs["draft"], target)
    elif with_draft:
        draft = load.load_model(files["draft"], device, dtype)
    pair = assemble(config, target, draft, tokenizer, end_ids(target, tokenizer, config.target.ends))
    pair.identity = {role: sources.identify(found) for role, found in files.items()}
    pair.quantization = config.target.quantization, config.draft.quantization if with_draft else None
    return reduce_draft(pair, config.draft.vocabulary, ranking) if with_draft else pair


def locate(config: PairConfig, role: str, with_draft: bool) -> Files:
    """The role's files; where a target is missing, the refusal names the draft too, so that both can be fetched at once."""
    draft = config.draft
    try:
        return sources.locate(role, roles_of(config, with_draft)[role], config.source)
    except UserError as error:
        if role == "draft" or not with_draft or draft.path or draft.id in (None, sources.EMBEDDED_DRAFT):
            raise
        also = f"the pair also needs the draft {draft.id} (or model_pair.draft.path=/folder)"
        raise UserError(f"{str(error).rstrip('.')}; {also}.") from error


def check_same_tokens(files: dict[str, Files], rows: dict[str, int], target_tokenizer, draft_tokenizer) -> None:
    """Raises UserError unless every id that either LM head can produce means the same token to both tokenizers.

    rows: of each head. Entries beyond both heads (a pad token that was added to the tokenizer alone) cannot be produced and
    do not count.
    """
    target, draft = files["target"].name, files["draft"].name
    ours, theirs = (
        {(i, token) for token, i in tokenizer.get_vocab().items() if i < max(rows.values())}
        for tokenizer in (target_tokenizer, draft_tokenizer)
    )
    if ours != theirs:
        token_id, token = min(ours ^ theirs)
        side = "target" if (token_id, token) in ours else "draft"
        raise UserError(
            f"Target {target} and draft {draft} have different tokenizers ({len(ours)} and "
            f"{len(theirs)} tokens; first difference: id {token_id} is {token!r} to the {side} only): choose a "
            "draft of the target's own family."
        )
    last = max(token_id for token_id, _ in ours)
    if last >= min(rows.values()):
        raise UserError(
            f"Target {target} and draft {draft} share a tokenizer of {last + 1} ids, but one "
            f"of them has only {min(rows.values())} output rows: choose a draft that can produce every token."
        )


def assemble(config: PairConfig, target: nn.Module, draft: nn.Module | None, tokenizer, eos_ids: tuple[int, ...]) -> Pair:
    """A pair with what follows from the models themselves."""
    models = [freeze(model) for model in (target, draft) if model is not None]
    return Pair(
        name=config.name,
        target=target,
        draft=draft,
        tokenizer=tokenizer,
        chat_template=config.chat_template,
        device=target.device,
        dtype=target.dtype,
        eos_ids=eos_ids,
        context=min(model.config.max_position_embeddings for model in models),
        vocab_size=min(model.config.vocab_size for model in models),
    )


def end_ids(target: nn.Module, tokenizer, more: Sequence[str] = ()) -> tuple[int, ...]:
    """Ids that end an answer: the generation config's, else the tokenizer's, and those of the tokens `more`.

    Raises UserError when neither names one, or what is named is no token of the target.
    """
    named = target.generation_config.eos_token_id
    named = tokenizer.eos_token_id if named is None else named
    ends = tuple(named) if isinstance(named, list | tuple) else (named,)
    known = tokenizer.get_vocab() if more else {}
    for token in more:
        if token not in known:
            raise UserError(f"model_pair.target.ends names {token}, which is no token of the target: correct it.")
    ends += tuple(known[token] for token in more)
    if named is None or not ends:
        raise UserError("The target names no end-of-sequence token: set eos_token_id in its generation_config.json.")
    for end in ends:
        if type(end) is not int or not 0 <= end < target.config.vocab_size:
            raise UserError(
                f"The target ends answers with token {end!r}, but its tokens are 0 to {target.config.vocab_size - 1}: "
                "correct eos_token_id in its generation_config.json."
            )
    return tuple(dict.fromkeys(ends))


def freeze(model: nn.Module) -> nn.Module:
    return model.eval().requires_grad_(False)


def build_pair(
    config: PairConfig, settings: TinySettings, device: torch.device, dtype: torch.dtype, with_draft: bool = True
) -> Pair:
    """A pair without checkpoints: the true shapes with random weights, for speed only, or the tiny pair of `settings`."""
    tiny = config.source == "tiny-random"
    roles = roles_of(config, with_draft or tiny)  # the tiny target grows out of its draft's layers
    for role, checkpoint in roles.items():
        if checkpoint.shape is None:
            raise UserError(f"model_pair.{role}.shape is not given: weights made on the spot need every size.")
        if checkpoint.quantization:
            raise UserError(f"Weights made on the spot are not quantised: set model_pair.{role}.quantization=null.")
    shapes = {role: checkpoint.shape for role, checkpoint in roles.items()}
    # Nothing is borrowed here: each model has tables of its own
    own = {role: replace(checkpoint, borrows_tables=False) for role, checkpoint in roles.items()}
    configs = {role: load.make_config(shape) for role, shape in shapes.items()}
    demands = [Demand(configs[role], own[role], dtype, f"model_pair.{role}.shape") for role in roles]
    load.check_memory(config.name, demands, device)
    if tiny:
        models = build_tiny_models(shapes["target"], shapes["draft"], settings)
        models = {role: cast_weights(model, device, dtype) for role, model in models.items()}
        made = {"source": config.source, **asdict(settings), "noise_from_layer": shapes["draft"].num_hidden_layers}
    else:
        models = {role: load.make_random_model(c, device, dtype) for role, c in configs.items()}
        made = {"source": "random"}
    vocab_size = min(shape.vocab_size for shape in shapes.values())
    tokenizer, template = ByteTokenizer(vocab_size), "plain"
    if config.target.path is not None:
        tokenizer, template = load.load_tokenizer(sources.locate("target", config.target, config.source)), "tokenizer"
        if len(tokenizer) > vocab_size:
            raise UserError(
                f"The tokenizer in {config.target.path} has {len(tokenizer)} tokens, but the shapes hold {vocab_size}: set "
                "model_pair.target.path=null, or correct vocab_size."
            )
    draft = models["draft"] if with_draft else None
    pair = assemble(config, models["target"], draft, tokenizer, (tokenizer.eos_token_id,))
    pair.random_weights = True
    pair.identity = made | {role: asdict(shapes[role]) for role in roles_of(config, with_draft)}
    if pair.chat_template == "tokenizer":
        pair.chat_template = template
    if not with_draft:
        return pair
    return reduce_draft(pair, config.draft.vocabulary, draft_vocabulary.find_ranking(config.draft, vocab_size))


def cast_weights(model: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """The same model on the device. Parameters only change their dtype: RoPE frequencies are buffers and stay in fp32."""
    model.to(device)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


def random_pair(
    seed: int = 0, noise: float = 0.4, vocab_size: int = BYTE_VOCAB, context: int = 512, vocabulary: int | None = None
) -> Pair:
    """A tiny random pair on the CPU in fp32; `noise` 0 makes draft and target the same model, see TinySettings.

    vocabulary: how many tokens the draft proposes, its end of sequence and others at random; None for all.
    """
    target, draft = (Checkpoint(shape=tiny_shape(layers, vocab_size, context)) for layers in (3, 1))
    draft.vocabulary = vocabulary
    config = PairConfig(name="tiny-random", source="tiny-random", target=target, draft=draft)
    return build_pair(config, TinySettings(seed, noise), torch.device("cpu"), torch.float32)
