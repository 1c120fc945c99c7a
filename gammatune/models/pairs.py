"""A pair ready to decode: target, draft, and everything the two must agree on, checked before any weight is read."""

from dataclasses import asdict, dataclass, field, fields, replace

import numpy as np
import torch
from omegaconf import MISSING
from torch import nn
from transformers import AutoModelForCausalLM

from gammatune.config import Checkpoint, PairConfig, Shape
from gammatune.errors import UserError
from gammatune.models import checkpoints, embedded, hub
from gammatune.models import vocabulary as heads
from gammatune.models.checkpoints import Located
from gammatune.models.devices import choose_device, choose_dtype
from gammatune.models.memory import Need, require_memory
from gammatune.models.tiny import BYTE_VOCAB, ByteTokenizer, TinySettings, build_tiny_models, llama_config, tiny_shape

EMBEDDED_DRAFT = "embedded"


@dataclass
class Pair:
    """Target and draft in eval mode without gradients, on one device.

    chat_template: how prompts are rendered ("tokenizer", "vicuna", "llama-2", "plain"). eos_ids: every id that ends an
    answer (Llama 3 has several). vocab_size: rows that both output heads have; where a checkpoint pads its head to a
    round number, logits are cut to [..., :vocab_size], which drops padding only, because the tokenizers are equal and
    every token of theirs has a row. draft_ids [N], rising, on the device: the target ids that the draft's head has rows for,
    None where it has all. context: positions that both models can address. random_weights: speed only, its text means
    nothing. identity: what the weights are, for provenance and for the cell's hash.
    """

    name: str
    target: nn.Module
    draft: nn.Module
    tokenizer: object
    chat_template: str
    device: torch.device
    dtype: torch.dtype
    eos_ids: tuple[int, ...]
    context: int
    vocab_size: int
    random_weights: bool = False
    identity: dict = field(default_factory=dict)
    draft_ids: torch.Tensor | None = None


def load_pair(config: PairConfig, device: str = "cpu", dtype: str | None = None) -> Pair:
    """Load and check a pair. dtype: fp32, fp16 or bf16; None takes the config's own for that device.

    Raises UserError, before any weight is read or downloaded, when the pair cannot work: a checkpoint is missing, gated or
    of another kind, the tokenizers differ, the draft's ranking does not suit them, the memory does not suffice; and while
    loading, when a file is damaged.
    """
    torch_device = choose_device(device)
    torch_dtype = choose_dtype(config, torch_device, dtype)
    if config.source == "tiny-random":
        return build_tiny_pair(config, torch_device, torch_dtype)
    build = build_random_pair if config.weights == "random" else load_checkpoints
    return build(config, torch_device, torch_dtype)


def reduce_draft(pair: Pair, head: int | None, ranking: np.ndarray | None) -> Pair:
    """The pair with a draft that can say `head` tokens only: every end of an answer and the first of the ranking.

    None leaves it whole. The given pair is not changed; all weights but the new head are shared with it. Raises UserError
    when head is above the ranking's length or leaves no room for the ends.
    """
    if head is None:
        return pair
    rows = torch.from_numpy(heads.choose_rows(ranking, head, pair.eos_ids)).to(pair.device)
    identity = pair.identity | {"draft_head": heads.identify(rows)}
    return replace(pair, draft=freeze(heads.reduce_head(pair.draft, rows)), draft_ids=rows, identity=identity)


def load_checkpoints(config: PairConfig, device: torch.device, dtype: torch.dtype) -> Pair:
    for role, checkpoint in (("target", config.target), ("draft", config.draft)):
        checkpoints.require_int8(checkpoint, role, device)
    target, draft = locate_both(config)
    borrowed = config.draft.id == EMBEDDED_DRAFT
    tokenizer = checkpoints.load_tokenizer(target)
    if not borrowed:
        require_same_tokens(target, tokenizer, draft, checkpoints.load_tokenizer(draft))
    rows = target.config.vocab_size if borrowed else min(target.config.vocab_size, draft.config.vocab_size)
    ranking = heads.find_ranking(config.draft, rows, draft.folder)
    need = replace(need_of(draft, dtype), shared_embeddings=borrowed, head=config.draft.head or 0)
    needs = [need_of(target, dtype), need]
    require_memory(config.name, needs, device)
    for located in (target, draft):
        if located.commit:
            hub.fetch_weights(located.role, located.checkpoint, located.folder)
    target_model = checkpoints.load_model(target, device, dtype)
    draft_model = (
        embedded.build_draft(target_model, draft.folder) if borrowed else checkpoints.load_model(draft, device, dtype)
    )
    identity = {"target": checkpoints.identify(target), "draft": checkpoints.identify(draft)}
    return reduce_draft(assemble(config, (target_model, draft_model), tokenizer, identity), config.draft.head, ranking)


def locate_both(config: PairConfig) -> tuple[Located, Located]:
    """Target and draft. A draft with the id `embedded` has layers only and borrows its target's embeddings."""
    if config.source == "embedded" and config.target.path is None:
        target = embedded.locate_target(config.target)
    else:
        target = locate_target(config)
    if config.draft.id == EMBEDDED_DRAFT:
        return target, embedded.locate_draft(config.draft)
    return target, checkpoints.locate("draft", config.draft)


def locate_target(config: PairConfig) -> Located:
    """The target; where it is missing, the refusal names the draft too, so that both can be fetched at once."""
    try:
        return checkpoints.locate("target", config.target)
    except UserError as error:
        if config.draft.id == EMBEDDED_DRAFT or config.draft.path:
            raise
        also = f"the pair also needs the draft {config.draft.id} (or model_pair.draft.path=/folder)"
        raise UserError(f"{str(error).rstrip('.')}; {also}.") from error


def need_of(located: Located, dtype: torch.dtype) -> Need:
    return Need(checkpoints.shape_of(located.config), dtype, located.checkpoint.quantization)


def require_same_tokens(target: Located, target_tokenizer, draft: Located, draft_tokenizer) -> None:
    """Raises UserError unless every id that either head can produce means the same token to both tokenizers.

    Entries beyond both heads (a pad token that was added to the tokenizer alone) cannot be produced and do not count.
    """
    rows = target.config.vocab_size, draft.config.vocab_size
    ours, theirs = (
        {(i, token) for token, i in tokenizer.get_vocab().items() if i < max(rows)}
        for tokenizer in (target_tokenizer, draft_tokenizer)
    )
    if ours != theirs:
        token_id, token = min(ours ^ theirs)
        side = "target" if (token_id, token) in ours else "draft"
        raise UserError(
            f"Target {target.name} and draft {draft.name} have different tokenizers ({len(ours)} and "
            f"{len(theirs)} tokens; first difference: id {token_id} is {token!r} to the {side} only): choose a "
            "draft of the target's own family."
        )
    if max(ours)[0] >= min(rows):
        raise UserError(
            f"Target {target.name} and draft {draft.name} share a tokenizer of {max(ours)[0] + 1} ids, but one "
            f"of them has only {min(rows)} output rows: choose a draft that can produce every token."
        )


def assemble(config: PairConfig, models: tuple, tokenizer, identity: dict) -> Pair:
    target, draft = (freeze(model) for model in models)
    vocab_size = min(target.config.vocab_size, draft.config.vocab_size)
    context = min(model.config.max_position_embeddings for model in (target, draft))
    return Pair(
        name=config.name,
        target=target,
        draft=draft,
        tokenizer=tokenizer,
        chat_template=config.chat_template,
        device=target.device,
        dtype=target.dtype,
        eos_ids=end_ids(target, tokenizer),
        context=context,
        vocab_size=vocab_size,
        identity=identity,
    )


def end_ids(target: nn.Module, tokenizer) -> tuple[int, ...]:
    """Ids that end an answer: the generation config's, else the tokenizer's. Raises UserError when neither names one."""
    named = target.generation_config.eos_token_id
    named = tokenizer.eos_token_id if named is None else named
    if named is None:
        raise UserError("The target names no end-of-sequence token: set eos_token_id in its generation_config.json.")
    return tuple(named) if isinstance(named, list | tuple) else (named,)


def freeze(model: nn.Module) -> nn.Module:
    return model.eval().requires_grad_(False)


def build_random_pair(config: PairConfig, device: torch.device, dtype: torch.dtype) -> Pair:
    """True shapes, weights drawn on the device in `dtype`: for speed where no checkpoint is at hand."""
    require_shapes(config)
    if config.target.quantization or config.draft.quantization:
        raise UserError(
            "model_pair.weights=random builds unquantised weights only: set model_pair.target.quantization=null."
        )
    roles = {"target": config.target, "draft": config.draft}
    require_memory(config.name, [Need(role.shape, dtype, head=role.head or 0) for role in roles.values()], device)
    models = tuple(random_llama(role.shape, device, dtype) for role in roles.values())
    vocab_size = min(role.shape.vocab_size for role in roles.values())
    identity = {"source": "random", **{role: asdict(checkpoint.shape) for role, checkpoint in roles.items()}}
    tokenizer, template = random_tokenizer(config.target, vocab_size)
    pair = replace(
        assemble(config, models, tokenizer, identity),
        eos_ids=(tokenizer.eos_token_id,),
        random_weights=True,
        chat_template=template if config.chat_template == "tokenizer" else config.chat_template,
    )
    return reduce_draft(pair, config.draft.head, heads.find_ranking(config.draft, vocab_size))


def random_tokenizer(checkpoint: Checkpoint, vocab_size: int) -> tuple:
    """The tokenizer of a local folder where one is given, else bytes; with the chat template that suits it."""
    if checkpoint.path is None:
        return ByteTokenizer(vocab_size), "plain"
    return checkpoints.load_tokenizer(checkpoints.locate("target", checkpoint)), "tokenizer"


def random_llama(shape: Shape, device: torch.device, dtype: torch.dtype) -> nn.Module:
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.device(device):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(llama_config(shape), dtype=dtype, attn_implementation="sdpa")


def require_shapes(config: PairConfig) -> None:
    """Raises UserError when a shape that the pair is built from lacks a size."""
    for role, checkpoint in (("target", config.target), ("draft", config.draft)):
        lacking = [f.name for f in fields(Shape) if getattr(checkpoint.shape, f.name) == MISSING]
        if lacking:
            raise UserError(f"model_pair.{role}.shape lacks {', '.join(lacking)}: weights made on the spot need every size.")


def build_tiny_pair(config: PairConfig, device: torch.device, dtype: torch.dtype) -> Pair:
    require_shapes(config)
    pair = make_tiny_pair(config.name, config.target.shape, config.draft.shape, TinySettings())
    ranking = heads.find_ranking(config.draft, pair.vocab_size)
    return reduce_draft(move(pair, device, dtype), config.draft.head, ranking)


def random_pair(
    seed: int = 0, noise: float = 0.4, vocab_size: int = BYTE_VOCAB, context: int = 512, head: int | None = None
) -> Pair:
    """A tiny random pair on the CPU in fp32; `noise` 0 makes draft and target the same model, see TinySettings.

    head: rows of the draft's output head, its end of sequence and others at random; None for all.
    """
    shapes = tiny_shape(3, vocab_size, context), tiny_shape(1, vocab_size, context)
    pair = make_tiny_pair("tiny-random", *shapes, TinySettings(seed, noise))
    return reduce_draft(pair, head, heads.draw_ranking(vocab_size))


def make_tiny_pair(name: str, target_shape: Shape, draft_shape: Shape, settings: TinySettings) -> Pair:
    target, draft = (freeze(model) for model in build_tiny_models(target_shape, draft_shape, settings))
    tokenizer = ByteTokenizer(target_shape.vocab_size)
    identity = {"source": "tiny-random", **asdict(settings), "target": asdict(target_shape), "draft": asdict(draft_shape)}
    return Pair(
        name=name,
        target=target,
        draft=draft,
        tokenizer=tokenizer,
        chat_template="plain",
        device=torch.device("cpu"),
        dtype=torch.float32,
        eos_ids=(tokenizer.eos_token_id,),
        context=target_shape.max_position_embeddings,
        vocab_size=target_shape.vocab_size,
        random_weights=True,
        identity=identity,
    )


def move(pair: Pair, device: torch.device, dtype: torch.dtype) -> Pair:
    for model in (pair.target, pair.draft):
        model.to(device)
        # Parameters only: the RoPE frequencies are buffers and stay in fp32, else phases are wrong at far positions.
        for parameter in model.parameters():
            parameter.data = parameter.data.to(dtype)
    return replace(pair, device=device, dtype=dtype)
