"""DINOv2 backbones under both published namings become the same weights and configuration."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.models.tiny import random_model, tiny_config
from wmq_jax.checkpoints.backbone import backbone_config, load_backbone, original_names
from wmq_jax.checkpoints.official import to_torch
from wmq_jax.io import save_torch
from wmq_jax.models import ViTConfig

SIZES = {384: (12, 6, 1536), 768: (12, 12, 3072), 1024: (24, 16, 4096)}


def weights_of(config: ViTConfig) -> dict[str, np.ndarray]:
    """A random backbone of this configuration under the original names, with the mask token it never reads."""
    model = tiny_config(encoder=config)
    state = to_torch(random_model(model)[1]["params"], model)
    prefix = "encoder.base_model."
    found = {name.removeprefix(prefix): w for name, w in state.items() if name.startswith(prefix)}
    return found | {"mask_token": np.zeros((1, config.width), np.float32)}


def as_hugging_face(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Hugging Face's names, written out one by one."""
    names = {
        "cls_token": "embeddings.cls_token",
        "mask_token": "embeddings.mask_token",
        "register_tokens": "embeddings.register_tokens",
        "pos_embed": "embeddings.position_embeddings",
        "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
        "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
        "norm.weight": "layernorm.weight",
        "norm.bias": "layernorm.bias",
    }
    parts = {"ls1.gamma": "layer_scale1.lambda1", "ls2.gamma": "layer_scale2.lambda1"}
    for kind in ("weight", "bias"):
        parts |= {f"{name}.{kind}": f"{name}.{kind}" for name in ("norm1", "norm2", "mlp.fc1", "mlp.fc2")}
        parts[f"attn.proj.{kind}"] = f"attention.output.dense.{kind}"
    found = {}
    for name, weight in state.items():
        if name in names:
            found[names[name]] = weight
            continue
        _, block, rest = name.split(".", 2)
        if rest in parts:
            found[f"encoder.layer.{block}.{parts[rest]}"] = weight
            continue
        kind = rest.removeprefix("attn.qkv.")
        for part, rows in zip(("query", "key", "value"), np.split(weight, 3)):
            found[f"encoder.layer.{block}.attention.attention.{part}.{kind}"] = rows
    return found


@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize("prefix", ["", "dinov2.", "dinov2_with_registers."])
def test_hugging_face_names_are_the_original_ones(tmp_path, registers, prefix):
    state = weights_of(ViTConfig(width=8, depth=2, heads=2, mlp_dim=16, table_grid=3, registers=registers))
    theirs = {prefix + name: np.ascontiguousarray(w) for name, w in as_hugging_face(state).items()}
    save_file(theirs, tmp_path / "model.safetensors")
    save_torch(tmp_path / "original.pth", state)
    found = [load_backbone(tmp_path / name) for name in ("model.safetensors", "original.pth")]
    for other in found:
        assert set(other) == set(state)
        for name, weight in state.items():
            np.testing.assert_array_equal(other[name], weight)


def test_an_incomplete_attention_stays_missing():
    theirs = as_hugging_face(weights_of(ViTConfig(width=8, depth=1, heads=2, mlp_dim=16, table_grid=3)))
    del theirs["encoder.layer.0.attention.attention.key.weight"]
    found = original_names(theirs)
    assert "blocks.0.attn.qkv.weight" not in found and "blocks.0.attn.qkv.bias" in found


@pytest.mark.parametrize("width", SIZES)
@pytest.mark.parametrize("registers", [0, 4])
def test_published_sizes(width, registers):
    depth, heads, mlp_dim = SIZES[width]
    state = {
        "pos_embed": np.broadcast_to(np.float32(0), (1, 1370, width)),
        "patch_embed.proj.weight": np.broadcast_to(np.float32(0), (width, 3, 14, 14)),
        "blocks.0.mlp.fc1.weight": np.broadcast_to(np.float32(0), (mlp_dim, width)),
    }
    state |= {f"blocks.{i}.norm1.weight": np.zeros(width) for i in range(depth)}
    if registers:
        state["register_tokens"] = np.zeros((1, registers, width))
    # The variants with registers were released with interpolate_offset 0 and antialiasing.
    expected = dict(
        registers=registers, interpolate_offset=0.0 if registers else 0.1, interpolate_antialias=registers > 0
    )
    found = backbone_config(state, "x_norm_patchtokens")
    assert found == ViTConfig(width=width, depth=depth, heads=heads, mlp_dim=mlp_dim, table_grid=37, **expected)


def test_what_is_no_backbone_is_said(tmp_path):
    with pytest.raises(ValueError, match="no weight pos_embed: only DINOv2 ViT-S, B and L"):
        backbone_config({"conv1.weight": np.zeros(3)}, "x_norm_patchtokens")
    with pytest.raises(ValueError, match=r"pos_embed has shape \(3,\)"):
        backbone_config({"pos_embed": np.zeros(3)}, "x_norm_patchtokens")
    state = weights_of(ViTConfig(width=8, depth=1, heads=2, mlp_dim=16, table_grid=3))
    with pytest.raises(ValueError, match="8 wide, which no published one is .384, 768, 1024.*heads must be given"):
        backbone_config(state, "x_norm_patchtokens")
    assert backbone_config(state, "x_norm_clstoken", heads=2).heads == 2
    published = weights_of(ViTConfig(width=384, depth=1, heads=6, mlp_dim=16, table_grid=3))
    assert backbone_config(published, "x_norm_clstoken", heads=6).heads == 6
    with pytest.raises(ValueError, match="a backbone of width 384 has 6 attention heads, not 3"):
        backbone_config(published, "x_norm_clstoken", heads=3)
    save_torch(tmp_path / "nested.pth", {"model": state})
    with pytest.raises(ValueError, match="nested.pth: a backbone file holds a dictionary of tensors"):
        load_backbone(tmp_path / "nested.pth")


def test_blocks_without_a_gap_and_a_square_table_are_wanted():
    state = weights_of(ViTConfig(width=8, depth=2, heads=2, mlp_dim=16, table_grid=3))
    with pytest.raises(ValueError, match="no weights blocks.2, but blocks up to 99999999"):
        backbone_config(state | {"blocks.99999999.x": np.zeros(1)}, "x_norm_patchtokens", heads=2)
    with pytest.raises(ValueError, match="pos_embed has 12 positions, not 1 and a square grid"):
        backbone_config(state | {"pos_embed": np.zeros((1, 12, 8))}, "x_norm_patchtokens", heads=2)
