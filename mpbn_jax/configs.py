"""The configurations of a checkout, as `mpbn_jax.configs`.

Installed, the folder `configs` is inside the package, and this module is not.
"""

import pathlib

__path__ = [str(pathlib.Path(__file__).resolve().parent.parent / 'configs')]
