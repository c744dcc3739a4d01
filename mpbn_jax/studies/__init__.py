"""Studies: arms that are trained with several seeds, compared and tabulated."""

from mpbn_jax.studies.study import Study, Task

__all__ = ['Study', 'Task']
