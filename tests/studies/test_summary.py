"""The README's table of results, and the epochs to an accuracy."""

import dataclasses
import pathlib

import numpy as np
import pytest
import small_study
from runs import ROOT

import main as program
from mpbn_jax import InputError, command_line
from mpbn_jax.studies import epochs, results, study, summary, tables

COMMAND = 'python -m mpbn_jax.studies.summary docs/results README.md'
# Test accuracies of three seeds; None diverged.
BETTER = (0.9, 0.8, 0.85)
WORSE = (0.7, 0.65, 0.72)


def content(folder, accuracies, *, curves=None, **changes):
  """Returns the content of a results file, written to `folder`.

  Args:
    folder: where to write small.json.
    accuracies: {arm: test accuracies of seeds 0, 1, ...}; None diverged.
    curves: {arm: validation accuracies after each epoch, per seed}.
    **changes: changed fields of the study.
  """
  whole = dataclasses.replace(
    small_study.get_study(), **{'seeds': range(5), **changes}
  )
  found = results.Results(folder / 'small.json', whole)
  found.write()
  for task in study.reported_tasks(whole, found.chosen()):
    values = accuracies.get(task.arm, ())
    if task.seed >= len(values):
      continue
    accuracy = values[task.seed]
    if accuracy is None:
      found.add(task, {'failed': 'NaN', 'commit': None})
      continue
    curve = (curves or {}).get(task.arm, {task.seed: []})[task.seed]
    points = [[8 * (i + 1), value] for i, value in enumerate(curve)]
    result = {
      'test_accuracy': accuracy,
      'best_accuracy': None,
      'folded_test_accuracy': None,
      'spikes_differing': None,
      'firing_rate': {'lif1': 0.2},
      'seconds': 30.0,
      'curve': {'validation_accuracy': points} if points else {},
      'config': {'num_epochs': len(points)},
      'commit': None,
    }
    found.add(task, result)
  return results.read(found.path)


def row(folder, accuracies, **changes):
  """Returns the cells of the table's row for such a study."""
  text = summary.table({'small.md': content(folder, accuracies, **changes)})
  lines = text.splitlines()
  assert len(lines) == 3
  return [cell.strip() for cell in lines[2].strip('|').split(' | ')]


def test_the_table_of_the_readme_is_that_of_the_results():
  shown = (ROOT / 'README.md').read_text()
  now = summary.updated(ROOT / 'README.md', ROOT / 'docs' / 'results')
  assert shown == now, f'the table of README.md is out of date: run {COMMAND}'
  assert COMMAND in (ROOT / 'docs' / 'studies.md').read_text()


def test_the_readme_links_to_pages_that_exist():
  text = (ROOT / 'README.md').read_text()
  for path in (ROOT / 'docs' / 'results').glob('*.json'):
    page = f'docs/results/{path.stem}.md'
    assert f'({page})' in text
    assert (ROOT / page).is_file()


def test_a_row_has_the_best_arm_and_its_difference(tmp_path):
  cells = row(tmp_path, {'none': WORSE, 'mpbn_channel': BETTER})
  assert cells[:4] == [
    '[small](small.md)',
    'Does it run?',
    'mpbn_channel',
    '85.00 ± 5.00',
  ]
  assert cells[4].startswith('**+16.00 [+1')
  assert cells[4].endswith(']** to none')
  assert cells[5:] == ['3', '2 of 2']


def test_the_best_arm_may_be_the_one_that_others_are_compared_with(tmp_path):
  cells = row(tmp_path, {'none': BETTER, 'mpbn_channel': WORSE})
  assert cells[2:] == ['none', '85.00 ± 5.00', '-', '3', '2 of 2']


@pytest.mark.parametrize(
  ('differences', 'shown'),
  [
    ((0.1, -0.05, 0.02), '+2.33 ['),  # the interval has 0 in it
    ((0.1, 0.1, 0.1), '+10.00 [+10.00, +10.00] to'),  # it has no width
    ((0.1, 0.2), '+15.00 to'),  # there is none
    ((0.1,), '+10.00 to'),
    ((0.1, 0.2, 0.15), '**+15.00 [+1'),
  ],
)
def test_nothing_is_bold_unless_the_interval_excludes_0(
  tmp_path, differences, shown
):
  pairs = [(0.5, 0.5 + difference) for difference in differences]
  none, mpbn = zip(*pairs, strict=True)
  cells = row(tmp_path, {'none': none, 'mpbn_channel': mpbn})
  assert cells[4].startswith(shown)
  assert ''.join(cells).count('**') == 2 * shown.startswith('**')


def test_one_seed_shows_no_spread(tmp_path):
  cells = row(tmp_path, {'mpbn_channel': (0.9,)})
  assert cells[2:] == ['mpbn_channel', '90.00', '-', '1', '1 of 2']


def test_seeds_without_a_pair_and_those_that_diverged_are_counted(tmp_path):
  accuracies = {
    'none': (None, *WORSE, None),
    'mpbn_channel': (*BETTER, 0.8, None),
  }
  cells = row(tmp_path, accuracies)
  assert cells[5] == '4 (1 diverged)'
  assert ' of 3 seeds to none' in cells[4]


def test_arms_with_other_numbers_of_seeds_are_not_ranked(tmp_path):
  cells = row(tmp_path, {'none': WORSE, 'mpbn_channel': (*BETTER, None)})
  why = 'not yet measured with all seeds'
  assert cells[2:] == [why, '-', '-', '3 to 4', '2 of 2']


def test_an_arm_that_has_only_chosen_its_settings_has_no_seeds_yet(tmp_path):
  found = dict(content(tmp_path, {'none': (0.8,)}))
  found['grid'] = {'optimizer.learning_rate': [0.1, 0.2]}
  choice = {'optimizer.learning_rate': 0.1}
  found['chosen'] = {'none': choice, 'mpbn_channel': choice}
  line = summary.table({'small.md': found}).splitlines()[2]
  assert '| not yet measured with all seeds | - | - | 0 to 1 | 1 of 2 |' in line


@pytest.mark.parametrize(
  ('accuracies', 'why'),
  [({}, 'not yet measured'), ({'none': (None, None)}, 'every run diverged')],
)
def test_a_study_without_results_says_so(tmp_path, accuracies, why):
  assert row(tmp_path, accuracies)[2:] == [why, '-', '-', '-', '0 of 2']


def test_a_question_with_a_bar_stays_in_its_cell(tmp_path):
  text = summary.table({'x': content(tmp_path, {}, question='A | B\nor C?')})
  assert r'| A \| B or C? |' in text


def page(folder):
  """Writes a page with markers and returns its path."""
  path = folder / 'page.md'
  path.write_bytes(
    f'mine\r\n\n{summary.BEGIN}\nold\n{summary.END}\nmine too'.encode()
  )
  return path


def test_only_what_is_between_the_markers_is_rewritten(tmp_path, capsys):
  folder = tmp_path / 'the results'
  folder.mkdir()
  content(folder, {'none': BETTER})
  path = page(tmp_path)
  assert summary.main([str(folder), str(path)]) == 0
  text = path.read_bytes().decode()
  assert text.startswith(f'mine\r\n\n{summary.BEGIN}\n')
  assert text.endswith(f'{summary.END}\nmine too')
  assert '[small](the%20results/small.md)' in text
  assert 'old' not in text
  assert summary.main([str(folder), str(path)]) == 0
  assert capsys.readouterr().out == f'written: {path}\nup to date: {path}\n'


@pytest.mark.parametrize(
  ('text', 'count'),
  [
    ('no markers', '0 and 0'),
    (summary.BEGIN, '1 and 0'),
    (summary.END + summary.BEGIN, '1 and 1'),
    (2 * (summary.BEGIN + summary.END), '2 and 2'),
  ],
)
def test_a_page_without_its_markers_is_refused_and_left_as_it_is(
  tmp_path, capsys, text, count
):
  content(tmp_path, {})
  path = tmp_path / 'page.md'
  path.write_text(text)
  assert summary.main([str(tmp_path), str(path)]) == 2
  assert f'got {count} of them' in capsys.readouterr().err
  assert path.read_text() == text


def test_a_folder_without_results_is_refused(tmp_path):
  with pytest.raises(InputError, match=r'expected results files .* got none'):
    summary.update(page(tmp_path), tmp_path)


def test_reproduce_writes_to_no_readme_but_that_of_its_own_checkout(
  tmp_path, monkeypatch
):
  folder = command_line.RESULTS
  own = ROOT / folder / 'mpbn.json'
  assert summary.readme_of(own, folder=folder) == ROOT / 'README.md'
  for other in (ROOT / folder / 'below' / 'x.json', ROOT / 'runs' / 'x.json'):
    assert summary.readme_of(other, folder=folder) is None
  # A user's own project, with the same folders and even with markers.
  monkeypatch.chdir(tmp_path)
  page(tmp_path).rename(tmp_path / 'README.md')
  relative = pathlib.Path(folder, 'mpbn.json')
  assert summary.readme_of(relative, folder=folder) is None


def test_reproduce_writes_to_no_readme_without_markers(tmp_path, monkeypatch):
  monkeypatch.setattr(
    summary, '__file__', str(tmp_path / 'mpbn_jax' / 'studies' / 'summary.py')
  )
  results_file = tmp_path / 'docs' / 'results' / 'x.json'
  folder = command_line.RESULTS
  assert summary.readme_of(results_file, folder=folder) is None
  (tmp_path / 'README.md').write_text('mine')
  assert summary.readme_of(results_file, folder=folder) is None
  page(tmp_path).rename(tmp_path / 'README.md')
  found = summary.readme_of(results_file, folder=folder)
  assert found == tmp_path / 'README.md'


def test_reproduce_writes_the_table_of_its_checkout(
  tmp_path, monkeypatch, capsys
):
  accuracies = {'none': BETTER[:2], 'mpbn_channel': WORSE[:2]}
  content(tmp_path, accuracies, seeds=(0, 1))
  path = page(tmp_path)
  monkeypatch.setattr(summary, 'readme_of', lambda results, *, folder: path)
  arguments = [
    '--mode=reproduce',
    f'--config={small_study.__file__}',
    f'--workdir={tmp_path / "study"}',
    f'--results={tmp_path / "small.json"}',
  ]
  assert program.main(arguments) == 0
  assert f'written: {path}\n' in capsys.readouterr().out
  assert '| none | 85.00 ± 7.07 | - | 2 | 2 of 2 |' in path.read_text()


# ---- epochs to an accuracy


def curves():
  return {
    'none': [(0.2, 0.5, 0.6), (0.5, 0.4, 0.7), (0.1, 0.1, 0.5)],
    'mpbn_channel': [(0.5, 0.6, 0.8), (0.1, 0.2, 0.3), ()],
  }


def with_curves(folder, **changes):
  accuracies = {'none': WORSE, 'mpbn_channel': (*BETTER, None)}
  return content(folder, accuracies, curves=curves(), **changes)


def test_epochs_are_the_first_that_reach_the_level(tmp_path):
  found = epochs.epochs(with_curves(tmp_path, reach=0.5))
  assert found['none'] == {0: 2, 1: 1, 2: 3}


def test_seeds_that_never_reach_it_are_counted(tmp_path):
  """Seed 1 never does, seed 3 diverged; seed 2 was not validated."""
  found = epochs.epochs(with_curves(tmp_path, reach=0.5))
  assert found['mpbn_channel'] == {0: 1, 1: None, 3: None}


def test_epochs_are_counted_if_few_of_them_are_validated():
  run = {
    'curve': {'validation_accuracy': [[40, 0.2], [80, 0.6], [100, 0.7]]},
    'config': {'num_epochs': 10},
  }
  assert epochs.first_epoch(run, 0.6) == 8
  assert epochs.first_epoch(run, 0.65) == 10


def test_the_page_of_a_study_tells_the_epochs(tmp_path):
  with_curves(tmp_path, reach=0.5)
  tables.write(tmp_path / 'small.json')
  text = (tmp_path / 'small.md').read_text()
  assert '\n\n## Epochs to 50 %\n\n' in text
  none, mpbn = text.splitlines()[-2:]
  assert none.startswith('| none | 2.0 [1.')
  assert none.endswith('] | 3 of 3 |')
  assert mpbn == '| mpbn_channel | 1.0 | 1 of 3 |'


def test_arms_without_validation_have_no_epochs(tmp_path):
  found = content(tmp_path, {'none': BETTER}, reach=0.5)
  assert epochs.markdown(found).splitlines()[-2:] == [
    '| none | - | - |',
    '| mpbn_channel | - | - |',
  ]


def test_a_study_without_a_level_has_no_such_table(tmp_path):
  found = with_curves(tmp_path)
  assert epochs.markdown(found) == ''
  del found['reach']  # as older files
  assert epochs.markdown(found) == ''


def test_the_level_changes_no_run():
  whole = small_study.get_study()
  other = dataclasses.replace(whole, reach=0.5)
  ours, theirs = (
    [
      task.key
      for task in study.reported_tasks(
        each, dict.fromkeys(small_study.NORMS, {})
      )
    ]
    for each in (whole, other)
  )
  assert ours == theirs


@pytest.mark.parametrize('reach', [0.0, 70.0, np.nan])
def test_a_level_that_is_no_fraction_is_refused(reach):
  with pytest.raises(InputError, match='reach must be an accuracy, a fraction'):
    dataclasses.replace(small_study.get_study(), reach=reach)
