"""How are checkpoints of format 1 read? Directories that Orbax wrote.

Each has a file for every array or so, `validation/metadata` with the accuracy,
and `files.json`, which names every file with its size and checksum.
"""

import json
import pathlib
import zlib
from collections.abc import Mapping
from typing import Any

import jax

from mpbn_jax.arrays import UnreadableError

_SEAL = 'files.json'
# Orbax wrote it again after the rest was sealed, and can do without it.
_UNSEALED = '_CHECKPOINT_METADATA'


def read_accuracy(directory: pathlib.Path) -> float | None:
  """Returns the accuracy on validation; None: it was not measured.

  Raises:
    UnreadableError: missing or damaged.
  """
  return _read(directory, _accuracy)


def restore(directory: pathlib.Path, like: Mapping[str, Any]) -> dict[str, Any]:
  """Returns those items of a checkpoint that `like` has.

  Raises:
    UnreadableError: missing or damaged, or the arrays are others.
  """
  return _read(directory, lambda path: _items(path, like))


def _read(directory, function):
  try:
    _verify(directory)
    return function(directory)
  except PermissionError:
    raise  # not damaged: another user's
  except Exception as error:  # whatever Orbax may raise
    lines = str(error).strip().splitlines() or [type(error).__name__]
    raise UnreadableError(lines[0][:160]) from error


def _accuracy(directory):
  text = (directory / 'validation' / 'metadata').read_text()
  return json.loads(text)['accuracy']


def _items(directory, like):
  import orbax.checkpoint as ocp  # seconds, for old runs alone

  with ocp.StandardCheckpointer() as checkpointer:
    return {
      name: checkpointer.restore(directory / name, _abstract(tree))
      for name, tree in like.items()
    }


def _abstract(tree):
  def leaf(array):
    sharding = getattr(array, 'sharding', None)
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)

  return jax.tree.map(leaf, tree)


def _verify(directory):
  """Raises an error unless every file is there, as it was sealed."""
  files = dict(json.loads((directory / _SEAL).read_text()))
  there = {
    str(path.relative_to(directory))
    for path in directory.rglob('*')
    if path.is_file() and path.name not in (_SEAL, _UNSEALED)
  }
  for name in sorted(there ^ files.keys()):
    state = 'is not sealed' if name in there else 'is missing'
    raise ValueError(f'{name} {state}')
  for name, sealed in files.items():
    content = (directory / name).read_bytes()
    if [len(content), zlib.crc32(content)] != sealed:
      raise ValueError(f'{name} has changed')
