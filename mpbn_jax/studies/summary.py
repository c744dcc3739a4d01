"""The README's table of results, made from the results files of all studies.

python -m mpbn_jax.studies.summary docs/results README.md
"""

import argparse
import os
import pathlib
import statistics
import sys
import urllib.parse
from collections.abc import Mapping
from typing import Any

from mpbn_jax import files
from mpbn_jax.errors import InputError
from mpbn_jax.studies import tables
from mpbn_jax.studies.results import read, reported

BEGIN, END = '<!-- results: begin -->', '<!-- results: end -->'
NOT_YET = 'not yet measured'
UNFINISHED = 'not yet measured with all seeds'
HEADINGS = (
  'study',
  'question',
  'best arm',
  'test accuracy, %',
  'difference [95 % interval]',
  'seeds',
  'arms measured',
)


def table(studies: Mapping[str, Mapping[str, Any]]) -> str:
  """Returns the results of studies as a Markdown table, a row for each.

  A row has the arm with the best mean accuracy on the test split, its mean ±
  sample standard deviation over seeds (no deviation of a single one), and its
  difference to the arm that it is compared with, paired by seed. The difference
  is bold if its interval excludes 0, and nothing else is. While arms have
  different numbers of seeds, a row only says so.

  Args:
    studies: {link to the study's page: content of its results file}.
  """
  rows = [HEADINGS, ['---'] * len(HEADINGS)]
  rows += [_row(link, content) for link, content in studies.items()]
  return ''.join(f'| {" | ".join(map(_cell, row))} |\n' for row in rows)


def _cell(text):
  return ' '.join(text.split()).replace('|', r'\|')


def _row(link, content):
  runs = reported(content)
  finished = {
    arm: tables.finished(runs[arm]) for arm in content['arms'] if arm in runs
  }
  measured = {arm: of_arm for arm, of_arm in finished.items() if of_arm}
  head = [f'[{content["study"]}]({link})', content['question']]
  nothing = [tables.NOT_MEASURED] * 2
  count = f'{len(measured)} of {len(content["arms"])}'
  if not measured:
    why = 'every run diverged' if finished else NOT_YET
    return [*head, why, *nothing, tables.NOT_MEASURED, count]
  # An arm that has chosen its settings is about to have seeds.
  begun = [arm for arm in content['chosen'] if content['grid']]
  known = [arm for arm in content['arms'] if arm in runs or arm in begun]
  seeds = sorted({len(runs.get(arm, ())) for arm in known})
  if len(seeds) > 1:  # means of other seeds are no ranking
    return [*head, UNFINISHED, *nothing, f'{seeds[0]} to {seeds[-1]}', count]
  best = max(measured, key=lambda arm: _mean(measured[arm]))
  of_best, other = measured[best], content['compared_with'].get(best)
  diverged = len(runs[best]) - len(of_best)
  return [
    *head,
    best,
    tables.percent(of_best, 'test_accuracy'),
    _difference(of_best, measured.get(other, {}), other),
    f'{len(of_best)}' + f' ({diverged} diverged)' * bool(diverged),
    count,
  ]


def _mean(runs):
  return statistics.fmean(run['test_accuracy'] for run in runs.values())


def _difference(runs, others, other):
  found = tables.difference(runs, others)
  if found is None:
    return tables.NOT_MEASURED
  _, low, high, pairs = found
  text = tables.signed(found)
  # As printed. Equal differences have an interval without width, which says
  # nothing about other seeds.
  low, high = round(100 * low, 2), round(100 * high, 2)
  if low < high and (low > 0 or high < 0):
    text = f'**{text}**'
  if pairs < len(runs):
    text += f' of {pairs} seeds'
  return f'{text} to {other}'


def rewritten(text: str, table: str) -> str:
  """Returns a page with the table between its markers.

  Args:
    text: the page, with `BEGIN` and, later, `END`, each once.
    table: what to put between them; what is there is replaced.

  Raises:
    InputError: the markers are not there, or more than once.

  Example:
    >>> page = f'Results\\n\\n{BEGIN}\\nold\\n{END}\\n'
    >>> print(rewritten(page, 'new\\n'))
    Results
    <BLANKLINE>
    <!-- results: begin -->
    <BLANKLINE>
    new
    <BLANKLINE>
    <!-- results: end -->
    <BLANKLINE>
  """
  if not _has_markers(text):
    raise InputError(
      f'expected the lines {BEGIN} and {END} in this order, each once, got '
      f'{text.count(BEGIN)} and {text.count(END)} of them: write them where '
      'the table of results belongs'
    )
  before, rest = text.split(BEGIN)
  return f'{before}{BEGIN}\n\n{table}\n{END}{rest.split(END)[1]}'


def _has_markers(text):
  once = text.count(BEGIN) == text.count(END) == 1
  return once and text.index(BEGIN) < text.index(END)


def updated(page: pathlib.Path, results: pathlib.Path) -> str:
  """Returns the text of a page with the table of the results in a folder.

  Args:
    page: a Markdown file with the two markers; it is not changed.
    results: the folder of the results files.

  Raises:
    InputError: a file cannot be read, there is no results file, or the page has
      no markers (or several).
  """
  paths = sorted(results.glob('*.json'))
  if not paths:
    raise InputError(
      f'expected results files (.json) in {results}, got none: name the folder '
      'that --mode=reproduce writes to'
    )
  try:
    text = page.read_bytes().decode()  # keeps line ends as they are
  except (OSError, UnicodeDecodeError) as error:
    raise InputError(
      f'expected a page to write to in {page}, which cannot be read ({error}): '
      'name a Markdown file'
    ) from error
  start = page.resolve().parent
  studies = {}
  for path in paths:
    link = os.path.relpath(path.resolve().with_suffix('.md'), start)
    studies[urllib.parse.quote(pathlib.Path(link).as_posix())] = read(path)
  return rewritten(text, table(studies))


def update(page: pathlib.Path, results: pathlib.Path) -> bool:
  """Writes the table of results into a page; returns whether it changed it.

  Args and errors are those of `updated`.
  """
  text = updated(page, results)
  page = page.resolve()  # a link stays one
  if text.encode() == page.read_bytes():
    return False
  files.write_whole(page, text)
  return True


def readme_of(
  results: pathlib.Path, *, folder: pathlib.Path
) -> pathlib.Path | None:
  """Returns the README that shows a results file, or None.

  This is the README of the checkout that this package runs from, if it has the
  markers and the results file is in its folder of results. No other file is
  ever written to: neither where the package is installed, nor where a user
  keeps own results.

  Args:
    results: a results file.
    folder: the folder of results, relative to the checkout.
  """
  root = pathlib.Path(__file__).resolve().parents[2]
  readme = root / 'README.md'
  if results.resolve().parent != root / folder or not readme.is_file():
    return None
  return readme if _has_markers(readme.read_text()) else None


def main(argv: list[str] | None = None) -> int:
  """Rewrites the table of a page; returns the exit code."""
  parser = argparse.ArgumentParser(
    prog='python -m mpbn_jax.studies.summary',
    description=__doc__.splitlines()[0],
  )
  parser.add_argument('results', type=pathlib.Path, help='folder of the files')
  parser.add_argument('page', type=pathlib.Path, help='page with the markers')
  options = parser.parse_args(argv)
  try:
    changed = update(options.page, options.results)
  except InputError as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  print(f'{"written" if changed else "up to date"}: {options.page}')
  return 0


if __name__ == '__main__':
  sys.exit(main())
