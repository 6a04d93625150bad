"""Image quality against definitions spelled out in numpy and scipy."""

import math
import warnings

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from scipy.ndimage import gaussian_filter
from torchmetrics.functional import mean_absolute_error, mean_squared_error
from torchmetrics.functional.image import peak_signal_noise_ratio
from torchmetrics.image.inception import InceptionScore

from vlae import VlaeError
from vlae.evaluation import quality
from vlae.evaluation.classifier import Classifier


def pairs(count=3, shape=(1, 8, 8)):
    x = torch.rand(count, *shape, dtype=torch.float64)
    return x, (x + 0.2 * torch.randn(x.shape, dtype=torch.float64)).clamp(0, 1)


def ssim_by_hand(a, b, weights):
    """Wang et al. 2004, eq. 13, window by window, for one image [C, H, W]; weights [n, n] add up to 1."""
    n, values = len(weights), []
    c1, c2 = 0.01**2, 0.03**2
    for channel in range(a.shape[0]):
        for i in range(a.shape[1] - n + 1):
            for j in range(a.shape[2] - n + 1):
                u, v = a[channel, i : i + n, j : j + n], b[channel, i : i + n, j : j + n]
                mu, nu = (weights * u).sum(), (weights * v).sum()
                var_u, var_v = (weights * (u - mu) ** 2).sum(), (weights * (v - nu) ** 2).sum()
                cov = (weights * (u - mu) * (v - nu)).sum()
                values.append((2 * mu * nu + c1) * (2 * cov + c2) / ((mu**2 + nu**2 + c1) * (var_u + var_v + c2)))
    return np.mean(values)


def gaussian_window():
    line = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    return np.outer(line, line) / np.outer(line, line).sum()


@pytest.mark.parametrize(
    ("shape", "weights"),
    [
        ((1, 8, 8), np.full((7, 7), 1 / 49)),
        ((2, 10, 7), np.full((7, 7), 1 / 49)),
        ((1, 6, 9), np.full((5, 5), 1 / 25)),
        ((1, 3, 3), np.full((3, 3), 1 / 9)),
        ((1, 11, 11), gaussian_window()),
        ((3, 14, 12), gaussian_window()),
    ],
)
def test_ssim_is_its_definition(shape, weights):
    x, y = pairs(shape=shape)
    expected = [ssim_by_hand(a, b, weights) for a, b in zip(x.numpy(), y.numpy(), strict=True)]
    np.testing.assert_allclose(quality.ssim(x, y), expected, atol=1e-9)
    np.testing.assert_allclose(quality.ssim(x, x), 1, atol=1e-12)


def test_errors_and_psnr():
    x, y = pairs(4, (3, 5, 6))
    difference = (x - y).numpy()
    np.testing.assert_allclose(quality.mse(x, y), (difference**2).mean((1, 2, 3)))
    np.testing.assert_allclose(quality.l1(x, y), abs(difference).mean((1, 2, 3)))
    for a, b, value in zip(x, y, quality.psnr(x, y), strict=True):
        assert value.item() == pytest.approx(peak_signal_noise_ratio(b, a, data_range=1.0).item())
    assert quality.psnr(x, x).tolist() == [100.0] * 4


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 10, 9), (1, 28, 28), (3, 13, 16)])
def test_agreement_with_scikit_image_and_torchmetrics(shape):
    skimage = pytest.importorskip("skimage.metrics", reason="scikit-image is in the extra dev")
    x, y = pairs(4, shape)
    gaussian = min(shape[1:]) >= 11
    window = {"gaussian_weights": True, "sigma": 1.5} if gaussian else {"win_size": 7}
    for i, (a, b) in enumerate(zip(x.numpy(), y.numpy(), strict=True)):
        similarity = skimage.structural_similarity(
            a, b, data_range=1, channel_axis=0, use_sample_covariance=False, **window
        )
        assert quality.ssim(x, y)[i].item() == pytest.approx(similarity, rel=1e-9)
        assert quality.mse(x, y)[i].item() == pytest.approx(skimage.mean_squared_error(a, b), rel=1e-12)
        assert quality.psnr(x, y)[i].item() == pytest.approx(
            skimage.peak_signal_noise_ratio(a, b, data_range=1), rel=1e-12
        )
    assert quality.l1(x, y).mean().item() == pytest.approx(mean_absolute_error(x, y).item(), rel=1e-12)
    assert quality.mse(x, y).mean().item() == pytest.approx(mean_squared_error(x, y).item(), rel=1e-12)
    per_image = peak_signal_noise_ratio(y, x, data_range=1.0, reduction="elementwise_mean", dim=(1, 2, 3))
    assert quality.psnr(x, y).mean().item() == pytest.approx(per_image.item(), rel=1e-6)  # a float32 logarithm there


def laplacian_variance_by_hand(image):
    values = []
    for channel in image:
        inner = [
            channel[i - 1, j] + channel[i + 1, j] + channel[i, j - 1] + channel[i, j + 1] - 4 * channel[i, j]
            for i in range(1, channel.shape[0] - 1)
            for j in range(1, channel.shape[1] - 1)
        ]
        values.append(np.var(inner))
    return np.mean(values)


def test_sharpness_is_its_definition():
    x, _ = pairs(3, (2, 5, 7))
    expected = [laplacian_variance_by_hand(image) for image in x.numpy()]
    np.testing.assert_allclose(quality.sharpness(x), expected, rtol=1e-12)


def test_sharpness_falls_with_blur_and_not_with_a_ramp():
    edge = np.zeros((21, 21))
    edge[:, 10:] = 1
    blurred = [torch.from_numpy(gaussian_filter(edge, sigma))[None, None] for sigma in (0.0, 0.5, 1.0, 2.0)]
    values = [quality.sharpness(image).item() for image in blurred]
    assert values == sorted(values, reverse=True) and values[0] > 10 * values[-1]
    ramp = torch.linspace(0, 1, 21, dtype=torch.float64).expand(1, 1, 21, 21)
    assert quality.sharpness(ramp).item() == pytest.approx(0, abs=1e-25)


def test_means_over_images_do_not_depend_on_chunks(monkeypatch):
    x, y = pairs(7)
    whole = quality.reconstruction_quality(x, y)
    assert whole["sharpness"] == pytest.approx(quality.sharpness(y).mean().item())
    assert whole["psnr"] == pytest.approx(quality.psnr(x, y).mean().item())
    monkeypatch.setattr(quality, "CHUNK", 2)
    assert quality.reconstruction_quality(x, y) == pytest.approx(whole, rel=1e-12)
    assert set(whole) == {"mse", "l1", "psnr", "ssim", "sharpness"}


def frechet_by_hand(a, b):
    a, b = a.numpy(), b.numpy()
    covariances = [np.cov(t, rowvar=False).reshape(t.shape[1], -1) for t in (a, b)]
    root = np.real(sqrtm(covariances[0] @ covariances[1]))
    return ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(covariances[0] + covariances[1] - 2 * root)


@pytest.mark.parametrize("dimensions", [1, 4])
def test_frechet_distance_agrees_with_a_matrix_square_root(dimensions):
    a = torch.randn(40, dimensions, dtype=torch.float64) @ torch.randn(dimensions, dimensions, dtype=torch.float64)
    b = 0.5 + torch.randn(30, dimensions, dtype=torch.float64) * torch.linspace(1, 2, dimensions, dtype=torch.float64)
    assert quality.frechet_distance(a, b) == pytest.approx(frechet_by_hand(a, b), rel=1e-8)
    assert quality.frechet_distance(a, b) == pytest.approx(quality.frechet_distance(b, a), rel=1e-9)


def test_frechet_distance_of_known_pairs():
    a = torch.randn(50, 3, dtype=torch.float64)
    assert quality.frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert quality.frechet_distance(a, a + 2) == pytest.approx(3 * 4, rel=1e-9)  # the same shape elsewhere
    scaled = a.mean(0) + 3 * (a - a.mean(0))  # sqrt of the covariance: 3 to 1
    assert quality.frechet_distance(a, scaled) == pytest.approx(4 * torch.cov(a.T).trace().item(), rel=1e-9)
    few, many = torch.randn(5, 20, dtype=torch.float64), torch.randn(6, 20, dtype=torch.float64)
    assert math.isfinite(quality.frechet_distance(few, many))  # covariances without full rank


def test_inception_score_by_hand():
    log = torch.log
    classes = torch.eye(5, dtype=torch.float64)
    assert quality.inception_score(log(classes)) == (pytest.approx(5, rel=1e-12), pytest.approx(math.nan, nan_ok=True))
    assert quality.inception_score(log(classes[:2].repeat(7, 1)))[0] == pytest.approx(2, rel=1e-12)
    alike = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64).repeat(9, 1)
    assert quality.inception_score(log(alike))[0] == pytest.approx(1, rel=1e-12)
    # Two kinds of images, of which each class is 3 to 1: KL from (1/2, 1/2) is log 2 - H(1/4).
    pair = torch.tensor([[0.75, 0.25], [0.25, 0.75]], dtype=torch.float64)
    entropy = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert quality.inception_score(log(pair))[0] == pytest.approx(2 * math.exp(-entropy), rel=1e-12)


@pytest.mark.parametrize("splits", [1, 4])
def test_inception_score_is_torchmetrics(splits):
    logits = 3 * torch.randn(40, 7, dtype=torch.float64)
    parts = []
    for part in logits.chunk(splits):  # torchmetrics shuffles the images before it splits them
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it keeps all features; of one split there is no deviation
            metric = InceptionScore(feature=torch.nn.Identity(), splits=1)
            metric.update(part)
            parts.append(metric.compute()[0].item())
    mean, error = quality.inception_score(logits.log_softmax(1), splits)
    assert mean == pytest.approx(np.mean(parts), rel=1e-12)
    expected = np.std(parts, ddof=1) / np.sqrt(splits) if splits > 1 else math.nan
    assert error == pytest.approx(expected, rel=1e-9, nan_ok=True)


def test_sample_quality_is_the_classifiers():
    judge = Classifier((1, 8, 8), classes=3).eval()
    x, y = torch.rand(20, 1, 8, 8), torch.rand(20, 1, 8, 8)
    with torch.no_grad():
        judge.head[1].weight.mul_(20)
        top = judge(y).softmax(1).amax(1)
    found = quality.sample_quality(judge, x, y)
    assert found["confidence"] == pytest.approx(top.mean().item(), rel=1e-6)
    assert found["confident"] == pytest.approx((top > 0.9).float().mean().item())
    assert found["frechet"] == quality.frechet_distance(judge.features(x), judge.features(y)) > 0
    p = judge(y).softmax(1).detach().double().numpy()
    expected = np.exp(np.mean([(q * np.log(q / p.mean(0))).sum() for q in p]))
    assert found["inception_score"] == pytest.approx(expected, rel=1e-5)
    assert 1 < found["inception_score"] < 3


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: quality.mse(torch.zeros(2, 1, 4, 4), torch.zeros(2, 1, 4, 5)), "both of one shape"),
        (lambda: quality.l1(torch.zeros(4, 4), torch.zeros(4, 4)), "both of one shape"),
        (lambda: quality.sharpness(torch.zeros(1, 1, 2, 9)), "at least 3 x 3"),
        (lambda: quality.ssim(torch.zeros(1, 1, 2, 9), torch.zeros(1, 1, 2, 9)), "at least 3 x 3"),
        (lambda: quality.frechet_distance(torch.zeros(1, 3), torch.zeros(5, 3)), "N, M >= 2"),
        (lambda: quality.frechet_distance(torch.zeros(4, 3), torch.zeros(5, 2)), "N, M >= 2"),
        (lambda: quality.inception_score(torch.zeros(4)), "one row a split"),
        (lambda: quality.inception_score(torch.zeros(4, 1), splits=5), "one row a split"),
        (lambda: quality.inception_score(torch.zeros(4, 1), splits=0), "one row a split"),
        (lambda: quality.inception_score(torch.zeros(4, 3)), "take log_softmax"),
        (lambda: quality.inception_score(torch.full((4, 3), math.nan)), "take log_softmax"),
        (lambda: quality.frechet_distance(torch.full((4, 3), math.nan), torch.zeros(5, 3)), "finite"),
    ],
)
def test_bad_input_is_refused(call, said):
    with pytest.raises(VlaeError, match=said):
        call()


@pytest.mark.parametrize("measure", [quality.psnr, quality.ssim])
@pytest.mark.parametrize("value", [255.0, -0.1, float("nan")])
def test_what_takes_images_in_0_1_refuses_others(measure, value):
    x = torch.zeros(1, 1, 8, 8)
    with pytest.raises(VlaeError, match=r"must be in \[0, 1\]"):
        measure(x, torch.full_like(x, value))
