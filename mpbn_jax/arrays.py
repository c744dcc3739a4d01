"""How do named arrays, and what describes them, share one file?

A NumPy archive: `numpy.load(path)` reads it too. Its notes name every array
with its checksum, and have a checksum themselves, so that no damage passes.
"""

import contextlib
import io
import json
import pathlib
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from mpbn_jax.files import write_whole

_NOTES = 'notes.json'
_ARRAY = '.npy'


class UnreadableError(Exception):
  """A file is missing or damaged; the message is the reason, in one line."""


def save(path: pathlib.Path, tree: Any, *, notes: Mapping[str, Any]) -> None:
  """Writes a pytree of arrays and notes to one file, whole or not at all.

  The same content gives the same bytes.

  Args:
    path: in a directory that exists; replaced if it is there.
    tree: the arrays, which are named by their paths in it.
    notes: what JSON can hold.

  Raises:
    NotWrittenError: it cannot be written.
  """
  arrays = [(n, np.asarray(leaf)) for n, leaf in _named(jax.device_get(tree))]

  def write(file):
    with zipfile.ZipFile(file, 'w') as archive:
      seal = {}
      for name, array in arrays:
        # Its time stays 1980: of the bytes, none depends on a clock.
        entry = zipfile.ZipInfo(name + _ARRAY)
        with archive.open(entry, 'w', force_zip64=True) as part:
          np.lib.format.write_array(part, array, allow_pickle=False)
        seal[name] = entry.CRC
      # Last: its own checksum holds those of all.
      text = json.dumps({'notes': notes, 'arrays': seal}, indent=1)
      archive.writestr(zipfile.ZipInfo(_NOTES), text)

  write_whole(path, write)


def read_notes(path: pathlib.Path) -> dict[str, Any]:
  """Returns the notes of a file.

  Raises:
    UnreadableError: missing or damaged.
  """
  with _opened(path) as archive:
    return _check_seal(archive)


def read_like(path: pathlib.Path, tree: Any) -> Any:
  """Returns the arrays of a file as a pytree of a known structure.

  Args:
    path: as it was saved.
    tree: the whole saved pytree, or the parts of it that are wanted; its
      leaves have a shape, a dtype and perhaps a sharding.

  Raises:
    UnreadableError: missing or damaged, or the arrays are others.
  """

  def read(archive, name, like):
    array = _read_array(archive, name)
    if (array.shape, array.dtype) != (like.shape, like.dtype):
      raise ValueError(
        f'{name} is {array.dtype}{list(array.shape)}, expected '
        f'{like.dtype}{list(like.shape)}'
      )
    return _on_device(array, name, getattr(like, 'sharding', None))

  with _opened(path) as archive:
    _check_seal(archive)
    _check_names(archive, [name for name, _ in _named(tree)])
    return jax.tree_util.tree_map_with_path(
      lambda key, like: read(archive, _name(key), like), tree
    )


def read(path: pathlib.Path) -> tuple[dict[str, Any], dict[str, Any]]:
  """Returns (nested dicts of arrays, notes) of a file.

  Raises:
    UnreadableError: missing or damaged.
  """
  with _opened(path) as archive:
    notes = _check_seal(archive)
    tree: dict[str, Any] = {}
    for name in _array_names(archive):
      *groups, last = name.split('/')
      node = tree
      for group in groups:
        node = node.setdefault(group, {})
      node[last] = _on_device(_read_array(archive, name), name)
    return tree, notes


def _named(tree):
  """Returns [(name, leaf)] of a pytree."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return [(_name(key), leaf) for key, leaf in leaves]


def _name(key):
  return jax.tree_util.keystr(key, simple=True, separator='/')


@contextlib.contextmanager
def _opened(path) -> Iterator[zipfile.ZipFile]:
  try:
    with zipfile.ZipFile(path) as archive:
      yield archive
  except PermissionError:
    raise  # not damaged: another user's
  except FileNotFoundError as error:
    raise UnreadableError('it is missing') from error
  except Exception as error:  # whatever a damaged archive may raise
    lines = str(error).strip().splitlines() or [type(error).__name__]
    raise UnreadableError(lines[0][:160]) from error


def _array_names(archive):
  return [
    name.removesuffix(_ARRAY)
    for name in archive.namelist()
    if name.endswith(_ARRAY)
  ]


def _check_names(archive, wanted):
  """Raises ValueError unless the groups that are wanted are saved wholly."""
  groups = {name.split('/')[0] for name in wanted}
  there = {n for n in _array_names(archive) if n.split('/')[0] in groups}
  for names, what in (
    (set(wanted) - there, 'is missing'),
    (there - set(wanted), 'is not expected'),
  ):
    if names:
      raise ValueError(f'{min(names)} {what}')


def _read_array(archive, name):
  # All of it before it is believed: the checksum comes last.
  content = archive.read(name + _ARRAY)
  return np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)


def _on_device(array, name, sharding=None):
  there = jax.device_put(array, sharding)
  if there.dtype != array.dtype:
    raise ValueError(
      f'{name} is {array.dtype}, which JAX rounds to {there.dtype}: set '
      'jax_enable_x64'
    )
  return there


def _check_seal(archive):
  """Returns the notes; raises ValueError unless the arrays are all there.

  Of each array, `archive.read` compares the bytes with its checksum.
  """
  content = json.loads(archive.read(_NOTES))
  there = {n: archive.getinfo(n + _ARRAY).CRC for n in _array_names(archive)}
  for name in sorted(there.keys() ^ content['arrays'].keys()):
    raise ValueError(f'{name} is {"added" if name in there else "missing"}')
  for name, checksum in content['arrays'].items():
    if there[name] != checksum:
      raise ValueError(f'{name} has changed')
  return content['notes']
