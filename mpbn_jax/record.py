"""What does a run leave behind, and what does it say meanwhile?

In the work directory: config.json, metrics.jsonl, TensorBoard event files,
summary.json. On the terminal: a progress bar; elsewhere: plain lines.
"""

import contextlib
import json
import os
import pathlib
import sys
import time
from collections.abc import Mapping

import tqdm

from mpbn_jax import config as configs
from mpbn_jax.errors import InputError

CONFIG = 'config.json'
CHECKPOINTS = 'checkpoints'


def open_workdir(workdir: str | os.PathLike, config: Mapping) -> pathlib.Path:
  """Returns the work directory, made if need be, with config.json in it.

  A stored configuration stays as it is; `write_config` replaces it once the
  run goes on.

  Raises:
    InputError: it cannot be written, or holds a run with another
      configuration (names the keys).
  """
  path = pathlib.Path(workdir)
  stored = check_config_of(path, config)
  try:
    path.mkdir(parents=True, exist_ok=True)
    # Written even if it is there already: proof that it can be.
    _write(path / CONFIG, configs.to_json(stored or config))
    (path / CHECKPOINTS).mkdir(exist_ok=True)
  except OSError as error:
    raise InputError(
      f'expected a work directory that can be written, got {path} '
      f'({error.strerror}): give another --workdir'
    ) from error
  return path


def write_config(workdir: pathlib.Path, config: Mapping) -> None:
  """Writes config.json: the run goes on with this configuration."""
  _write(workdir / CONFIG, configs.to_json(config))


def check_config_of(path: pathlib.Path, config: Mapping) -> dict | None:
  """Returns the configuration of the run in `path`, None where there is none.

  Raises:
    InputError: it differs in a key that may not (names them), or is damaged.
  """
  file = path / CONFIG
  try:
    stored = json.loads(file.read_text())
    if not isinstance(stored, dict):
      raise ValueError('no JSON object')
  except (FileNotFoundError, NotADirectoryError) as error:
    if not (path / CHECKPOINTS).is_dir():
      return None
    raise InputError(
      f'expected {CONFIG} beside the checkpoints in {path}, got none: '
      'restore it, or give another --workdir'
    ) from error
  except (OSError, ValueError) as error:
    raise InputError(
      f'expected the configuration of a run in {file}, which cannot be '
      f'read ({error}): restore it, or give another --workdir'
    ) from error
  changed = configs.differences(config, stored)
  if changed:
    raise InputError(
      f'{path} holds a run with another configuration '
      f'({"; ".join(changed)}): give another --workdir, or the stored values'
    )
  return stored


def _write(path, text):
  # Whole or not at all, whenever the process or the machine stops.
  temporary = path.with_name(path.name + '.tmp')
  with temporary.open('w') as file:
    file.write(text)
    file.flush()
    os.fsync(file.fileno())
  os.replace(temporary, path)


def write_json(path: pathlib.Path, values: Mapping) -> None:
  """Writes values as a JSON file, atomically.

  Raises:
    InputError: it cannot be written.
  """
  try:
    _write(path, json.dumps(values, indent=2) + '\n')
  except OSError as error:
    raise InputError(
      f'expected to write {path}, got an error ({error.strerror}): make room '
      'or give another --workdir'
    ) from error


class Metrics:
  """Appends metrics to metrics.jsonl and to TensorBoard event files.

  Args:
    workdir: where.
    step: the step that training starts from. Lines after it (a process was
      killed between a checkpoint and its end) are dropped: they come again.
    tensorboard: whether event files are written.
  """

  def __init__(
    self, workdir: pathlib.Path, *, step: int, tensorboard: bool = True
  ):
    self._path = workdir / 'metrics.jsonl'
    if self._path.exists():
      kept = [line for line in _lines(self._path) if line['step'] <= step]
      _write(self._path, ''.join(json.dumps(line) + '\n' for line in kept))
    self._events = None
    if tensorboard:
      import tensorboardX  # slow to import, and optional

      self._events = tensorboardX.SummaryWriter(
        str(workdir / 'tensorboard'), purge_step=step + 1
      )

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Appends one line: {"step": step, **values}."""
    values = {name: float(value) for name, value in values.items()}
    with self._path.open('a') as file:
      file.write(json.dumps({'step': step, **values}) + '\n')
    if self._events is not None:
      for name, value in values.items():
        self._events.add_scalar(name, value, step)

  def close(self) -> None:
    """Flushes the event files."""
    if self._events is not None:
      self._events.close()


def _lines(path):
  for text in path.read_text(errors='replace').splitlines():
    # The last line of a killed process may be half written: it comes again.
    with contextlib.suppress(ValueError):
      line = json.loads(text)
      if isinstance(line, dict) and 'step' in line:
        yield line


class Progress:
  """A bar with the time left on a terminal, plain lines elsewhere."""

  def __init__(self, *, total: int, done: int):
    self._terminal = sys.stderr.isatty() and (
      # 0 where nobody looks, under `script` for example.
      os.get_terminal_size(sys.stderr.fileno()).columns > 0
    )
    self._bar = tqdm.tqdm(
      total=total,
      initial=done,
      unit='step',
      disable=not self._terminal,
      dynamic_ncols=True,
      bar_format='{l_bar}{bar}| {n_fmt}/{total_fmt}, {rate_fmt}, '
      'left {remaining}',
    )
    self._total = total
    self._start = time.monotonic()
    self._first = done

  def advance(self) -> None:
    """Counts one step."""
    self._bar.update()

  def say(self, step: int, text: str) -> None:
    """Prints a line about a step; where there is no bar, with the time left."""
    if self._terminal:
      self._bar.write(f'step {step}  {text}', file=sys.stdout)
      return
    seconds = (time.monotonic() - self._start) / max(1, step - self._first)
    left = seconds * (self._total - step)
    print(f'step {step}/{self._total}  {text}  left {left:.0f} s', flush=True)

  def close(self) -> None:
    """Leaves the bar on the terminal."""
    self._bar.close()
