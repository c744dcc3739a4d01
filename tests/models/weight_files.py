"""Files of weights that tests write, read and import."""

import json

import common
import numpy as np

import main as program

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
