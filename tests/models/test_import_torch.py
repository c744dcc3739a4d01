"""Checkpoints of PyTorch: loaded as weights alone, or refused."""

import sys
import types
import zipfile

import numpy as np
import pytest
from runs import the_error
from weight_files import KINDS, STATE, assert_equal, import_file, safetensors

from mpbn_jax import InputError
from mpbn_jax.interop.files import read_state


class _Tensor:
  """What `read_state` uses of a tensor."""

  def __init__(self, array, dtype=None):
    self._array = array
    self.shape = array.shape
    self.dtype = dtype or f'torch.{array.dtype}'

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


@pytest.mark.parametrize(
  ('content', 'fragments'),
  [
    (
      {'model': {'w': 'tensor'}, 'net': {'w': 'tensor'}},
      ['one state dict', 'got model and net'],
    ),
    ({0: 'tensor'}, ['tensors by name', 'got the key 0']),
    ({'state_dict': {(1, 2): 'tensor'}}, ['got the key (1, 2)']),
    ({'w': 'torch.complex64'}, ['w of dtype complex64']),
    ({'w': 'torch.qint8'}, ['w of dtype qint8']),
    ({'w': 'torch.int32'}, ['w of dtype int32']),
    ({'w': 'broken'}, ['cannot be read as .pth (RuntimeError: sparse)']),
  ],
)
def test_tensors_that_are_no_weights_are_one_line(
  content, fragments, torch, tmp_path
):
  class Broken(_Tensor):
    def float(self):
      raise RuntimeError('sparse')

  def made(value):
    if isinstance(value, dict):
      return {key: made(inner) for key, inner in value.items()}
    kind = Broken if value == 'broken' else _Tensor
    dtype = value if value.startswith('torch') else None
    return kind(np.zeros(3, np.float32), dtype)

  torch.content = made(content)
  (tmp_path / 'a.pth').write_bytes(b'')
  with pytest.raises(InputError) as error:
    read_state(tmp_path / 'a.pth')
  assert '\n' not in str(error.value)
  for fragment in fragments:
    assert fragment in str(error.value)


def test_nested_without_tensors_hides_no_tensors(torch, tmp_path):
  torch.content = {'model': {'name': 'resnet'}, 'net': tensors()}
  (tmp_path / 'a.pth').write_bytes(b'')
  assert_equal(read_state(tmp_path / 'a.pth'), STATE)


def archive(path, *, compression=zipfile.ZIP_STORED):
  """Writes an archive as torch.save does."""
  with zipfile.ZipFile(path, 'w', compression) as file:
    file.writestr('archive/data.pkl', b'pickle' * 50)
    file.writestr('archive/data/0', bytes(range(256)))
  return path


def test_archive_of_torch_with_a_wrong_checksum_is_not_loaded(torch, tmp_path):
  torch.content = tensors()
  path = archive(tmp_path / 'a.pth')
  assert_equal(read_state(path), STATE)
  whole = bytearray(path.read_bytes())
  whole[whole.index(bytes(range(256))) + 100] ^= 1
  path.write_bytes(whole)
  torch.calls.clear()
  with pytest.raises(InputError, match='the checksum of archive/data/0 is wro'):
    read_state(path)
  assert torch.calls == []


def test_archive_of_torch_that_is_compressed_is_not_loaded(torch, tmp_path):
  path = archive(tmp_path / 'a.pth', compression=zipfile.ZIP_DEFLATED)
  with pytest.raises(InputError, match='archive/data.pkl is compressed'):
    read_state(path)
  assert torch.calls == []


def test_formats_without_checksums_are_named(torch, tmp_path, caplog):
  torch.content = tensors()
  read_state(archive(tmp_path / 'new.pth'))
  np.savez(tmp_path / 'a.npz', **STATE)
  read_state(tmp_path / 'a.npz')
  assert caplog.text == ''
  (tmp_path / 'old.pth').write_bytes(b'')
  read_state(tmp_path / 'old.pth')
  read_state(safetensors(tmp_path / 'a.safetensors', STATE, KINDS))
  old, safe = caplog.messages
  assert (
    'old.pth cannot be detected, since the format of PyTorch before 1.6' in old
  )
  assert (
    'a.safetensors cannot be detected, since .safetensors has no che' in safe
  )


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
