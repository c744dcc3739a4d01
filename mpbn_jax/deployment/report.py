"""The folder of a deployed network: files, README, and what was verified."""

import datetime
import hashlib
import json
import pathlib
import shutil
import textwrap

import jax

import mpbn_jax
from mpbn_jax import config as config_lib
from mpbn_jax import files, record
from mpbn_jax.deployment.formats import FORMATS
from mpbn_jax.deployment.network import ROUNDING, Deployed, deployed
from mpbn_jax.errors import InputError
from mpbn_jax.experiment import Experiment
from mpbn_jax.interop.exported import PLATFORMS
from mpbn_jax.lock import hold
from mpbn_jax.model_card import model_card
from mpbn_jax.report import read_summary, summary_file, why_not_folded
from mpbn_jax.train_step import TrainState

MANIFEST, CARD = 'export.json', 'MODEL_CARD.md'
# JAX reads what versions up to half a year older wrote.
_READABLE = datetime.timedelta(days=182)


def export_folder(workdir: pathlib.Path, *, step: int) -> pathlib.Path:
  """Returns where --mode=export writes the network of a step."""
  return workdir / 'export' / str(step)


def write_export(
  experiment: Experiment, state: TrainState, *, workdir: pathlib.Path
) -> dict:
  """Writes a trained network in every format, and returns the manifest.

  Every file is read back and compared with the folded network on test images. A
  format that cannot hold the network, or whose package is missing, is reported
  by name and does not stop the others.

  Args:
    experiment: from `experiment.build`.
    state: the trained state.
    workdir: the work directory; an older export of the same step is replaced.

  Returns:
    What export.json says: how the network was made, and for each format its
    files and differences, or why it was not written.
  """
  path = export_folder(workdir, step=int(state.step))
  network = deployed(experiment, state.variables)
  manifest = _made(experiment, state) | {'formats': {}}
  files.check_writable(path.parent)
  with hold(path.parent):
    files.remove_leftovers(path.parent)
    with files.whole_directory(path) as folder:
      for name in FORMATS:
        result = _write(name, network, folder)
        manifest['formats'][name] = result
        print(_lines(name, result))
      record.write_json(folder / MANIFEST, manifest)
      files.write_whole(folder / 'README.md', readme(manifest))
      try:
        card = _card(experiment, manifest, workdir)
        files.write_whole(folder / CARD, card)
      except InputError as error:
        print(f'not written: {CARD}: {error}')
      if path.exists():
        files.remove(path)
  print(f'exported: {path}')
  return manifest


def _made(experiment, state):
  """Returns how the network was made, for the manifest."""
  config, spec = experiment.config, experiment.dataset.spec
  now = datetime.datetime.now(datetime.UTC)
  why_not = why_not_folded(config)
  return {
    'date': now.date().isoformat(),
    'jax_readable_until': (now + _READABLE).date().isoformat(),
    'mpbn_jax': mpbn_jax.__version__,
    'jax': jax.__version__,
    'made_on': jax.default_backend(),
    'platforms': list(PLATFORMS),
    'step': int(state.step),
    'fold': None if why_not else config.evaluation.fold,
    'not_folded': why_not,
    'model': config_lib.plain(config.model),
    'data': spec.name,
    'images': ['B', *spec.example_shape(config.model.num_steps)],
    'normalization': {
      'max_value': spec.max_value,
      'mean': list(spec.mean),
      'std': list(spec.std),
    },
    'classes': list(spec.class_names),
  }


def _card(experiment, manifest, workdir):
  """Returns the model card; raises InputError without a summary of the step."""
  config = experiment.config
  file = summary_file('export', config)
  try:
    summary = read_summary(workdir, file=file)
  except (OSError, json.JSONDecodeError):
    summary = {}
  if summary.get('step') != manifest['step']:
    raise InputError(
      f'expected the results of step {manifest["step"]} in {workdir / file}, '
      f'got {summary.get("step", "none")}: run --mode=evaluate first'
    )
  model = manifest['model']
  return model_card(
    config,
    summary,
    name=f'{model["name"]} on {manifest["data"]}, T = {model["num_steps"]}',
    usage='`README.md` says how to load each file.',
  )


def _write(name, network: Deployed, folder) -> dict:
  """Returns the entry of a format in the manifest."""
  form = FORMATS[name]
  try:
    differences = form.write(network, folder)
  except files.NotWrittenError:
    raise
  except InputError as error:
    for file in form.files:
      (folder / file).unlink(missing_ok=True)
      if '/' in file:
        shutil.rmtree((folder / file).parent, ignore_errors=True)
    return {'not_written': str(error)}
  return {
    'files': {file: _fingerprint(folder / file) for file in form.files},
    'differences': differences,
  }


def _fingerprint(path):
  data = path.read_bytes()
  return {'bytes': len(data), 'sha256': hashlib.sha256(data).hexdigest()}


def _lines(name, result):
  """Returns a format's result for the terminal."""
  if 'not_written' in result:
    return f'not written: {name}: {result["not_written"]}'
  found, files_of = result['differences'], ', '.join(result['files'])
  lines = [f'{files_of}: {compared(found)}']
  for platform, there in found.get('elsewhere', {}).items():
    lines.append(f'{files_of} on {platform}: {compared(there)}')
  return '\n'.join(lines)


def compared(differences: dict) -> str:
  """Returns in words how a file differs from the folded network."""
  text = (
    f'{differences["predictions"]} of {differences["examples"]} predictions'
  )
  if 'flips' in differences:
    text += f' and {differences["flips"]:,} of {differences["spikes"]:,} spikes'
  text += f' differ, logits by at most {differences["largest"]:.2g}'
  if differences['beyond_rounding']:
    text += (
      f' ({differences["beyond_rounding"]} examples by more than {ROUNDING:g})'
    )
  if differences['predictions']:
    text += (
      f'; accuracy {differences["other_accuracy"]:.2%} in place of '
      f'{differences["accuracy"]:.2%}'
    )
  return text


def readme(manifest: dict) -> str:
  """Returns the README of an export, in Markdown."""
  fold = {
    'thresholds': 'folded into its thresholds',
    'all': 'with all its norms folded',
    None: f'not folded ({manifest["not_folded"]})',
  }[manifest['fold']]
  shape, classes = ', '.join(map(str, manifest['images'])), manifest['classes']
  model, made_on = manifest['model'], manifest['made_on']
  max_value = manifest['normalization']['max_value']
  parts = [
    f'# {model["name"]}, T = {model["num_steps"]}, trained on '
    f'{manifest["data"]}',
    _paragraph(f"""Written on {manifest['date']} by mpbn_jax
      {manifest['mpbn_jax']} with JAX {manifest['jax']}, from step
      {manifest['step']}, {fold}."""),
    _paragraph(f"""Images are uint8 [{shape}], as the data set stores them, for
      any batch size B. Logits are float32 [B, {len(classes)}], of the classes
      {', '.join(classes)}. The `.jax` and `.onnx` files normalize the images
      themselves; the other formats take (images / {max_value} - mean) / std,
      with the mean and std of each channel in `{MANIFEST}`."""),
    _paragraph(f"""The network was folded on {made_on}. There, it fires exactly
      the spikes of the trained network if given the same currents. On another
      platform, sums are rounded otherwise, and a neuron within rounding of its
      threshold may decide otherwise: compare some images with those of
      {made_on}."""),
    _paragraph(f"""JAX {manifest['jax']} reads the `.jax` files, and so do
      versions that are released up to half a year after it, as JAX promises:
      export the network again by {manifest['jax_readable_until']}. They run on
      {', '.join(PLATFORMS)}."""),
    _paragraph(f"""`{MANIFEST}` has all of this for programs, with the checksum
      of each file."""),
  ]
  for name, result in manifest['formats'].items():
    form = FORMATS[name]
    parts.append(f'## {", ".join(form.files)}: {form.what}')
    if 'not_written' in result:
      parts.append(f'Not written: {result["not_written"]}')
      continue
    found = result['differences']
    text = (
      'Read back and compared with the folded network on test images: '
      f'{compared(found)}.'
    )
    for platform, there in found.get('elsewhere', {}).items():
      text += f' On {platform}: {compared(there)}.'
    parts += [_paragraph(text), form.load]
  return '\n\n'.join(parts) + '\n'


def _paragraph(text):
  return textwrap.fill(' '.join(text.split()), 80)
