"""Several own steps of a feature draft over texts that are known, as it would take them while it drafts.

Own step 1 of a place t is fed the target's feature of position t and token t + 1, and predicts feature t + 1, token t + 2.
Own step j is fed in place of that feature what step j - 1 predicted one place before. It sees, as while drafting, the keys
of target features up to place t - j + 1, and after those one key of each own step before it: those of its own block.

That the steps are chained in training, with such an attention, is HASS's (arXiv 2408.15766) and EAGLE-3's (2503.01840) idea;
that a token no longer counts where the draft did not rank an earlier one of its block is GRIFFIN's (2502.11018).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.nn.utils.rnn import pad_sequence

from gammatune.models.feature_draft import FeatureDraft
from gammatune.training.attention import attend, rotate, split_heads
from gammatune.training.teacher import Answered


@dataclass(frozen=True)
class Batch:
    """B texts whose answers are drafted from every place. A: places of the longest answer; T: of the longest text."""

    tokens: torch.Tensor  # [B, T]: the token fed at each place t, which is the text's t + 1
    features: torch.Tensor  # [B, T, hidden]: the target's, of position t
    places: torch.Tensor  # [B, A]: the t whose prediction is a token of the answer
    counted: torch.Tensor  # [B, A]: whether that place is one of the text's
    wanted: torch.Tensor  # [B, A]: the token t + 2
    wanted_features: torch.Tensor  # [B, A, hidden]: the target's, of position t + 1


@dataclass(frozen=True)
class OwnStep:
    """One own step at all places of a batch."""

    features: torch.Tensor  # [B, A, hidden]: predicted, of position t + 1
    logits: torch.Tensor  # [B, A, N] of token t + 2, over the draft's own ids
    counted: torch.Tensor  # [B, A]: whether a block could have come here: its steps lie within the answer


def make_batch(texts: list[Answered], device: torch.device) -> Batch:
    """Texts of three tokens or more each, with one token of an answer at least."""
    ids = pad_sequence([text.ids.long() for text in texts], batch_first=True).to(device)
    features = pad_sequence([text.features for text in texts], batch_first=True).to(device, torch.float32)
    firsts = torch.tensor([max(text.prompt - 2, 0) for text in texts], device=device)[:, None]
    ends = torch.tensor([len(text.ids) - 2 for text in texts], device=device)[:, None]
    places = firsts + torch.arange(int((ends - firsts).max()), device=device)
    counted = places < ends
    places = torch.where(counted, places, ends - 1)
    at = places[..., None].expand(-1, -1, features.shape[-1])
    return Batch(
        tokens=ids[:, 1:-1],
        features=features[:, :-1],
        places=places,
        counted=counted,
        wanted=ids.gather(1, places + 2),
        wanted_features=features.gather(1, at + 1),
    )


def own_steps(draft: FeatureDraft, batch: Batch, steps: int) -> Iterator[OwnStep]:
    """The first `steps` own steps, one after the other."""
    layer, hidden = draft.decoder.layers[0], batch.features.shape[-1]
    attention, everywhere = layer.self_attn, torch.arange(batch.tokens.shape[1], device=batch.tokens.device)
    rows, count = batch.places.shape

    def project(normed: torch.Tensor, linear: torch.nn.Module) -> torch.Tensor:
        return split_heads(linear(normed), attention.head_dim)

    inputs = draft.fuse_inputs(batch.features, batch.tokens)
    turns = draft.decoder.rotary_emb(inputs, everywhere[None].expand(rows, -1))
    turns_here = draft.decoder.rotary_emb(inputs, batch.places)
    normed = layer.input_layernorm(inputs)
    keys, values = rotate(project(normed, attention.k_proj), *turns), project(normed, attention.v_proj)
    tokens_here = batch.tokens.gather(1, batch.places)
    # With one layer, a place's keys and values depend on its own input alone, so nothing else is computed for prompts
    here = batch.places[..., None].expand(-1, -1, hidden)
    inputs, normed = inputs.gather(1, here), normed.gather(1, here)
    index = torch.arange(count, device=batch.tokens.device)
    counted, own_seen = batch.counted, []
    for step in range(1, steps + 1):
        if step > 1:
            shifted = torch.cat([predicted[:, :1], predicted[:, :-1]], dim=1)  # noqa: F821  of the step before
            inputs = draft.fuse_inputs(shifted, tokens_here)
            normed = layer.input_layernorm(inputs)
            keys = torch.cat([keys, rotate(project(normed, attention.k_proj), *turns_here)], dim=2)
            values = torch.cat([values, project(normed, attention.v_proj)], dim=2)
            own_seen.append(step)
            counted = counted & (index >= step - 1)
        seen = [everywhere <= batch.places[..., None] - (step - 1)]
        seen += [(index[None] == (index - step + each)[:, None]).expand(rows, -1, -1) for each in own_seen]
        # A place before which no block can have begun sees something, so that its softmax is no NaN; it is not counted
        seen[0] = seen[0] | (everywhere == 0)
        queries = rotate(project(normed, attention.q_proj), *turns_here)
        residual = inputs + attention.o_proj(attend(queries, keys, values, torch.cat(seen, dim=-1)))
        predicted = residual + layer.mlp(layer.post_attention_layernorm(residual))
        yield OwnStep(predicted, draft.logits(predicted), counted)


def still_aligned(aligned: torch.Tensor, logits: torch.Tensor, wanted: torch.Tensor, most: int) -> torch.Tensor:
    """Where a block is still aligned at its next own step [B, A]: it was before, and the draft ranked the token then fed.

    aligned [B, A]: at this step. logits [B, A, N] of this step; wanted [B, A]: the right token's column, -1 for none; most:
    among how many of the draft's first choices that token must be.
    """
    right = logits.gather(-1, wanted.clamp(min=0)[..., None])
    ranked = (wanted >= 0) & ((logits > right).sum(-1) < most)
    kept = aligned & ranked
    return torch.cat([torch.zeros_like(kept[:, :1]), kept[:, :-1]], dim=1)
