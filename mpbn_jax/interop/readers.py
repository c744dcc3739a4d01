"""Readers of weight files, which list the contents first and read on demand.

Code in a file is never run, and headers alone do not cause allocations: the
shapes are known before any array is created.
"""

import contextlib
import dataclasses
import json
import logging
import math
import pathlib
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from mpbn_jax.errors import InputError, unknown

_log = logging.getLogger('mpbn_jax')

# Whole checkpoints hold the weights under one of these keys.
_NESTED = ('state_dict', 'model', 'net')
# Prefix of the weights in archives that hold more, such as tests/golden.
_PREFIX = 'state/'


def is_floating(dtype: Any) -> bool:
  """Returns whether a dtype of any library, or its name, is floating-point."""
  name = str(dtype).removeprefix('torch.').lower()
  return re.fullmatch(r'[<>=]?(bf|f|bfloat|float)\d+\w*', name) is not None


@dataclasses.dataclass(frozen=True)
class Entry:
  """An array in a file, loaded by `read`.

  Attributes:
    shape: shape of the array.
    dtype: its dtype, as named in the file.
    load: reads it, as float32 or in the dtype of the file.
    path: path of the file, for messages.
    name: name in the file.
  """

  shape: tuple[int, ...]
  dtype: str
  load: Callable[[], np.ndarray]
  path: pathlib.Path
  name: str

  @property
  def ndim(self) -> int:
    return len(self.shape)

  def read(self) -> np.ndarray:
    """Returns the array in the dtype of the file, or as float32.

    Raises:
      InputError: the array is damaged.
    """
    with readable(self.path):
      array = self.load()
      if array.shape != self.shape:
        raise ValueError(f'{self.name} is not {list(self.shape)}')
      return array


def entries(path: pathlib.Path | str) -> dict[str, Entry]:
  """Returns {name: entry} of a weight file without reading the arrays.

  Args:
    path: its suffix selects the reader. .npz: NumPy; if there are entries
      'state/...', only these, without the prefix. .safetensors. .pth, .pt,
      .tar: PyTorch, which must be installed; a `state_dict`, bare or under
      'state_dict', 'model' or 'net'.

  Raises:
    InputError: the file does not exist, is of an unknown kind, is damaged,
      contains code or has no weights.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise InputError(
      f"expected a file of weights, got '{path}', which is not an existing "
      'file: pass its path as --checkpoint=FILE'
    )
  suffix = path.suffix.lower()
  if suffix not in _READERS:
    raise unknown('kind of file of weights', suffix, _READERS)
  with readable(path):
    found = _READERS[suffix](path)
  if not found:
    raise InputError(
      f'expected arrays by name in {path}, got none: save what '
      'model.state_dict() returns'
    )
  return found


@contextlib.contextmanager
def readable(path: pathlib.Path) -> Iterator[None]:
  """Turns any error that a damaged file causes in its body into one line."""
  try:
    yield
  except InputError:
    raise
  except Exception as error:  # damaged files may raise anything
    raise InputError(
      f'expected weights in {path}, which cannot be read as '
      f'{path.suffix.lower()} ({_reason(error)}): restore a copy'
    ) from error


def _reason(error):
  sentence = re.split(r'\.?(?:\s*\n|\. |$)', str(error).strip())[0]
  name = type(error).__name__
  return f'{name}: {sentence[:160]}' if sentence else name


def say_what_is_unchecked(path: pathlib.Path) -> None:
  """Warns if damage cannot be detected because the file has no checksums."""
  kind = '.safetensors'
  if path.suffix.lower() != kind:
    if zipfile.is_zipfile(path):
      return
    kind = 'the format of PyTorch before 1.6'
  _log.warning(
    'damage to the numbers in %s cannot be detected, since %s has no checksum: '
    'compare its sha256 with that of its source',
    path,
    kind,
  )


# ---- NumPy


def _npz(path):
  with path.open('rb') as file:
    if file.read(6) == b'\x93NUMPY':
      raise ValueError('one array without a name')
  found = {}
  with zipfile.ZipFile(path) as archive:
    for member in archive.infolist():
      name = member.filename.removesuffix('.npy')
      if name == member.filename:
        raise ValueError(f'{name} in it is not an array')
      if name in found:
        raise ValueError(f'{name} is in it twice')
      found[name] = _npy(path, name, archive, member)
  chosen = [name for name in found if name.startswith(_PREFIX)]
  return {name.removeprefix(_PREFIX): found[name] for name in chosen or found}


def _npy(path, name, archive, member):
  """Returns the entry of an .npy in an archive, reading only its header."""
  with archive.open(member) as file:
    version = np.lib.format.read_magic(file)
    read = {
      (1, 0): np.lib.format.read_array_header_1_0,
      (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in read:
      raise ValueError(f'{name} has version {version} of the format')
    shape, fortran, dtype = read[version](file)
    start = file.tell()
  if dtype.hasobject:
    raise ValueError(f'{name} holds Python objects, which are never unpickled')
  size = math.prod(shape) * dtype.itemsize
  if min(shape, default=0) < 0 or start + size != member.file_size:
    raise ValueError(f'{name} is not as long as its header says')

  def load():
    with zipfile.ZipFile(path) as archive:
      content = archive.read(member)  # reading all of it verifies the checksum
    array = np.frombuffer(content, dtype, offset=start)
    return array.reshape(shape, order='F' if fortran else 'C')

  return Entry(shape, str(dtype), load, path, name)


# ---- safetensors

_SAFETENSORS = {
  'BOOL': '?',
  'I8': '<i1',
  'U8': '<u1',
  'I16': '<i2',
  'U16': '<u2',
  'I32': '<i4',
  'U32': '<u4',
  'I64': '<i8',
  'U64': '<u8',
  'F16': '<f2',
  'BF16': '<u2',  # unknown to NumPy: the upper half of a float32
  'F32': '<f4',
  'F64': '<f8',
}


def _safetensors(path):
  """Reads a .safetensors file; the format is too simple to need a package.

  Eight bytes N, N bytes of JSON {name: dtype, shape, data_offsets}, the data.
  It has no checksum, but every byte of the data belongs to one array.
  """
  total = path.stat().st_size
  with path.open('rb') as file:
    length = int.from_bytes(file.read(8), 'little')
    start = 8 + length
    if total < max(start, 8):
      raise ValueError('it is cut off')
    header = json.loads(file.read(length), object_pairs_hook=_each_once)
  header.pop('__metadata__', None)
  found, spans = {}, []
  for name, entry in header.items():
    if entry['dtype'] not in _SAFETENSORS:
      raise ValueError(f'{name} has dtype {entry["dtype"]}')
    dtype = np.dtype(_SAFETENSORS[entry['dtype']])
    shape, span = tuple(entry['shape']), tuple(entry['data_offsets'])
    whole = all(type(n) is int and n >= 0 for n in (*shape, *span))
    if not whole or len(span) != 2:
      raise ValueError(f'{name} has the shape {shape} at {span}')
    if span[1] - span[0] != math.prod(shape) * dtype.itemsize:
      raise ValueError(f'{name} is not as long as its shape says')
    if start + span[1] > total:
      raise ValueError(f'{name} is cut off')
    spans.append(span)
    load = _slice(path, start + span[0], dtype, shape, entry['dtype'])
    found[name] = Entry(shape, entry['dtype'], load, path, name)
  end = 0
  for first, last in sorted(spans):
    if first != end:
      raise ValueError('its arrays overlap, or leave gaps')
    end = last
  if start + end != total:
    raise ValueError('it holds more than its arrays')
  return found


def _each_once(pairs):
  names = [name for name, _ in pairs]
  if len(set(names)) != len(names):
    raise ValueError('a name is in its header twice')
  return dict(pairs)


def _slice(path, start, dtype, shape, kind):
  def load():
    count = math.prod(shape)
    array = np.fromfile(path, dtype, count=count, offset=start)
    if kind == 'BF16':
      array = (array.astype(np.uint32) << 16).view(np.float32)
    return array.reshape(shape)

  return load


# ---- PyTorch


def _torch(path):
  try:
    import torch  # large, and only needed here
  except ImportError as error:
    raise InputError(
      f'expected PyTorch to read {path}, but it cannot be imported '
      f'({_reason(error)}): pip install torch, or where it is installed run '
      "s = torch.load('x.pth', weights_only=True, map_location='cpu'); "
      "numpy.savez('x.npz', **{k: v.float().numpy() for k, v in s.items()})"
    ) from error
  if zipfile.is_zipfile(path):
    _check_archive(path)
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')  # an error says it all in one line
    try:
      content = torch.load(path, weights_only=True, map_location='cpu')
    except Exception as error:
      found = _code_in(str(error))
      if found is None:
        raise
      raise InputError(
        f'expected only tensors in {path}, got {found}, and code in '
        'checkpoints is never run: save only what model.state_dict() returns, '
        'with torch.save'
      ) from error
  tensors = _tensors_in(content, path, torch)
  return {name: _of_tensor(path, name, t) for name, t in tensors.items()}


def _check_archive(path):
  """Verifies the checksums, which PyTorch itself does not."""
  with zipfile.ZipFile(path) as archive:
    for member in archive.infolist():
      if member.compress_type != zipfile.ZIP_STORED:
        raise ValueError(
          f'{member.filename} is compressed, which PyTorch never does'
        )
    damaged = archive.testzip()
  if damaged is not None:
    raise ValueError(f'the checksum of {damaged} is wrong')


def _tensors_in(content: Any, path, torch) -> Mapping[str, Any]:
  """Returns {name: tensor} of a bare or nested state dict."""
  if not isinstance(content, Mapping):
    return {}
  nested = {
    key: tensors
    for key in _NESTED
    if (tensors := _tensors_in(content.get(key), path, torch))
  }
  if len(nested) > 1:
    raise InputError(
      f'expected one state dict in {path}, got {" and ".join(nested)}: save '
      'only the one that you need, with torch.save'
    )
  if nested:
    return next(iter(nested.values()))
  tensors = {k: v for k, v in content.items() if isinstance(v, torch.Tensor)}
  for name in tensors:
    if not isinstance(name, str):
      raise InputError(
        f'expected tensors by name in {path}, got the key {name!r}: save what '
        'model.state_dict() returns'
      )
  return tensors


def _of_tensor(path, name, tensor):
  def load():
    return np.asarray(tensor.detach().float())

  dtype = str(tensor.dtype).removeprefix('torch.')
  return Entry(tuple(tensor.shape), dtype, load, path, name)


def _code_in(message):
  """Returns what `weights_only` rejected, or None if the file is damaged."""
  match = re.search(r'GLOBAL ([\w.]+)', message)
  if match:
    return f'the Python object {match[1]}'
  if 'TorchScript' in message:
    return 'a TorchScript program'
  return 'a pickle' if 'Weights only load failed' in message else None


_READERS: dict[str, Callable[[pathlib.Path], dict[str, Entry]]] = {
  '.npz': _npz,
  '.pt': _torch,
  '.pth': _torch,
  '.safetensors': _safetensors,
  '.tar': _torch,  # .pth.tar
}
