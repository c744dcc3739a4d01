"""Every registered entry is in the tables of the tests."""

import pytest
from registered import TABLES


@pytest.mark.parametrize('registry', TABLES)
def test_every_entry_is_in_every_table(registry):
  entries, tables = TABLES[registry]
  missing = [
    f'{name!r} to {table}'
    for name in entries
    for table, keys in tables.items()
    if name not in keys
  ]
  assert not missing, (
    f'{registry} are tested once the tests know them: add {", ".join(missing)}'
  )
  extra = {name for keys in tables.values() for name in keys} - set(entries)
  assert not extra, f'no {registry} of these names: {", ".join(sorted(extra))}'
