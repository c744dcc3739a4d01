"""Deployment of a trained network: files for other programs, verified."""

from mpbn_jax.deployment.formats import FORMATS, Format
from mpbn_jax.deployment.network import Deployed
from mpbn_jax.deployment.report import export_folder, write_export

__all__ = ['FORMATS', 'Deployed', 'Format', 'export_folder', 'write_export']
