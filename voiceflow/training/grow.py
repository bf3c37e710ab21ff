"""Weights of a network made larger: what a smaller one has learned is where training begins."""

import torch
from torch import Tensor

from voiceflow.config import ModelConfig
from voiceflow.errors import ModelError

NOISE = 0.05
"""Copies of a unit differ by this share of its weights' spread, so that they can part."""
SHAPE = ("hidden", "num_layers")
"""What may grow; everything else must be as it was."""


def grow(weights: dict[str, Tensor], before: ModelConfig, after: ModelConfig, *, seed: int) -> dict[str, Tensor]:
    """Weights for a wider or deeper encoder that answers nearly as the given ones did.

    Units are copied, and what reads them shares its weight among the copies; a new layer adds nothing at first.

    Args:
        weights: State of a `Diarizer` of shape `before`.
        before: Its shape.
        after: The shape wanted: `hidden` and `num_layers` at least as large, all else alike.
        seed: Draws the copies and their noise.

    Raises:
        ModelError: A shape that cannot be reached by growing.

    Source:
        Chen et al., Net2Net: accelerating learning via knowledge transfer, 2016.
    """
    if after == before:
        return weights
    other = [
        name for name in ModelConfig.model_fields if name not in SHAPE and getattr(before, name) != getattr(after, name)
    ]
    smaller = [name for name in SHAPE if getattr(after, name) < getattr(before, name)]
    if other or smaller:
        raise ModelError(
            f"cannot train on from weights of another shape: model.{', model.'.join(other + smaller)} differ; "
            "only model.hidden and model.num_layers may grow. Set train.init_from: scratch, or the shape back"
        )
    generator = torch.Generator().manual_seed(seed)
    extra = after.hidden - before.hidden
    source_H = torch.cat([torch.arange(before.hidden), torch.randint(before.hidden, (extra,), generator=generator)])
    share_H = 1.0 / torch.bincount(source_H)[source_H].float()

    def made(rows: Tensor) -> Tensor:
        spread = rows.std() if rows.numel() > 1 else 0.0
        grown = rows[source_H].clone()
        grown[before.hidden :] += NOISE * spread * torch.randn(grown[before.hidden :].shape, generator=generator)
        return grown

    def read(columns: Tensor) -> Tensor:
        return columns[:, source_H] * share_H

    grown = dict(weights)
    for name in ("input.weight", "input.bias"):
        grown[name] = made(weights[name])
    for name in ("input_norm", *(f"norms.{layer}" for layer in range(before.num_layers))):
        for kind in ("weight", "bias"):
            grown[f"{name}.{kind}"] = weights[f"{name}.{kind}"][source_H]
    grown["frame.weight"] = read(weights["frame.weight"])
    for layer in range(before.num_layers):
        for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"):
            gates = weights[f"layers.{layer}.{name}"].chunk(4)
            parts = [made(read(gate) if gate.dim() == 2 else gate) for gate in gates]
            grown[f"layers.{layer}.{name}"] = torch.cat(parts)
    for layer in range(before.num_layers, after.num_layers):
        bound = after.hidden**-0.5
        for name in ("weight_ih_l0", "weight_hh_l0"):
            draw = (torch.rand(4 * after.hidden, after.hidden, generator=generator) * 2.0 - 1.0) * bound
            draw[2 * after.hidden : 3 * after.hidden] = 0.0  # no cell content: the layer says nothing yet
            grown[f"layers.{layer}.{name}"] = draw
        for name in ("bias_ih_l0", "bias_hh_l0"):
            grown[f"layers.{layer}.{name}"] = torch.zeros(4 * after.hidden)
        # It normalises what the layer before has normalised: back to that one's mean and spread.
        scale_H, shift_H = (grown[f"norms.{before.num_layers - 1}.{kind}"] for kind in ("weight", "bias"))
        spread = (scale_H.square().mean() + shift_H.var(unbiased=False)).sqrt()
        grown[f"norms.{layer}.weight"] = spread.expand(after.hidden).clone()
        grown[f"norms.{layer}.bias"] = shift_H.mean().expand(after.hidden).clone()
    return grown
