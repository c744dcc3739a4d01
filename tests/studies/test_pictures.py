"""Pictures of a study: which arms share a panel, and how they differ."""

import numpy as np
import pytest

from mpbn_jax.studies import pictures

CURVE = np.arange(3), np.linspace(0, 1, 6).reshape(2, 3)


def figure(*arms):
  return pictures.figure(dict.fromkeys(arms, CURVE))


def legend(whole):
  return [text.get_text() for text in whole.legends[0].get_texts()]


def test_every_setting_of_arms_has_a_panel_ordered_by_its_numbers():
  arms = [f'{arm}, T = {t}' for t in (10, 2) for arm in ('bn', 'mpbn')]
  whole = figure(*arms)
  titles = [axis.get_title() for axis in whole.axes]
  assert titles == ['T = 2 (2 seeds)', 'T = 10 (2 seeds)']
  assert legend(whole) == ['bn', 'mpbn']


def test_more_panels_than_a_row_has_room_for_are_in_rows_of_three():
  whole = figure(*(f'bn, T = {t}' for t in range(5)))
  shown = [axis for axis in whole.axes if axis.axison]
  assert [axis.get_title()[:5] for axis in shown] == [
    f'T = {t}' for t in range(5)
  ]
  assert [axis.get_subplotspec().rowspan.start for axis in shown] == [
    *(0, 0, 0, 1, 1)
  ]
  assert [bool(axis.get_ylabel()) for axis in shown] == [
    *(True, False, False, True, False)
  ]


def test_a_comma_in_the_name_of_one_arm_is_no_setting():
  whole = figure('bn', 'MP-Init, learned v_th')
  assert len(whole.axes) == 1
  assert legend(whole) == ['bn', 'MP-Init, learned v_th']


@pytest.mark.parametrize('count', [13, 24])
def test_no_two_arms_look_the_same(count):
  whole = figure(*map(str, range(count)))
  looks = {(a.get_color(), a.get_linestyle()) for a in whole.axes[0].lines}
  assert len(looks) == len(whole.axes[0].lines) == count
