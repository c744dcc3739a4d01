"""Pages of the site that are made from other files.

mkdocs.yml names this file as its hook: the quickstart notebook, the examples
and CHANGELOG.md become pages, and the paths of the former two link to these.
"""

import fnmatch
import json
import pathlib
import re

from mkdocs.structure.files import File, Files

DOCS = pathlib.Path(__file__).resolve().parent
EXAMPLES = sorted((DOCS / 'examples').glob('*.py'))


def on_config(config):
  """Replaces each pattern in the navigation with the pages that match it."""
  pages = sorted(
    [
      *(f'examples/{path.stem}.md' for path in EXAMPLES),
      *(p.relative_to(DOCS).as_posix() for p in DOCS.glob('results/**/*.md')),
    ]
  )

  def expand(entry):
    if isinstance(entry, dict):
      return [{title: expand(inside)} for title, inside in entry.items()]
    if isinstance(entry, list):
      return [one for inside in entry for one in expand(inside)]
    return fnmatch.filter(pages, entry) if '*' in entry else [entry]

  config.nav = expand(config.nav)
  return config


def on_files(files: Files, config) -> Files:
  """Adds the pages."""
  changelog = (DOCS.parent / 'CHANGELOG.md').read_text()
  notebook = json.loads((DOCS / 'quickstart.ipynb').read_text())
  pages = {
    'changelog.md': changelog,
    'quickstart.md': ''.join(map(_cell, notebook['cells'])),
  }
  for path in EXAMPLES:
    code = f'```python\n{path.read_text()}```\n'
    pages[f'examples/{path.stem}.md'] = f'# {path.name}\n\n{code}'
  for name, content in pages.items():
    files.append(File.generated(config, name, content=content))
  return files


def on_page_markdown(markdown: str, *, page, **kwargs) -> str:
  """Links the paths of examples, and the notebook, to their pages."""
  del kwargs
  if '/' in page.file.src_uri:
    return markdown
  examples = r'`docs/(examples/\w+)\.py`'
  markdown = re.sub(examples, r'[`docs/\1.py`](\1.md)', markdown)
  return markdown.replace('](quickstart.ipynb)', '](quickstart.md)')


def _cell(cell) -> str:
  """Returns the Markdown of a cell and its outputs."""
  source = ''.join(cell['source'])
  if cell['cell_type'] == 'markdown':
    return f'{source}\n\n'
  outputs = cell['outputs']
  text = ''.join(''.join(o['text']) for o in outputs if 'text' in o)
  images = [o['data']['image/png'] for o in outputs if 'data' in o]
  code = f'```python\n{source}\n```\n\n'
  if text:  # a table is shown as one
    code += f'{text}\n' if text[0] == '|' else f'```text\n{text}```\n\n'
  for image in images:
    code += f'![](data:image/png;base64,{"".join(image.split())})\n\n'
  return code
