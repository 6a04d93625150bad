"""All measures of disentanglement together, and what they refuse."""

import pytest
import torch

from vlae import VlaeError, data
from vlae.data.factors import grid
from vlae.evaluation import disentanglement as measures
from vlae.evaluation.disentanglement import disentanglement
from vlae.evaluation.metrics import METRICS

FULL = grid([4, 3, 5]).repeat(2, 1)
ALL = [measures.mig, measures.sap, measures.dci, measures.factor_vae_score, disentanglement]


def test_every_measure_is_known_by_its_name():
    scores = disentanglement(FULL.double(), FULL)
    assert list(scores) == [name for name, metric in METRICS.items() if metric.group == "disentanglement"]
    assert all(type(score) is float for score in scores.values())


def test_the_factors_themselves_reach_the_top_and_a_constant_the_bottom():
    top = disentanglement(FULL.double(), FULL)
    assert top.pop("sap") == pytest.approx((3 / 4 + 2 / 3 + 4 / 5) / 3)
    assert list(top.values()) == pytest.approx([1] * 5, rel=1e-9)
    bottom = disentanglement(torch.zeros(len(FULL), 3), FULL)
    assert bottom.pop("dci_informativeness") < 0.4
    assert set(bottom.values()) == {0}


def test_mixing_lowers_everything_but_informativeness():
    v = grid([5, 5, 3])
    standard = (v - v.double().mean(0)) / v.double().std(0)
    turned = torch.cat([standard[:, :1] + standard[:, 1:2], standard[:, :1] - standard[:, 1:2], standard[:, 2:]], 1)
    pure, mixed = disentanglement(standard, v), disentanglement(turned, v)
    for name in ("mig", "sap", "dci_disentanglement", "dci_completeness", "factor_vae"):
        assert mixed[name] < pure[name] - 0.1


def test_a_code_of_real_pictures_is_measured_the_same_every_time():
    sprites = data.load("sprites", "test", size=16).subset(400)
    codes = sprites.tensor().flatten(1)[:, ::97]
    torch.manual_seed(1)
    scores = disentanglement(codes, sprites.factors, seed=3)
    torch.manual_seed(2)
    assert disentanglement(codes, sprites.factors, seed=3) == scores
    assert all(0 <= score <= 1 for score in scores.values())
    three = measures.dci(codes, sprites.factors, seed=3)
    assert scores["dci_disentanglement"] == three.disentanglement != three.completeness == scores["dci_completeness"]
    assert scores["dci_informativeness"] == three.informativeness
    assert scores["factor_vae"] == measures.factor_vae_score(codes, sprites.factors, seed=3)
    other = disentanglement(codes, sprites.factors, seed=4)
    assert {name for name in scores if other[name] == scores[name]} == {"mig", "sap"}


@pytest.mark.parametrize("measure", ALL)
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"codes": torch.zeros(120)}, r"codes \[N, D\]"),
        ({"codes": torch.zeros(119, 3)}, "of the same images"),
        ({"codes": torch.zeros(120, 0)}, r"\[120, 0\]"),
        ({"factors": FULL[:, 0]}, r"factors \[N, F\]"),
        ({"codes": torch.full((120, 2), torch.nan)}, "NaN"),
        ({"codes": torch.full((120, 2), torch.inf)}, "infinite"),
        ({"codes": torch.full((120, 2), 1e200, dtype=torch.float64)}, "absurdly large"),
        ({"factors": FULL + 0.5}, "whole numbers"),
        ({"factors": FULL + torch.nan}, "whole numbers"),
        ({"factors": FULL[:, :1]}, "at least two factors that vary; 1 of 1"),
        ({"factors": FULL * torch.tensor([0, 1, 0])}, "at least two factors that vary; 1 of 3"),
        ({"factors": FULL[:, :0]}, "0 of 0"),
        ({"factors": torch.cat([FULL, torch.arange(120)[:, None]], 1)}, "120 classes in 120 images: .* 240 images"),
    ],
)
def test_what_cannot_be_measured_is_refused(measure, changes, said):
    with pytest.raises(VlaeError, match=said) as error:
        measure(**{"codes": FULL.double(), "factors": FULL, **changes})
    assert "\n" not in str(error.value)


def test_whole_numbers_of_any_type_are_classes_and_codes_may_be_discrete():
    expected = disentanglement(FULL.double(), FULL)
    assert disentanglement(FULL, FULL.float()) == expected
    assert disentanglement(FULL.to(torch.uint8), 10 * FULL.to(torch.int16) - 3) == expected
    assert disentanglement(FULL.float().requires_grad_(), FULL) == expected
