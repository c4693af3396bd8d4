"""The DINO-WM world model: encode, predict, rollout, decode.

B: batch, T: frames, H: image side, P and D: patches and encoder width, P' and C: tokens per frame and channels of a
token (see `layout`), p and A: entries of proprioception and of a model action.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from wmq_jax.models import layout
from wmq_jax.models.config import WorldModelConfig
from wmq_jax.models.decoder import make_decoder
from wmq_jax.models.dinov2 import VisionTransformer
from wmq_jax.models.embeddings import FeatureStatistics, VectorEmbedding
from wmq_jax.models.image import resize
from wmq_jax.models.layout import Latent
from wmq_jax.models.predictor import Cache, Predictor


class WorldModel(nn.Module):
    """A visual world model in the latent space of its encoder; call its methods by `model.apply(..., method=name)`.

    Images are channel last, float32 in [-1, 1], of side `config.image_size`.
    """

    config: WorldModelConfig

    def setup(self):
        c = self.config
        self.encoder = VisionTransformer(c.encoder)
        self.predictor = Predictor(c.predictor, c.predictor_dim, c.tokens_per_frame, c.num_hist)
        self.proprio_encoder = VectorEmbedding(c.proprio_emb_dim)
        self.action_encoder = VectorEmbedding(c.action_emb_dim)
        if c.decoder is not None:
            self.decoder = make_decoder(c.decoder, c.encoder.width)
        if c.standardize_latents:
            self.encoder_stats = FeatureStatistics()

    def encode_obs(self, visual: jax.Array, proprio: jax.Array) -> Latent:
        """Encodes images (B, T, H, H, 3) and proprioception (B, T, p) to a latent (B, T, P, D), (B, T, E)."""
        side = self.config.image_size
        if visual.shape[-3:] != (side, side, 3):
            raise ValueError(f"the model takes images of shape ({side}, {side}, 3), got {visual.shape[-3:]}.")
        images = resize(visual.reshape(-1, side, side, 3), self.config.encoder_image_size)
        features = self.encoder(images)
        if self.config.standardize_latents:
            features = self.encoder_stats(features)
        return Latent(features.reshape(*visual.shape[:-3], *features.shape[1:]), self.encode_proprio(proprio))

    def encode_proprio(self, proprio: jax.Array) -> jax.Array:
        """Embeds proprioception (B, T, p) to (B, T, proprio_emb_dim)."""
        return self.proprio_encoder(proprio)

    def encode_act(self, action: jax.Array) -> jax.Array:
        """Embeds model actions (B, T, A) to (B, T, action_emb_dim)."""
        return self.action_encoder(action)

    def assemble(self, latent: Latent, action: jax.Array) -> jax.Array:
        """Joins a latent (B, T, P, D), (B, T, E) and model actions (B, T, A) to tokens (B, T, P', C)."""
        return layout.join(self.config, latent, self.encode_act(action))

    def encode(self, visual: jax.Array, proprio: jax.Array, action: jax.Array) -> jax.Array:
        """Encodes observations and actions to tokens (B, T, P', C)."""
        return self.assemble(self.encode_obs(visual, proprio), action)

    def separate(self, z: jax.Array) -> tuple[Latent, jax.Array]:
        """Splits tokens (B, T, P', C) into a latent and the action embeddings (B, T, action_emb_dim)."""
        return layout.separate(self.config, z)

    def replace_actions(self, z: jax.Array, action: jax.Array) -> jax.Array:
        """Tokens (B, T, P', C) with the embeddings of other model actions (B, T, A) in their action part."""
        return layout.replace_actions(self.config, z, self.encode_act(action))

    def predict(self, z: jax.Array, deterministic: bool = True) -> jax.Array:
        """Predicts the successor of every frame of a window: (B, T, P', C) -> (B, T, P', C), T <= num_hist.

        Frame t of the result is predicted from frames 0..t. Its action part means nothing. With `deterministic=False`
        dropout is on and the call needs an rng named 'dropout'.
        """
        batch, frames, tokens, channels = z.shape
        out = self.predictor(z.reshape(batch, frames * tokens, channels), deterministic)
        return self._add_residual(z, out.reshape(z.shape))

    def predict_last(self, z: jax.Array) -> jax.Array:
        """The last frame (B, P', C) of `predict(z)`, without the work for the others."""
        batch, frames, tokens, channels = z.shape
        return self._add_residual(z[:, -1], self.predictor.last_frame(z.reshape(batch, frames * tokens, channels)))

    def predict_next(self, z: jax.Array, cache: Cache | None = None) -> tuple[jax.Array, Cache]:
        """Predicts the successor of one more frame (B, P', C) of a growing window; see `Predictor.extend`."""
        out, cache = self.predictor.extend(z, cache)
        return self._add_residual(z, out), cache

    def _add_residual(self, z: jax.Array, out: jax.Array) -> jax.Array:
        if not self.config.predictor.residual:
            return out
        zeros = jnp.zeros((*z.shape[:-2], self.config.action_emb_dim), z.dtype)
        return out + layout.replace_actions(self.config, z, zeros)

    def rollout(self, visual: jax.Array, proprio: jax.Array, actions: jax.Array) -> Latent:
        """Imagines what follows n observed frames under n + m actions, one plain prediction after another.

        Args:
          visual: images (B, n, H, H, 3).
          proprio: (B, n, p).
          actions: model actions (B, n + m, A); action t is taken at frame t.

        Returns:
          The latent of n + m + 1 frames: the observed ones, then the imagined ones.
        """
        return self.separate(self.rollout_tokens(visual, proprio, actions))[0]

    def rollout_tokens(self, visual: jax.Array, proprio: jax.Array, actions: jax.Array) -> jax.Array:
        """`rollout` as tokens (B, n + m + 1, P', C); the action part of the last frame means nothing."""
        observed = visual.shape[1]
        z = self.encode(visual, proprio, actions[:, :observed])
        for t in range(observed, actions.shape[1] + 1):
            frame = self.predict(z[:, -self.config.num_hist :])[:, -1:]
            if t < actions.shape[1]:
                frame = self.replace_actions(frame, actions[:, t : t + 1])
            z = jnp.concatenate([z, frame], axis=1)
        return z

    def decode(self, visual: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Decodes visual latents (B, T, P, D) to images (B, T, H', H', 3) and the decoder's commitment term.

        Raises:
          ValueError: the model has no decoder.
        """
        if self.config.decoder is None:
            raise ValueError("this world model has no decoder.")
        images, diff = self.decoder(visual.reshape(-1, *visual.shape[-2:]))
        return images.reshape(*visual.shape[:-2], *images.shape[1:]), diff

    def __call__(self, visual: jax.Array, proprio: jax.Array, action: jax.Array) -> jax.Array:
        """Encodes, predicts (B, T, P', C), and decodes if there is a decoder: touches every parameter, for `init`."""
        z = self.encode(visual, proprio, action)
        if self.config.decoder is not None:
            self.decode(self.separate(z)[0].visual)
        return self.predict(z)
