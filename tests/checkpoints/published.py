"""Names and shapes of the published models, written out by layer from their architectures and not from our maps.

Sources: DINOv2 (arXiv 2304.07193) and its variants with registers (arXiv 2309.16588); DINO-WM (arXiv 2411.04983), whose
decoder is that of VQ-VAE-2 (arXiv 1906.00446).
"""

# Width, layers and heads of ViT-S, B and L.
BACKBONES = {"dinov2_vits14": (384, 12, 6), "dinov2_vitb14": (768, 12, 12), "dinov2_vitl14": (1024, 24, 16)}
# Numbers of proprioception and of an environment's action, and frames of history.
RUNS = {"wall": (2, 2, 1), "point_maze": (4, 2, 3), "pusht": (4, 2, 3)}
FRAMESKIP, PATCHES = 5, 196
UNUSED = {"encoder.base_model.mask_token", *(f"decoder.quantize_b.{n}" for n in ("embed", "cluster_size", "embed_avg"))}


def affine(name, *weight):
    """A weight (out, in, ...) and its bias."""
    return {f"{name}.weight": weight, f"{name}.bias": weight[:1]}


def transposed(name, inputs, outputs, side):
    """A transposed convolution, whose weight is (in, out, side, side)."""
    return {f"{name}.weight": (inputs, outputs, side, side), f"{name}.bias": (outputs,)}


def backbone(name):
    """A file of the DINOv2 release: patches of 14 pixels, a table for 37 x 37 of them."""
    width, layers, _ = BACKBONES[name.removesuffix("_reg")]
    shapes = {"cls_token": (1, 1, width), "pos_embed": (1, 1 + 37 * 37, width), "mask_token": (1, width)}
    if name.endswith("_reg"):
        shapes["register_tokens"] = (1, 4, width)
    shapes |= affine("patch_embed.proj", width, 3, 14, 14) | affine("norm", width)
    for block in (f"blocks.{i}" for i in range(layers)):
        shapes |= affine(f"{block}.norm1", width) | affine(f"{block}.norm2", width)
        shapes |= affine(f"{block}.attn.qkv", 3 * width, width) | affine(f"{block}.attn.proj", width, width)
        shapes |= affine(f"{block}.mlp.fc1", 4 * width, width) | affine(f"{block}.mlp.fc2", width, 4 * width)
        shapes |= {f"{block}.ls1.gamma": (width,), f"{block}.ls2.gamma": (width,)}
    return shapes


def predictor(width, frames):
    """Six layers of 16 heads of 64, an MLP of 2048; attention without a bias in its qkv."""
    shapes = {"pos_embedding": (1, frames * PATCHES, width)} | affine("transformer.norm", width)
    for i in range(6):
        attention, mlp = f"transformer.layers.{i}.0", f"transformer.layers.{i}.1.net"
        shapes |= affine(f"{attention}.norm", width) | {f"{attention}.to_qkv.weight": (3 * 16 * 64, width)}
        shapes |= affine(f"{attention}.to_out.0", width, 16 * 64)
        shapes |= affine(f"{mlp}.0", width) | affine(f"{mlp}.1", 2048, width) | affine(f"{mlp}.4", width, 2048)
    return shapes


def decoder(width):
    """Two stacks of 384 channels: a convolution, four residual blocks of 128, and twice up by two."""
    shapes = {
        "quantize_b.embed": (width, 2048),
        "quantize_b.cluster_size": (2048,),
        "quantize_b.embed_avg": (width, 2048),
    }
    for stack, outputs in (("upsample_b.blocks", width), ("dec.blocks", 3)):
        shapes |= affine(f"{stack}.0", 384, width, 3, 3)
        for block in (f"{stack}.{i}" for i in range(1, 5)):
            shapes |= affine(f"{block}.conv.1", 128, 384, 3, 3) | affine(f"{block}.conv.3", 384, 128, 1, 1)
        # Number 5 and 7 are ReLUs.
        shapes |= transposed(f"{stack}.6", 384, 192, 4) | transposed(f"{stack}.8", 192, outputs, 4)
    return shapes


def model(env, name="dinov2_vits14"):
    """All weights of a published run and its backbone, by the names of the whole model's state dict."""
    proprio, action, frames = RUNS[env]
    visual = BACKBONES[name.removesuffix("_reg")][0]
    parts = {
        "encoder.base_model": backbone(name),
        # Ten numbers each of proprioception and action are appended to every patch.
        "predictor": predictor(visual + 10 + 10, frames),
        "proprio_encoder": affine("patch_embed", 10, proprio, 1),
        "action_encoder": affine("patch_embed", 10, FRAMESKIP * action, 1),
        "decoder": decoder(visual),
    }
    return {f"{part}.{name}": shape for part, shapes in parts.items() for name, shape in shapes.items()}


def settings(env, name="dinov2_vits14"):
    """What decides a model in the `hydra.yaml` of a published run."""
    return {
        "img_size": 224,
        "frameskip": FRAMESKIP,
        "concat_dim": 1,
        "normalize_action": True,
        "action_emb_dim": 10,
        "num_action_repeat": 1,
        "proprio_emb_dim": 10,
        "num_proprio_repeat": 1,
        "num_hist": RUNS[env][2],
        "num_pred": 1,
        "has_predictor": True,
        "has_decoder": True,
        "env": {"name": env, "dataset": {"n_rollout": None, "split_ratio": 0.9}},
        "encoder": {"_target_": "models.dino.DinoV2Encoder", "name": name, "feature_key": "x_norm_patchtokens"},
        "predictor": {
            "_target_": "models.vit.ViTPredictor",
            "depth": 6,
            "heads": 16,
            "mlp_dim": 2048,
            "dropout": 0.1,
            "emb_dropout": 0,
            "pool": "mean",
        },
        "decoder": {
            "_target_": "models.vqvae.VQVAE",
            "channel": 384,
            "n_embed": 2048,
            "n_res_block": 4,
            "n_res_channel": 128,
            "quantize": False,
        },
    }
