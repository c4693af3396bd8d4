"""Convolutions as matrix products, for training a convolutional decoder on a CPU.

XLA's CPU backend computes a convolution's gradient with respect to its kernel some fifty times slower than the same
numbers cost as a matrix product of unfolded windows. `convolve_by_matmul` swaps the computation of the calls made
inside it; parameters, module code and results (to float rounding) stay as they are.
"""

import contextlib
from collections.abc import Iterator

import flax.linen as nn
import jax
import jax.numpy as jnp


@contextlib.contextmanager
def convolve_by_matmul(enabled: bool = True) -> Iterator[None]:
    """Within it, 2-D `nn.Conv` and `nn.ConvTranspose` calls of the kinds below are matrix products; all others are
    left alone.

    Swapped are stride-1 convolutions and transposed convolutions whose kernel side is a multiple of their stride
    (`transpose_kernel=True`, explicit padding), both without dilation or groups. Enter it inside the function that is
    traced.

    Args:
      enabled: False does nothing, for backends with good convolution gradients.
    """
    if not enabled:
        yield
        return
    with nn.intercept_methods(_interceptor):
        yield


def conv(x: jax.Array, kernel: jax.Array, padding: int) -> jax.Array:
    """Stride-1 convolution.

    Args:
      x: (B, H, W, C).
      kernel: (k, k, C, O).
      padding: zeros added on every side.

    Returns:
      (B, H + 2 padding - k + 1, W + 2 padding - k + 1, O).
    """
    side = kernel.shape[0]
    x = jnp.pad(x, [(0, 0), (padding, padding), (padding, padding), (0, 0)])
    height, width = x.shape[1] - side + 1, x.shape[2] - side + 1
    windows = [x[:, i : i + height, j : j + width] for i in range(side) for j in range(side)]
    return jnp.concatenate(windows, axis=-1) @ kernel.reshape(-1, kernel.shape[-1])


def conv_transpose(x: jax.Array, kernel: jax.Array, stride: int, crop: int) -> jax.Array:
    """Transposed convolution: y[s i + m - crop] += x[i] kernel[m] on both axes, where s divides the kernel's side.

    Args:
      x: (B, H, W, C).
      kernel: (k, k, O, C), k a multiple of `stride`.
      stride: s.
      crop: rows and columns cut from every side of the result.

    Returns:
      (B, s (H - 1) + k - 2 crop, s (W - 1) + k - 2 crop, O).
    """
    batch, height, width, channels = x.shape
    side, _, features, _ = kernel.shape
    blocks = side // stride
    # Kernel row m = s a + b lands in row b of block i + a, so each of the blocks^2 parts is added at its own shift.
    parts = x @ kernel.transpose(3, 0, 1, 2).reshape(channels, -1)
    parts = parts.reshape(batch, height, width, blocks, stride, blocks, stride, features)
    pad = lambda a: (a, blocks - 1 - a)
    total = sum(
        jnp.pad(parts[:, :, :, a, :, b], [(0, 0), pad(a), pad(b), (0, 0), (0, 0), (0, 0)])
        for a in range(blocks)
        for b in range(blocks)
    )
    rows, columns = (height + blocks - 1) * stride, (width + blocks - 1) * stride
    total = total.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows, columns, features)
    return total[:, crop : rows - crop, crop : columns - crop]


def _interceptor(call, args, kwargs, context):
    module = context.module
    if context.method_name != "__call__" or module.is_initializing() or kwargs:
        return call(*args, **kwargs)
    if _is_plain_conv(module):
        kernel = module.get_variable("params", "kernel")
        out = conv(args[0], kernel, _padding(module))
    elif _is_block_transpose(module):
        kernel = module.get_variable("params", "kernel")
        out = conv_transpose(args[0], kernel, _stride(module), kernel.shape[0] - 1 - _padding(module))
    else:
        return call(*args, **kwargs)
    return out + module.get_variable("params", "bias") if module.use_bias else out


def _is_plain_conv(module) -> bool:
    return (
        type(module) is nn.Conv
        and _is_plain(module)
        and module.feature_group_count == 1
        and _stride(module) == 1
        and module.input_dilation in (None, 1, (1, 1))
    )


def _is_block_transpose(module) -> bool:
    return (
        type(module) is nn.ConvTranspose
        and _is_plain(module)
        and module.transpose_kernel
        and module.kernel_size[0] % _stride(module) == 0
    )


def _is_plain(module) -> bool:
    """A square 2-D kernel, one stride, one padding, no dilation, no mask."""
    strides = module.strides
    return (
        len(set(module.kernel_size)) == 1
        and len(module.kernel_size) == 2
        and module.kernel_dilation in (None, 1, (1, 1))
        and module.mask is None
        and (strides is None or isinstance(strides, int) or len(set(strides)) == 1)
        and _padding(module) is not None
    )


def _stride(module) -> int:
    strides = module.strides
    if strides is None or isinstance(strides, int):
        return strides or 1
    return strides[0]


def _padding(module) -> int | None:
    """The padding of all four sides, or None where they differ or have a name; of `ConvTranspose`, before its crop."""
    padding = module.padding
    if isinstance(padding, int):
        return padding
    if isinstance(padding, str):
        return 0 if padding == "VALID" or (padding == "SAME" and set(module.kernel_size) == {1}) else None
    sides = {side for pair in padding for side in (pair if isinstance(pair, (tuple, list)) else (pair,))}
    return sides.pop() if len(sides) == 1 else None
