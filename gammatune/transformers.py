"""Any live policy inside transformers' own generate: `target.generate(**inputs, custom_generate=speculate(draft, ...))`.

`custom_generate` is transformers' public hook: generate prepares everything and calls us in place of its decoding loop. We
call its loop for assisted decoding and hand it our draft blocks. That loop and the way it asks for a candidate generator
are private (`_assisted_decoding`, `_get_candidate_generator`), so the versions in which they are as we need them are pinned
here. The target model is not changed.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from typing import Any

import torch
import transformers
from packaging.version import Version
from transformers import DynamicCache, GenerationConfig, LogitsProcessorList, PreTrainedModel
from transformers.generation.configuration_utils import GenerationMode

from gammatune.errors import UserError
from gammatune.policies import POLICIES, Policy
from gammatune.records import Round
from gammatune.transformers_candidates import PolicyCandidates

FIRST, LAST = (5, 17), (5, 23)
WINDOWS_ROLL_BACK = (5, 18)
KINDS = {
    bool: ("True or False", lambda value: isinstance(value, bool)),
    int: ("a whole number", lambda value: isinstance(value, Integral) and not isinstance(value, bool)),
    float: ("a number", lambda value: isinstance(value, Real) and not isinstance(value, bool)),
    str: ("a word", lambda value: isinstance(value, str)),
    list[int]: ("a list of whole numbers", lambda value: isinstance(value, list) and all(map(KINDS[int][1], value))),
}


@dataclass
class Speculation:
    """A draft and a policy, to be given to generate as `custom_generate`. rounds: those of the last call.

    A policy whose `carry` is "turn" starts afresh with each call; any other keeps what it learned until `policy.reset()`.
    Rounds have no times: transformers puts the prompt's forward pass into the first of them.
    """

    draft: PreTrainedModel
    policy: Policy
    rounds: list[Round] = field(default_factory=list)

    def __call__(
        self,
        model: PreTrainedModel,
        input_ids: torch.Tensor,
        logits_processor: LogitsProcessorList,
        generation_config: GenerationConfig,
        **model_kwargs: Any,
    ):
        """Called by generate, returns what generate returns. Raises UserError for what cannot be decoded this way."""
        refuse_modes(generation_config)
        refuse_models(model, self.draft)
        refuse_inputs(input_ids, model_kwargs)
        if self.policy.carry == "turn":
            self.policy.reset()
        text = read_text(input_ids, model_kwargs.get("attention_mask"))
        candidates = PolicyCandidates(self.draft, self.policy, text, generation_config, logits_processor)
        self.rounds = candidates.rounds
        stopping_criteria = model_kwargs.pop("stopping_criteria")
        return type(model)._assisted_decoding(
            Verifier(model, candidates),
            input_ids,
            logits_processor=logits_processor,
            stopping_criteria=stop_behind(input_ids.shape[1], stopping_criteria),
            generation_config=generation_config,
            **model_kwargs,
        )


class Verifier:
    """The target as it is, but asked for a candidate generator it names ours."""

    def __init__(self, target: PreTrainedModel, candidates: PolicyCandidates):
        self._target = target
        self._candidates = candidates

    def __getattr__(self, name: str):
        return getattr(self._target, name)

    def __call__(self, **inputs):
        return self._target(**inputs)

    def _get_candidate_generator(self, **unused) -> PolicyCandidates:
        return self._candidates


def speculate(draft: PreTrainedModel, policy: str | Policy = "gammatune_plus", **settings) -> Speculation:
    """What `target.generate(..., custom_generate=...)` takes to draft with `draft` under a policy.

    policy: a name of POLICIES, with settings for its fields, or a policy made before. Raises UserError for a name, a field
    or a value that there is not, for a policy that must know the answer beforehand, and outside transformers 5.17 to 5.23.
    """
    require_version()
    made = policy if isinstance(policy, Policy) else build_policy(policy, settings)
    if made is policy and settings:
        raise UserError(f"Settings ({', '.join(settings)}) go with a policy's name: set them on the policy itself.")
    if made.oracle:
        raise UserError(
            f"Policy {type(made).__name__} must know the answer beforehand: choose {', '.join(live_policies())}."
        )
    return Speculation(draft, made)


def require_version() -> None:
    """Raises UserError outside the range of versions whose assisted decoding was checked."""
    if not FIRST <= installed_version() <= LAST:
        raise UserError(
            f"transformers {transformers.__version__} is installed, but policies inside its generate were checked with "
            f"{name_version(FIRST)} to {name_version(LAST)} only: install one of these, or use gammatune's own loop."
        )


def installed_version() -> tuple[int, int]:
    return Version(transformers.__version__).release[:2]


def name_version(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


def live_policies() -> list[str]:
    return [name for name, option in POLICIES.items() if not option.rule.oracle]


def build_policy(name: str, settings: dict) -> Policy:
    if name not in POLICIES:
        raise UserError(f"There is no policy {name!r}: choose {', '.join(live_policies())}.")
    kinds = {f.name: f.type for f in fields(POLICIES[name].rule)}
    for key, value in settings.items():
        if key not in kinds:
            raise UserError(f"Policy {name} has no field {key!r}: it has {', '.join(kinds)}.")
        require_kind(f"{name}.{key}", value, kinds[key])
    return POLICIES[name](**settings)


def require_kind(label: str, value, kind: type) -> None:
    words, fits = KINDS[kind]
    if not fits(value):
        raise UserError(f"{label}={value!r} is not usable: it must be {words}.")


def refuse_modes(config: GenerationConfig) -> None:
    """Raises UserError for any way of decoding but greedy and sampling of one sequence."""
    if (config.num_beams or 1) > 1 or (config.num_return_sequences or 1) > 1:
        raise UserError("Speculative decoding makes one sequence: set num_beams and num_return_sequences to 1.")
    mode = config.get_generation_mode()
    if mode not in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE):
        raise UserError(
            f"The call asks for {mode.value}, and custom_generate for a gammatune policy: leave out one of both."
        )
    if config.assistant_ensemble_weight is not None:
        raise UserError("assistant_ensemble_weight changes what is generated: leave it out.")


def refuse_models(target: PreTrainedModel, draft: PreTrainedModel) -> None:
    """Raises UserError for a pair that cannot speculate together."""
    for role, model in (("target", target), ("draft", draft)):
        if model.config.is_encoder_decoder or model._is_stateful:
            raise UserError(f"The {role} {type(model).__name__} is not a decoder with a KV cache alone: choose one that is.")
    ours, theirs = (model.config.get_text_config().vocab_size for model in (target, draft))
    if ours != theirs:
        raise UserError(
            f"The target's vocabulary has {ours} entries and the draft's {theirs}: choose a draft with the target's own."
        )
    head = draft.get_output_embeddings()
    if head is not None and head.weight.shape[0] < theirs:
        raise UserError(
            f"The draft's output head has {head.weight.shape[0]} rows for {theirs} tokens, which transformers cannot map: "
            "load the pair with model_pair.draft.vocabulary=null."
        )
    if installed_version() < WINDOWS_ROLL_BACK and any(DynamicCache(config=draft.config).is_sliding):
        raise UserError(
            f"The draft {type(draft).__name__} has layers with a sliding window, which transformers "
            f"{transformers.__version__} cannot roll back: install {name_version(WINDOWS_ROLL_BACK)} or later."
        )


def refuse_inputs(input_ids: torch.Tensor, model_kwargs: dict) -> None:
    """Raises UserError for inputs that are not the ids of one prompt, from its start."""
    if input_ids.shape[0] > 1:
        raise UserError(f"The batch holds {input_ids.shape[0]} prompts, and a gammatune policy takes one: loop over them.")
    if input_ids.shape[1] == 0 or model_kwargs.get("inputs_embeds") is not None:
        raise UserError("The draft needs the prompt's ids: give input_ids, not inputs_embeds.")
    cache = model_kwargs.get("past_key_values")
    if cache is not None and cache.get_seq_length() > 0:
        raise UserError(
            "past_key_values already holds text that the draft has not seen: leave it out, or give an empty one."
        )


def read_text(input_ids: torch.Tensor, mask: torch.Tensor | None) -> list[int]:
    """The prompt's ids on the host, without what the mask hides. Raises UserError when nothing is left."""
    text = input_ids[0] if mask is None else input_ids[0][mask[0].bool().to(input_ids.device)]
    if text.numel() == 0:
        raise UserError("The attention mask hides the whole prompt: leave at least one token to continue from.")
    return text.tolist()


def stop_behind(prompt_tokens: int, criteria: Callable) -> Callable:
    """The same criteria, met by no prompt: 5.17 puts them to a prompt that nothing was drafted for, whatever its end."""

    def answered(input_ids: torch.Tensor, scores, **options) -> torch.Tensor:
        if input_ids.shape[1] == prompt_tokens:
            return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)
        return criteria(input_ids, scores, **options)

    return answered
