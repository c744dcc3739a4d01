"""The docstrings' sections as the documentation site reads them."""

import griffe


class Examples(griffe.Extension):
  """Lets a section `Example:` hold doctests, as griffe's `Examples:` does."""

  def on_object(self, *, obj: griffe.Object, **kwargs) -> None:
    del kwargs
    if obj.docstring is not None:
      text = obj.docstring.value
      obj.docstring.value = text.replace('\nExample:\n', '\nExamples:\n')
