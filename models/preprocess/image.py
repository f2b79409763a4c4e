"""The step ``image``: JPEG and PNG to pixels, by Pillow.

What Pillow's ``convert`` gives for the mode is what the model gets: transparency and colour profiles are ignored, a
palette is looked up, CMYK is converted. Of 16 bits a channel the upper 8 are taken. Of a JPEG that holds several
pictures the first is taken; an animated PNG is rejected.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Final

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from models.errors import RejectedInputError
from models.preprocess.image_settings import MODES, STRETCH, ImageSettings
from models.spec import StepSpec
from models.tensor import Array

_FORMATS: Final = ("JPEG", "PNG")
_FILTERS: Final = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
_TURNS: Final = {  # what undoes each EXIF orientation but the first, which is upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Each scan of a progressive JPEG goes over the whole picture again, and a few bytes are enough for one.
_SCAN: Final = b"\xff\xda"
_MAX_SCANS: Final = 100


class ImageStep:
    """Decodes one picture at a time; fulfils ``models.preprocess.contract.Step``."""

    def __init__(self, step: StepSpec) -> None:
        self._settings = settings = ImageSettings.read(step)
        self._sources = MODES[settings.mode]
        self._mode = "L" if settings.mode == "L" else "RGB"
        self._filter = _FILTERS[settings.filter]
        size = (settings.height, settings.width)
        self._shape = (len(self._sources), *size) if settings.layout == "NCHW" else (*size, len(self._sources))

    def fill(self, element: bytes, row: Array) -> None:
        """See ``Step.fill``.

        Raises:
            RejectedInputError: no picture that can be read, or one beyond the limits.
        """
        with _blaming_the_picture():
            picture = self._sized(self._decode(element))
        pixels = np.asarray(picture).reshape(self._settings.height, self._settings.width, -1)
        target = row.reshape(self._shape)
        if self._settings.layout == "NHWC":
            target = target.transpose(2, 0, 1)
        for plane, table, source in zip(target, self._settings.table, self._sources, strict=True):
            np.take(table, pixels[..., source], out=plane, mode="clip")  # the fastest mode; nothing is out of range

    def _decode(self, element: bytes) -> Image.Image:
        """The whole picture in the right mode and, if that is asked for, the right way up."""
        if len(element) > self._settings.max_bytes:
            raise RejectedInputError(f"expected at most {self._settings.max_bytes} bytes, got {len(element)}")
        opened = Image.open(BytesIO(element), formats=_FORMATS)  # reads the header only
        self._check_header(opened, element)
        opened.load()
        upright = not self._settings.exif_orientation
        turn = None if upright else _TURNS.get(opened.getexif().get(ExifTags.Base.Orientation, 1))
        picture = _in_mode(opened, self._mode)
        return picture if turn is None else picture.transpose(turn)

    def _check_header(self, picture: Image.Image, element: bytes) -> None:
        pixels = picture.width * picture.height
        if pixels > self._settings.max_pixels:
            raise RejectedInputError(
                f"expected at most {self._settings.max_pixels} pixels, got {picture.width} x {picture.height}"
            )
        if picture.format == "PNG" and getattr(picture, "is_animated", False):
            raise RejectedInputError("expected a still picture, got an animated PNG")
        if picture.format != "PNG" and element.count(_SCAN) > _MAX_SCANS:
            raise RejectedInputError(f"expected a JPEG of at most {_MAX_SCANS} scans")

    def _sized(self, picture: Image.Image) -> Image.Image:
        size = (self._settings.width, self._settings.height)
        if isinstance(self._settings.resize, int):
            return _cut_out(self._shortened(picture, self._settings.resize), *size)
        if picture.size == size:
            return picture
        if self._settings.resize == STRETCH:
            return picture.resize(size, self._filter)
        raise RejectedInputError(f"expected {size[0]} x {size[1]} pixels, got {picture.width} x {picture.height}")

    def _shortened(self, picture: Image.Image, shorter: int) -> Image.Image:
        """Resized in proportion, as torchvision's ``Resize`` does: the longer side is rounded down."""
        longer = int(shorter * max(picture.size) / min(picture.size))
        if shorter * longer > self._settings.max_pixels:
            raise RejectedInputError(f"expected a less elongated picture, got {picture.width} x {picture.height}")
        wide = picture.width > picture.height
        size = (longer, shorter) if wide else (shorter, longer)
        return picture if picture.size == size else picture.resize(size, self._filter)


@contextmanager
def _blaming_the_picture() -> Iterator[None]:
    """Whatever a decoder raises about bytes that a client sent is about these bytes."""
    try:
        yield
    except (RejectedInputError, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise RejectedInputError("expected far fewer pixels") from error
    except Exception as error:  # Pillow's plugins raise a dozen classes with no common base
        reason = str(error).strip().partition("\n")[0] if not isinstance(error, UnidentifiedImageError) else ""
        raise RejectedInputError(f"expected a JPEG or PNG that can be read{reason and f': {reason}'}") from error


def _in_mode(picture: Image.Image, mode: str) -> Image.Image:
    """As Pillow's ``convert``, without its special cases for transparency and 16 bits."""
    picture.info.pop("transparency", None)
    if picture.mode.startswith("I"):  # 16 bits of grey; ``convert`` would cut off at 255
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    return picture if picture.mode == mode else picture.convert(mode)


def _cut_out(picture: Image.Image, width: int, height: int) -> Image.Image:
    """The centre, rounded as torchvision's ``CenterCrop`` rounds it."""
    left, top = round((picture.width - width) / 2), round((picture.height - height) / 2)
    return picture.crop((left, top, left + width, top + height))
