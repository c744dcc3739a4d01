"""The configurations of a source checkout, as `mpbn_jax.configs`.

An installed package contains the folder `configs` in place of this module.
"""

import pathlib

__path__ = [str(pathlib.Path(__file__).resolve().parent.parent / 'configs')]
