"""Sharding of batches over hosts and their devices."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mpbn_jax.errors import InputError


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
  """Returns a mesh of all devices (or the given ones) along 'data'."""
  devices = jax.devices() if devices is None else list(devices)
  # `jax.make_mesh` defaults to Explicit axes, which reject `x[index]`.
  return Mesh(np.array(devices), ('data',), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of arrays replicated on every device."""
  return NamedSharding(mesh, PartitionSpec())


def along_batch(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of arrays [B, ...] split along B."""
  return NamedSharding(mesh, PartitionSpec('data'))


def check_batch_size(name: str, batch_size: int, mesh: Mesh) -> None:
  """Raises InputError unless the devices divide the batch size."""
  devices = mesh.size
  if batch_size % devices:
    near = max(devices, round(batch_size / devices) * devices)
    raise InputError(
      f'{name} must be divisible by the {devices} devices, got '
      f'{batch_size}: use {near}'
    )


def largest(value: int, mesh: Mesh) -> jax.Array:
  """Returns the largest value of all hosts, on every device.

  All hosts must call it, in the same order with their other programs. It
  returns before the result is ready.

  Args:
    value: this host's, an int32.
    mesh: mesh of the devices of all hosts.
  """
  result: jax.Array = _largest(mesh)(_spread(value, mesh))
  return result


@functools.lru_cache(maxsize=8)
def _spread(value, mesh):
  """Returns one copy of this host's value per device, [devices]."""
  copies = np.full(mesh.local_mesh.size, value, np.int32)
  return jax.make_array_from_process_local_data(along_batch(mesh), copies)


@functools.lru_cache(maxsize=8)
def _largest(mesh):
  return jax.jit(jnp.max, out_shardings=replicated(mesh))


def host() -> tuple[int, int]:
  """Returns (index of this host, number of hosts)."""
  return jax.process_index(), jax.process_count()


def abstract_batch(batch, mesh: Mesh):
  """Returns the shapes of a global batch, sharded as by `shard_batch`."""
  sharding = along_batch(mesh)
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), batch
  )


def shard_batch(batch, mesh: Mesh):
  """Returns the batch on the devices, split along its first axis.

  Args:
    batch: pytree of arrays [B, ...]; with several hosts, this host's part.
    mesh: mesh of the devices of all hosts.
  """
  sharding = along_batch(mesh)
  if jax.process_count() == 1:
    return jax.device_put(batch, sharding)
  return jax.tree.map(
    lambda part: jax.make_array_from_process_local_data(sharding, part), batch
  )
