"""The pictures of docs/folding.md: one neuron, three signs, and rounding.

The functions of the package decide what fires; needs matplotlib
(requirements-dev.txt).

  python docs/plot_folding.py [--output=docs]
"""

import argparse
import pathlib
import sys

import jax.numpy as jnp
import matplotlib
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from mpbn_jax.neuron import lif_scan
from mpbn_jax.norm import NORMS

MPBN = NORMS['mpbn_channel']
TAU, V_TH, EPS = 0.5, 0.5, 1e-5
BLUE, RED, GRAY = '#3f51b5', '#d84315', '#9e9e9e'


def main() -> None:
  """Writes the pictures."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  here = pathlib.Path(__file__).resolve().parent
  parser.add_argument('--output', type=pathlib.Path, default=here)
  folder = parser.parse_args().output
  matplotlib.use('Agg')  # no display is needed
  for name, figure in (
    ('neuron', neuron()),
    ('signs', signs()),
    ('rounding', rounding()),
  ):
    figure.savefig(folder / f'folding_{name}.png')


def norm(*, scale: float, bias: float, mean: float, var: float):
  """Returns (params, stats) of one channel."""
  leaf = jnp.float32
  params = {'scale': leaf(scale), 'bias': leaf(bias)}
  stats = {'mean': leaf(mean), 'var': leaf(var), 'eps': leaf(EPS)}
  return params, {**stats, 'v_th': leaf(V_TH)}


def _new(columns, *, rows=1, height=2.8, **options):
  from matplotlib import pyplot

  return pyplot.subplots(
    rows, columns, figsize=(8, height), layout='constrained', dpi=110, **options
  )


def neuron():
  """Returns the figure of a neuron's potential, with MPBN and folded."""
  params, stats = norm(scale=0.8, bias=0.1, mean=0.6, var=0.3)
  theta = float(MPBN.fold(params, stats)['threshold'])
  rng = np.random.default_rng(3)
  currents = jnp.asarray(rng.uniform(0.0, 0.9, 14), jnp.float32)
  seen = []

  def fire(state, u):
    spikes = MPBN.fires(params, stats, u).astype(jnp.float32)
    return state, spikes

  spikes, _ = lif_scan(currents, tau=TAU, fire=fire)
  u_res = 0.0
  for current, spike in zip(currents, spikes, strict=True):
    u = TAU * u_res + float(current)
    seen.append(u)
    u_res = u * (1 - float(spike))
  u, fired = np.array(seen, np.float32), np.asarray(spikes) == 1
  normed = np.asarray(MPBN.evaluate(params, stats, jnp.asarray(u)))
  steps = np.arange(1, len(u) + 1)

  figure, axes = _new(2, sharex=True)
  for axis, values, level, title, name in (
    (axes[0], normed, V_TH, 'With MPBN', 'MPBN(u)'),
    (axes[1], u, theta, 'Folded', 'u'),
  ):
    axis.vlines(steps, min(values.min(), 0), values, color=GRAY, lw=1)
    axis.plot(steps[~fired], values[~fired], 'o', color=BLUE, label='silent')
    axis.plot(steps[fired], values[fired], '^', ms=8, color=RED, label='fires')
    axis.axhline(level, color='black', lw=1, ls='--')
    text = f'v_th = {level:.1f}' if axis is axes[0] else f'theta = {level:.2f}'
    axis.text(4.6, level, text, va='bottom')
    top = values.max() + 0.2 * np.ptp(values)
    axis.set(title=title, xlabel='time step', ylabel=name, ylim=(None, top))
    axis.set_xticks(steps[1::2])
  axes[1].legend(loc='upper right', fontsize=8, ncols=2)
  return figure


def signs():
  """Returns the figure of what fires for a scale above, below and at 0."""
  figure, axes = _new(3, sharey=True)
  u = np.linspace(-2, 2, 801, dtype=np.float32)
  for axis, scale, bias, title in (
    (axes[0], 0.8, 0.1, 'scale > 0: fires above theta'),
    (axes[1], -0.8, 0.1, 'scale < 0: fires below theta'),
    (axes[2], 0.0, 0.8, 'scale = 0: always (or never)'),
  ):
    params, stats = norm(scale=scale, bias=bias, mean=0.2, var=0.5)
    fired = np.asarray(MPBN.fires(params, stats, jnp.asarray(u)))
    normed = np.asarray(MPBN.evaluate(params, stats, jnp.asarray(u)))
    axis.fill_between(
      u,
      -2,
      2,
      where=np.broadcast_to(fired, u.shape),
      color=RED,
      alpha=0.15,
      lw=0,
    )
    axis.plot(u, normed, color=BLUE)
    axis.axhline(V_TH, color='black', lw=1, ls='--')
    theta = float(MPBN.fold(params, stats)['threshold'])
    if np.isfinite(theta):
      axis.axvline(theta, color=RED, lw=1)
      axis.text(theta, -1.9, ' theta', color=RED)
    axis.text(-1.95, V_TH + 0.05, 'v_th')
    axis.set(title=title, xlabel='u', xlim=(-2, 2), ylim=(-2, 2))
    axis.title.set_fontsize(10)
  axes[0].set_ylabel('MPBN(u)')
  return figure


def rounding():
  """Returns the figure of thresholds as float32 numbers, one by one."""
  params, stats = norm(scale=1.44, bias=-0.51, mean=-0.57, var=1.11)
  theta = np.float32(MPBN.fold(params, stats)['threshold'])
  one = {k: np.float32(v) for k, v in {**params, **stats}.items()}
  deviation = np.sqrt(one['var'] + one['eps'])
  closed = (V_TH - one['bias']) * deviation / one['scale'] + one['mean']
  ulp = np.spacing(theta)
  offsets = np.arange(-8, 9)
  u = (theta + offsets * ulp).astype(np.float32)
  fired = np.asarray(MPBN.fires(params, stats, jnp.asarray(u)))

  figure, axis = _new(1, height=1.9)
  axis.plot(offsets[~fired], 0 * offsets[~fired], 'o', color=BLUE)
  axis.plot(offsets[fired], 0 * offsets[fired] + 1, '^', ms=8, color=RED)
  axis.axvline(0, color=RED, lw=1)
  axis.text(-0.15, 0.5, 'fold', color=RED, ha='right', va='center')
  miss = round(float(closed - theta) / float(ulp))
  axis.axvline(miss, color='black', lw=1, ls='--')
  axis.text(miss + 0.15, 0.5, 'closed form (Eq. 10)', va='center')
  axis.set(
    xlabel=f'float32 numbers around theta = {theta:.7f}',
    yticks=[0, 1],
    yticklabels=['silent', 'fires'],
    ylim=(-0.4, 1.4),
  )
  return figure


if __name__ == '__main__':
  main()
