"""Where is an axis of an array after an operation of a traced program?"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple


class Axis(NamedTuple):
  """An axis that may have become a part of a larger one.

  The index along it is (index along `position`) // minor % size: `minor` is 1
  until a reshape merges it with axes after it.
  """

  name: str
  position: int
  size: int
  minor: int = 1


def moved(axes: Sequence[Axis], equation: Any) -> tuple[Axis, ...] | None:
  """Returns where axes of an equation's operand are in its result.

  Args:
    axes: of the first operand (of `mul` and `div`: of either), larger than 1.
    equation: of a jaxpr.

  Returns:
    None where elements with different indices along an axis come together, or
    an axis is cut, or the operation is not linear (or none that is known here).
  """
  rule = _RULES.get(equation.primitive.name)
  if rule is None:
    return None
  found = tuple(rule(axis, equation) for axis in axes)
  return None if None in found else found


def _stays(axis, equation):
  del equation
  return axis


def _broadcast(axis, equation):
  at = equation.params['broadcast_dimensions'][axis.position]
  return axis._replace(position=at)


def _transpose(axis, equation):
  at = equation.params['permutation'].index(axis.position)
  return axis._replace(position=at)


def _removed(name):
  def rule(axis, equation):
    gone = equation.params[name]
    if axis.position in gone:
      return None
    before = sum(other < axis.position for other in gone)
    return axis._replace(position=axis.position - before)

  return rule


def _reshape(axis, equation):
  # Elements keep their order: what stays is the stride.
  old, new = _shapes(equation)
  stride = axis.minor * math.prod(old[axis.position + 1 :])
  for position, side in enumerate(new):
    step = math.prod(new[position + 1 :])
    inside = stride % step == 0 and (step * side) % (stride * axis.size) == 0
    if inside:
      return axis._replace(position=position, minor=stride // step)
  return None


def _whole(axis, equation):
  old, new = _shapes(equation)
  same = old[axis.position] == new[axis.position]
  return axis if same else None


def _window(axis, equation):
  alone = equation.params['window_dimensions'][axis.position] == 1
  return _whole(axis, equation) if alone else None


def _shapes(equation):
  return equation.invars[0].aval.shape, equation.outvars[0].aval.shape


_RULES = {
  'broadcast_in_dim': _broadcast,
  'convert_element_type': _stays,
  'copy': _stays,
  'div': _stays,
  'mul': _stays,
  'reduce_sum': _removed('axes'),
  'reduce_window_sum': _window,
  'reshape': _reshape,
  'sharding_constraint': _stays,
  'slice': _whole,
  'squeeze': _removed('dimensions'),
  'transpose': _transpose,
}
