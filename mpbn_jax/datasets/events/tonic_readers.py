"""Which classes of tonic read the recordings of event cameras?

tonic's own, with two changes: they neither download nor list files, which
`recordings.py` does, and each says what is wrong with a file. To import this
module takes a second.
"""

import os
import pathlib
import struct

import numpy as np
import tonic.datasets

_AEDAT4 = b'#!AER-DAT4.0\r\n'
_NMNIST_EVENT = 5  # bytes


class _Unlisted:
  """Holds no recordings at first.

  tonic's own lists stop at hidden files, and lack what may not be read.
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
      # What tonic makes of a file without a single packet of events.
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
        f'it is truncated: {size} bytes are not events of {_NMNIST_EVENT}'
      )
    return super().__getitem__(index)


def _digit(text):
  """Returns a number as tonic writes it: int() also takes '01' and '1_0'."""
  number = int(text)
  if str(number) != text:
    raise ValueError(f'{text!r} is not {number}')
  return number


def check_columns(events: np.ndarray) -> None:
  """Raises ValueError for what is not the columns x, y, p and t of events.

  tonic would cut them off to whole numbers, and take any p but 0 for 1.
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
    raise ValueError('its first two columns are no pixels')
  if not np.isin(polarities, (0, 1)).all():
    raise ValueError('its third column holds other polarities than 0 and 1')


def check_aedat4(path: str) -> None:
  """Raises ValueError or struct.error for a header that is damaged.

  What comes after it, the library `aedat` checks itself; but where the text
  of the header is not UTF-8 it ends the whole process.
  """
  with open(path, 'rb') as file:
    if file.read(len(_AEDAT4)) != _AEDAT4:
      raise ValueError('it does not begin as AEDAT 4 does')
    (size,) = struct.unpack('<I', file.read(4))
    header = file.read(size)
  # A flatbuffer: its root is a table, whose vtable says where the fields are;
  # the third one is the text.
  (root,) = struct.unpack_from('<I', header, 0)
  vtable = root - struct.unpack_from('<i', header, root)[0]
  field = root + struct.unpack_from('<H', header, vtable + 8)[0]
  text = field + struct.unpack_from('<I', header, field)[0]
  (length,) = struct.unpack_from('<I', header, text)
  header[text + 4 : text + 4 + length].decode()
