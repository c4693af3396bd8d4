"""Videos as frames; needs PyAV (the extra `video`)."""

from typing import BinaryIO

import numpy as np


def read_video(file: BinaryIO, name: str) -> np.ndarray:
    """Decodes all frames of a video.

    Args:
      file: an open file that can seek.
      name: what messages call it.

    Returns:
      (t, H, W, 3) uint8.

    Raises:
      ValueError: it is no video, or PyAV is not installed.
    """
    try:
        import av
    except ImportError:
        raise ValueError(f"{name}: decoding videos needs PyAV: pip install av") from None
    try:
        with av.open(file) as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    except (av.FFmpegError, IndexError) as error:
        raise ValueError(f"{name}: it is no video, cut short or damaged ({error})") from None
    if not frames:
        raise ValueError(f"{name}: it is a video without frames")
    return np.stack(frames)
