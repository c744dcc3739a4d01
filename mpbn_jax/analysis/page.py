"""A self-contained HTML page: text, tables and pictures in one file."""

import base64
import html
from collections.abc import Iterable, Sequence

_STYLE = """
:root { color-scheme: light }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 0 auto;
  padding: 0 1rem 3rem; color: #1a1a1a; background: #fff }
h1 { font-size: 1.6rem } h2 { font-size: 1.25rem; margin-top: 2.5rem;
  border-top: 1px solid #ccc; padding-top: 1rem } h3 { font-size: 1rem }
p { max-width: 44rem }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-size: .875rem;
  font-variant-numeric: tabular-nums }
th, td { padding: .2rem .7rem .2rem 0; text-align: right; white-space: nowrap }
th:first-child, td:first-child { text-align: left }
.text { text-align: left }
td.text { white-space: normal; min-width: 9rem }
tr + tr td { border-top: 1px solid #e5e5e5 }
.row { display: flex; flex-wrap: wrap; gap: .5rem; align-items: flex-start }
figure { margin: 0; flex: 0 1 auto }
figure.panel { flex: 1 1 19rem; max-width: 30rem }
figure.broad { flex: 1 1 26rem; max-width: 40rem }
.part { flex: 1 1 19rem; max-width: 30rem }
figure.small { width: 7.5rem }
figure img { width: 100%; height: auto; display: block }
figure.small img { image-rendering: pixelated }
figcaption { font-size: .8rem; color: #444 }
"""


def escape(text: object) -> str:
  """Returns text that shows as it is."""
  return html.escape(str(text))


def page(title: str, body: Iterable[str]) -> str:
  """Returns a whole HTML document."""
  return (
    '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    f'<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n'
    f'<h1>{escape(title)}</h1>\n' + '\n'.join(body) + '\n</body>\n</html>\n'
  )


def paragraph(text: str) -> str:
  """Returns a paragraph."""
  return f'<p>{escape(text)}</p>'


def heading(text: str, *, level: int = 2) -> str:
  """Returns a heading."""
  return f'<h{level}>{escape(text)}</h{level}>'


def table(rows: Sequence[Sequence[str]], *, text: Sequence[int] = ()) -> str:
  """Returns a table that scrolls sideways where it does not fit.

  Args:
    rows: rows of cells; the first has the headings.
    text: columns of words, which are broken into lines.
  """
  lines = []
  for number, cells in enumerate(rows):
    name = 'td' if number else 'th'
    line = [
      f'<{name}{" class=text" * (column in text)}>{escape(cell)}</{name}>'
      for column, cell in enumerate(cells)
    ]
    lines.append(f'<tr>{"".join(line)}</tr>')
  return f'<div class="wide"><table>{"".join(lines)}</table></div>'


def figure(
  picture: bytes, *, words: str, kind: str = 'panel', caption: str = ''
) -> str:
  """Returns a picture inside the page.

  Args:
    picture: PNG.
    words: what it shows, for those who do not see it.
    kind: 'panel', 'broad' or 'small'.
    caption: text below.
  """
  data = base64.b64encode(picture).decode()
  below = f'<figcaption>{escape(caption)}</figcaption>' if caption else ''
  return (
    f'<figure class="{kind}"><img alt="{escape(words)}" loading="lazy" '
    f'src="data:image/png;base64,{data}">{below}</figure>'
  )


def row(parts: Iterable[str]) -> str:
  """Returns parts side by side, or below each other on a narrow screen."""
  return f'<div class="row">{"".join(parts)}</div>'


def described(picture: str, text: str) -> str:
  """Returns a picture (or nothing) with a text above it."""
  return f'<div class="part">{paragraph(text)}{picture}</div>'
