"""The draft: a few layers of the target, narrowed, between the target's own embedding and LM head."""

import json
from copy import deepcopy
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch.utils.checkpoint import checkpoint
from transformers import LlamaForCausalLM

from gammatune.errors import UserError
from gammatune.files import parse_object, read_text


def start_draft(target: LlamaForCausalLM, sources: list[int], intermediate: int) -> LlamaForCausalLM:
    """A trainable draft in fp32 whose layers start as the target's `sources`, with the strongest MLP neurons of each.

    It holds the target's own embedding and head modules, frozen.
    """
    config = deepcopy(target.config)
    config.num_hidden_layers, config.intermediate_size = len(sources), intermediate
    draft = LlamaForCausalLM(config).to(target.device, torch.float32)
    draft.set_input_embeddings(target.get_input_embeddings())
    draft.set_output_embeddings(target.get_output_embeddings())
    for layer, source in zip(draft.model.layers, sources, strict=True):
        mlp, weights = target.model.layers[source].mlp, target.model.layers[source].state_dict()
        # A neuron counts as much as the product of its input and output weight norms
        norms = mlp.gate_proj.weight.norm(dim=1) * mlp.up_proj.weight.norm(dim=1) * mlp.down_proj.weight.norm(dim=0)
        keep = norms.topk(intermediate).indices.sort().values
        for name, axis in (("gate", 0), ("up", 0), ("down", 1)):
            weights[f"mlp.{name}_proj.weight"] = weights[f"mlp.{name}_proj.weight"].index_select(axis, keep)
        layer.load_state_dict(weights)
    draft.model.norm.load_state_dict(target.model.norm.state_dict())
    draft.get_input_embeddings().requires_grad_(False)
    draft.get_output_embeddings().requires_grad_(False)
    return draft


def soft_loss(head: torch.Tensor, hidden: torch.Tensor, top_ids: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of hidden [N, H], over all of head [V, H], to tokens top_ids [N, K] with weights `shares` [N, K]."""

    def part_loss(states, targets, weights):
        return -(weights * F.linear(states, head).float().log_softmax(-1).gather(1, targets)).sum()

    # Logits of all positions at once would take gigabytes; those of a part are computed again for its gradient
    parts = zip(hidden.split(512), top_ids.split(512), shares.split(512), strict=True)
    return sum(checkpoint(part_loss, *part, use_reentrant=False) for part in parts)


def export(draft: LlamaForCausalLM, folder: Path, temperature: float = 1.0) -> None:
    """config.json, then model.safetensors (bf16, without embedding and head), each written whole or not at all.

    Dividing the final norm's weight by `temperature` divides all logits by it.
    """
    config = draft.config.to_dict() | {"architectures": ["LlamaForCausalLM"], "dtype": "bfloat16"}
    write_json(folder / "config.json", config)
    tensors = {f"model.{name}": value.detach() for name, value in draft.model.named_parameters() if "embed" not in name}
    tensors["model.norm.weight"] = tensors["model.norm.weight"] / temperature
    partial = folder / "model.safetensors.partial"
    save_file({name: value.cpu().bfloat16().contiguous() for name, value in tensors.items()}, partial)
    partial.replace(folder / "model.safetensors")


def read_fields(path: Path, remedy: str, *names: str) -> dict:
    """A JSON object of a step before, with these fields. Raises UserError."""
    content = parse_object(read_text(path, remedy), path, remedy)
    missing = set(names) - content.keys()
    if missing:
        raise UserError(f"{path} is damaged (it has no {min(missing)}): {remedy}.")
    return {name: content[name] for name in names}


def write_json(path: Path, content: dict) -> None:
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(content, indent=1) + "\n")
    partial.replace(path)
