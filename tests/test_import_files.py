"""Is every kind of file of weights read, and never run?"""

import io
import json
import shutil
import sys
import types

import common
import jax.numpy as jnp
import numpy as np
import pytest
import runs
from runs import the_error

import main as program
from mpbn_jax.interop.files import read_state

GOLDEN = common.GOLDEN / 'resnet19_t1.npz'
STATE = common.golden_state(dict(np.load(GOLDEN)))


def import_file(workdir, weights):
  """Runs main.py in this process; returns its exit code."""
  return program.main(
    [
      '--mode=import',
      '--config=configs/cifar10.py',
      f'--checkpoint={weights}',
      f'--workdir={workdir}',
    ]
  )


def assert_equal(read, expected):
  assert read.keys() == expected.keys()
  for name, array in read.items():
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array, expected[name])


def safetensors(path, state, kinds):
  """Writes the format as its specification has it."""
  header, data = {'__metadata__': {'format': 'pt'}}, b''
  for name, array in state.items():
    raw = array.tobytes()
    header[name] = {
      'dtype': kinds[array.dtype.name],
      'shape': array.shape,
      'data_offsets': [len(data), len(data) + len(raw)],
    }
    data += raw
  text = json.dumps(header).encode()
  path.write_bytes(len(text).to_bytes(8, 'little') + text + data)
  return path


KINDS = {
  'float32': 'F32',
  'float16': 'F16',
  'bfloat16': 'BF16',
  'float64': 'F64',
  'int64': 'I64',
}


def test_safetensors_is_read(tmp_path):
  path = safetensors(tmp_path / 'a.safetensors', STATE, KINDS)
  assert_equal(read_state(path), STATE)


@pytest.mark.parametrize('dtype', KINDS)
def test_safetensors_holds_numbers_of_any_width(dtype, tmp_path):
  # jnp.dtype knows bfloat16 by name.
  array = np.asarray([[1.5, -2.25], [0, 3]]).astype(jnp.dtype(dtype))
  path = safetensors(tmp_path / 'a.safetensors', {'w': array}, KINDS)
  assert_equal(read_state(path), {'w': array.astype(np.float32)})


def test_npz_is_read_with_and_without_the_prefix(tmp_path):
  np.savez(tmp_path / 'a.npz', **STATE)
  assert_equal(read_state(tmp_path / 'a.npz'), STATE)
  assert_equal(read_state(GOLDEN), STATE)


def test_upper_case_suffix_is_read(tmp_path):
  np.savez(tmp_path / 'a.npz', **STATE)
  path = (tmp_path / 'a.npz').rename(tmp_path / 'A.NPZ')
  assert_equal(read_state(path), STATE)


class _Tensor:
  """What `read_state` uses of a tensor."""

  def __init__(self, array):
    self._array = array

  def detach(self):
    return self

  def float(self):
    return _Tensor(np.asarray(self._array, np.float32))

  def __array__(self, dtype=None, copy=None):
    return np.array(self._array, dtype)


@pytest.fixture
def torch(monkeypatch):
  """Returns a stand-in for PyTorch; `content` is what its `load` returns."""
  stub = types.ModuleType('torch')
  stub.Tensor = _Tensor
  stub.calls = []

  def load(path, **arguments):
    stub.calls.append((path, arguments))
    if isinstance(stub.content, Exception):
      raise stub.content
    return stub.content

  stub.load = load
  monkeypatch.setitem(sys.modules, 'torch', stub)
  return stub


def tensors(prefix=''):
  return {prefix + name: _Tensor(array) for name, array in STATE.items()}


@pytest.mark.parametrize('suffix', ['.pth', '.pt', '.pth.tar'])
def test_torch_loads_weights_only_and_on_the_cpu(suffix, torch, tmp_path):
  torch.content = tensors()
  path = tmp_path / f'a{suffix}'
  path.write_bytes(b'')
  assert_equal(read_state(path), STATE)
  assert torch.calls == [(path, {'weights_only': True, 'map_location': 'cpu'})]


@pytest.mark.parametrize(
  'nest',
  [
    lambda state: {'state_dict': state, 'epoch': 3, 'best': 0.9},
    lambda state: {'model': state},
    lambda state: {'net': state, 'acc': 1.0},
    lambda state: {'state_dict': {'model': state}},
  ],
)
def test_torch_state_may_be_nested(nest, torch, tmp_path):
  torch.content = nest(tensors())
  (tmp_path / 'a.pth').write_bytes(b'')
  assert_equal(read_state(tmp_path / 'a.pth'), STATE)


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


# Name to (file, how it is written into a directory, what the line must say).
BAD_FILES = {
  'missing': ('a.npz', lambda path: None, ['which is none', 'a.npz']),
  'directory': ('a.npz', lambda path: path.mkdir(), ['which is none']),
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
    ['cannot be read as .npz', 'allow_pickle=False'],
  ),
  'npz with text': (
    'a.npz',
    lambda path: np.savez(path, w=np.asarray(['text'])),
    ['expected numbers', 'w of dtype <U4'],
  ),
  'npz without arrays': (
    'a.npz',
    lambda path: np.savez(path),
    ['expected arrays by name', 'got none'],
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


def test_without_torch_the_error_says_what_to_do(tmp_path, monkeypatch, capsys):
  monkeypatch.setitem(sys.modules, 'torch', None)
  (tmp_path / 'a.pth').write_bytes(b'')
  assert import_file(tmp_path / 'run', tmp_path / 'a.pth') == 2
  message = the_error(capsys.readouterr())
  assert 'pip install torch' in message
  assert 'weights_only=True' in message
  assert "numpy.savez('x.npz'" in message
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
  ('content', 'fragments'),
  [
    (
      ValueError('Weights only ...\n Unsupported global: GLOBAL a.B was not'),
      ['got the Python object a.B', 'never run', 'model.state_dict()'],
    ),
    (
      RuntimeError('Cannot use ``weights_only=True`` with TorchScript'),
      ['got a TorchScript program', 'never run'],
    ),
    (
      ValueError('Weights only load failed. ...\nUnsupported operand 149'),
      ['got a pickle', 'never run'],
    ),
    (
      RuntimeError('failed finding central directory.\nmore'),
      ['as .pth (RuntimeError: failed finding central directory): restore'],
    ),
    (EOFError(), ['cannot be read as .pth (EOFError)']),
    (KeyError('101'), ["cannot be read as .pth (KeyError: '101')"]),
    ({'epoch': 3}, ['expected arrays by name', 'got none']),
    ([3], ['expected arrays by name', 'got none']),
  ],
)
def test_what_torch_refuses_is_one_line(
  content, fragments, torch, tmp_path, capsys
):
  torch.content = content
  (tmp_path / 'a.pth').write_bytes(b'')
  assert import_file(tmp_path / 'run', tmp_path / 'a.pth') == 2
  message = the_error(capsys.readouterr())
  for fragment in fragments:
    assert fragment in message
  assert not (tmp_path / 'run').exists()
