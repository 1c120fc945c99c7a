"""Any live policy inside transformers' own generate: `target.generate(**inputs, custom_generate=speculate(draft, ...))`.

`custom_generate` is transformers' public hook for a decoding loop of one's own: generate prepares logits processors,
stopping criteria and a cache, and calls us with them. The loop is that of gammatune.decoding.
"""

import inspect
from dataclasses import dataclass, field
from pathlib import Path

import torch
import transformers
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from packaging.version import Version
from transformers import (
    Cache,
    DynamicCache,
    GenerationConfig,
    GenerationMixin,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteriaList,
    SynthIDTextWatermarkLogitsProcessor,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
)
from transformers.generation import BaseStreamer, GenerateDecoderOnlyOutput, GenerationMode

from gammatune.decoding.accept import ChainVerifier
from gammatune.decoding.loop import Turn, prefill, read_marks, run_round
from gammatune.decoding.sampling import ProcessedSampler
from gammatune.drafters.base import Drafter, Workplace, refuse_watching
from gammatune.drafters.model import DraftModel
from gammatune.errors import UserError, explain
from gammatune.policies import POLICIES, Policy
from gammatune.policies.session import PolicySession
from gammatune.records import Block, Proposal, Round
from gammatune.replay.prices import hand_prices, read_prices
from gammatune.runtimes.device import Device
from gammatune.runtimes.eager import CACHE, EagerModel

UNDERSTOOD = {"attention_mask", "position_ids", "cache_position", "logits_to_keep", "use_cache"}  # inputs of a model
ONE_WAY = (UnbatchedClassifierFreeGuidanceLogitsProcessor, SynthIDTextWatermarkLogitsProcessor)


def speculate(
    draft: PreTrainedModel | None = None,
    policy: str | Policy = "gammatune_plus",
    drafter: Drafter | None = None,
    streamer: BaseStreamer | None = None,
    prices: str | Path | None = None,
    **settings,
) -> "Speculation":
    """What `target.generate(..., custom_generate=...)` takes to decode with a draft under a policy.

    policy: a name of POLICIES, with settings for its fields, or a policy made before. drafter: what proposes tokens where
    that is no draft model, such as Lookup(). streamer: gets each new token; give generate the same one, for the prompt.
    prices: a file made by `gammatune prices`, for a policy that decides by prices.
    Raises UserError for a name, a field or a value that there is not, for a policy that must know the answer beforehand or
    watches signals that the drafter has not, and where draft and drafter do not go together.
    """
    if "custom_generate" not in inspect.signature(GenerationMixin.generate).parameters:
        raise UserError(f"transformers {transformers.__version__} has no custom_generate: install 5.17 to 5.24.")
    made = policy if isinstance(policy, Policy) else make_policy(policy, settings)
    if made is policy and settings:
        raise UserError(f"Settings ({', '.join(settings)}) go with a policy's name: set them on the policy itself.")
    if made.oracle:
        raise UserError(f"Policy {type(made).__name__} must know the answer beforehand: choose {name_live_policies()}.")
    if (drafter is None or drafter.needs_draft_model) != (draft is not None):
        raise UserError("Give speculate either a draft model, or a drafter that needs none, such as drafter=Lookup().")
    if drafter is not None and drafter.reads_features:
        raise UserError(f"generate hands no hidden states on, which drafter={drafter.name} reads: use `gammatune run`.")
    if made.watches_draft and drafter is not None and not drafter.signals:
        refuse_watching(drafter, type(made).__name__)
    if prices is not None:
        if not made.needs_prices:
            raise UserError(f"Policy {type(made).__name__} does not decide by prices: leave prices={prices} out.")
        hand_prices(made, read_prices(Path(prices)), forwards_per_token=int(draft is not None))
    return Speculation(draft, made, drafter or DraftWithinContext(), streamer)


def make_policy(name: str, settings: dict) -> Policy:
    if name not in POLICIES:
        raise UserError(f"There is no policy {name!r}: choose {name_live_policies()}.")
    try:
        typed = OmegaConf.merge({name: POLICIES[name].node()}, {name: settings})
        made = OmegaConf.to_object(typed[name])
    except OmegaConfBaseException as error:
        raise UserError(explain(error)) from error
    made.name = name
    return made


def name_live_policies() -> str:
    return ", ".join(name for name, option in POLICIES.items() if not option.rule.oracle)


@dataclass
class Speculation:
    """To be given to generate as `custom_generate`; made by `speculate`. rounds: those of the last call.

    A policy whose `carry` is "turn" starts afresh with each call; any other keeps what it learned until `policy.reset()`.
    """

    draft: PreTrainedModel | None
    policy: Policy
    drafter: Drafter
    streamer: BaseStreamer | None = None
    rounds: list[Round] = field(default_factory=list)

    def __call__(
        self,
        model: PreTrainedModel,
        input_ids: torch.Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        **inputs,
    ) -> torch.Tensor | GenerateDecoderOnlyOutput:
        """Called by generate, returns what generate returns. Raises UserError for what cannot be decoded this way."""
        refuse_modes(generation_config, logits_processor)
        given, device, ends = inputs.pop(CACHE, None), Device(model.device), read_ends(generation_config)
        cache = DynamicCache(config=model.config) if given is None else given
        refuse_models(model, cache, self.draft)
        prompt = read_prompt(input_ids, cache, inputs)
        hidden = input_ids.shape[1] - len(prompt)
        target = EagerModel(model, count_tokens(model), cache)
        draft = None if self.draft is None else EagerModel(self.draft, target.vocab_size)
        self.drafter.attach(Workplace(device, target.vocab_size, ends, draft))
        if self.policy.carry == "turn":
            self.policy.reset()
        turn = Turn(
            drafter=self.drafter,
            verifier=ChainVerifier(target, device),
            session=PolicySession(self.policy),
            sampler=ProcessedSampler(logits_processor, generation_config.do_sample, input_ids, hidden),
            device=device,
            text=list(prompt),
            prompt_tokens=len(prompt),
            limit=generation_config.max_length - hidden,
            ends=ends,
        )
        self.rounds = turn.rounds
        answer = Answer(turn, stopping_criteria, generation_config, self.streamer, kept=input_ids.shape[1])
        prefill(turn)
        while not (answer.stopped or turn.finished):
            run_round(turn)
            answer.take_round()
        device.synchronize()
        read_marks(turn)
        target.crop(len(turn.text) - 1)
        return answer.pack(cache if hidden == 0 else None)


@dataclass
class DraftWithinContext(DraftModel):
    """A draft model that proposes nothing past its own context, wherever the target's ends."""

    def begin(self, prompt: list[int], sampler) -> None:
        config = self.workplace.model.model.config.get_text_config()
        self.context = getattr(config, "max_position_embeddings", None) or 2**31
        super().begin(prompt[: self.context], sampler)

    def propose(self, text: list[int], block: Block) -> Proposal:
        block.room = max(0, min(block.room, self.context + 1 - len(text)))  # the last drafted token is not fed
        return super().propose(text, block)


@dataclass
class Answer:
    """What generate will return, as far as it goes."""

    turn: Turn
    criteria: StoppingCriteriaList
    config: GenerationConfig
    streamer: BaseStreamer | None
    kept: int  # of the sampler's ids, the prompt and what no criterion cut off
    stopped: bool = False
    scores: tuple[torch.Tensor, ...] | None = None  # [1, V] for each new token, where the call asks for them
    logits: tuple[torch.Tensor, ...] | None = None

    def take_round(self) -> None:
        """Put the round's tokens to the criteria one by one, as generate does, and drop what follows the one that stops."""
        turn, sampler, finished = self.turn, self.turn.sampler, self.turn.rounds[-1]
        ids = sampler.read(turn.text)  # [1, n]
        for place in range(finished.emitted):
            self.kept += 1
            if self.config.return_dict_in_generate and self.config.output_scores:
                self.scores = (*(self.scores or ()), sampler.scores[place : place + 1].clone())
            if self.config.return_dict_in_generate and self.config.output_logits:
                self.logits = (*(self.logits or ()), sampler.logits[place : place + 1].clone())
            if self.streamer is not None:
                self.streamer.put(ids[0, self.kept - 1 : self.kept].cpu())
            if self.criteria(ids[:, : self.kept], self.scores).item():
                self.stopped = True
                break
        dropped = ids.shape[1] - self.kept
        if dropped:
            del turn.text[-dropped:]
            finished.emitted -= dropped
            finished.accepted = min(finished.accepted, finished.emitted)

    def pack(self, cache: Cache | None) -> torch.Tensor | GenerateDecoderOnlyOutput:
        if self.streamer is not None:
            self.streamer.end()
        ids = self.turn.sampler.ids[:, : self.kept].clone()  # made outside inference mode: an ordinary tensor
        if not self.config.return_dict_in_generate:
            return ids
        return GenerateDecoderOnlyOutput(ids, scores=self.scores, logits=self.logits, **{CACHE: cache})


def refuse_modes(config: GenerationConfig, processors: LogitsProcessorList) -> None:
    """Raises UserError for any way of decoding but greedy and sampling, and for what cannot be had with it."""
    mode = config.get_generation_mode()
    if mode not in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE):
        raise UserError(f"The call asks for {mode.value}, and for a gammatune policy: leave out one of both.")
    if config.return_dict_in_generate and (config.output_attentions or config.output_hidden_states):
        raise UserError("output_attentions and output_hidden_states are not collected: leave them out.")
    if any(isinstance(processor, ONE_WAY) for processor in processors):
        raise UserError("guidance_scale and SynthID watermarks cannot take a rejected token back: leave them out.")


def refuse_models(target: PreTrainedModel, cache: Cache, draft: PreTrainedModel | None) -> None:
    """Raises UserError for models that cannot speculate, or not with each other."""
    caches = {"target": (target, cache)} | ({} if draft is None else {"draft": (draft, DynamicCache(config=draft.config))})
    for role, (model, its_cache) in caches.items():
        loses = any(its_cache.is_sliding) and Version(transformers.__version__).release < (5, 18)
        grows = isinstance(its_cache, DynamicCache) and its_cache.is_croppable
        if model.config.is_encoder_decoder or loses or not grows:
            raise UserError(
                f"The {role} {type(model).__name__} with a {type(its_cache).__name__} cannot take tokens back: choose a "
                "decoder with attention alone (sliding windows can from transformers 5.18 on), without cache_implementation."
            )
    if draft is None:
        return
    if count_tokens(target) != count_tokens(draft):
        raise UserError(
            f"The target's head has {count_tokens(target)} tokens and the draft's {count_tokens(draft)}: choose a draft "
            "with all of the target's own (model_pair.draft.vocabulary=null)."
        )
    if target.device != draft.device:
        raise UserError(f"The target is on {target.device} and the draft on {draft.device}: move the draft there.")


def read_prompt(input_ids: torch.Tensor, cache: Cache, inputs: dict) -> list[int]:
    """The prompt's ids on the host, without those that the attention mask hides.

    Raises UserError for inputs that are not the ids of one prompt, from its start.
    """
    if input_ids.shape[0] > 1:
        raise UserError(f"The call asks for {input_ids.shape[0]} sequences, and a policy takes one: loop over them.")
    others = sorted(name for name, value in inputs.items() if value is not None and name not in UNDERSTOOD)
    if others:
        raise UserError(f"The models are given input_ids and nothing else: leave out {', '.join(others)}.")
    if cache.get_seq_length() > 0:
        raise UserError("The cache already holds text that the draft has not seen: leave it out, or give an empty one.")
    mask, positions = inputs.get("attention_mask"), inputs.get("position_ids")
    seen = torch.ones_like(input_ids[0], dtype=torch.bool) if mask is None else mask[0].bool().to(input_ids.device)
    if not seen[-1:].any():
        raise UserError("The prompt is empty, or the attention mask hides its last token: pad it on the left.")
    prompt = input_ids[0][seen].tolist()
    if positions is not None and positions[..., seen].flatten().tolist() != list(range(len(prompt))):
        raise UserError("The prompt's positions must count from 0: leave position_ids out.")
    return prompt


def read_ends(config: GenerationConfig) -> frozenset[int]:
    """Ids that end the sequence, none where generation has no such id."""
    ends = config.eos_token_id
    return frozenset() if ends is None else frozenset(ends if isinstance(ends, list | tuple) else [ends])


def count_tokens(model: PreTrainedModel) -> int:
    return getattr(model.get_output_embeddings(), "out_features", None) or model.config.get_text_config().vocab_size
