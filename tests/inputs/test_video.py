"""Clips: the sampled frames, recognised by the numbers drawn on them, or an error for this one input."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from prunesid_cli.errors import MediaError
from prunesid_cli.inputs.decoding import Decoding
from prunesid_cli.inputs.image import Media
from prunesid_cli.inputs.video import load
from prunesid_cli.inputs.video.frame_sampling import MAX_FRAMES, FrameSampling
from prunesid_cli.inputs.video.load import is_clip_file, load_clip, load_media
from prunesid_cli.runtime.worker_pool import WorkerPool
from prunesid_cli.runtime.worker_server import end_after
from tests.caches import items_by_source
from tests.conftest import Run
from tests.films import BLOCK, SIZE, av, film, number_of, numbered, sound, turned
from tests.models.tiny import write_checkpoint

pyav_decoder, decode = (pytest.importorskip(f"prunesid_cli.inputs.video.{name}") for name in ("pyav_decoder", "decode"))
ASK = "what happens?"
FILMS: dict[str, tuple[str, dict[str, Any]]] = {
    "h264.mp4": ("libx264", {}),
    "h264.mov": ("libx264", {}),
    "h264.mkv": ("libx264", {}),
    "h264.ts": ("libx264", {}),
    "h264.flv": ("libx264", {}),
    "open.mp4": ("libx264", {"bf": 5, "x264-params": "open-gop=1:b-pyramid=normal"}),
    "fragments.mp4": ("libx264", {"muxer": {"movflags": "frag_keyframe+empty_moov"}}),
    "vp9.webm": ("libvpx-vp9", {"deadline": "realtime", "cpu-used": 8}),
    "vp8.webm": ("libvpx", {"deadline": "realtime", "cpu-used": 8, "auto-alt-ref": 1}),
    "mpeg4.mp4": ("mpeg4", {"bf": 2}),
    "mpeg4.avi": ("mpeg4", {"bf": 2}),
    "mpeg2.mpg": ("mpeg2video", {"bf": 2}),
    "jpeg.avi": ("mjpeg", {}),
}
"""Name -> encoder and its options."""


def encoded(name: str, folder: Path, **changes: Any) -> Path:
    codec, options = FILMS[name]
    pixels = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    return film(folder / name, codec=codec, pixels=pixels, **options, **changes)


def numbers(media: Media) -> list[int]:
    return [number_of(frame) for frame in media.frames]


def refusal(path: Path | str, sampling: FrameSampling | None = None) -> MediaError:
    with pytest.raises(MediaError) as caught:
        load_media(path, sampling or FrameSampling())
    assert caught.value.problem.startswith(f"{path}: ")
    assert caught.value.hint
    assert "\n" not in caught.value.problem
    return caught.value


# Sampling


def test_frames_are_spread_over_time() -> None:
    even = [i / 10 for i in range(100)]
    assert FrameSampling(8).select_frames(even) == [int(i) for i in np.linspace(0, 99, 8)]
    assert FrameSampling(1).select_frames(even) == [49]
    assert FrameSampling(200).select_frames(even) == list(range(100))
    assert FrameSampling(fps=2).select_frames(even) == list(range(0, 100, 5))
    assert FrameSampling(fps=1000).select_frames(even) == list(range(100))
    assert FrameSampling(fps=0.01).select_frames(even) == [0]
    assert FrameSampling(fps=1).select_frames([0.0]) == FrameSampling(3).select_frames([0.0]) == [0]


def test_a_still_frame_is_taken_once() -> None:
    slides = [0.0, 0.1, 0.2, 0.3, 10.0, 20.0]
    assert FrameSampling(5).select_frames(slides) == [0, 3, 4, 5]
    assert FrameSampling(fps=0.1).select_frames(slides) == [0, 4, 5]


def test_more_frames_than_fit_are_refused() -> None:
    hours = [i / 2 for i in range(20_000)]
    with pytest.raises(MediaError, match=f"2 fps of 10000 s are 20,000 frames, more than the limit of {MAX_FRAMES:,}"):
        FrameSampling(fps=2).select_frames(hours)
    assert len(FrameSampling(MAX_FRAMES).select_frames(hours)) == MAX_FRAMES


# Decoding


@pytest.mark.parametrize("name", FILMS)
def test_frames_are_the_right_ones(name: str, tmp_path: Path) -> None:
    path = encoded(name, tmp_path)
    media = load_clip(str(path), FrameSampling(6))
    assert numbers(media) == [0, 7, 15, 23, 31, 39]
    assert media.times == pytest.approx([number / 25 for number in numbers(media)], abs=0.002)
    assert (media.is_clip, media.size, media.sampling, media.decoder[:5]) == (True, SIZE, "6 frames", "PyAV ")
    assert numbers(load_clip(str(path), FrameSampling(fps=5))) == list(range(0, 40, 5))


@pytest.mark.parametrize("name", FILMS)
def test_decord_gives_right_frames_or_refuses(name: str, tmp_path: Path) -> None:
    pytest.importorskip("decord")
    path = encoded(name, tmp_path)
    is_safe = name in ("h264.mp4", "h264.mov", "h264.mkv", "fragments.mp4", "vp9.webm", "vp8.webm")
    try:
        media = load_clip(str(path), FrameSampling(6, backend="decord"))
    except MediaError as error:
        assert not is_safe, error
        assert error.hint == "leave out --video-backend"
    else:
        assert is_safe
        assert numbers(media) == [0, 7, 15, 23, 31, 39]
        assert (media.sampling, media.decoder[:7]) == ("6 frames by decord", "decord ")


def test_the_error_says_that_decord_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "find_spec", lambda name: None)
    path = str(film(tmp_path / "a.mp4", 3))
    with pytest.raises(MediaError, match="it is not installed"):
        decode.decode_clip(path, FrameSampling(backend="decord"))
    assert len(decode.decode_clip(path, FrameSampling()).frames) == 3


@pytest.mark.parametrize("backend", ["pyav", "decord"])
def test_a_variable_frame_rate(backend: str, tmp_path: Path) -> None:
    """Ten frames in the first second, then one every second."""
    if backend == "decord":
        pytest.importorskip("decord")
    path = film(tmp_path / "a.mp4", [i / 10 for i in range(10)] + [1.0, 2.0, 3.0, 4.0])
    media = load_clip(str(path), FrameSampling(5, backend=backend))
    assert (numbers(media), media.times) == ([0, 10, 11, 12, 13], (0.0, 1.0, 2.0, 3.0, 4.0))
    assert numbers(load_clip(str(path), FrameSampling(fps=2, backend=backend))) == [0, 5, 10, 11, 12, 13]


@pytest.mark.parametrize("degrees", [90, 180, 270])
@pytest.mark.parametrize("backend", ["pyav", "decord"])
def test_frames_are_upright(degrees: int, backend: str, tmp_path: Path) -> None:
    path = turned(film(tmp_path / "a.mp4", 3), degrees)
    if backend == "decord":
        pytest.importorskip("decord")
        if degrees != 180:
            assert "pictures on their side" in refusal(path, FrameSampling(backend=backend)).problem
            return
    media = load_clip(str(path), FrameSampling(backend=backend))
    for number, frame in enumerate(media.frames):
        expected = np.rot90(numbered(number), -degrees // 90)
        assert media.size == frame.size == expected.shape[1::-1]
        assert np.abs(np.asarray(frame, float) - expected).mean() < 12


@pytest.mark.parametrize("count", [1, 2, 7])
def test_a_short_clip_gives_all_that_it_has(count: int, tmp_path: Path) -> None:
    media = load_clip(str(film(tmp_path / "a.mp4", count)), FrameSampling())
    assert numbers(media) == list(range(count))
    assert len(media.times) == count
    assert media.is_clip


def test_odd_sizes(tmp_path: Path) -> None:
    path = film(tmp_path / "a.mp4", 5, size=(161, 97), pixels="yuv444p")
    media = load_clip(str(path), FrameSampling())
    assert (media.size, numbers(media)) == ((161, 97), [0, 1, 2, 3, 4])


@pytest.mark.parametrize("size", [(1, 1), (3, 1), (2, 400)])
def test_tiny_and_thin_sizes(size: tuple[int, int], tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream: Any = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = *size, "bgr0"
        for grey in (0, 100, 200):
            picture = np.full((size[1], size[0], 3), grey, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    media = load_clip(str(tmp_path / "a.mkv"), FrameSampling())
    assert media.size == size
    assert [frame.getpixel((0, 0)) for frame in media.frames] == [(grey,) * 3 for grey in (0, 100, 200)]


@pytest.mark.parametrize("duration", [0, 1, 0x7FFFFFFF, 0xFFFFFFFF])
def test_a_wrong_duration_changes_nothing(duration: int, tmp_path: Path) -> None:
    """The duration in the header is not used: the packets give the length."""
    path = film(tmp_path / "a.mp4", 40)
    data = bytearray(path.read_bytes())
    for box, offset in ((b"mvhd", 16), (b"mdhd", 16), (b"tkhd", 20)):  # version 0, from after the name
        at = data.index(box) + 4 + offset
        data[at : at + 4] = duration.to_bytes(4, "big")
    path.write_bytes(data)
    media = load_clip(str(path), FrameSampling(6))
    assert (numbers(media), media.times[-1]) == ([0, 7, 15, 23, 31, 39], pytest.approx(39 / 25, abs=0.002))


def test_a_clip_without_a_declared_length_is_read_to_its_end(tmp_path: Path) -> None:
    """Such as a recording in progress, which declares neither its length nor its size."""
    path = film(tmp_path / "a.mkv", 40, muxer={"live": "1"})
    assert numbers(load_clip(str(path), FrameSampling(6))) == [0, 7, 15, 23, 31, 39]


def test_skipping_unneeded_frames_changes_no_pixel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = film(tmp_path / "a.mp4", 60, bf=3, g=60, **{"x264-params": "b-pyramid=normal:b-adapt=0"})
    frames = decode.decode_clip(str(path), FrameSampling(7)).frames
    monkeypatch.setattr(pyav_decoder, "SKIP_FRAME_CODECS", ())
    assert frames == decode.decode_clip(str(path), FrameSampling(7)).frames
    assert [number_of(frame) for frame in frames] == [0, 9, 19, 29, 39, 49, 59]


def test_frames_too_large_for_memory_are_reduced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "MAX_TOTAL_PIXELS", 5 * SIZE[0] * SIZE[1] // 4)
    clip = decode.decode_clip(str(film(tmp_path / "a.mp4", 5)), FrameSampling())
    assert clip.notes == (f"frames of {SIZE[0]}x{SIZE[1]} reduced to {SIZE[0] // 2}x{SIZE[1] // 2}",)
    assert [number_of(frame.resize(SIZE)) for frame in clip.frames] == [0, 1, 2, 3, 4]


def test_odd_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No name is taken for one of FFmpeg's protocols, or for an option."""
    monkeypatch.chdir(tmp_path)
    data = film(tmp_path / "a.mp4", 2).read_bytes()
    for name in ("concat:a.mp4|a.mp4", "http:x.mp4", "-i.mp4", "視頻 ä.mp4", os.fsdecode(b"\xff.mp4"), "a\nb.mp4"):
        Path(name).write_bytes(data)
        assert numbers(load_media(name, FrameSampling())) == [0, 1], name


def test_the_contents_decide_not_the_name(tmp_path: Path) -> None:
    clip = film(tmp_path / "a.mp4", 2)
    assert is_clip_file(str(clip.rename(tmp_path / "a.jpg")))
    for name in ("a.ts", "a.mov", "a.mkv", "a.flv"):
        (tmp_path / "plain").write_bytes(film(tmp_path / name, 2).read_bytes())
        assert is_clip_file(str(tmp_path / name))
        assert is_clip_file(str(tmp_path / "plain")) == (name != "a.ts")
    Image.new("RGB", (8, 8)).save(tmp_path / "b.mp4", "PNG")
    assert not load_media(tmp_path / "b.mp4", FrameSampling()).is_clip


# What a clip may hold


@pytest.mark.parametrize("first_is_best", [False, True])
def test_of_several_streams_the_best_is_taken(first_is_best: bool, tmp_path: Path) -> None:
    small, large = numbered(200, (160, 32)), [numbered(number) for number in range(24)]
    with av.open(str(tmp_path / "two.mkv"), "w") as container:
        streams: dict[str, Any] = {}
        for name in ("large", "small") if first_is_best else ("small", "large"):
            streams[name] = container.add_stream("libx264", rate=25)
            streams[name].width, streams[name].height = SIZE if name == "large" else (160, 32)
            streams[name].pix_fmt = "yuv420p"
        for name, pictures in (("small", [small]), ("large", large)):
            for number, pixels in enumerate(pictures):
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                frame.pts, frame.time_base = number, Fraction(1, 25)
                container.mux(streams[name].encode(frame))
            container.mux(streams[name].encode(None))
    media = load_media(tmp_path / "two.mkv", FrameSampling(4))
    assert (media.size, numbers(media)) == (SIZE, [0, 7, 15, 23])
    number = 1 if first_is_best else 2
    assert media.notes == (f"2 video streams: number {number}, of {SIZE[0]}x{SIZE[1]}, is used",)
    assert (
        "decord cannot be trusted with it: several"
        in refusal(tmp_path / "two.mkv", FrameSampling(backend="decord")).problem
    )


TRANSPARENT = {
    "vp9.webm": ("libvpx-vp9", "yuva420p", {"deadline": "realtime", "cpu-used": "8", "lossless": "1"}),
    "vp8.webm": ("libvpx", "yuva420p", {"deadline": "realtime", "cpu-used": "8", "auto-alt-ref": "0"}),
    "png.mov": ("png", "rgba", {}),
    "qtrle.mov": ("qtrle", "argb", {}),
    "prores.mov": ("prores_ks", "yuva444p10le", {}),
    "png.avi": ("png", "rgba", {}),
}
"""Name -> encoder, its pixels and its options."""


def transparent_film(path: Path, left_alpha: int, right_alpha: int, tags: dict[str, str] | None = None) -> Path:
    """Twelve numbered frames; the left and right half of each have these alphas, and the stream has these tags."""
    codec, pixels, options = TRANSPARENT[path.name]
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt, stream.options = *SIZE, pixels, options
        stream.metadata.update(tags or {})
        for number in range(12):
            alpha = np.full((SIZE[1], SIZE[0], 1), right_alpha, np.uint8)
            alpha[:, : SIZE[0] // 2] = left_alpha
            rgba = np.concatenate([numbered(number), alpha], -1)
            frame = av.VideoFrame.from_ndarray(rgba, format="rgba")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("name", TRANSPARENT)
def test_transparent_parts_are_white(name: str, tmp_path: Path) -> None:
    media = load_media(transparent_film(tmp_path / name, 0, 255), FrameSampling(3))
    assert media.notes == ("transparency composited on white",)
    for frame in media.frames:
        pixels = np.asarray(frame, int)
        assert pixels[BLOCK + 8 :, : SIZE[0] // 2 - 8].min() > 250
        assert abs(pixels[BLOCK + 8 : -BLOCK - 8, SIZE[0] // 2 + 8 :] - 90).max() < 12
    assert "decord cannot be trusted" in refusal(tmp_path / name, FrameSampling(backend="decord")).problem


def test_the_mark_of_separate_alpha_is_known_in_any_case(tmp_path: Path) -> None:
    """As a tag, which FFmpeg writes in upper case, it hides the one that FFmpeg makes of the field in the header."""
    path = transparent_film(tmp_path / "vp9.webm", 0, 255, {"alpha_mode": "1"})
    with av.open(str(path)) as container:
        assert container.streams.video[0].metadata["ALPHA_MODE"] == "1"
    assert load_media(path, FrameSampling(3)).notes == ("transparency composited on white",)


@pytest.mark.parametrize("name", TRANSPARENT)
def test_opaque_frames_stay_as_they_are(name: str, tmp_path: Path) -> None:
    """Also where the fourth byte of a pixel means nothing, as in many AVI files: it is zero everywhere."""
    path = transparent_film(tmp_path / name, 255, 255)
    media = load_media(path, FrameSampling(12))
    assert (numbers(media), media.notes) == ([*range(12)], ())
    if name.endswith(".avi"):
        transparent_film(path, 0, 0)
        assert numbers(load_media(path, FrameSampling(12))) == [*range(12)]


@pytest.mark.parametrize(
    ("name", "trait", "note"),
    [
        ("sar.mp4", {"sample_aspect_ratio": Fraction(2)}, "anamorphic: 160x96 is used as stored, players show 320x96"),
        ("square.mp4", {"sample_aspect_ratio": Fraction(1280, 1281)}, None),
        ("hlg.mp4", {"color_trc": 18}, "HDR (HLG): colours are used without tone mapping"),
        ("pq.mp4", {"color_trc": 16}, "HDR (PQ): colours are used without tone mapping"),
        ("sdr.mp4", {"color_trc": 1}, None),
    ],
)
@pytest.mark.parametrize("backend", ["pyav", "decord"])
def test_odd_pixels_are_noted(name: str, trait: dict[str, Any], note: str | None, backend: str, tmp_path: Path) -> None:
    if backend == "decord":
        pytest.importorskip("decord")
    media = load_media(film(tmp_path / name, 2, traits=trait), FrameSampling(2, backend=backend))
    assert media.notes == ((note,) if note else ())


# Refused files


@pytest.mark.parametrize("name", ["h264.mp4", "h264.mkv", "vp9.webm", "mpeg4.avi", "fragments.mp4"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.95])
def test_a_file_that_was_cut_short(name: str, share: float, tmp_path: Path) -> None:
    path = encoded(name, tmp_path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    assert "cut short" in refusal(path).problem


def test_damage_is_not_concealed(tmp_path: Path) -> None:
    path = film(tmp_path / "a.mp4", 40, crf=10)
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat")
    middle = start + int.from_bytes(data[start - 4 : start], "big") // 2
    data[middle : middle + 40] = b"\xff" * 40
    path.write_bytes(data)
    assert "damaged" in refusal(path).problem


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    cases = {
        b"": "empty file",
        b"\0\xff\x13" * 4000: "of no known video format",
        b"<!doctype html><html>": "a web page",
        b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n": "the file is text",
        b"\0\0\0\x18ftypisom" + b"\0" * 400: "damaged, or of no known",
    }
    for data, expected in cases.items():
        path.write_bytes(data)
        assert expected in refusal(path).problem
    assert "there are no moving pictures in it" in refusal(sound(tmp_path / "b.mp4")).problem
    assert "a folder" in refusal(tmp_path).problem
    assert "no such file" in refusal(tmp_path / "none.mp4").problem


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
def test_a_fifo_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.mp4")
    assert "a pipe or device" in refusal(tmp_path / "a.mp4").problem


def hostile_clip_reader(kind: str) -> Callable[[Any], Media]:
    """What a worker does whose decoder hangs or crashes."""

    def read(request: Any) -> Media:
        end_after(load.clip_limit(request[0], request[3]))
        if kind == "crash":
            os.abort()
        ctypes.PyDLL(None).sleep(60)  # a call into C that keeps Python's lock
        raise AssertionError

    return read


@pytest.mark.parametrize(("kind", "problem"), [
    ("hang", "not decoded within 0.5 s"),
    ("crash", "the decoder crashed (SIGABRT)"),
])  # fmt: skip
def test_a_decoder_that_hangs_or_crashes_is_killed(
    kind: str, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(film(tmp_path / "a.mp4", 2))
    pool = WorkerPool(f"{__name__}:hostile_clip_reader", kind)
    monkeypatch.setattr(load, "_clip_pool", lambda: pool)
    start = time.monotonic()
    with closing(pool), pytest.raises(MediaError) as caught:
        load_clip(path, FrameSampling(), decoding=Decoding(limit=0.5))
    assert caught.value.problem == f"{path}: {problem}"
    assert time.monotonic() - start < 30


def test_no_decoder_is_loaded_before_a_clip_is_read() -> None:
    code = "import sys; from prunesid_cli.cli.app import main; sys.argv = ['prunesid', '--help']\ntry: main()\n"
    code += "finally: print(sorted({'av', 'decord', 'torch', 'PIL'} & set(sys.modules)), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == "[]", done.stderr


# The command line


@pytest.fixture(scope="module", params=["llava_next_video", "qwen2_vl", "video_llava"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture
def films(tmp_path: Path) -> Path:
    """Two clips, one with more and one with fewer frames than the sampling takes."""
    folder = tmp_path / "films"
    folder.mkdir()
    film(folder / "a.mp4", 30)
    film(folder / "b.webm", 3, "libvpx-vp9")
    return folder


def test_ask_is_compress_and_answer(run: Run, model: Path, films: Path, tmp_path: Path) -> None:
    common = ("-m", model, "-k", "20", "--frames", "4")
    done = run("compress", films, "--out", tmp_path / "c", *common)
    assert done.code == 0, done.err
    answers = run("answer", tmp_path / "c", ASK, "--max-new-tokens", "8")
    assert answers.code == 0, answers.err
    for record, path in zip(answers.records, sorted(films.iterdir()), strict=True):
        asked = run("ask", path, ASK, *common, "--max-new-tokens", "8", "--json")
        assert asked.code == 0, asked.err
        (answer,) = asked.records
        for name in ("answer", "kept", "tokens"):
            assert record[name] == answer[name]
    items = list(items_by_source(tmp_path / "c").values())
    assert [item.sampling for item in items] == ["4 frames"] * 2
    assert all(item.decoder.startswith("PyAV ") and item.size == SIZE for item in items)
    assert [region.time for region in items[0].layout.regions][0] == 0.0


def test_all_clips_of_a_cache_have_the_same_sampling(
    run: Run, films: Path, pictures: list[Path], tmp_path: Path
) -> None:
    model = write_checkpoint("llava_next_video", tmp_path / "m")
    compress = ("compress", "-m", model, "--out", tmp_path / "c", "-k", "8", films)
    assert run(*compress, "--fps", "2").code == 0
    again = run(*compress, "--fps", "2", "--json")
    assert (again.code, [record["held"] for record in again.records]) == (0, [True, True])
    other = run(*compress, "--frames", "4")
    assert (other.code, "holds clips with 2 fps, not 4 frames" in other.err) == (1, True)


def test_sampling_options_do_not_change_caches_of_images(
    run: Run, pictures: list[Path], llava: Path, tmp_path: Path
) -> None:
    for name, *options in (("a",), ("b", "--frames", "3"), ("c", "--fps", "1", "--video-backend", "pyav")):
        assert run("compress", pictures[0], "-m", llava, "--out", tmp_path / name, *options).code == 0
    shards = {(tmp_path / name / "prunesid-00000.safetensors").read_bytes() for name in "abc"}
    assert len(shards) == 1
    assert b"sampling" not in shards.pop()
    assert run("compress", pictures[1], "-m", llava, "--out", tmp_path / "a", "--frames", "5").code == 0


def test_a_model_that_reads_no_clips_refuses_them(
    run: Run, llava: Path, films: Path, pictures: list[Path], tmp_path: Path
) -> None:
    done = run("compress", pictures[0], films, "-m", llava, "--out", tmp_path / "c")
    assert (done.code, done.err.count("this model reads no clips")) == (3, 2)
    asked = run("ask", films / "a.mp4", ASK, "-m", llava)
    assert (asked.code, "this model reads no clips" in asked.err) == (1, True)


def test_a_bad_clip_fails_alone(run: Run, films: Path, tmp_path: Path) -> None:
    model = write_checkpoint("llava_next_video", tmp_path / "m")
    (films / "c.mkv").write_bytes(b"\x1aE\xdf\xa3" + b"\0" * 500)
    done = run("compress", films, "-m", model, "--out", tmp_path / "c", "-k", "8", "--json")
    assert done.code == 3
    assert ["error" in record for record in done.records] == [False, False, True]


def test_contradicting_and_wrong_options_are_refused(run: Run, films: Path, llava: Path) -> None:
    for options, expected in (
        (("--fps", "1", "--frames", "2"), "--frames and --fps contradict each other"),
        (("--fps", "0"), "--fps 0 is not a rate"),
        (("--fps", "nan"), "--fps nan is not a rate"),
    ):
        done = run("ask", films / "a.mp4", ASK, "-m", llava, *options)
        assert (done.code, expected in done.err) == (2, True), done.err
