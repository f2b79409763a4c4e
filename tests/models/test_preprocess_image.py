"""The step ``image``: what becomes of a picture, and which pictures are refused."""

import os
import random
import subprocess
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from models.errors import RejectedInputError, SettingError
from models.preprocess.image import ImageStep
from models.reference.digits import load_split
from models.reference.picture import INK, draw
from models.tensor import NUMPY_DTYPES, Array
from tests.models.pictures import encoded, header, noise, png, step_spec

ROOT = Path(__file__).parents[2]
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def run(element: bytes, shape: tuple[int, ...] = (-1, 3, 4, 4), datatype: str = "UINT8", **settings: Any) -> Array:
    """The row that the step makes of one picture."""
    row = np.full(shape[1:], 77, NUMPY_DTYPES[datatype])
    ImageStep(step_spec(shape, datatype, **settings)).fill(element, row)
    return row


def refused(element: bytes, **settings: Any) -> str:
    with pytest.raises(RejectedInputError) as caught:
        run(element, **settings)
    return str(caught.value)


# What a picture becomes


def test_pixels_become_channels_and_nothing_else_changes() -> None:
    pixels = noise(4, 4)
    assert (run(encoded(pixels)) == pixels.transpose(2, 0, 1)).all()
    assert (run(encoded(pixels), mode="BGR") == pixels.transpose(2, 0, 1)[::-1]).all()
    assert (run(encoded(pixels), (-1, 4, 4, 3), layout="NHWC") == pixels).all()
    assert (run(encoded(pixels), (-1, 4, 4, 3), layout="NHWC", mode="BGR") == pixels[..., ::-1]).all()


def test_grey_is_the_weighted_sum_of_the_colours() -> None:
    pixels = noise(4, 4)
    weighted = pixels.astype(np.float64) @ [0.299, 0.587, 0.114]
    assert np.abs(run(encoded(pixels), (-1, 1, 4, 4), mode="L")[0] - weighted).max() <= 0.51


def test_a_jpeg_is_what_pillow_decodes() -> None:
    element = encoded(noise(4, 4), "JPEG", quality=95)
    with Image.open(BytesIO(element)) as picture:
        assert (run(element) == np.asarray(picture).transpose(2, 0, 1)).all()


@pytest.mark.parametrize("datatype", ["FP32", "FP16"])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_values_are_the_nearest_to_the_exact_formula(datatype: str, layout: str) -> None:
    pixels = noise(16, 16)
    shape = (-1, 3, 16, 16) if layout == "NCHW" else (-1, 16, 16, 3)
    found = run(encoded(pixels), shape, datatype, mean=MEAN, std=STD, layout=layout)
    exact = (pixels.astype(np.float64) / 255 - MEAN) / STD
    expected = exact.astype(NUMPY_DTYPES[datatype])
    assert (found == (expected.transpose(2, 0, 1) if layout == "NCHW" else expected)).all()


def test_values_are_those_of_torchvisions_to_tensor_and_normalize_but_for_rounding() -> None:
    pixels = noise(16, 16)
    found = run(encoded(pixels), (-1, 3, 16, 16), "FP32", mean=MEAN, std=STD)
    mean, std = (np.array(each, np.float32)[:, None, None] for each in (MEAN, STD))
    single = (pixels.transpose(2, 0, 1).astype(np.float32) / np.float32(255) - mean) / std
    assert np.abs(found - single).max() <= 5e-7


def test_mean_and_std_belong_to_the_channels_of_the_tensor() -> None:
    found = run(encoded(noise(4, 4)), datatype="FP32", mode="BGR", mean=[1, 0, 0], std=[1, 1, 0.5])
    blue, green, red = run(encoded(noise(4, 4)), mode="BGR").astype(np.float64) / 255
    assert np.allclose(found, [blue - 1, green, red * 2])


def test_inverted_white_is_zero() -> None:
    pixels = noise(4, 4)
    assert (run(encoded(pixels), invert=True) == 255 - pixels.transpose(2, 0, 1)).all()
    assert (run(encoded(pixels), datatype="FP32", invert=True, divide_by=51) <= 5).all()


def test_a_drawn_digit_gives_its_counts_of_ink_back_exactly() -> None:
    settings = {"mode": "L", "resize": "stretch", "filter": "box", "invert": True, "divide_by": INK}
    for image in load_split().test_images[:50]:
        assert (run(draw(image, "a test"), (-1, 1, 8, 8), "FP32", **settings) == image).all()


# Sizes


def test_a_picture_of_another_size_is_refused_unless_it_is_to_be_resized() -> None:
    assert refused(encoded(noise(5, 4))) == "expected 4 x 4 pixels, got 4 x 5"


def test_box_averages_whole_squares() -> None:
    pixels = noise(8, 12)
    averages = pixels.reshape(4, 2, 4, 3, 3).astype(np.float64).mean(axis=(1, 3))
    found = run(encoded(pixels), resize="stretch", filter="box")
    assert np.abs(found.transpose(1, 2, 0) - averages).max() <= 1


def test_nearest_takes_the_pixel_in_the_middle() -> None:
    pixels = noise(12, 12)
    assert (run(encoded(pixels), resize="stretch", filter="nearest") == pixels[1::3, 1::3].transpose(2, 0, 1)).all()


def bilinear(size: int, wanted: int) -> Array:
    """The matrix that resizes ``size`` pixels to fewer by a triangle as wide as two of the new ones."""
    scale = size / wanted
    centres = (np.arange(wanted) + 0.5) * scale
    weights = np.maximum(0, 1 - np.abs((np.arange(size) + 0.5 - centres[:, None]) / scale))
    matrix: Array = weights / weights.sum(axis=1, keepdims=True)
    return matrix


@pytest.mark.parametrize(
    ("height", "width"), [(40, 60), (60, 40), (50, 50), (33, 101), (32, 45), (45, 32), (97, 64), (20, 33)]
)
def test_a_resized_shorter_side_and_a_centre_crop_are_torchvisions(height: int, width: int) -> None:
    shorter, size = 32, 28
    pixels = noise(height, width)
    tall, wide = shorter, int(shorter * width / height)
    if height > width:
        tall, wide = int(shorter * height / width), shorter
    resized = pixels.astype(np.float64)
    if (tall, wide) != (height, width):
        resized = np.einsum("yh,xw,hwc->yxc", _antialiased(height, tall), _antialiased(width, wide), resized)
    top, left = round((tall - size) / 2.0), round((wide - size) / 2.0)
    expected = resized[top : top + size, left : left + size].transpose(2, 0, 1)
    found = run(encoded(pixels), (-1, 3, size, size), resize=shorter)
    assert np.abs(found - expected).max() <= 1.01  # two roundings to whole levels


def _antialiased(size: int, wanted: int) -> Array:
    """``bilinear``, also where the picture grows: then the triangle is as wide as two of the old pixels."""
    if wanted <= size:
        return bilinear(size, wanted)
    centres = (np.arange(wanted) + 0.5) * size / wanted
    weights = np.maximum(0, 1 - np.abs(np.arange(size) + 0.5 - centres[:, None]))
    matrix: Array = weights / weights.sum(axis=1, keepdims=True)
    return matrix


# What files may hold


@pytest.mark.parametrize(
    ("orientation", "undo"),
    [
        (1, lambda p: p),
        (2, np.fliplr),
        (3, lambda p: np.rot90(p, 2)),
        (4, np.flipud),
        (5, lambda p: p.transpose(1, 0, 2)),
        (6, lambda p: np.rot90(p, -1)),
        (7, lambda p: np.rot90(p.transpose(1, 0, 2), 2)),
        (8, lambda p: np.rot90(p, 1)),
    ],
)
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_picture_is_turned_as_its_exif_says_unless_that_is_switched_off(
    orientation: int, undo: Any, kind: str
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = noise(4, 4)
    element = encoded(pixels, kind, exif=exif)
    lying = run(element, exif_orientation=False).transpose(1, 2, 0)
    assert (run(element).transpose(1, 2, 0) == undo(lying)).all()
    assert kind == "JPEG" or (lying == pixels).all()


def test_of_sixteen_bits_the_upper_eight_are_taken() -> None:
    deep = np.random.default_rng(3).integers(0, 1 << 16, (4, 4), dtype=np.uint16)
    assert (run(encoded(deep), (-1, 1, 4, 4), mode="L")[0] == deep >> 8).all()
    assert (run(encoded(deep)) == deep >> 8).all()
    colours = np.random.default_rng(4).integers(0, 1 << 16, (4, 4, 3), dtype=np.uint16)
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in colours)
    assert (run(png(header(4, 4, depth=16), lines)) == (colours >> 8).transpose(2, 0, 1)).all()


def test_transparency_is_ignored() -> None:
    pixels = noise(4, 4, 4)
    assert (run(encoded(pixels)) == pixels[..., :3].transpose(2, 0, 1)).all()
    grey = np.stack([noise(4, 4, 1), noise(4, 4, 1, seed=1)], axis=2)
    assert (run(encoded(Image.fromarray(grey, "LA")), (-1, 1, 4, 4), mode="L")[0] == grey[..., 0]).all()
    marked = encoded(pixels[..., :3], transparency=tuple(pixels[0, 0, :3].tolist()))
    assert (run(marked) == pixels[..., :3].transpose(2, 0, 1)).all()


def test_a_palette_is_looked_up() -> None:
    picture = Image.fromarray(noise(4, 4, 1) % 3, "P")
    colours = [(250, 1, 2), (3, 240, 4), (5, 6, 230)]
    picture.putpalette([value for colour in colours for value in colour])
    expected = np.array(colours, np.uint8)[np.asarray(picture)].transpose(2, 0, 1)
    assert (run(encoded(picture)) == expected).all()
    assert (run(encoded(picture, transparency=b"\0\x80\xff")) == expected).all()


def test_one_bit_is_black_or_white() -> None:
    bits = noise(4, 4, 1) > 127
    assert (run(encoded(Image.fromarray(bits)), (-1, 1, 4, 4), mode="L")[0] == bits * 255).all()


def test_the_colours_of_a_cmyk_jpeg_are_converted() -> None:
    flat = Image.new("CMYK", (8, 8), (0, 255, 255, 0))  # no cyan, all magenta, all yellow: red
    found = run(encoded(flat, "JPEG", quality=95), (-1, 3, 8, 8)).astype(int)
    assert np.abs(found - np.array([255, 0, 0])[:, None, None]).max() <= 3


def test_of_several_pictures_in_a_jpeg_the_first_is_taken() -> None:
    first, second = (Image.new("RGB", (4, 4), colour) for colour in ("red", "blue"))
    element = encoded(first, "MPO", save_all=True, append_images=[second])
    assert run(element)[:, 0, 0].tolist() == [254, 0, 0]


# What is refused


def test_an_animated_png_is_refused() -> None:
    frames = [Image.fromarray(noise(4, 4, seed=seed)) for seed in range(2)]
    assert "animated" in refused(encoded(frames[0], save_all=True, append_images=frames[1:]))


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "WEBP", "PPM", "ICO"])
def test_other_formats_are_refused(kind: str) -> None:
    assert refused(encoded(noise(4, 4), kind)) == "expected a JPEG or PNG that can be read"


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_truncated_picture_is_refused_wherever_it_ends(kind: str) -> None:
    element = encoded(noise(32, 32), kind)
    for end in range(0, len(element) * 9 // 10, 37):
        assert refused(element[:end], shape=(-1, 3, 32, 32)).startswith("expected a JPEG or PNG that can be read")


@pytest.mark.parametrize("element", [b"", b"\0" * 100, b"\xff\xd8\xff", b"<svg/>", b"GIF89a", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_picture_is_refused(element: bytes) -> None:
    assert "JPEG or PNG" in refused(element)


def test_too_many_pixels_are_refused_before_they_are_decoded() -> None:
    bomb = png(header(8000, 8000), b"\0" * 8000)
    assert refused(bomb, resize="stretch") == "expected at most 32000000 pixels, got 8000 x 8000"
    assert refused(encoded(noise(5, 4)), max_pixels=19) == "expected at most 19 pixels, got 4 x 5"
    assert "fewer pixels" in refused(png(header(65_000, 65_000), b"\0"))
    assert run(encoded(noise(5, 4)), max_pixels=20, resize="stretch").shape == (3, 4, 4)


def test_a_decompression_bomb_takes_no_memory() -> None:
    """In a process of its own: a bomb of 25,000 × 25,000 pixels, 1.9 GB when decoded."""
    script = """
import resource, zlib
from models.errors import RejectedInputError
from models.preprocess.image import ImageStep
from tests.models.pictures import header, png, step_spec
import numpy as np
step, row = ImageStep(step_spec(resize="stretch")), np.empty((3, 4, 4), np.uint8)
bomb = png(header(25_000, 25_000), bytes(100_000_000))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    step.fill(bomb, row)
except RejectedInputError:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=False, env={**os.environ}
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 20_000  # KiB


def test_too_many_bytes_are_refused() -> None:
    element = encoded(noise(4, 4))
    assert refused(element, max_bytes=len(element) - 1).startswith(f"expected at most {len(element) - 1} bytes")
    assert run(element, max_bytes=len(element)).shape == (3, 4, 4)


def test_an_elongated_picture_is_refused_where_its_resized_form_would_be_enormous() -> None:
    element = encoded(np.zeros((1, 200_000), np.uint8))
    assert "elongated" in refused(element, resize=64)
    assert run(element, resize="stretch").shape == (3, 4, 4)


def test_a_jpeg_with_hundreds_of_scans_is_refused() -> None:
    element = encoded(noise(4, 4), "JPEG", progressive=True)
    at = element.rindex(b"\xff\xda")
    bomb = element[:-2] + element[at:-2] * 200 + element[-2:]
    assert refused(bomb) == "expected a JPEG of at most 100 scans"
    assert run(element).shape == (3, 4, 4)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, about odd metadata
def test_no_mutated_file_escapes_as_another_error() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = Image.fromarray(noise(20, 24))
    seeds = [
        encoded(picture, "JPEG", exif=exif),
        encoded(picture, "JPEG", progressive=True),
        encoded(picture.convert("CMYK"), "JPEG"),
        encoded(picture, exif=exif),
        encoded(picture.convert("P")),
        encoded(np.arange(480, dtype=np.uint16).reshape(20, 24)),
    ]
    step, row = ImageStep(step_spec(resize="stretch")), np.empty((3, 4, 4), np.uint8)
    chance, taken = random.Random(1), 0
    for _ in range(2000):
        element = bytearray(chance.choice(seeds))
        for _ in range(chance.randint(1, 4)):
            element[chance.randrange(min(len(element), chance.choice((40, 200, len(element)))))] = chance.randrange(256)
        try:
            step.fill(bytes(element), row)
            taken += 1
        except RejectedInputError:
            pass
    assert 0 < taken < 2000


# Settings


@pytest.mark.parametrize(
    ("changes", "field", "expected"),
    [
        ({"mode": "HSV"}, "mode", "one of L, RGB, BGR, got 'HSV'"),
        ({"mode": None}, "mode", "one of L, RGB, BGR, missing"),
        ({"mode": "L"}, "tensor.shape", "[-1, 1, H, W]"),
        ({"layout": "NHWC"}, "tensor.shape", "[-1, H, W, 3]"),
        ({"layout": "CHW"}, "layout", "one of NCHW, NHWC"),
        ({"shape": (-1, 3, 4)}, "tensor.shape", "[-1, 3, H, W]"),
        ({"datatype": "INT64"}, "tensor.datatype", "one of FP32, FP16, UINT8"),
        ({"resize": 3}, "resize", "the pixels of the shorter side (4 to 256)"),
        ({"resize": True}, "resize", "none, stretch"),
        ({"resize": "fit"}, "resize", "none, stretch"),
        ({"filter": "cubic"}, "filter", "one of nearest, box, bilinear, bicubic, lanczos"),
        ({"invert": "yes"}, "invert", "true or false"),
        ({"exif_orientation": 1}, "exif_orientation", "true or false"),
        ({"divide_by": 0, "datatype": "FP32"}, "divide_by", "a number above 0"),
        ({"divide_by": 1e-10, "datatype": "FP16"}, "divide_by", "values that FP16 can hold"),
        ({"mean": [0.5], "datatype": "FP32"}, "mean", "a list of 3 numbers, one for each channel"),
        ({"std": [1, 1, 0], "datatype": "FP32"}, "std", "numbers above 0"),
        ({"mean": [0, 0, 0]}, "mean", "only "),
        ({"max_pixels": 10**9}, "max_pixels", "an integer from 1 to 80000000"),
        ({"max_bytes": 0}, "max_bytes", "an integer from 1 to"),
        ({"scale": 2}, "scale", "only "),
    ],
)
def test_a_wrong_setting_is_named_with_what_was_expected(changes: dict[str, Any], field: str, expected: str) -> None:
    with pytest.raises(SettingError) as caught:
        ImageStep(step_spec(**changes))
    assert caught.value.field == field
    assert expected in str(caught.value)


def test_a_model_without_batch_dimension_may_have_a_one_in_its_place_or_nothing() -> None:
    pixels = noise(4, 4)
    for shape in ((1, 3, 4, 4), (3, 4, 4)):
        row = np.empty(shape, np.uint8)
        ImageStep(step_spec(shape)).fill(encoded(pixels), row)
        assert (row.reshape(3, 4, 4) == pixels.transpose(2, 0, 1)).all()


def test_the_picture_written_by_hand_is_read_by_pillow_with_its_source() -> None:
    digit = load_split().test_images[0]
    with Image.open(BytesIO(draw(digit, "from where"))) as picture:
        assert (picture.size, picture.mode, picture.info) == ((64, 64), "L", {"Source": "from where"})
        assert (np.asarray(picture)[::8, ::8] == 255 - INK * digit[0]).all()
