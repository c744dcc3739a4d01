"""Errors that the user can fix."""

import difflib


class InputError(ValueError):
  """Invalid input from the user.

  The message is one line: what was expected, what was given, how to fix it.
  `main.py` prints it without a traceback and exits with code 2; every other
  exception is a bug in this package and keeps its traceback. The message may
  quote names from files: unprintable characters are escaped.

  Example:
    >>> from mpbn_jax import LIF
    >>> LIF(tau=2.0)
    Traceback (most recent call last):
    ...
    mpbn_jax.errors.InputError: tau is the kept fraction of the membrane ...
  """

  def __init__(self, message: str):
    super().__init__(
      ''.join(c if c.isprintable() else repr(c)[1:-1] for c in message)
    )


def unknown(kind: str, name: object, known) -> InputError:
  """Returns the error for a name that is in no registry.

  Args:
    kind: what the name stands for, for example 'surrogate'.
    name: the unknown name.
    known: the registered names.
  """
  known = sorted(known)
  nearest = difflib.get_close_matches(str(name), known, n=1)
  hint = f'; did you mean {nearest[0]!r}?' if nearest else ''
  return InputError(
    f'unknown {kind} {name!r}: expected one of {", ".join(known)}{hint}'
  )
