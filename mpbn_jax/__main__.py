"""Trains, evaluates and folds spiking networks.

    python main.py
        trains configs/digits.py into runs/digits, evaluates the test set,
        folds the normalization into the thresholds, verifies the fold and
        writes a summary. If the run was interrupted, the same command resumes
        it; if it is finished, the command only evaluates.
    python main.py --config.model.num_steps=2 --workdir=runs/digits_t2
        changes one key; every run has its own work directory.
    python main.py --mode=evaluate --workdir=runs/digits_t2
        evaluates a run with its stored configuration, without training.
    python main.py --mode=fold --workdir=runs/digits_t2
        writes the folded checkpoint beside the unfolded one and verifies it.
    python main.py --mode=export --workdir=runs/digits_t2
        writes the folded network for use elsewhere: for JAX alone, as NIR, as
        ONNX and as NumPy arrays; reads each file back and compares it.
    python main.py --mode=landscape --workdir=runs/digits_t2
        measures and draws how the training loss rises around the network.
    python main.py --mode=steps --workdir=runs/digits_t2 --steps=1,2,4,8
        evaluates the network with other numbers of time steps than it was
        trained with, and draws the accuracies.
    python main.py --mode=analyze --workdir=runs/digits_t2
        shows what happens inside the network: spikes, potentials, thresholds,
        predictions and energy, in analysis/<step>/report.html and report.json.
    python main.py --config=configs/digits.py --init_from=runs/other
        starts a new run from the weights of another run.
    python main.py --mode=import --checkpoint=w.pth --config=configs/cifar10.py
        creates a new run from weights that the paper's PyTorch implementation
        saved (.pth needs PyTorch; .npz and .safetensors do not), to evaluate,
        fold or train further.
    python main.py --mode=prepare --config=configs/cifar10.py
        downloads the data set of a configuration and converts it, once, in
        config.data.dir; without internet access, it says which files to put
        where.
    python main.py --mode=reproduce --config=configs/paper.py:table1 --seeds=5
        trains every row of a table of the paper, or every arm of a study in
        configs/studies/, with several seeds; writes docs/results/table1.json
        and its table. Stopped and started again, it goes on.

Exit code: 0 success, 1 stopped by a NaN, 2 unusable input (one line says what
was expected, what was given and how to fix it), 3 another process of the same
job was killed or is stuck, 128 + signal if stopped by one.

Several processes, on one machine or many, train as one: docs/scale.md.
"""

# Everything else is imported later, once signals have a handler.
import os
import signal
import sys
import time
from typing import NoReturn

_STOPPED = (
  'stopped; the checkpoints written so far are kept: run the same command '
  'again to resume'
)


def main(argv: list[str], *, program: str = 'python main.py') -> int:
  """Runs one mode; returns the exit code.

  Args:
    argv: the arguments after the program.
    program: how the program was called, for the help.
  """
  start = time.monotonic()
  from mpbn_jax import command_line, launch, process, watchdog
  from mpbn_jax.errors import InputError
  from mpbn_jax.files import NO_ROOM
  from mpbn_jax.help import help_text
  from mpbn_jax.interrupt import Interrupted, signal_of

  process.say_warnings()
  try:
    if command_line.wants_help(argv):
      introduction = __doc__.replace('python main.py', program)
      print(help_text(introduction, argv), flush=True)
    else:
      command = command_line.parse(argv)
      if isinstance(command, command_line.StudyCommand):
        _reproduce(command)
      else:
        _run(command, start)
    launch.finish()
  except InputError as error:
    return _end(2, f'error: {error}')
  except FloatingPointError as error:
    return _end(1, f'error: {error}')
  except Interrupted as stop:
    return _end(128 + stop.signum, stop.message)
  except KeyboardInterrupt as stop:  # outside training, or a second Ctrl-C
    return _end(128 + signal_of(stop), _STOPPED)
  except BrokenPipeError:  # `python main.py | head`
    watchdog.fail(128 + signal.SIGPIPE, 'stopped: nobody reads the output')
    _drop_output()
    return 128 + signal.SIGPIPE
  except OSError as error:
    if error.errno not in NO_ROOM:
      watchdog.crash(error)
      raise
    # Errors from files that this package writes already name the file.
    code = _end(
      2,
      f'error: expected room to write, got an error ({error.strerror}), at '
      f'{error.filename or "the output of this command"}: free some space and '
      'run the same command again: it will resume',
    )
    _drop_output()
    return code
  except Exception as error:
    watchdog.crash(error)
    raise
  return 0


def _end(code, words):
  """Prints why the command ends, in all processes of a job; returns the code.

  In a job, this does not return.
  """
  from mpbn_jax import watchdog

  watchdog.fail(code, words)
  print(words, file=sys.stderr)
  return code


def _drop_output():
  """Discards what Python would try to write at exit."""
  os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _leave(signum, frame):
  """Ends the process at once: no open work could be lost."""
  del frame
  os.write(2, f'{_STOPPED}\n'.encode())
  os._exit(128 + signum)


def _run(command, start):
  # Takes seconds to import, so only once the command line is known to be valid.
  from mpbn_jax import launch
  from mpbn_jax.interrupt import raise_on_signals

  mode = command.mode
  if mode == 'prepare':
    with raise_on_signals():
      _prepare(command.config)
    return
  from mpbn_jax import process, report, training
  from mpbn_jax.interop import files

  with raise_on_signals():
    if mode in launch.MODES:
      launch.start(command.job)
      launch.check_same_command(mode, command.config, command.workdir)
    else:
      launch.check_alone(mode, command.job)
    process.prepare(command.config)
    if mode == 'import':
      _import(files, command)
    elif mode == 'export':
      _export(report, command)
    elif mode in ('landscape', 'steps', 'analyze'):
      _analyse(report, command)
    else:
      _work(report, training, command, start)


def _work(report, training, command, start):
  mode, config, workdir, *_ = command
  if mode == 'train':
    experiment, state = training.train(config, workdir=workdir)
  else:
    experiment, state = report.restore(config, workdir=workdir)
  folded = None
  if mode == 'fold':
    folded = report.write_folded(experiment, state, workdir=workdir)
  report.summarize(
    experiment,
    state,
    workdir=workdir,
    start=start,
    folded=folded,
    file=report.summary_file(mode, config),
  )


def _export(report, command):
  from mpbn_jax import deployment

  workdir = command.workdir
  experiment, state = report.restore(command.config, workdir=workdir)
  deployment.write_export(experiment, state, workdir=workdir)


def _analyse(report, command):
  from mpbn_jax.analysis import report as analysis

  workdir = command.workdir
  experiment, state = report.restore(command.config, workdir=workdir)
  if command.mode == 'steps':
    analysis.steps(experiment, state, workdir=workdir, steps=command.steps)
  elif command.mode == 'analyze':
    analysis.inside(experiment, state, workdir=workdir)
  else:
    analysis.landscape(experiment, state, workdir=workdir)


def _reproduce(command):
  from mpbn_jax import command_line, launch
  from mpbn_jax.studies import pictures, runner, summary, tables

  launch.check_alone('reproduce', command.job)
  found = runner.reproduce(
    command.study,
    workdir=command.workdir,
    results=command.results,
    processes=command.processes,
    after_each=lambda found: tables.write(found.path),
  )
  tables.write(found.path)
  picture = pictures.write(found.path)
  print(tables.text(found.path))
  readme = summary.readme_of(found.path, folder=command_line.RESULTS)
  if readme is not None:
    summary.update(readme, found.path.parent)
  for path in (found.path, found.path.with_suffix('.md'), picture, readme):
    if path is not None:
      print(f'written: {path}')


def _prepare(config):
  from mpbn_jax.config import check_config
  from mpbn_jax.datasets import prepare_dataset
  from mpbn_jax.interrupt import Interrupted, signal_of
  from mpbn_jax.models import build_model

  check_config(config)
  build_model(config.model)  # checks T
  try:
    prepare_dataset(config.data, num_steps=config.model.num_steps)
  except KeyboardInterrupt as stop:
    raise Interrupted(
      signal_of(stop),
      'stopped; nothing half-prepared is kept: run the same command again to '
      'start over',
    ) from stop


def _import(files, command):
  _, config, workdir, file, *_ = command
  where = files.import_checkpoint(file, config, workdir=workdir)
  print(f'imported: {where}')
  # A .safetensors file has no checksum of its own.
  print(f'sha256 of {file}: {files.sha256(file)}')
  print(
    'next: run the same command without --checkpoint, and with '
    '--mode=evaluate, --mode=fold or --mode=train'
  )


def run(program: str = 'mpbn_jax') -> NoReturn:
  """Runs the program with this process's arguments, then exits."""
  for signum in (signal.SIGTERM, signal.SIGINT):
    signal.signal(signum, _leave)
  code = main(sys.argv[1:], program=program)
  from mpbn_jax import launch

  launch.leave(code)
  sys.exit(code)


if __name__ == '__main__':
  run('python -m mpbn_jax')
