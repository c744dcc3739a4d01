"""What the watchdog of a process concludes from the signs of the others."""

import time

import jax
import pytest

from mpbn_jax import watchdog
from mpbn_jax.watchdog import Watchdog


class Store:
  """The key-value store of a job, in this process."""

  def __init__(self):
    self.values = {}

  def key_value_set(self, key, value, allow_overwrite=False):
    if key in self.values and not allow_overwrite:
      raise jax.errors.JaxRuntimeError('ALREADY_EXISTS')
    self.values[key] = value

  def key_value_try_get(self, key):
    if key not in self.values:
      raise jax.errors.JaxRuntimeError('NOT_FOUND')
    return self.values[key]

  def key_value_dir_get(self, prefix):
    return [item for item in self.values.items() if item[0].startswith(prefix)]


@pytest.fixture
def dog(monkeypatch):
  """Returns the watchdog of process 0 of 3, whose clock stands at 1000."""
  monkeypatch.setattr(time, 'monotonic', lambda: 1000.0)
  store = Store()
  store.key_value_set('mpbn_jax/host/1', 'host-b')
  return Watchdog(store, index=0, count=3, coordinator='h:1', stuck_seconds=120)


def told(dog, monkeypatch, now, *signs):
  """Lets the watchdog hear 'beat stage' of each process."""
  monkeypatch.setattr(time, 'monotonic', lambda: now)
  for process, sign in enumerate(signs):
    dog._put(f'mpbn_jax/beat/{process}', sign)
  for process, text in dog._beats():
    alive, stage = text.split()
    watchdog._note(dog._alive, process, alive)
    watchdog._note(dog._stages, process, int(stage))
  dog._answered = now


def test_processes_that_advance_are_well(dog, monkeypatch):
  for second in range(0, 1000, 50):
    told(dog, monkeypatch, 1000.0 + second, *[f'{second} {second}'] * 3)
    assert dog._verdict(1000.0 + second) is None


def test_process_without_signs_is_named_with_its_host(dog, monkeypatch):
  for second in (0, 50, 61):
    signs = [f'{second} -1', '1 -1', f'{second} -1']
    told(dog, monkeypatch, 1000.0 + second, *signs)
    verdict = dog._verdict(1000.0 + second)
    assert (verdict is None) == (second < 60)
  assert verdict.startswith(
    'expected a sign of life from process 1 on host-b, got none for 60 s'
  )


def test_process_that_is_behind_is_named(dog, monkeypatch):
  for second in (0, 50, 100, 150):
    signs = [f'{second} 9', f'{second} 8', f'{second} 9']
    told(dog, monkeypatch, 1000.0 + second, *signs)
    verdict = dog._verdict(1000.0 + second)
    assert (verdict is None) == (second < 120)
  assert verdict.startswith(
    'expected a step of training within 120 s, got none from process 1 on '
    'host-b: '
  )


def test_process_that_compiles_or_evaluates_may_take_its_time(dog, monkeypatch):
  for second in range(0, 1000, 50):
    signs = [f'{second} 9', f'{second} -1', f'{second} 9']
    told(dog, monkeypatch, 1000.0 + second, *signs)
    assert dog._verdict(1000.0 + second) is None


def test_coordinator_without_an_answer_is_named(dog):
  assert dog._verdict(1059.0) is None
  assert dog._verdict(1061.0).startswith(
    'expected an answer from the coordinator h:1 (process 0), got none for 60 s'
  )


def test_process_that_was_stopped_itself_blames_nobody(dog, monkeypatch):
  told(dog, monkeypatch, 1000.0, *['1 1'] * 3)
  assert dog._verdict(2000.0) is not None
  dog._forgive(2000.0)
  assert dog._verdict(2001.0) is None


def test_without_a_job_nothing_happens():
  watchdog.advance()
  watchdog.pause()
  watchdog.fail(2, 'words')
  watchdog.crash(ValueError())
  watchdog.stop()
  with watchdog.unbroken():
    pass
