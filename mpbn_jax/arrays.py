"""Directories that hold pytrees of arrays, and notes about them.

Orbax writes the arrays. A directory is valid only with the `notes.json` beside
them: it records the arrays' folder, the size and checksum of every file, a
description of each array and a checksum of itself. Damage is therefore detected
before Orbax reads any file.
"""

import contextlib
import json
import logging
import pathlib
import secrets
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from mpbn_jax import files, sharding

NOTES = 'notes.json'
_ARRAYS = 'arrays-{unique}'


class UnreadableError(Exception):
  """A file is missing or damaged; the message is the reason, in one line."""


def save(
  path: pathlib.Path,
  items: Mapping[str, Any],
  *,
  notes: Mapping[str, Any],
) -> None:
  """Writes pytrees of arrays and notes to one directory, atomically.

  An existing directory is replaced: whenever the process stops, it holds either
  the old arrays and notes or the new ones.

  Args:
    path: the directory to write; its parent must exist.
    items: {name: pytree of arrays}; each can be read separately. Arrays on
      several hosts must be replicated, and only the first host saves them.
    notes: JSON-serializable values.

  Raises:
    NotWrittenError: the directory cannot be written.
  """
  leaves = jax.tree.leaves(dict(items))
  # Each array may need one extra block; the rest is for Orbax's own files.
  blocks = 4096 * (len(leaves) + 32)
  files.check_room(path, sum(leaf.nbytes for leaf in leaves) + blocks)
  if path.exists():
    _write_into(path, items, notes, of=path)
    return
  with files.whole_directory(path) as temporary:
    _write_into(temporary, items, notes, of=path)


def _write_into(directory, items, notes, *, of):
  arrays = directory / _ARRAYS.format(unique=secrets.token_hex(4))
  # Orbax and TensorStore report a full disk in several ways.
  with _quiet(), files.writing(of, also=(ValueError, RuntimeError)):
    arrays.mkdir()
    with _checkpointer() as checkpointer:
      for name, tree in items.items():
        if jax.process_count() > 1:
          # Orbax would expect every host to save its share of a `jax.Array`.
          tree = jax.tree.map(np.asarray, tree)
        if jax.tree.leaves(tree):  # Orbax rejects empty trees
          checkpointer.save(
            arrays.absolute() / name, args=ocp.args.StandardSave(tree)
          )
    content = {
      'notes': notes,
      'arrays': arrays.name,
      'files': {name: _fingerprint(arrays / name) for name in _files(arrays)},
      'leaves': {
        name: [str(leaf.dtype), list(leaf.shape)]
        for name, leaf in _named(dict(items))
      },
    }
    for file in _files(arrays):
      files.sync(arrays / file)
  text = json.dumps({'content': content, 'checksum': _checksum(content)})
  # From here on the new arrays are valid.
  files.write_whole(directory / NOTES, text)
  for other in directory.iterdir():
    if other.name not in (NOTES, arrays.name):
      files.remove(other)


def _checkpointer():
  """Returns Orbax's checkpointer; it waits for no other host."""
  if jax.process_count() == 1:
    return ocp.Checkpointer(ocp.StandardCheckpointHandler())
  here = jax.process_index()
  options = ocp.options.MultiprocessingOptions(
    primary_host=here,
    active_processes={here},
    barrier_sync_key_prefix=f'host{here}',
  )
  return ocp.Checkpointer(
    ocp.StandardCheckpointHandler(multiprocessing_options=options),
    multiprocessing_options=options,
  )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Keeps Orbax's threads from logging tracebacks of errors that it raises."""
  log = logging.getLogger('absl')
  before = log.level
  log.setLevel(logging.CRITICAL)
  try:
    yield
  finally:
    log.setLevel(before)


def read_notes(path: pathlib.Path) -> dict[str, Any]:
  """Returns the notes of a directory.

  Raises:
    UnreadableError: the directory is missing or damaged.
  """
  return _guarded(lambda: _content(path)['notes'])


def read_like(path: pathlib.Path, items: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the items of a directory as pytrees of a known structure.

  Args:
    path: a directory that `save` wrote.
    items: {name: pytree} of the items to read; each leaf has a shape, a dtype
      and optionally a sharding.

  Raises:
    UnreadableError: the directory is missing or damaged, or its arrays differ.
  """

  def read():
    content = _content(path)
    _check_leaves(content['leaves'], items)
    return _restore(path, content, items)

  return _guarded(read)


def read(path: pathlib.Path) -> tuple[dict[str, Any], dict[str, Any]]:
  """Returns (items, notes) of a directory; items are nested dicts, as in Orbax.

  Raises:
    UnreadableError: the directory is missing or damaged.
  """

  def read():
    content = _content(path)
    names = {name.split('/')[0] for name in content['leaves']}
    return _restore(path, content, dict.fromkeys(names)), content['notes']

  return _guarded(read)


def _guarded(function):
  """Returns function(); errors due to damage become an UnreadableError."""
  try:
    return function()
  except PermissionError:
    raise  # not damaged: it belongs to another user
  except FileNotFoundError as error:
    raise UnreadableError('it is missing') from error
  except Exception as error:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    raise UnreadableError(lines[0][:160]) from error


def _content(path):
  """Returns the content of `notes.json`; raises ValueError if it is damaged."""
  if path.is_dir() and not (path / NOTES).exists():
    raise ValueError(f'{NOTES} is missing')
  sealed = json.loads((path / NOTES).read_text())
  if _checksum(sealed['content']) != sealed['checksum']:
    raise ValueError(f'{NOTES} has changed')
  return sealed['content']


def _restore(path, content, items):
  """Returns arrays like `items` after verifying the checksum of every file.

  An item that is None is restored as it is on disk.
  """
  arrays = path / content['arrays']
  there = set(_files(arrays))
  for name in sorted(there ^ content['files'].keys()):
    raise ValueError(f'{name} is {"added" if name in there else "missing"}')
  for name, sealed in content['files'].items():
    if _fingerprint(arrays / name) != sealed:
      raise ValueError(f'{name} has changed')
  restored = {}
  with _checkpointer() as checkpointer:
    for name, tree in items.items():
      where = arrays.absolute() / name
      if tree is None:
        tree = checkpointer.metadata(where).item_metadata.tree
      restored[name] = tree
      if jax.tree.leaves(tree):
        args = ocp.args.StandardRestore(jax.tree.map(_abstract, tree))
        saved = checkpointer.restore(where, args=args)
        restored[name] = jax.tree.map(_placed, tree, saved)
  for name, leaf in _named(restored):
    dtype, _ = content['leaves'][name]
    if str(leaf.dtype) != dtype:
      raise ValueError(
        f'{name} is {dtype}, which JAX rounds to {leaf.dtype}: set '
        'jax_enable_x64'
      )
  return restored


def _sharding(leaf):
  placed = getattr(leaf, 'sharding', None)
  return placed if isinstance(placed, jax.sharding.Sharding) else None


def _abstract(leaf):
  placed = _sharding(leaf)
  if placed is None and jax.process_count() == 1:
    placed = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  elif placed is None:  # with several hosts, Orbax places nothing on one device
    placed = sharding.replicated(sharding.make_mesh())
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=placed)


def _placed(like, array):
  """Returns an array on the requested devices, or uncommitted if none are."""
  return array if _sharding(like) else jax.device_put(jax.device_get(array))


def _check_leaves(leaves, items):
  """Raises ValueError unless the requested items are saved and match."""
  wanted = dict(_named(dict(items)))
  there = {name for name in leaves if name.split('/')[0] in items}
  for names, what in (
    (wanted.keys() - there, 'is missing'),
    (there - wanted.keys(), 'is not expected'),
  ):
    if names:
      raise ValueError(f'{min(names)} {what}')
  for name, like in wanted.items():
    dtype, shape = leaves[name]
    if (dtype, tuple(shape)) != (str(like.dtype), like.shape):
      raise ValueError(
        f'{name} is {dtype}{shape}, expected {like.dtype}{list(like.shape)}'
      )


def _named(tree) -> Iterator[tuple[str, Any]]:
  """Yields (name, leaf) of a pytree."""
  for key, leaf in jax.tree_util.tree_leaves_with_path(tree):
    yield jax.tree_util.keystr(key, simple=True, separator='/'), leaf


def _files(directory):
  """Returns the relative paths of all files below `directory`, sorted."""
  return sorted(
    str(path.relative_to(directory))
    for path in directory.rglob('*')
    if not path.is_dir()
  )


def _fingerprint(path):
  content = path.read_bytes()
  return [len(content), zlib.crc32(content)]


def _checksum(content):
  return zlib.crc32(json.dumps(content, sort_keys=True).encode())
