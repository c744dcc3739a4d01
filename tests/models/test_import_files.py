"""Files of weights of every kind: read as they are, never run, or refused."""

import io
import json
import shutil
import sys
import types
import zipfile

import common
import jax.numpy as jnp
import numpy as np
import pytest
import runs
from runs import the_error

import main as program
from mpbn_jax import InputError
from mpbn_jax.interop.files import read_state
from mpbn_jax.interop.readers import Entry
from mpbn_jax.interop.torch import from_reference

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
}
INTEGERS = {'int64': 'I64', 'uint8': 'U8', 'bool': 'BOOL'}


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
  assert 'old.pth cannot be seen, since the format of PyTorch before 1.6' in old
  assert 'a.safetensors cannot be seen, since .safetensors has no che' in safe


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
    ['cannot be read as .npz', 'w holds Python objects'],
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
  'npz with other members': (
    'a.npz',
    lambda path: (
      np.savez(path, w=np.zeros(3, np.float32)),
      npz(path, shape=(3,), name='notes.txt'),
    ),
    ['cannot be read as .npz', 'notes.txt in it is no array'],
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
    ['expected numbers', 'w of dtype complex64'],
  ),
  'npz of integers': (
    'a.npz',
    lambda path: np.savez(path, w=np.zeros(3, int)),
    ['expected numbers', 'w of dtype int64', 'float32'],
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
