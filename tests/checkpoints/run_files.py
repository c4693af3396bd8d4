"""Writes run folders as the original's training does: modules pickled by class, a backbone file beside."""

import numpy as np
import yaml

from tests.io.torch_files import Call, Name, Storage, module, parameter, tensor, write_torch
from tests.models.tiny import tiny_config
from wmq_jax.checkpoints.hydra import hydra_settings
from wmq_jax.io import save_torch
from wmq_jax.models import DecoderConfig

DECODER = DecoderConfig(channel=4, n_embed=6, n_res_block=1, n_res_channel=3)
CONFIG = tiny_config(decoder=DECODER, frameskip=2)
HEADS = CONFIG.encoder.heads
CLASSES = {
    "encoder": "models.dino.DinoV2Encoder",
    "predictor": "models.vit.ViTPredictor",
    "decoder": "models.vqvae.VQVAE",
    "proprio_encoder": "models.proprio.ProprioceptiveEmbedding",
    "action_encoder": "models.proprio.ProprioceptiveEmbedding",
}


def by_module(state):
    """Weights by module, the encoder's without the wrapper's name."""
    modules = {}
    for name, weight in state.items():
        key, rest = name.split(".", 1)
        modules.setdefault(key, {})[rest.removeprefix("base_model.")] = weight
    return modules


class Storages:
    """Collects arrays as storages of a torch file."""

    def __init__(self):
        self.data = {}

    def tensor(self, array):
        key = str(len(self.data))
        self.data[key] = np.ascontiguousarray(array).tobytes()
        strides = tuple(step // array.itemsize for step in np.ascontiguousarray(array).strides)
        return parameter(tensor(Storage("FloatStorage", key, array.size, "cuda:0"), array.shape, strides))

    def module(self, class_name, weights, **attributes):
        """A module whose children follow the dots of the weights' names."""
        own = {name: self.tensor(w) for name, w in weights.items() if "." not in name}
        children = {name.split(".")[0]: None for name in weights if "." in name}
        for child in children:
            part = {n.removeprefix(f"{child}."): w for n, w in weights.items() if n.startswith(f"{child}.")}
            heads = {"num_heads": HEADS} if child == "attn" else {}
            children[child] = self.module("torch.nn.modules.container.Sequential", part, **heads)
        return module(class_name, own, children, **attributes)


def write_run(folder, config, state, with_encoder=False, env="wall"):
    """An official run folder of pickled modules, and its backbone file."""
    modules, storages = by_module(state), Storages()
    (folder / "checkpoints").mkdir(parents=True)
    settings = hydra_settings(config, "dinov2_vits14_reg" if config.encoder.registers else "dinov2_vits14", env)
    (folder / "hydra.yaml").write_text(yaml.safe_dump(settings))
    content = {"epoch": 7}
    if with_encoder:
        wrapped = {f"base_model.{name}": w for name, w in modules["encoder"].items()}
        content["encoder"] = storages.module(CLASSES["encoder"], wrapped)
        content["encoder_optimizer"] = Call(Name("torch.optim.adam", "Adam"))
    for name in ("predictor", "decoder", "action_encoder", "proprio_encoder"):
        if name in modules:
            content[name] = storages.module(CLASSES[name], modules[name])
    write_torch(folder / "checkpoints" / "model_latest.pth", content, storages.data)
    save_torch(folder / "backbone.pth", modules["encoder"])
    return folder
