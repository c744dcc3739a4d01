"""tonic's readers of recordings, with checks of each file.

They neither download nor list files, which `archives.py` and `recordings.py`
do. Importing this module takes a second.
"""

import os
import pathlib
import struct

import numpy as np
import tonic.datasets

_AEDAT4 = b'#!AER-DAT4.0\r\n'
_NMNIST_EVENT = 5  # bytes


class _Unlisted:
  """A reader without recordings.

  tonic's own listing fails at hidden files and skips unreadable folders.
  """

  def __init__(self, **options):
    super().__init__(save_to=os.devnull, **options)

  def _check_exists(self):
    return True


class CIFAR10DVS(_Unlisted, tonic.datasets.CIFAR10DVS):
  """<class>/*.aedat4."""

  suffix = '.aedat4'

  def label(self, path: pathlib.PurePath) -> int:
    """Returns the class of a file; KeyError or ValueError if it has none."""
    return self.classes[path.parent.name]

  def __getitem__(self, index):
    check_aedat4(self.data[index])
    try:
      return super().__getitem__(index)
    except ValueError as error:
      # tonic raises this for a file without a packet of events.
      if 'need at least one array to concatenate' in str(error):
        return np.zeros(0, self.dtype), self.targets[index]
      raise


class DVSGesture(_Unlisted, tonic.datasets.DVSGesture):
  """ibmGestureTrain/user*_*/<label>.npy, and likewise ibmGestureTest."""

  suffix = '.npy'

  def label(self, path: pathlib.PurePath) -> int:
    """As `CIFAR10DVS.label`."""
    return _digit(path.stem)

  def __getitem__(self, index):
    check_columns(np.load(self.data[index], mmap_mode='r'))
    return super().__getitem__(index)


class NMNIST(_Unlisted, tonic.datasets.NMNIST):
  """Train/<digit>/*.bin, and likewise Test."""

  suffix = '.bin'

  def label(self, path: pathlib.PurePath) -> int:
    """As `CIFAR10DVS.label`."""
    return _digit(path.parent.name)

  def __getitem__(self, index):
    size = os.path.getsize(self.data[index])
    if size % _NMNIST_EVENT:
      raise ValueError(
        f'it is truncated: {size} bytes are not a multiple of {_NMNIST_EVENT}'
      )
    return super().__getitem__(index)


def _digit(text):
  """Returns the number in a name; unlike int(), rejects '01' and '1_0'."""
  number = int(text)
  if str(number) != text:
    raise ValueError(f'{text!r} is not {number}')
  return number


def check_columns(events: np.ndarray) -> None:
  """Raises ValueError unless the columns are x, y, p and t of events.

  tonic would truncate them to integers and treat any p except 0 as 1.
  """
  if events.ndim != 2 or events.shape[1] != 4 or events.dtype.kind not in 'iuf':
    raise ValueError(
      f'it holds {events.dtype} {list(events.shape)}, not numbers [N, 4]'
    )
  if not np.isfinite(events).all():
    raise ValueError('it holds NaN or infinity')
  pixels, polarities = events[:, :2], events[:, 2]
  if (
    (pixels != np.rint(pixels)).any()
    or pixels.size
    and (pixels.min() < 0 or pixels.max() > np.iinfo(np.int16).max)
  ):
    raise ValueError('its first two columns are not pixels')
  if not np.isin(polarities, (0, 1)).all():
    raise ValueError('its third column holds polarities other than 0 and 1')


def check_aedat4(path: str) -> None:
  """Raises ValueError or struct.error for a damaged header.

  The library `aedat` checks the rest of the file, but ends the whole process
  if the text of the header is not UTF-8.
  """
  with open(path, 'rb') as file:
    if file.read(len(_AEDAT4)) != _AEDAT4:
      raise ValueError('it does not begin like an AEDAT 4 file')
    (size,) = struct.unpack('<I', file.read(4))
    header = file.read(size)
  # A flatbuffer: the root is a table whose vtable locates the fields, of which
  # the third is the text.
  (root,) = struct.unpack_from('<I', header, 0)
  vtable = root - struct.unpack_from('<i', header, root)[0]
  field = root + struct.unpack_from('<H', header, vtable + 8)[0]
  text = field + struct.unpack_from('<I', header, field)[0]
  (length,) = struct.unpack_from('<I', header, text)
  header[text + 4 : text + 4 + length].decode()
