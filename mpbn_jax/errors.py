"""Errors that the user can mend."""

import difflib


class InputError(ValueError):
  """A value from outside that cannot be used.

  The message is one line: what was expected, what came, how to mend it.
  `main.py` prints it without a traceback and exits with code 2; every other
  exception is a defect of this package and keeps its traceback. A name in it
  that comes from a file may hold anything: what cannot be printed is escaped.
  """

  def __init__(self, message: str):
    super().__init__(
      ''.join(c if c.isprintable() else repr(c)[1:-1] for c in message)
    )


def unknown(kind: str, name: object, known) -> InputError:
  """Returns the error for a name that is in no registry.

  Args:
    kind: what the name should be, for example 'surrogate'.
    name: what came.
    known: the registered names.
  """
  known = sorted(known)
  nearest = difflib.get_close_matches(str(name), known, n=1)
  hint = f'; did you mean {nearest[0]!r}?' if nearest else ''
  return InputError(
    f'unknown {kind} {name!r}: expected one of {", ".join(known)}{hint}'
  )
