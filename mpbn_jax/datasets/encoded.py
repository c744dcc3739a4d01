"""Images that do not fit into memory, decoded in parallel on reading.

Memory holds only their number and location. Pillow decodes outside Python's
global lock, so threads suffice.
"""

import concurrent.futures
import io
import logging
import threading
import warnings
from collections.abc import Iterable

import numpy as np
from PIL import Image, UnidentifiedImageError

from mpbn_jax.datasets import resized_crop
from mpbn_jax.datasets.base import Source, fetch, not_read
from mpbn_jax.errors import InputError

_log = logging.getLogger(__name__)

# Not a class: such an image counts as wrong for any prediction.
BAD_LABEL = -1

# If the longer side exceeds this many times the shorter one, only the centre
# of an image is resized.
_LONG = 16


class EncodedImages:
  """`base.Examples` of JPEGs (or PNGs) of any size: grey, RGB or CMYK.

  An image that cannot be decoded stops the program or, with
  `on_bad_image='skip'`, becomes black with the label -1, so that batches keep
  their size. In evaluation it counts as wrong and adds nothing to the sum of
  the losses; in training it adds nothing to the loss (with label smoothing,
  only the smoothed part). A warning names each such image once. Errors that do
  not come from an image's bytes (no such file, no memory, too many open files)
  always stop the program.

  Args:
    source: source of the encoded images.
    shape: (H, W, 3) of the returned images.
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
    # Warnings about damaged EXIF tags, which are not used; ImageNet has some.
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
      InputError: an image cannot be read, or it cannot be decoded and
        `on_bad_image` is 'stop'.
    """
    images = np.empty((len(indices), *self.shape), np.uint8)
    labels = np.empty(len(indices), np.int32)

    def read_one(at):
      crop = None if crops is None else crops[at]
      images[at], labels[at] = self._read_one(int(indices[at]), crop)

    # Consuming the results raises the error of the first bad image in order.
    list(self._pool.map(read_one, range(len(indices))))
    return images, labels

  def _read_one(self, index, key):
    encoded, label = fetch(self._source, index)
    try:
      return np.asarray(self._view(decode(encoded), key)), label
    except Exception as error:  # damaged images may raise anything
      # Pillow's own OSError, for a truncated image, has no errno.
      if isinstance(error, MemoryError) or getattr(error, 'errno', None):
        raise not_read(self._source.name(index), error) from error
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


def decode(encoded: bytes) -> Image.Image:
  """Returns the RGB image of a JPEG or PNG of any colour mode."""
  # ImageNet has 22 CMYK images and one PNG that is named .JPEG.
  with Image.open(io.BytesIO(encoded), formats=('JPEG', 'PNG')) as image:
    return image.convert('RGB')


def centre(image: Image.Image, *, size: tuple[int, int]) -> Image.Image:
  """Returns the centre of the resized image, size (height, width).

  The shorter side is resized to 256 pixels for a size of 224, and in the same
  proportion for other sizes, like torchvision's Resize and CenterCrop.
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
  # Equal up to rounding; resizing the whole image might take gigabytes.
  scale = (width / shape[0], height / shape[1]) * 2
  x0, y0, x1, y1 = (edge * by for edge, by in zip(box, scale, strict=True))
  return image.resize(
    size[::-1], Image.Resampling.BILINEAR, box=(x0, y0, x1, y1)
  )
