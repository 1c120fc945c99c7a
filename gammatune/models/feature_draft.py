"""A feature draft: one decoder layer that predicts the target's next feature from its last one and the token just emitted.

EAGLE-1's idea (Li et al. 2024, arXiv 2401.15077). A *feature* is the target's residual stream after its last layer and
before its final norm, [hidden] per position. Position i's input is

    fuse([rms_norm(embedding of token i + 1) ; rms_norm(feature of position i)])

with an RMS norm and its weights for each half, since features are many times larger than embeddings. One decoder layer of
the target's own kind follows, with RoPE at position i; its residual stream is the predicted feature of position i + 1. From
that the target's own final norm and LM head make the logits of token i + 2, so the draft chains over what it predicts.
Embedding, final norm and LM head are the target's: frozen, taken at load time, stored nowhere.
"""

import copy
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, Cache, PreTrainedConfig

from gammatune.errors import UserError
from gammatune.files import replacing
from gammatune.models.draft_vocabulary import cut_rows
from gammatune.models.int8 import Int8Linear
from gammatune.models.sources import check_whole

FILE = "feature_draft.safetensors"
FORMAT = "gammatune feature draft 1"
IDS = "ids"  # the tensor of a reduced vocabulary
HOW = "train one with `gammatune train-draft`, or correct drafter.path"
PROBE = 64  # tokens by which the size of the target's features is measured

# What of a target's config its features and its decoder layer depend on
CONFIG_FIELDS = (
    "model_type",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
    "rms_norm_eps",
    "hidden_act",
)


class FeatureTap:
    """Keeps what enters a model's final norm: `features` [b, n, hidden] of the model's latest forward."""

    def __init__(self, model: nn.Module):
        self.features: torch.Tensor | None = None
        self.hook = model.model.norm.register_forward_pre_hook(self.keep)

    def keep(self, norm: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        self.features = inputs[0]

    def remove(self) -> None:
        self.hook.remove()


@dataclass(frozen=True)
class Borrowed:
    """What is the target's: used by the draft, never trained and never stored with it."""

    embedding: nn.Embedding
    norm: nn.Module  # the final RMS norm
    head: nn.Linear  # rows of the LM head: all, or those of `ids`
    config: PreTrainedConfig


class FeatureDraft(nn.Module):
    """norm_embedding and norm_feature [hidden], fuse [hidden, 2 hidden], and one decoder layer.

    ids [N], rising: the target ids whose rows of the LM head it uses; None for all.
    """

    def __init__(self, target: nn.Module, ids: torch.Tensor | None = None, dtype: torch.dtype = torch.float32):
        super().__init__()
        hidden, head = target.config.hidden_size, target.get_output_embeddings()
        with torch.device(target.device):
            self.norm_embedding = nn.RMSNorm(hidden, eps=target.config.rms_norm_eps, dtype=dtype)
            self.norm_feature = nn.RMSNorm(hidden, eps=target.config.rms_norm_eps, dtype=dtype)
            self.fuse = nn.Linear(2 * hidden, hidden, bias=False, dtype=dtype)
            self.decoder = AutoModel.from_config(one_layer(target.config), dtype=dtype, attn_implementation="sdpa")
        # The target's norm in a module apart: a tap on the target's own must not see the draft
        norm, norm.weight = self.decoder.norm, target.model.norm.weight
        rows = head if ids is None else cut_rows(head, ids.to(target.device))
        self.ids, self.borrowed = ids, Borrowed(target.get_input_embeddings(), norm, rows, target.config)
        # It is fed what `fuse` makes, and its residual stream is the result
        self.decoder.embed_tokens, self.decoder.norm = nn.Identity(), nn.Identity()

    @classmethod
    def from_target(
        cls,
        target: nn.Module,
        ids: torch.Tensor | None = None,
        initialise_from_last_layer: bool = True,
        dtype: torch.dtype = torch.float32,
    ) -> "FeatureDraft":
        """A draft to be trained, on the target's device. dtype: of its own weights, whatever the target's is.

        initialise_from_last_layer: the layer is a copy of the target's last, whose input is then the mean of both normed
        halves at the size that the target's features have; else all weights are drawn from torch's generator.
        """
        draft = cls(target, ids, dtype)
        if initialise_from_last_layer:
            copy_layer(target.model.layers[-1], draft.decoder.layers[0])
            size, hidden = measure_features(target), target.config.hidden_size
            with torch.no_grad():
                draft.norm_embedding.weight.fill_(size)
                draft.norm_feature.weight.fill_(size)
                draft.fuse.weight.copy_(torch.eye(hidden).repeat(1, 2) / 2)
        return draft

    @property
    def dtype(self) -> torch.dtype:
        """Of what makes the inputs."""
        return self.fuse.weight.dtype

    def fuse_inputs(self, features: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """The decoder layer's inputs [..., hidden]. features [..., hidden] of positions i; tokens [...]: ids at i + 1."""
        embedded = self.borrowed.embedding(tokens).to(self.dtype)
        return self.fuse(torch.cat([self.norm_embedding(embedded), self.norm_feature(features.to(self.dtype))], dim=-1))

    def forward(
        self,
        features: torch.Tensor,
        tokens: torch.Tensor,
        positions: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        cache: Cache | None = None,
    ) -> torch.Tensor:
        """Predicted features [b, n, hidden] of positions i + 1, before the final norm, in the draft's dtype.

        features [b, n, hidden]: of positions i, the target's own or predicted ones. tokens [b, n]: ids at positions i + 1.
        positions [b, n]: the i, None to count on from the cache. mask [b, n, cached + n]: True where an input is seen; None
        for each with all before it. cache: of transformers, appended to; None to keep nothing.
        """
        return self.decoder(
            inputs_embeds=self.fuse_inputs(features, tokens).to(self.decoder.dtype),
            position_ids=positions,
            attention_mask=None if mask is None else mask[:, None],
            past_key_values=cache,
            use_cache=cache is not None,
        ).last_hidden_state

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """Of the next token, [..., N] over `ids`, from features [..., hidden] by the target's final norm and LM head."""
        return self.borrowed.head(self.borrowed.norm(features.to(self.borrowed.embedding.weight.dtype)))

    def widen(self) -> None:
        """`fuse_inputs` in fp32 from now on: on a CPU, torch takes a third of the time that it takes in bf16 for a row."""
        for module in (self.norm_embedding, self.norm_feature, self.fuse):
            module.float()

    def save(self, folder: Path, tokenizer, dtype: torch.dtype = torch.bfloat16) -> Path:
        """Write the draft's own weights in `dtype`, its ids, and what target it belongs to; returns the file.

        tokenizer: the target's.
        """
        tensors = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in self.state_dict().items()}
        if self.ids is not None:
            tensors[IDS] = self.ids.to("cpu", torch.int32)
        about = {
            "format": FORMAT,
            "target_config": hash_config(self.borrowed.config),
            "target_vocabulary": hash_vocabulary(tokenizer),
        }
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / FILE) as partial:
            save_file(tensors, partial, about)
        return folder / FILE

    @classmethod
    def load(cls, folder: Path, target: nn.Module, tokenizer) -> "FeatureDraft":
        """The draft in `folder` in the target's dtype and on its device, frozen.

        Raises UserError where the file is missing or damaged, or belongs to another target or tokenizer.
        """
        path = folder / FILE
        tensors = read_tensors(path, target.config, tokenizer)
        ids = tensors.pop(IDS, None)
        draft = cls(target, check_ids(path, ids, target.config.vocab_size), target.dtype)
        try:
            draft.load_state_dict(tensors)
        except RuntimeError as error:
            reason = str(error).splitlines()[-1].strip().rstrip(".")
            raise UserError(f"The weights in {path} are not those of this draft ({reason}): {HOW}.") from error
        if not all(parameter.isfinite().all() for parameter in draft.parameters()):
            raise UserError(f"The weights in {path} hold numbers that are NaN or infinite: {HOW}.")
        return draft.eval().requires_grad_(False)

    def as_causal_lm(self, inputs: nn.Embedding) -> nn.Module:
        """The decoder layer with the target's norm and head as a model of the target's kind, for any runtime.

        inputs: its embedding; a caller writes what `fuse_inputs` made into its rows and feeds their numbers.
        """
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(
                self.decoder.config, dtype=self.decoder.dtype, attn_implementation="sdpa"
            )
        model.model.layers, model.model.rotary_emb = self.decoder.layers, self.decoder.rotary_emb
        model.model.norm = self.borrowed.norm
        model.set_input_embeddings(inputs)
        model.set_output_embeddings(self.borrowed.head)
        model.config.vocab_size = len(inputs.weight)
        return model.eval().requires_grad_(False)


def one_layer(config: PreTrainedConfig) -> PreTrainedConfig:
    """The settings of a model of the same kind that has the last layer alone, and tables of one row."""
    config = copy.deepcopy(config)
    config.num_hidden_layers, config.vocab_size, config.pad_token_id, config.tie_word_embeddings = 1, 1, None, False
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[-1:]
    return config


def copy_layer(source: nn.Module, to: nn.Module) -> None:
    """The weights of one decoder layer into another, those in int8 as the numbers that they stand for."""
    for name, module in source.named_modules():
        if isinstance(module, Int8Linear):
            to.get_submodule(name).weight.data.copy_(module.weight.data * module.scales[:, None])
            if module.bias is not None:
                to.get_submodule(name).bias.data.copy_(module.bias.data)
        else:
            for key, parameter in module.named_parameters(recurse=False):
                to.get_submodule(name).get_parameter(key).data.copy_(parameter.data)


@torch.inference_mode()
def measure_features(target: nn.Module) -> float:
    """The root mean square of the target's features, in the middle of those of a text of PROBE random tokens."""
    tap = FeatureTap(target)
    tokens = torch.randint(target.config.vocab_size, (1, PROBE), generator=torch.Generator().manual_seed(0))
    target(tokens.to(target.device))
    tap.remove()
    return float(tap.features.float().pow(2).mean(dim=-1).sqrt().median())


def hash_config(config: PreTrainedConfig) -> str:
    """Of what a feature draft depends on; a GGUF file's settings agree with a checkpoint's to six digits."""
    known = {name: getattr(config, name, None) for name in CONFIG_FIELDS}
    known["head_dim"] = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    known["rope_theta"] = config.rope_parameters.get("rope_theta")
    rounded = {name: f"{value:.6g}" if isinstance(value, float) else str(value) for name, value in known.items()}
    return hashlib.sha256(json.dumps(rounded, sort_keys=True).encode()).hexdigest()


def hash_vocabulary(tokenizer) -> str:
    """Of all tokens and their ids."""
    tokens = sorted((number, token) for token, number in tokenizer.get_vocab().items())
    return hashlib.sha256(json.dumps(tokens).encode()).hexdigest()


def read_tensors(path: Path, config: PreTrainedConfig, tokenizer) -> dict[str, torch.Tensor]:
    """All tensors of a feature draft's file. Raises UserError as `FeatureDraft.load`."""
    if not path.is_file():
        raise UserError(f"There is no {path.name} in {path.parent}: {HOW}.")
    check_whole(path)
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): {HOW}.") from error
    if about.get("format") != FORMAT:
        raise UserError(f"{path} is no feature draft of this gammatune: {HOW}.")
    if about.get("target_config") != hash_config(config):
        raise UserError(f"The feature draft {path} belongs to a target of other sizes or of another kind: {HOW}.")
    if about.get("target_vocabulary") != hash_vocabulary(tokenizer):
        raise UserError(f"The feature draft {path} belongs to a target with another tokenizer: {HOW}.")
    return tensors


def check_ids(path: Path, ids: torch.Tensor | None, vocab_size: int) -> torch.Tensor | None:
    """The ids as int64. Raises UserError unless they rise and are the target's."""
    if ids is None:
        return None
    fine = ids.dim() == 1 and len(ids) and not ids.is_floating_point()
    ids = ids.long()
    if not fine or not 0 <= int(ids[0]) <= int(ids[-1]) < vocab_size or not bool((ids.diff() > 0).all()):
        raise UserError(f"The reduced vocabulary in {path} is no rising list of the target's tokens: {HOW}.")
    return ids
