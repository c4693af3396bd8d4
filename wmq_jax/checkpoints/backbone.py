"""DINOv2 backbones from published files: the original release, and Hugging Face's naming of the same weights.

Both end in the names of the original release (`blocks.0.attn.qkv.weight`), from whose shapes the configuration is read.
"""

import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

from wmq_jax.io import load_safetensors, load_torch
from wmq_jax.models import ViTConfig

State = dict[str, np.ndarray]

# Attention heads by width: 64 channels each, in ViT-S, B and L.
HEADS = {384: 6, 768: 12, 1024: 16}

_HUGGING_FACE = {
    "embeddings.cls_token": "cls_token",
    "embeddings.mask_token": "mask_token",
    "embeddings.register_tokens": "register_tokens",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "layernorm": "norm",
}
_HUGGING_FACE_BLOCK = {
    "norm1": "norm1",
    "norm2": "norm2",
    "attention.output.dense": "attn.proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
}
_PARTS = ("query", "key", "value")


def load_backbone(source: str | os.PathLike | BinaryIO, name: str | None = None) -> State:
    """Reads the weights of a backbone file.

    Args:
      source: a torch zip file (`.pth`, `.pt`, `.bin`) or a `.safetensors` file; or an open torch file that can seek.
      name: what messages call it; its path if not given.

    Returns:
      Name in the original release -> array, in torch's layouts.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is refused (see `wmq_jax.io`), or is no plain dictionary of tensors.
    """
    is_path = isinstance(source, str | os.PathLike)
    try:
        if is_path and Path(source).suffix == ".safetensors":
            state = load_safetensors(source)
        else:
            state = load_torch(source, name=name)
    except ValueError as error:
        raise ValueError(f"backbone {error}") from None
    pairs = state.items() if isinstance(state, dict) else ()
    if not pairs or not all(isinstance(name, str) and isinstance(w, np.ndarray) for name, w in pairs):
        raise ValueError(f"{name or source}: a backbone file holds a dictionary of tensors, and this one does not.")
    return original_names(state)


def original_names(state: Mapping[str, np.ndarray]) -> State:
    """Gives Hugging Face's weights their original names, and joins query, key and value; others stay."""
    if not any(name.endswith("embeddings.cls_token") for name in state):
        return dict(state)
    found, attention = {}, {}
    for name, weight in state.items():
        name = re.sub(r"^dinov2(_with_registers)?\.", "", name)
        part = re.fullmatch(r"encoder\.layer\.(\d+)\.attention\.attention\.(query|key|value)\.(weight|bias)", name)
        if part:
            attention.setdefault((part[1], part[3]), {})[part[2]] = weight
        else:
            found[_renamed(name)] = weight
    for (block, kind), parts in attention.items():
        # An incomplete one is left out, to be named as missing.
        if len(parts) == len(_PARTS):
            found[f"blocks.{block}.attn.qkv.{kind}"] = np.concatenate([parts[part] for part in _PARTS])
    return found


def _renamed(name: str) -> str:
    block = re.match(r"encoder\.layer\.(\d+)\.", name)
    prefix, table = (f"blocks.{block[1]}.", _HUGGING_FACE_BLOCK) if block else ("", _HUGGING_FACE)
    rest = name.removeprefix(block[0]) if block else name
    for theirs, ours in table.items():
        if rest == theirs or rest in (f"{theirs}.weight", f"{theirs}.bias"):
            return prefix + ours + rest.removeprefix(theirs)
    return name


def backbone_config(state: Mapping[str, np.ndarray], feature: str, heads: int | None = None) -> ViTConfig:
    """The configuration of a backbone, from the shapes of its weights (names of the original release).

    Args:
      state: its weights.
      feature: 'x_norm_patchtokens' or 'x_norm_clstoken'.
      heads: attention heads, which no shape tells; None for those of the published width.

    Raises:
      ValueError: a weight that tells a size is missing or has another rank, or the width is not a published one and
        `heads` is not given, or is one and has others.
    """
    ranks = {"pos_embed": 3, "patch_embed.proj.weight": 4, "blocks.0.mlp.fc1.weight": 2}
    for name, rank in ranks.items():
        if name not in state:
            raise ValueError(
                f"the backbone has no weight {name}: only DINOv2 ViT-S, B and L, with or without registers, fit."
            )
        if state[name].ndim != rank:
            raise ValueError(f"the backbone's {name} has shape {state[name].shape}, not one of {rank} numbers.")
    _, positions, width = state["pos_embed"].shape
    if heads is None and width not in HEADS:
        known = ", ".join(map(str, HEADS))
        raise ValueError(
            f"the backbone is {width} wide, which no published one is ({known}): its number of attention heads "
            "must be given (--config.official.encoder_heads, --encoder_heads of experiments.convert)."
        )
    if heads is not None and width % heads:
        raise ValueError(f"the backbone is {width} wide, which {heads} attention heads (encoder_heads) do not divide.")
    if heads is not None and HEADS.get(width, heads) != heads:
        raise ValueError(f"a backbone of width {width} has {HEADS[width]} attention heads, not {heads}.")
    registers = state["register_tokens"].shape[1] if "register_tokens" in state else 0
    blocks = {int(match[1]) for name in state if (match := re.match(r"blocks\.(\d{1,9})\.", name))}
    gap = next(i for i in range(len(blocks) + 1) if i not in blocks)
    if gap < len(blocks):
        raise ValueError(f"the backbone has no weights blocks.{gap}, but blocks up to {max(blocks)}.")
    if positions != math.isqrt(max(positions - 1, 0)) ** 2 + 1 or positions < 2:
        raise ValueError(f"the backbone's pos_embed has {positions} positions, not 1 and a square grid.")
    return ViTConfig(
        width=width,
        depth=len(blocks),
        heads=heads or HEADS[width],
        mlp_dim=state["blocks.0.mlp.fc1.weight"].shape[0],
        patch=state["patch_embed.proj.weight"].shape[-1],
        table_grid=math.isqrt(positions - 1),
        registers=registers,
        # The variants with registers were released with a corrected resampling of the position table.
        interpolate_offset=0.0 if registers else 0.1,
        interpolate_antialias=bool(registers),
        feature=feature,
    )
