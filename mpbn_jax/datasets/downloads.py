"""How does a file come from the internet?"""

import contextlib
import pathlib
from collections.abc import Callable

from mpbn_jax.datasets.preparation import writing
from mpbn_jax.errors import InputError

_NO_ANSWER = 10  # seconds until a server that does not answer is given up
_NO_BYTES = 60  # likewise, in the middle of a file


def obtain(
  url: str,
  path: pathlib.Path,
  *,
  difference: Callable[[pathlib.Path], str | None],
  mend: str,
) -> None:
  """Downloads a file to `path`, checked, whole or not at all.

  Args:
    url: of the file.
    path: its parents are made.
    difference: of a file: what was expected and got, None if it is the one.
    mend: what to do where it cannot be had.

  Raises:
    InputError: no connection; another file; no room, or no permission.
  """
  part = path.with_name(f'{path.name}.part')
  with writing(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
      if reason := download(url, part):
        raise InputError(
          f'expected {path.name}, got no download of {url} ({reason}): {mend}'
        )
      if problem := difference(part):
        raise InputError(f'expected {url} with {problem}: {mend}')
      part.rename(path)
    finally:
      with contextlib.suppress(OSError):
        part.unlink()


def download(url: str, path: pathlib.Path) -> str | None:
  """Writes what `url` holds to `path`; returns why not, None when it is there.

  With limits on the waiting, so that a machine without internet says so at
  once. The file is not checked.
  """
  import requests
  from tqdm import tqdm

  try:
    with (
      requests.get(
        url,
        headers={'Accept-Encoding': 'identity'},
        stream=True,
        timeout=(_NO_ANSWER, _NO_BYTES),
      ) as response,
      path.open('wb') as file,
    ):
      response.raise_for_status()
      # As the file lies there: some servers call a .gz encoded.
      response.raw.headers.pop('Content-Encoding', None)
      size = response.headers.get('Content-Length')
      with tqdm(
        total=int(size) if size else None,
        desc=path.name,
        unit='B',
        unit_scale=True,
        disable=None,  # where nobody looks
      ) as bar:
        for block in response.iter_content(1 << 20):
          file.write(block)
          bar.update(len(block))
  except requests.HTTPError as error:
    return f'{error.response.status_code} {error.response.reason}'
  except requests.Timeout:
    return 'no answer'
  except requests.RequestException:
    return 'no connection, or one that broke'
  return None
