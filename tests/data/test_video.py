"""Videos: the frames that an episode has, and no more than it has, of whatever a file declares."""

import fractions
import io
import random
import shutil
import sys

import av
import numpy as np
import pytest

from tests.data.official_files import N, T, make_pusht, zipped
from wmq_jax.data import open_dataset
from wmq_jax.data.video import read_video

SIDE = 32


def video(frames, side=SIDE, **stream):
    """An mp4 file of grey frames, whose levels are 10, 20, 30 ..."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        track = container.add_stream("mpeg4", rate=10, **stream)
        track.width, track.height, track.pix_fmt = side, side, "yuv420p"
        for i in range(frames):
            image = np.full((side, side, 3), 10 + 10 * i % 240, np.uint8)
            container.mux(track.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(track.encode())
    return buffer.getvalue()


def read(data, count=T):
    return read_video(io.BytesIO(data), "a.mp4", count)


@pytest.fixture
def pusht(tmp_path):
    """A data set whose episode 1, of 7 steps, has a video of 12 frames."""
    folder = tmp_path / "pusht_noise"
    make_pusht(folder / "train")
    (folder / "train" / "obses" / "episode_001.mp4").write_bytes(video(T))
    return folder


@pytest.mark.parametrize("as_zip", [False, True])
def test_frames_of_an_episode(pusht, as_zip):
    dataset = open_dataset(zipped(pusht, "pusht_noise/") if as_zip else pusht)
    frames = dataset.frames(1)
    assert frames.shape == (7, SIDE, SIDE, 3) and frames.dtype == np.uint8
    levels = 10 + 10 * np.arange(7)
    assert np.abs(frames.mean((1, 2, 3)) - levels).max() < 3
    assert np.abs(dataset.frames(1, [6, 2]).mean((1, 2, 3)) - levels[[6, 2]]).max() < 3


def test_a_video_of_fewer_frames_than_the_episode_has_steps(pusht):
    (pusht / "train" / "obses" / "episode_001.mp4").write_bytes(video(3))
    with pytest.raises(ValueError, match="episode_001.mp4 has 3 frames, but the episode has 7 steps"):
        open_dataset(pusht).frames(1)


def test_no_more_frames_are_decoded_than_are_asked_for():
    assert read(video(200), count=5).shape == (5, SIDE, SIDE, 3)


def test_frames_of_gigabytes_are_refused():
    data = video(2, side=4096)  # 360 kB that make 100 MB
    with pytest.raises(ValueError, match="a.mp4: it is a video of 4096 x 4096 pixels; 1024 x 1024 are accepted"):
        read(data)


@pytest.mark.parametrize("side, words", [(1200, "it is a video of 1200 x 1200 pixels"), (4096, "it is no mp4 video")])
def test_frames_larger_than_the_file_declares_are_refused(side, words):
    """The first frame has the declared size, the second another; far above the bound it is not even decoded."""
    buffer, rate = io.BytesIO(), fractions.Fraction(1, 10)
    with av.open(buffer, "w", format="mp4") as container:
        track = container.add_stream("mjpeg", rate=10)
        track.width, track.height, track.pix_fmt = SIDE, SIDE, "yuvj420p"
        for n, size in enumerate((SIDE, side)):
            codec = av.CodecContext.create("mjpeg", "w")
            codec.width, codec.height, codec.pix_fmt, codec.time_base = size, size, "yuvj420p", rate
            frame = av.VideoFrame.from_ndarray(np.zeros((size, size, 3), np.uint8), format="rgb24")
            for packet in codec.encode(frame.reformat(format="yuvj420p")):
                packet.stream, packet.pts, packet.dts, packet.time_base = track, n, n, rate
                container.mux(packet)
    with pytest.raises(ValueError, match=f"a.mp4: {words}"):
        read(buffer.getvalue())


def test_lists_of_other_files_are_refused(tmp_path, monkeypatch):
    """FFmpeg knows formats that name further files, here one beside the program, and would decode it."""
    (tmp_path / "secret.mp4").write_bytes(video(T))
    monkeypatch.chdir(tmp_path)
    listing = b"ffconcat version 1.0\nfile 'secret.mp4'\n"
    with av.open(io.BytesIO(listing)) as container:
        assert len(list(container.decode(video=0))) == T
    with pytest.raises(ValueError, match="a.mp4: it is no mp4 video"):
        read(listing)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"video",
        b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n",
        b"ffconcat version 1.0\nfile /etc/passwd\n",
        video(9)[:-400],
    ],
    ids=["empty", "text", "playlist", "list", "cut"],
)
def test_what_is_no_video_is_named(data):
    with pytest.raises(ValueError, match="a.mp4: it is no mp4 video, cut short or damaged"):
        read(data)


def test_damaged_videos_are_named_or_decoded():
    data, draw, refused = video(9), random.Random(0), 0
    for _ in range(300):
        damaged = bytearray(data)
        for _ in range(draw.randint(1, 4)):
            damaged[draw.randrange(len(data))] = draw.randrange(256)
        try:
            assert len(read(bytes(damaged))) <= T
        except ValueError as error:
            refused += 1
            assert str(error).startswith("a.mp4: it is ") and str(error).isprintable() and len(str(error)) < 300
    assert refused > 10


def test_the_missing_package_is_named(pusht, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ValueError, match=r"episode_001.mp4: decoding videos needs PyAV: pip install av"):
        open_dataset(pusht).frames(1)


def test_a_missing_video_is_named(pusht):
    shutil.rmtree(pusht / "train" / "obses")
    with pytest.raises(FileNotFoundError, match=f"there is no file .*episode_00{N - 1}.mp4"):
        open_dataset(pusht).frames(N - 1)
