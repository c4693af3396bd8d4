"""Videos as frames; needs PyAV (the extra `video`)."""

import itertools
from typing import BinaryIO

import numpy as np

from wmq_jax.io.wording import plain

# Official frames have 224 x 224. A file of some kilobytes can declare gigabytes a frame.
_MOST_PIXELS = 1024 * 1024


def read_video(file: BinaryIO, name: str, count: int) -> np.ndarray:
    """Decodes the first frames of an mp4 file.

    Args:
      file: an open file that can seek.
      name: what messages call it.
      count: how many frames, at the most: a video may hold any number of them, and memory is finite.

    Returns:
      (t, H, W, 3) uint8.

    Raises:
      ValueError: it is no video, its frames are larger than 1024 x 1024, or PyAV is not installed.
    """
    try:
        import av
    except ImportError:
        raise ValueError(f"{name}: decoding videos needs PyAV: pip install av") from None
    try:
        # The format is not guessed: others, such as lists of videos, name further files, which FFmpeg then opens.
        with av.open(file, format="mp4") as container:
            codec = container.streams.video[0].codec_context
            if codec is None:
                raise ValueError(f"{name}: it is a video in an unknown encoding")
            _check_size(codec, name)
            # Frames themselves may declare another size. The codec counts what it pads them to, which is more.
            codec.options = {"max_pixels": str(4 * _MOST_PIXELS)}
            frames = []
            for frame in itertools.islice(container.decode(video=0), count):
                _check_size(frame, name)
                frames.append(frame.to_ndarray(format="rgb24"))
    except (av.FFmpegError, IndexError, UnicodeError) as error:
        raise ValueError(f"{name}: it is no mp4 video, cut short or damaged ({plain(error)})") from None
    if not frames:
        raise ValueError(f"{name}: it is a video without frames")
    if any(frame.shape != frames[0].shape for frame in frames):
        raise ValueError(f"{name}: it is a video whose frames differ in size")
    return np.stack(frames)


def _check_size(found, name: str) -> None:
    """Checks width and height of a frame, or what a stream declares of its frames."""
    if found.width * found.height > _MOST_PIXELS:
        raise ValueError(f"{name}: it is a video of {found.width} x {found.height} pixels; 1024 x 1024 are accepted")
