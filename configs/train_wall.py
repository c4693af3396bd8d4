"""Trains a world model of the Wall task from nothing: data, encoder, predictor, decoder.

    python -m experiments.train --config=configs/train_wall.py:small

trains the model that ships with the package.

    python -m experiments.train --config=configs/train_wall.py:finetune --config.init.checkpoint=models/wall \\
        --config.dataset=wall_single.zip

goes on training the predictor and the decoder of a converted model, on its frozen encoder and the official
trajectories. Without the two flags it goes on with the bundled model, on generated ones. Neither has been timed.
"""

import ml_collections

from configs import wall
from wmq_jax.models import bundled_config

MODES = ("small", "official", "finetune")


def get_config(mode: str = "small") -> ml_collections.ConfigDict:
    """The configuration of a mode: 'small' (a quarter of an hour on two cores), 'official' or 'finetune'.

    'official' trains predictor and decoder of the same small model as DINO-WM trains its own: AdamW and Adam at the
    official constant rates, dropout of 0.1, absolute predictions, latents as the encoder gives them. The encoder, which
    DINO-WM does not train, is pretrained as in 'small'. It has not been trained to its end.

    'finetune' is one epoch over as many trajectories as the official data set has, with the official optimizers,
    rates and dropout. A model of the official size needs a GPU; the time has not been measured.
    """
    if mode not in MODES:
        raise ValueError(f"configs/train_wall.py has the modes {', '.join(MODES)}, not {mode!r}")
    config = _small(f"train-wall-{mode}")
    if mode == "official":
        config.model.update(standardize_latents=False)
        config.model.predictor.update(residual=False, dropout=0.1)
    if mode == "finetune":
        config.init.update(checkpoint="bundled", dropout=0.1)
        config.data.update(train=1728, validation=192)
        # A shard's latents are held together: 60 MB at the official size.
        config.predictor.update(rounds=540, shard=16, offsets=5)
        config.decoder.update(steps=500)
        config.validation.update(rollouts=32, episodes=20)
    if mode in ("official", "finetune"):
        config.predictor.update(optimizer="adamw", learning_rate=5e-4, embeddings_learning_rate=5e-4)
        config.decoder.update(learning_rate=3e-4)
        for stage in (config.predictor, config.decoder):
            stage.update(schedule="constant", warmup=0, batch=32)
    return config


def _small(name: str) -> ml_collections.ConfigDict:
    model = bundled_config().to_dict()
    model["standardize_latents"] = True  # ours, not DINO-WM's
    model["predictor"]["residual"] = True  # likewise

    config = ml_collections.ConfigDict()
    config.name = name
    config.seed = 0
    config.env = dict(name="wall", door_y=10, wall_x=32)
    config.model = model
    config.dataset = ""  # official wall_single, folder or zip file, instead of generated trajectories
    # A checkpoint, converted, trained here or 'bundled', or a published run (outputs.zip/wall_single), of which the
    # model's sizes, the encoder (which stays as it is) and the statistics are taken; and whether the others start from
    # its weights or anew.
    # `dropout` is the predictor's from then on; below 0 it stays the checkpoint's.
    config.init = dict(checkpoint="", predictor=True, decoder=True, dropout=-1.0)
    # Of a published run, as in configs/wall.py.
    config.official = dict(backbone="", epoch="latest", encoder_heads=0, sha256="")
    config.data = dict(
        train=96000,  # trajectories
        validation=1000,
        walk=dict(
            steps=25,  # environment steps of a trajectory
            scale=(0.5, 4.0),  # deviation of actions, in environment units; drawn per trajectory
            gaussian=0.5,  # share with independent actions
            steered=0.25,  # share steered through the door; the rest are smooth walks
            smoothness=(0.3, 0.95),
            speed=(1.0, 4.0),
        ),
    )
    config.encoder = dict(
        steps=1600,
        chunk=100,  # steps per compiled call
        batch=32,
        slowness=2.0,  # weight of slow features beside telling what the image shows
        learning_rate=2e-2,
        warmup=100,
        blurs=(2.0, 4.0, 8.0, 16.0),  # pixels
        grid=16,
    )
    config.predictor = dict(
        rounds=20,
        shard=6000,  # trajectories encoded together
        passes=1,
        batch=64,
        offsets=1,  # steps of a trajectory from which frames are taken; 5, the frameskip, is official: clips from all
        optimizer="muon",  # or adamw, which is official
        learning_rate=1.5e-2,
        embeddings_learning_rate=0.0,  # of adamw; 0: learning_rate
        weight_decay=0.01,
        warmup=200,
        schedule="cosine",  # or constant, which is official
    )
    config.decoder = dict(steps=3000, chunk=100, batch=8, learning_rate=3e-3, warmup=100, schedule="cosine")
    config.validation = dict(
        rollouts=256,
        pictures=4,
        episodes=100,
        base_seed=99,
        horizon=5,
        iterations=5,
        planner=dict(wall.PLANNERS["small"]),
    )
    return config
