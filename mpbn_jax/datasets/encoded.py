"""How are images read that do not fit into memory? Decoded in parallel.

Only their number and where they lie is in memory. Pillow decodes outside of
Python's lock, so threads are enough.
"""

import concurrent.futures
import io
import logging
import threading
import warnings
from collections.abc import Iterable
from typing import Protocol

import numpy as np
from PIL import Image, UnidentifiedImageError

from mpbn_jax.datasets import resized_crop
from mpbn_jax.errors import InputError

_log = logging.getLogger(__name__)

# No prediction equals it: right is nothing that is said about such an image.
BAD_LABEL = -1

# Times the shorter side: of longer images, only the centre is made smaller.
_LONG = 16


class Source(Protocol):
  """Where encoded images lie.

  Attributes:
    labels: int32 [N].
  """

  labels: np.ndarray

  def __len__(self) -> int:
    """Returns N."""

  def read(self, index: int) -> tuple[bytes, int]:
    """Returns (the encoded image, its label)."""

  def name(self, index: int) -> str:
    """Returns what a message calls an image."""


class EncodedImages:
  """`base.Examples` of JPEGs (or PNGs) of any size, grey, RGB or CMYK.

  An image that cannot be decoded stops the program or, with
  `on_bad_image='skip'`, is black and has the label -1: batches keep their
  size; in evaluation it counts as wrong and adds nothing to the sum of the
  losses; in training it adds nothing to the loss (with label smoothing: only
  the smoothed part). Each is named in a warning, once. What is no fault of an
  image's bytes (no such file, no memory, too many open files) always stops.

  Args:
    source: where they lie.
    shape: (H, W, 3) of the images that are read.
    pool: threads that decode.
    on_bad_image: 'stop' or 'skip'.
  """

  def __init__(
    self,
    source: Source,
    *,
    shape: tuple[int, int, int],
    pool: concurrent.futures.Executor,
    on_bad_image: str,
  ):
    self.shape = shape
    self._source = source
    self._pool = pool
    self._on_bad_image = on_bad_image
    self._unreadable: dict[str, None] = {}
    self._lock = threading.Lock()
    # Of damaged EXIF tags, which nobody reads; ImageNet has some.
    warnings.filterwarnings('ignore', module=r'PIL\.')

  def __len__(self) -> int:
    return len(self._source)

  @property
  def labels(self) -> np.ndarray:
    return self._source.labels

  @property
  def unreadable(self) -> Iterable[str]:
    return tuple(self._unreadable)

  def read(
    self, indices: np.ndarray, crops: np.ndarray | None = None
  ) -> tuple[np.ndarray, np.ndarray]:
    """See `base.Examples`.

    Raises:
      InputError: an image cannot be read, or cannot be decoded and that shall
        stop (names it).
    """
    images = np.empty((len(indices), *self.shape), np.uint8)
    labels = np.empty(len(indices), np.int32)

    def read_one(at):
      crop = None if crops is None else crops[at]
      images[at], labels[at] = self._read_one(int(indices[at]), crop)

    # The list raises what a thread raised, of the first image in order.
    list(self._pool.map(read_one, range(len(indices))))
    return images, labels

  def _read_one(self, index, key):
    encoded, label = fetch(self._source, index)
    try:
      return np.asarray(self._view(decode(encoded), key)), label
    except Exception as error:  # whatever damaged images may raise
      # Pillow's own OSError, of a truncated image, has no number.
      if isinstance(error, MemoryError) or getattr(error, 'errno', None):
        raise _not_read(self._source.name(index), error) from error
      self._note(index, error)
      return 0, BAD_LABEL

  def _view(self, image, key):
    size = self.shape[:2]
    if key is None:
      return centre(image, size=size)
    box = resized_crop.rectangle(key, height=image.height, width=image.width)
    return resized_crop.crop(image, box, size=size)

  def _note(self, index, error):
    name = self._source.name(index)
    reason = str(error) or type(error).__name__
    if isinstance(error, UnidentifiedImageError):
      reason = 'neither JPEG nor PNG'
    if self._on_bad_image == 'stop':
      raise InputError(
        f'expected an image in {name}, which cannot be decoded '
        f'({" ".join(reason.split())}): restore it, or set '
        '--config.data.on_bad_image=skip'
      ) from error
    with self._lock:
      known = name in self._unreadable
      self._unreadable[name] = None
    if not known:
      _log.warning('%s cannot be decoded (%s): skipped', name, reason)


def fetch(source: Source, index: int) -> tuple[bytes, int]:
  """Returns what `source.read` does.

  Raises:
    InputError: it cannot be read (names it and the cause).
  """
  try:
    encoded, label = source.read(index)
  except Exception as error:  # whatever files and their readers may raise
    raise _not_read(source.name(index), error) from error
  if label < 0:  # as tensorflow_datasets has it where labels are not public
    raise InputError(
      f'expected the label of {source.name(index)}, got {label}: take a split '
      'whose labels are known'
    )
  return encoded, label


def _not_read(name, error):
  reason = getattr(error, 'strerror', None) or str(error)
  reason = ' '.join(reason.split()) or type(error).__name__
  return InputError(
    f'expected to read {name}, got {reason}: mend that or restore the data '
    '(only images that cannot be decoded are ever skipped)'
  )


def decode(encoded: bytes) -> Image.Image:
  """Returns the RGB image of a JPEG or PNG, whatever its colours are."""
  # Of the true ImageNet, 22 are CMYK, and one is a PNG named .JPEG.
  with Image.open(io.BytesIO(encoded), formats=('JPEG', 'PNG')) as image:
    return image.convert('RGB')


def centre(image: Image.Image, *, size: tuple[int, int]) -> Image.Image:
  """Returns the centre, size (height, width), of a smaller image.

  The shorter side becomes 256 pixels for 224, in that proportion; torchvision's
  Resize and CenterCrop.
  """
  short = max(size) * 256 // 224
  width, height = image.size
  longer = int(short * max(width, height) / min(width, height))
  shape = (short, longer) if width <= height else (longer, short)
  top, left = (
    round((whole - part) / 2)
    for whole, part in zip(shape[::-1], size, strict=True)
  )
  box = (left, top, left + size[1], top + size[0])
  if longer <= _LONG * short:
    return image.resize(shape, Image.Resampling.BILINEAR).crop(box)
  # The same but for rounding: the whole might need gigabytes.
  scale = (width / shape[0], height / shape[1]) * 2
  box = tuple(edge * by for edge, by in zip(box, scale, strict=True))
  return image.resize(size[::-1], Image.Resampling.BILINEAR, box=box)
