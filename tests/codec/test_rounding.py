"""Rounding and tables: against exact arithmetic, scipy and mpmath; nothing here trusts the code that it tests."""

import math

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.special import ndtr

from vlae import VlaeError
from vlae.codec import rounding
from vlae.codec.ans import TOTAL, check_tables
from vlae.codec.rounding import (
    BINS,
    DIGIT,
    GUARD,
    LOG_LEAST,
    LOG_STEP,
    MEAN_STEP,
    SCALE_STEP,
    SCALES,
    SHIFTS,
    UNIT,
    WEIGHT,
    Bins,
    Normals,
    bounded,
    choose_shifts,
    frequencies,
    level_frequencies,
    normal_cdf,
    rounded,
)

# -- guarded rounding -------------------------------------------------------------------------------------------------


def near_boundaries(step):
    """Values on both sides of a grid boundary of some shift, at distances of about the guard."""
    return st.builds(
        lambda k, r, by: (k + 0.5 - SHIFTS[r]) * step + by * GUARD,
        st.integers(-1300, 1300),
        st.integers(0, len(SHIFTS) - 1),
        st.sampled_from([0, 0.3, -0.3, 0.999, -0.999, 1.001, -1.001, 2, -2, 100]),
    )


def parameters(step):
    values = st.one_of(st.floats(-21, 21), near_boundaries(step), near_boundaries(step))
    return st.lists(values, min_size=1, max_size=7).map(np.array)


def test_shifts_are_distinct_and_the_first_does_nothing():
    assert SHIFTS[0] == 0
    assert len(set(SHIFTS)) == len(SHIFTS)
    assert (np.abs(SHIFTS) <= 0.5).all()
    gaps = np.abs(SHIFTS[:, None] - SHIFTS)[~np.eye(len(SHIFTS), dtype=bool)]
    for step in (LOG_STEP, MEAN_STEP, SCALE_STEP):  # so that one value near a boundary rules out one shift only
        assert gaps.min() * step > 1000 * GUARD


@settings(max_examples=300, deadline=None)
@given(a=parameters(LOG_STEP), b=parameters(SCALE_STEP), signs=st.integers(0, 2**14 - 1))
def test_no_perturbation_below_the_guard_changes_the_integers(a, b, signs):
    groups = (a[None], LOG_STEP), (b[None], SCALE_STEP)
    shifts = choose_shifts(*groups)  # 14 values at most can't rule out all 16 shifts
    bits = np.array([1 if signs >> i & 1 else -1 for i in range(14)])
    for (values, step), noise in zip(groups, (bits[:7], bits[7:]), strict=True):
        perturbed = values + 0.99 * GUARD * noise[: values.shape[1]]
        assert np.array_equal(rounded(values, step, shifts), rounded(perturbed, step, shifts))
        error = (rounded(values, step, shifts) - SHIFTS[shifts]) * step - values
        assert (np.abs(error) <= step / 2 * (1 + 1e-9)).all()


@settings(max_examples=100, deadline=None)
@given(parameters(LOG_STEP))
def test_the_first_safe_shift_is_taken(values):
    (chosen,) = choose_shifts((values[None], LOG_STEP))
    for shift in range(chosen):  # every one before it would have been unsafe for some value
        grid = np.array([shift])
        ends = [rounded(values[None] + by * 1.001 * GUARD, LOG_STEP, grid) for by in (-1, 1)]
        assert (ends[0] != ends[1]).any()


def test_lanes_are_independent():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(50, 3, 4))
    values[::2, 1, 2] = 0.5 * LOG_STEP  # unsafe at the first shift
    together = choose_shifts((values, LOG_STEP))
    assert (together > 0).tolist() == [True, False] * 25
    alone = [choose_shifts((lane[None], LOG_STEP))[0] for lane in values]
    assert together.tolist() == alone


def test_log_masses_without_weight_are_never_near_a_boundary():
    impossible = bounded(np.array([[-np.inf, -1e308, LOG_LEAST - 1e-3, LOG_LEAST, -1.0]]))
    assert impossible.tolist() == [[LOG_LEAST] * 4 + [-1]]
    assert choose_shifts((impossible, LOG_STEP)).tolist() == [0]
    scaled = LOG_LEAST / LOG_STEP + SHIFTS
    assert (np.abs(scaled - np.floor(scaled) - 0.5) > 0.01).all()
    for by in (-1, 1):  # around the cut
        value, other = (bounded(np.array([[LOG_LEAST + e]])) for e in (0, by * 0.9 * GUARD))
        assert np.array_equal(level_frequencies(value, np.array([0])), level_frequencies(other, np.array([0])))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_refuses_what_is_not_finite(bad):
    values = np.zeros((3, 2))
    values[1, 1] = bad
    with pytest.raises(VlaeError, match="not finite"):
        choose_shifts((np.zeros((3, 5)), MEAN_STEP), (values, SCALE_STEP))


def test_refuses_an_image_that_no_shift_keeps_safe():
    blocked = (0.5 - SHIFTS)[None] * LOG_STEP  # one value on a boundary of each shift
    assert choose_shifts((np.delete(blocked, 11, 1), LOG_STEP)).tolist() == [11]
    with pytest.raises(VlaeError, match="no grid"):
        choose_shifts((blocked, LOG_STEP))


def test_decoding_of_damaged_files_survives_what_overflows():
    values = np.array([[np.nan, np.inf, -np.inf, 1e15, -1e15]])
    for shift in range(len(SHIFTS)):
        got = rounded(values, LOG_STEP, np.array([shift]))
        assert got[0, 0] == 0
        assert got[0, 1] > 2**39
        assert got[0, 2] < -(2**39)
        assert np.abs(got[0]).max() < 2**60


def test_no_dimensions_are_safe():
    assert choose_shifts((np.zeros((3, 0)), MEAN_STEP)).tolist() == [0, 0, 0]


# -- tables -----------------------------------------------------------------------------------------------------------


def test_exponentials_against_mpmath():
    table = rounding._exponentials()
    with mpmath.workdps(50):
        for k, value in enumerate(table.tolist()):
            assert value == int(mpmath.nint(WEIGHT * mpmath.e ** (-mpmath.mpf(k) * mpmath.mpf(LOG_STEP))))
    assert table[-1] == 0
    assert table.max() * TOTAL < 2**63


def test_normal_table_against_mpmath():
    table = rounding._normal()
    half = len(table) // 2
    with mpmath.workdps(40):
        for i in [*range(-half + 1, half, 37), -1, 0, 1, half - 1]:
            assert table[half + i] == int(mpmath.nint(UNIT * mpmath.ncdf(mpmath.mpf(i) / rounding.CELLS)))
    assert table[0] == 0
    assert table[-1] == UNIT
    assert UNIT * TOTAL < 2**63


def test_inverse_scales_against_mpmath():
    table = rounding._inverse_scales()
    with mpmath.workdps(40):
        expected = [float(mpmath.exp(-mpmath.mpf(k) * SCALE_STEP)) for k in range(-SCALES, SCALES + 1)]
    assert table.tolist() == expected


def test_normal_cdf_is_close_monotone_and_symmetric():
    x = np.linspace(-8, 8, 200_001)
    cdf = normal_cdf(x)
    assert np.abs(cdf / UNIT - ndtr(x)).max() < 2.1e-6  # linear in cells of 1/128: 0.242 / 128^2 / 8
    assert (np.diff(cdf) >= 0).all()
    assert np.abs(cdf + normal_cdf(-x) - UNIT).max() <= 1
    assert normal_cdf(np.array([-np.inf, -7.0, 7.0, np.inf, -1e300, 1e300])).tolist() == [0, 0, UNIT, UNIT, 0, UNIT]


@settings(max_examples=300, deadline=None)
@given(st.floats(-7.5, 7.5), st.floats(0, 1e-6))
def test_normal_cdf_is_monotone_at_any_point(x, by):
    below, middle, above = normal_cdf(np.array([x, np.nextafter(x, np.inf), x + by]))
    assert 0 <= below <= middle <= UNIT
    assert below <= above


weights = arrays.arrays(
    np.int64,
    st.integers(1, 70),
    elements=st.one_of(st.integers(0, UNIT), st.sampled_from([0, 1, UNIT - 1, UNIT])),
)


@settings(max_examples=400, deadline=None)
@given(weights, st.sampled_from([0, 1]))
def test_frequencies_against_whole_numbers_of_any_size(row, least):
    freqs = frequencies(row[None], least)[0].tolist()
    exact = row.tolist() if row.any() else [1] * len(row)
    expected = [w * (TOTAL - len(exact) * least) // sum(exact) + least for w in exact]
    expected[exact.index(max(exact))] += TOTAL - sum(expected)
    assert freqs == expected
    assert sum(freqs) == TOTAL
    assert min(freqs) >= least
    if least == 0 and row.any():
        assert all(freq == 0 for freq, weight in zip(freqs, row, strict=True) if weight == 0)


def test_frequencies_row_by_row():
    rows = np.array([[[1, 1], [0, 5]], [[0, 0], [UNIT, 0]]])
    half = TOTAL // 2
    assert frequencies(rows, 0).tolist() == [[[half, half], [0, TOTAL]], [[half, half], [TOTAL, 0]]]
    assert frequencies(rows, 1)[1, 1].tolist() == [TOTAL - 1, 1]


@settings(max_examples=100, deadline=None)
@given(arrays.arrays(np.float64, (1, 3, 17), elements=st.floats(-40, 12)), st.integers(0, 15))
def test_level_tables_follow_the_model(logits, shift):
    log_masses = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    freqs = level_frequencies(log_masses, np.array([shift]))
    check_tables(freqs)
    assert freqs.min() >= 1
    p = np.exp(log_masses)
    excess = (p * (log_masses - np.log(freqs / TOTAL))).sum(-1)  # nats that the tables cost
    assert excess.max() < 1e-4
    heavy = p > 1e-3
    assert np.abs(np.log(freqs / TOTAL)[heavy] - log_masses[heavy]).max() < LOG_STEP + 1e-3


def test_level_tables_of_impossible_levels():
    log_masses = np.array([[[0.0, -np.inf], [-np.inf, 1e-12], [np.nan, np.nan], [-np.inf, -np.inf]]])
    for shift in range(len(SHIFTS)):
        freqs = level_frequencies(log_masses, np.array([shift]))
        check_tables(freqs)
        assert freqs[0, 0].tolist() == [TOTAL - 1, 1]
        assert freqs[0, 1].tolist() == [1, TOTAL - 1]
        assert freqs[0, 2].tolist() == [TOTAL // 2, TOTAL // 2]


# -- bins of a latent -------------------------------------------------------------------------------------------------


def masses(bins, mean, scale, least):
    """The probability of every bin under both digits' tables, [BINS], for a mean and a log-scale as grid points."""
    normal = Normals(np.array([[mean]]), np.array([[scale]]))
    first = bins.first(normal, least)
    check_tables(first)
    digits = np.arange(DIGIT)
    second = bins.second(digits, Normals(normal.mean.repeat(DIGIT, 0), normal.scale.repeat(DIGIT, 0)), least)
    check_tables(second)
    return (first[0][:, None] / TOTAL * (second / TOTAL)).ravel(), first[0], second


@pytest.mark.parametrize("least", [0, 1])
@pytest.mark.parametrize("width", [1 / 16, 0.5, 2.0, 0.3])
@pytest.mark.parametrize("sigma", [0.01, 0.1, 1.0, 3.0])
@pytest.mark.parametrize("mean", [0.0, -1.37, 5.5])
def test_digits_multiply_to_the_normal_distribution(mean, sigma, width, least):
    mean_point, scale_point = round(mean / MEAN_STEP), round(math.log(sigma) / SCALE_STEP)
    got, first, second = masses(Bins(width), mean_point, scale_point, least)
    assert got.sum() == pytest.approx(1)
    mean, sigma = mean_point * MEAN_STEP, math.exp(scale_point * SCALE_STEP)
    middles = (np.arange(BINS) - BINS // 2) * width
    above, below = ((middles + by * width / 2 - mean) / sigma for by in (1, -1))
    # The smaller of both tails' differences, so that nothing cancels.
    expected = np.where(below > 0, ndtr(-below) - ndtr(-above), ndtr(above) - ndtr(below))
    assert np.abs(got - expected).sum() < 5e-4
    heavy = expected > 1e-3
    assert np.abs(got[heavy] / expected[heavy] - 1).max() < 0.01
    if least:
        assert first.min() >= 1
        assert second.min() >= 1
    else:
        assert got[np.abs(middles - mean) > 7 * sigma + width].sum() == 0, "nothing is popped far from the mean"


@pytest.mark.parametrize("weights", [(1.0,), (0.3, 0.7), (1.0, 1e-12), (0.5, 0.25, 0.25)])
@pytest.mark.parametrize("width", [1 / 16, 0.5])
def test_digits_of_a_mixture_multiply_to_its_mass(weights, width):
    means, sigmas = np.array([-1.5, 2.25, 0.5])[: len(weights)], np.array([0.5, 2.0, 0.05])[: len(weights)]
    parameters = [np.array(each, float)[None, None] for each in (means, np.log(sigmas), np.log(weights))]
    normal = Normals.of((parameters[0], parameters[1], parameters[2]), np.array([0]))
    assert normal.weights is not None and normal.weights.sum() == TOTAL
    bins = Bins(width)
    first = bins.first(normal, 1)
    every = Normals(*(each.repeat(DIGIT, 1) for each in (normal.mean, normal.scale, normal.weights)))
    second = bins.second(np.arange(DIGIT)[None], every, 1)
    check_tables(first)
    check_tables(second)
    got = (first[0, 0][:, None] / TOTAL * (second[0] / TOTAL)).ravel()
    edges = (np.arange(BINS + 1) - BINS // 2 - 0.5) * width
    sigmas = np.exp(normal.scale[0, 0] * SCALE_STEP)
    expected = sum(
        w * np.diff(ndtr((edges - m * MEAN_STEP) / s))
        for w, m, s in zip(weights, normal.mean[0, 0], sigmas, strict=True)
    )
    assert np.abs(got - expected).sum() < 0.01  # the weights' grid is a 64th of a nat
    heavy = expected > 1e-3
    assert np.abs(got[heavy] / expected[heavy] - 1).max() < 0.02


@pytest.mark.parametrize("least", [0, 1])
@pytest.mark.parametrize("width", [1 / 16, 2.0, 1e-9, 1e9])
@pytest.mark.parametrize("scale", [-(2**41), -SCALES, 0, SCALES, 2**41])
@pytest.mark.parametrize("mean", [-(2**41), -(2**20), 0, 1, 2**20, 2**41])
def test_tables_stay_sound_at_the_extremes(mean, scale, width, least):
    got, *_ = masses(Bins(width), mean, scale, least)
    assert np.isfinite(got).all()
    assert got.sum() == pytest.approx(1)


def test_what_is_popped_can_be_pushed_again():
    """With least=0 a popped bin must have mass again when it is pushed: no first digit leads to an empty second one."""
    rng = np.random.default_rng(0)
    bins = Bins(1 / 16)
    for _ in range(60):
        mean, scale = rng.integers(-(2**15), 2**15), rng.integers(-SCALES, 300)
        _, first, second = masses(bins, mean, scale, 0)
        edges = (np.arange(BINS + 1) - BINS // 2 - 0.5) / 16
        weights = np.diff(normal_cdf((edges - mean * MEAN_STEP) * math.exp(-scale * SCALE_STEP))).reshape(DIGIT, DIGIT)
        reachable = (first[:, None] > 0) & (second > 0)
        assert not (reachable & (weights == 0)).any()


def test_values_and_nearest_are_inverse():
    for width in (1 / 16, 0.5, 0.3):
        bins = Bins(width)
        every = np.arange(BINS)
        assert np.array_equal(bins.nearest(bins.values(every)), every)
        z = np.random.default_rng(0).uniform(-1, 1, 1000) * width * BINS / 2 * 0.99
        assert np.abs(bins.values(bins.nearest(z)) - z).max() <= width / 2 * (1 + 1e-9)
    assert Bins(1 / 16).values(np.array([0, BINS // 2])).tolist() == [-128, 0]


@pytest.mark.parametrize("z", [1000.0, -1000.0, np.nan, np.inf])
def test_latents_out_of_range_are_refused(z):
    with pytest.raises(VlaeError, match="range"):
        Bins(1 / 16).nearest(np.array([0.0, z]))
