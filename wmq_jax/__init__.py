"""wmq_jax: post-training quantization of latent world models in JAX."""

__version__ = "0.1.0"

__all__ = ["__version__"]
