"""Files of weights of every kind: read as they are, never run, or refused."""

import io
import json
import shutil
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest
import runs
from runs import the_error
from weight_files import (
  GOLDEN,
  INTEGERS,
  KINDS,
  STATE,
  assert_equal,
  import_file,
  safetensors,
)

from mpbn_jax import InputError
from mpbn_jax.interop.files import read_state
from mpbn_jax.interop.readers import Entry
from mpbn_jax.interop.torch import from_reference


def test_safetensors_is_read(tmp_path):
  path = safetensors(tmp_path / 'a.safetensors', STATE, KINDS)
  assert_equal(read_state(path), STATE)


@pytest.mark.parametrize('dtype', KINDS)
def test_safetensors_holds_numbers_of_any_width(dtype, tmp_path):
  # jnp.dtype knows bfloat16 by name.
  array = np.asarray([[1.5, -2.25], [0, 3]]).astype(jnp.dtype(dtype))
  path = safetensors(tmp_path / 'a.safetensors', {'w': array}, KINDS)
  assert_equal(read_state(path), {'w': array.astype(np.float32)})


def test_counts_of_batches_are_read_too(tmp_path):
  state = {'w': np.float32([1.5]), 'num_batches_tracked': np.int64(7)}
  np.savez(tmp_path / 'a.npz', **state)
  safetensors(tmp_path / 'a.safetensors', state, KINDS | INTEGERS)
  for suffix in ('npz', 'safetensors'):
    assert_equal(read_state(tmp_path / f'a.{suffix}'), state)


@pytest.mark.parametrize('order', ['C', 'F'])
@pytest.mark.parametrize('dtype', ['<f2', '>f4', '<f8'])
@pytest.mark.parametrize('save', [np.savez, np.savez_compressed])
def test_npz_of_every_layout_is_read(save, dtype, order, tmp_path):
  array = np.arange(6.0).reshape(2, 3).astype(dtype, order=order)
  empty, number = np.zeros((0, 3), dtype), np.array(2.5, dtype)
  save(tmp_path / 'a.npz', w=array, empty=empty, number=number)
  expected = {'w': array, 'empty': empty, 'number': number}
  assert_equal(read_state(tmp_path / 'a.npz'), expected)


def test_npz_is_read_with_and_without_the_prefix(tmp_path):
  np.savez(tmp_path / 'a.npz', **STATE)
  assert_equal(read_state(tmp_path / 'a.npz'), STATE)
  assert_equal(read_state(GOLDEN), STATE)


def test_upper_case_suffix_is_read(tmp_path):
  np.savez(tmp_path / 'a.npz', **STATE)
  path = (tmp_path / 'a.npz').rename(tmp_path / 'A.NPZ')
  assert_equal(read_state(path), STATE)


# ---- errors


class _Touches:
  """Unpickling it would write a file."""

  def __init__(self, path):
    self._path = path

  def __reduce__(self):
    return (open, (str(self._path), 'w'))


def npy(array):
  file = io.BytesIO()
  np.save(file, array)
  return file.getvalue()


def cut(path):
  content = path.read_bytes()
  path.write_bytes(content[: len(content) // 2])


def npz(path, *, shape, data=12, dtype='<f4', name='w.npy'):
  """Writes an .npz whose header says what it likes of `data` bytes."""
  header = io.BytesIO()
  np.lib.format.write_array_header_1_0(
    header, {'descr': dtype, 'fortran_order': False, 'shape': shape}
  )
  with zipfile.ZipFile(path, 'a') as file:
    file.writestr(name, header.getvalue() + bytes(data))


def raw_safetensors(path, header, data=b''):
  text = header if isinstance(header, bytes) else json.dumps(header).encode()
  path.write_bytes(len(text).to_bytes(8, 'little') + text + data)


def f32(shape, first, last):
  return {'dtype': 'F32', 'shape': shape, 'data_offsets': [first, last]}


# Name to (file, how it is written into a directory, what the line must say).
BAD_FILES = {
  'missing': (
    'a.npz',
    lambda path: None,
    ['which is not an existing file', 'a.npz'],
  ),
  'directory': (
    'a.npz',
    lambda path: path.mkdir(),
    ['which is not an existing file'],
  ),
  'unknown suffix': (
    'a.bin',
    lambda path: path.write_bytes(b''),
    ["unknown kind of file of weights '.bin'", '.npz', '.pth', '.safetensors'],
  ),
  'empty npz': (
    'a.npz',
    lambda path: path.write_bytes(b''),
    ['cannot be read as .npz', 'restore a copy'],
  ),
  'cut npz': (
    'a.npz',
    lambda path: (shutil.copyfile(GOLDEN, path), cut(path)),
    ['cannot be read as .npz'],
  ),
  'npz that is an npy': (
    'a.npz',
    lambda path: path.write_bytes(npy(np.zeros(3))),
    ['cannot be read as .npz', 'one array without a name'],
  ),
  'npz with objects': (
    'a.npz',
    lambda path: np.savez(
      path, w=np.asarray([_Touches(path.with_name('ran'))], object)
    ),
    ['cannot be read as .npz', 'w holds Python objects'],
  ),
  'npz with text': (
    'a.npz',
    lambda path: np.savez(path, w=np.asarray(['text'])),
    ['expected floating-point numbers', 'w of dtype <U4'],
  ),
  'npz without arrays': (
    'a.npz',
    lambda path: np.savez(path),
    ['expected arrays by name', 'got none'],
  ),
  'npz with other members': (
    'a.npz',
    lambda path: (
      np.savez(path, w=np.zeros(3, np.float32)),
      npz(path, shape=(3,), name='notes.txt'),
    ),
    ['cannot be read as .npz', 'notes.txt in it is not an array'],
  ),
  'npz with a name twice': (
    'a.npz',
    lambda path: (
      npz(path, shape=(3,), name='w.npy'),
      npz(path, shape=(3,), name='v.npy'),
      path.write_bytes(path.read_bytes().replace(b'v.npy', b'w.npy')),
    ),
    ['w is in it twice'],
  ),
  'npz of gigabytes': (
    'a.npz',
    lambda path: npz(path, shape=(2**40,)),
    ['w is not as long as its header says'],
  ),
  'npz of a negative size': (
    'a.npz',
    lambda path: npz(path, shape=(-1, -3)),
    ['w is not as long as its header says'],
  ),
  # The checksum of a part that is not read whole is not compared.
  'npz that says less than it holds': (
    'a.npz',
    lambda path: npz(path, shape=(2,)),
    ['w is not as long as its header says'],
  ),
  'npz of complex numbers': (
    'a.npz',
    lambda path: np.savez(path, w=np.zeros(3, np.complex64)),
    ['expected floating-point numbers', 'w of dtype complex64'],
  ),
  'npz of integers': (
    'a.npz',
    lambda path: np.savez(path, w=np.zeros(3, int)),
    ['expected floating-point numbers', 'w of dtype int64', 'float32'],
  ),
  'safetensors of integers': (
    'a.safetensors',
    lambda path: safetensors(path, {'w': np.zeros(3, bool)}, INTEGERS),
    ['w of dtype BOOL'],
  ),
  'safetensors with a gap': (
    'a.safetensors',
    lambda path: raw_safetensors(
      path, {'a': f32([1], 0, 4), 'b': f32([1], 8, 12)}, bytes(12)
    ),
    ['its arrays overlap, or leave gaps'],
  ),
  'safetensors that overlap': (
    'a.safetensors',
    lambda path: raw_safetensors(
      path, {'a': f32([1], 0, 4), 'b': f32([1], 0, 4)}, bytes(4)
    ),
    ['its arrays overlap, or leave gaps'],
  ),
  'safetensors with more': (
    'a.safetensors',
    lambda path: raw_safetensors(path, {'a': f32([1], 0, 4)}, bytes(8)),
    ['it holds more than its arrays'],
  ),
  'safetensors with a name twice': (
    'a.safetensors',
    lambda path: raw_safetensors(
      path,
      b'{"a": %b, "a": %b}' % ((json.dumps(f32([1], 0, 4)).encode(),) * 2),
      bytes(4),
    ),
    ['a name is in its header twice'],
  ),
  'safetensors of another size': (
    'a.safetensors',
    lambda path: raw_safetensors(path, {'a': f32([3], 0, 4)}, bytes(4)),
    ['a is not as long as its shape says'],
  ),
  'safetensors of a negative size': (
    'a.safetensors',
    lambda path: raw_safetensors(path, {'a': f32([-1, -1], 0, 4)}, bytes(4)),
    ['a has the shape (-1, -1)'],
  ),
  'safetensors with a list': (
    'a.safetensors',
    lambda path: raw_safetensors(path, b'[1, 2]'),
    ['cannot be read as .safetensors'],
  ),
  'empty safetensors': (
    'a.safetensors',
    lambda path: path.write_bytes(b''),
    ['cannot be read as .safetensors', 'cut off'],
  ),
  'cut safetensors': (
    'a.safetensors',
    lambda path: (safetensors(path, STATE, KINDS), cut(path)),
    ['cannot be read as .safetensors', 'cut off'],
  ),
  'other safetensors': (
    'a.safetensors',
    lambda path: path.write_bytes(b'hello world' * 9),
    ['cannot be read as .safetensors'],
  ),
  'unknown numbers': (
    'a.safetensors',
    lambda path: safetensors(
      path, {'w': np.zeros(2, np.int8)}, {'int8': 'F8_E4M3'}
    ),
    ['w has dtype F8_E4M3'],
  ),
  'no tensors': (
    'a.safetensors',
    lambda path: safetensors(path, {}, KINDS),
    ['expected arrays by name', 'got none'],
  ),
}


@pytest.mark.parametrize('name', BAD_FILES)
def test_unreadable_file_is_one_line(name, tmp_path, capsys):
  file, write, fragments = BAD_FILES[name]
  write(tmp_path / file)
  before = runs.snapshot(tmp_path)
  assert import_file(tmp_path / 'run', tmp_path / file) == 2
  message = the_error(capsys.readouterr())
  for fragment in fragments:
    assert fragment in message
  assert runs.snapshot(tmp_path) == before


def test_array_of_another_size_is_never_read(tmp_path, monkeypatch, capsys):
  large = np.zeros(2_000_000, np.float32)
  bias = 'model.fc.conv.bias'
  np.savez_compressed(tmp_path / 'a.npz', **STATE | {bias: large})
  monkeypatch.setattr(Entry, 'read', None)
  assert import_file(tmp_path / 'run', tmp_path / 'a.npz') == 2
  message = the_error(capsys.readouterr())
  assert f'{bias} has shape (2000000,), expected (10,)' in message


def test_name_in_a_file_keeps_the_message_on_one_line(tmp_path):
  bias = 'model.fc.conv.bias'
  name = bias.replace('.fc', '.f\nc\x1b[2J')
  state = {k: v for k, v in STATE.items() if k != bias} | {name: STATE[bias]}
  config = {'name': 'resnet19', 'width': 8, 'num_classes': 10}
  with pytest.raises(InputError, match=r'extra model.f\\nc\\x1b\[2J.conv.bi'):
    from_reference(state, config)


@pytest.mark.parametrize('kind', ['npz', 'safetensors'])
def test_no_damaged_file_gives_other_numbers(kind, tmp_path):
  """But in the data of .safetensors, which have no checksum."""
  path, rng = tmp_path / f'a.{kind}', np.random.default_rng(0)
  state = {name: STATE[name] for name in list(STATE)[:4]}
  if kind == 'npz':
    np.savez(path, **state)
  else:
    safetensors(path, state, KINDS)
  whole = path.read_bytes()
  end = len(whole) if kind == 'npz' else whole.index(b'}}') + 2
  refused = 0
  for _ in range(200):
    damaged = bytearray(whole)
    damaged[rng.integers(end)] ^= 1 << rng.integers(8)
    path.write_bytes(damaged)
    try:
      found = read_state(path)
    except InputError:
      refused += 1
      continue
    # A damaged name is one that no network has.
    for name in found.keys() & state.keys():
      np.testing.assert_array_equal(found[name], state[name])
  assert refused > 100
