"""A writer of AEDAT 4 files of events, without compression.

The format: a line with the version, a header and packets of events; the header
and the packets are flatbuffers.
"""

import struct

import numpy as np

_EVENT = np.dtype(
  {
    'names': ['t', 'x', 'y', 'p'],
    'formats': ['<i8', '<i2', '<i2', 'u1'],
    'offsets': [0, 8, 10, 12],
    'itemsize': 16,
  }
)
_PER_PACKET = 10_000


def write(path, events, *, side=128) -> None:
  """Writes events, a structured array with the fields t, x, y, p."""
  rows = np.zeros(len(events), _EVENT)
  for field in _EVENT.names:
    rows[field] = events[field]
  with open(path, 'wb') as file:
    file.write(_header(side))
    for start in range(0, len(rows), _PER_PACKET):
      packet = _packet(rows[start : start + _PER_PACKET])
      file.write(struct.pack('<II', 0, len(packet)) + packet)


def _header(side):
  """A table {compression, position of an index, text}; only the text is set."""
  text = _description(side).encode()
  vtable = struct.pack('<5H', 10, 8, 0, 0, 4) + b'\0\0'
  table_at = 8 + len(vtable)
  buffer = struct.pack('<I', table_at) + b'IOHE' + vtable
  buffer += struct.pack('<iI', len(vtable), 4)
  buffer += struct.pack('<I', len(text)) + text + b'\0'
  buffer += b'\0' * (-len(buffer) % 8)
  return b'#!AER-DAT4.0\r\n' + struct.pack('<I', len(buffer)) + buffer


def _description(side):
  def attributes(kind, **values):
    return ''.join(
      f'<attr key="{key}" type="{kind}">{value}</attr>'
      for key, value in values.items()
    )

  path = '/mainloop/Recorder/outInfo/'
  return (
    f'<dv version="2.0"><node name="outInfo" path="{path}">'
    f'<node name="0" path="{path}0/">'
    + attributes(
      'string',
      compression='NONE',
      originalModuleName='capture',
      originalOutputName='events',
      typeDescription='Array of events (polarity ON/OFF).',
      typeIdentifier='EVTS',
    )
    + f'<node name="info" path="{path}0/info/">'
    + attributes('int', sizeX=side, sizeY=side)
    + attributes('string', source='DVS128_0')
    + attributes('long', tsOffset=0)
    + '</node></node></node></dv>'
  )


def _packet(rows):
  """A table of one vector of events, its size before it."""
  vtable = struct.pack('<3H', 6, 8, 4) + b'\0\0'
  table_at = 8 + len(vtable)
  vector_at = table_at + 8
  padding = -(vector_at + 8) % 8  # so that the events are aligned to 8 bytes
  buffer = struct.pack('<I', table_at) + b'EVTS' + vtable
  buffer += struct.pack('<iI', len(vtable), 4 + padding) + b'\0' * padding
  buffer += struct.pack('<I', len(rows)) + rows.tobytes()
  return struct.pack('<I', len(buffer)) + buffer
