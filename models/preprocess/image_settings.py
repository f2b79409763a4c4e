"""What the step ``image`` can be told, apart from doing it: checking a ``model.yaml`` needs no image library."""

from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np

from models.errors import SettingError
from models.preprocess.settings import Settings
from models.spec import StepSpec
from models.tensor import NUMPY_DTYPES, Array

MODES: Final = {"L": (0,), "RGB": (0, 1, 2), "BGR": (2, 1, 0)}  # the source of each channel of the tensor
FILTERS: Final = ("nearest", "box", "bilinear", "bicubic", "lanczos")
LAYOUTS: Final = ("NCHW", "NHWC")
NONE, STRETCH = "none", "stretch"
_DATATYPES: Final = ("FP32", "FP16", "UINT8")
_WHITE: Final = 255
_MAX_PIXELS: Final = 32_000_000
_MOST_PIXELS: Final = 80_000_000  # below the size at which Pillow itself warns
_MAX_BYTES: Final = 16 << 20
_MOST_BYTES: Final = (1 << 31) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSettings:
    """The settings of one ``image`` step.

    A picture becomes ``height`` × ``width`` pixels: by ``resize`` "none" it must have that size already; by "stretch"
    it is resized to it whatever its proportions; by a number its shorter side is resized to that many pixels, and the
    centre is cut out. ``table[c][p]`` is the tensor's value for pixel value p, 0…255, of its channel c.
    """

    mode: str
    layout: str
    height: int
    width: int
    resize: str | int
    filter: str
    exif_orientation: bool
    table: Array
    max_pixels: int
    max_bytes: int

    @classmethod
    def read(cls, step: StepSpec) -> Self:
        """The settings of a step.

        Raises:
            SettingError: one that is missing or wrong.
        """
        settings = Settings(step.settings)
        mode = settings.choice("mode", tuple(MODES))
        layout = settings.choice("layout", LAYOUTS, default="NCHW")
        height, width = _size(step, channels=len(MODES[mode]), layout=layout)
        made = cls(
            mode=mode,
            layout=layout,
            height=height,
            width=width,
            resize=_resize(settings, least=max(height, width)),
            filter=settings.choice("filter", FILTERS, default="bilinear"),
            exif_orientation=settings.boolean("exif_orientation", default=True),
            table=_table(settings, step.tensor.datatype, channels=len(MODES[mode])),
            max_pixels=settings.integer("max_pixels", default=_MAX_PIXELS, largest=_MOST_PIXELS),
            max_bytes=settings.integer("max_bytes", default=_MAX_BYTES, largest=_MOST_BYTES),
        )
        settings.finish()
        return made


def _size(step: StepSpec, *, channels: int, layout: str) -> tuple[int, int]:
    """Height and width of the tensor; a model without a batch dimension may have a 1 in its place, or nothing."""
    shape = step.tensor.shape
    item = shape[1:] if len(shape) == 4 and shape[0] in (-1, 1) else shape
    at = 0 if layout == "NCHW" else 2
    if len(item) != 3 or item[at] != channels:
        expected = ["H", "W"]
        expected.insert(at, str(channels))
        raise SettingError("tensor.shape", f"[-1, {', '.join(expected)}], or the same without -1", list(shape))
    if step.tensor.datatype not in _DATATYPES:
        raise SettingError("tensor.datatype", f"one of {', '.join(_DATATYPES)}", step.tensor.datatype)
    height, width = (size for index, size in enumerate(item) if index != at)
    return height, width


def _resize(settings: Settings, *, least: int) -> str | int:
    value: Any = settings.value("resize", NONE)
    if value in (NONE, STRETCH):
        return str(value)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= least * 64:
        expected = f"{NONE}, {STRETCH}, or the pixels of the shorter side ({least} to {least * 64})"
        raise SettingError("resize", expected, value)
    return value


def _table(settings: Settings, datatype: str, *, channels: int) -> Array:
    """The tensor's value for each channel and pixel value: rounded once, from double precision."""
    pixels = np.arange(_WHITE + 1, dtype=np.float64)
    if settings.boolean("invert", default=False):
        pixels = _WHITE - pixels
    if datatype == "UINT8":
        return np.tile(pixels.astype(np.uint8), (channels, 1))
    divide_by = settings.positive("divide_by", default=_WHITE)
    mean = np.array(settings.numbers("mean", default=0, count=channels))
    deviation = np.array(settings.numbers("std", default=1, count=channels))
    if (deviation <= 0).any():
        raise SettingError("std", "numbers above 0", deviation.tolist())
    values = (pixels / divide_by - mean[:, None]) / deviation[:, None]
    with np.errstate(over="ignore"):
        table: Array = values.astype(NUMPY_DTYPES[datatype])
    if not np.isfinite(table).all():
        raise SettingError("divide_by", f"values that {datatype} can hold, with mean and std", divide_by)
    return table
