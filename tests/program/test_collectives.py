"""Counting collectives in the text of a compiled program."""

import runpy

import pytest
import runs

TEXT = """\
ENTRY %main (x: f32[4]) -> f32[4] {
  %all-reduce.3 = (f32[3]{0}, /*index=5*/bf16[2,2]{1,0}) all-reduce(%a, %b)
  %gathered = f32[8,2]{1,0} all-gather(%all-reduce.3), dimensions={0}
  %start = s32[] all-reduce-start(%c), channel_id=1
  %done = s32[] all-reduce-done(%start)
  ROOT %fusion = f32[4]{0} fusion(%all-reduce.3, %done), kind=kLoop
}
"""


@pytest.fixture
def counted(monkeypatch):
  monkeypatch.syspath_prepend(runs.ROOT / 'benchmarks')
  module = runpy.run_path(str(runs.ROOT / 'benchmarks' / 'collectives.py'))
  return module['collectives']


def test_every_collective_is_counted_once_with_its_bytes(counted):
  assert counted(TEXT) == [
    ('all-reduce', 3 * 4 + 4 * 2),
    ('all-gather', 16 * 4),
    ('all-reduce', 4),
  ]


def test_program_without_collectives_has_none(counted):
  assert counted('%y = f32[4]{0} fusion(%all-reduce.3), kind=kLoop') == []
