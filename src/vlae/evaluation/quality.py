"""Image quality: distances between images and their reconstructions, sharpness, and samples against data.

All of it in float64, whatever the images' precision.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from vlae.errors import VlaeError
from vlae.evaluation.classifier import Classifier

EXACT = 1e-10  # the least mean squared error that the PSNR tells apart, 100 dB
CHUNK = 500  # images at a time: memory, not the result
ROUNDING = 1e-3  # that images may leave [0, 1] by


def mse(x: Tensor, y: Tensor) -> Tensor:
    """Mean squared error per value of images x and y [N, C, H, W], [N]."""
    return _pairwise(lambda a, b: (a - b).square().flatten(1).mean(1), x, y)


def l1(x: Tensor, y: Tensor) -> Tensor:
    """Mean absolute error per value of images x and y [N, C, H, W], [N]."""
    return _pairwise(lambda a, b: (a - b).abs().flatten(1).mean(1), x, y)


def psnr(x: Tensor, y: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of images in [0, 1], in dB per image, [N]: -10 log10(MSE), at most 100.

    Example:
        >>> psnr(torch.zeros(1, 1, 4, 4), torch.full((1, 1, 4, 4), 0.1)).round(decimals=4).tolist()
        [20.0]
    """
    check_range(x, y)
    return -10 * mse(x, y).clamp(min=EXACT).log10()


def ssim(x: Tensor, y: Tensor) -> Tensor:
    """Structural similarity of images in [0, 1] (Wang et al. 2004), 1 for equal ones, [N].

    The mean over channels and all positions where the window lies inside the image. The window is the paper's, 11 x 11
    and Gaussian with sigma 1.5; images of fewer than 11 pixels a side get a square one with equal weights, of 7 pixels
    or the largest odd number that fits. Values of different windows are not comparable.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure  # seconds to import

    side = _side(x)
    check_range(x, y)
    gaussian = side >= 11
    window = 11 if gaussian else min(7, side - 1 + side % 2)
    inside = slice(window // 2, -(window // 2))

    def similarity(a: Tensor, b: Tensor) -> Tensor:
        # torchmetrics mirrors the images at their borders, which is no part of the definition, so its map is cut.
        _, everywhere = structural_similarity_index_measure(
            a, b, gaussian, 1.5, window, reduction="none", data_range=1.0, return_full_image=True
        )
        return everywhere[..., inside, inside].flatten(1).mean(1)

    return _pairwise(similarity, x, y)


def sharpness(x: Tensor) -> Tensor:
    """Variance of the Laplacian of images [N, C, H, W] (Pech-Pacheco et al. 2000), mean over channels, [N].

    The Laplacian is the sum of a pixel's four neighbours less four times the pixel, where all of them are in the image.
    Its variance falls as edges widen; the mean gradient would not do, since it is the same for an edge of any width.
    It means something beside the data's own value alone: noise is sharp too.

    Example:
        >>> ramp = torch.linspace(0, 1, 5).expand(1, 1, 5, 5)
        >>> sharpness(torch.cat([ramp, (ramp > 0.5).float()])).tolist()
        [0.0, 0.6666666666666666]
    """
    _side(x)

    def variance(a: Tensor) -> Tensor:
        laplacian = a[..., 1:-1, :-2] + a[..., 1:-1, 2:] + a[..., :-2, 1:-1] + a[..., 2:, 1:-1] - 4 * a[..., 1:-1, 1:-1]
        return laplacian.flatten(2).var(2, correction=0).mean(1)

    return torch.cat([variance(part.double()) for part in x.split(CHUNK)])


def reconstruction_quality(x: Tensor, y: Tensor) -> dict[str, float]:
    """Means over images x and their reconstructions y [N, C, H, W] in [0, 1]: mse, l1, psnr, ssim and y's sharpness.

    The last two of images that have an inside.
    """
    values = {"mse": mse(x, y), "l1": l1(x, y), "psnr": psnr(x, y)}
    if has_inside(x):
        values |= {"ssim": ssim(x, y), "sharpness": sharpness(y)}
    return {name: value.mean().item() for name, value in values.items()}


def frechet_distance(a: Tensor, b: Tensor) -> float:
    r"""The squared Frechet distance of Gaussians fitted to features a [N, D] and b [M, D] (Heusel et al. 2017, eq. 6).

    .. math:: |\mu_a - \mu_b|^2 + \mathrm{tr}(\Sigma_a + \Sigma_b - 2 (\Sigma_a \Sigma_b)^{1/2})

    0 for equal sets. Its estimate is biased upwards, the more the fewer the images: compare at equal numbers only.

    Raises:
        VlaeError: fewer than two rows, another D, or features that are not finite.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise VlaeError(f"features must be [N, D] and [M, D] with N, M >= 2; got {list(a.shape)} and {list(b.shape)}")
    a, b = a.double(), b.double()
    if not (a.isfinite().all() and b.isfinite().all()):
        raise VlaeError("features must be finite: the images that they are of hold NaN or infinite values")
    # With S = R^T R for both, S_a S_b has the eigenvalues of (R_a R_b^T)(R_a R_b^T)^T: the trace of its root is the sum
    # of the singular values of R_a R_b^T. No root of a matrix, and small where the images are few.
    root_a, root_b = _factor(a), _factor(b)
    overlap = torch.linalg.svdvals(root_a @ root_b.T).sum()
    means = (a.mean(0) - b.mean(0)).square().sum()
    return (means + root_a.square().sum() + root_b.square().sum() - 2 * overlap).clamp(min=0).item()


def inception_score(log_probabilities: Tensor, splits: int = 1) -> tuple[float, float]:
    r"""The Inception Score of images (Salimans et al. 2016), and its standard error over the splits.

    .. math:: \exp \mathbb{E}_x \mathrm{KL}(p(y|x) \,\|\, p(y)), \quad p(y) = \mathbb{E}_x p(y|x)

    1 where all images are judged alike, K where each is surely of one class and all classes are equally frequent. Its
    estimate is biased downwards, the more the fewer the images: compare at equal numbers only.

    Args:
        log_probabilities: log p(y|x) in nats, [N, K].
        splits: parts of consecutive images that are scored one by one and averaged; the published form takes ten.

    Returns:
        The mean over splits, and its standard error, NaN for one split.

    Raises:
        VlaeError: the rows are no distributions, or there are fewer images than splits.

    Example:
        >>> inception_score(torch.eye(4).log())
        (4.0, nan)
    """
    if log_probabilities.ndim != 2 or not 1 <= splits <= len(log_probabilities):
        raise VlaeError(
            f"log-probabilities must be [N, K], with at least one row a split; got {list(log_probabilities.shape)} and "
            f"{splits} splits"
        )
    log_probabilities = log_probabilities.double()
    if not (log_probabilities.logsumexp(1).abs() < 1e-3).all():  # NaN too
        raise VlaeError("each row must be the logarithms of probabilities that add up to 1: take log_softmax of logits")
    scores = torch.stack([_score(part) for part in log_probabilities.tensor_split(splits)])
    return scores.mean().item(), (scores.std() / math.sqrt(splits)).item() if splits > 1 else math.nan


def _score(log_probabilities: Tensor) -> Tensor:
    marginal = log_probabilities.logsumexp(0) - math.log(len(log_probabilities))
    p = log_probabilities.exp()
    return torch.where(p > 0, p * (log_probabilities - marginal), 0.0).sum(1).mean().exp()


def sample_quality(judge: Classifier, data: Tensor, samples: Tensor) -> dict[str, float]:
    """What a classifier says of samples beside data, both [N, C, H, W].

    Returns:
        frechet: the distance of its features. inception_score: the Inception Score of its classes; neither is
        comparable with the same on the standard network. confidence: the mean probability of the most probable class.
        confident: the share of images where that is above 0.9.
    """
    log_probabilities = judge.log_probabilities(samples).double()
    confidence = log_probabilities.amax(1).exp()
    return {
        "frechet": frechet_distance(judge.features(data), judge.features(samples)),
        "inception_score": inception_score(log_probabilities)[0],
        "confidence": confidence.mean().item(),
        "confident": (confidence > 0.9).double().mean().item(),
    }


def _factor(features: Tensor) -> Tensor:
    """R [min(N, D), D] with R^T R the covariance of features [N, D]."""
    centred = (features - features.mean(0)) / math.sqrt(len(features) - 1)
    return torch.linalg.qr(centred, mode="r").R if len(features) > features.shape[1] else centred


def check_range(*images: Tensor) -> None:
    """Refuses images with values outside [0, 1], but for rounding, or NaN."""
    for x in images:
        low, high = x.aminmax() if x.numel() else (torch.zeros(()), torch.ones(()))
        if not (low >= -ROUNDING and high <= 1 + ROUNDING):  # NaN too
            raise VlaeError(f"images must be in [0, 1]; got values from {low.item():.3g} to {high.item():.3g}")


def _pairwise(function: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
    """`function` of images x and y, a few at a time, [N]."""
    if x.ndim != 4 or x.shape != y.shape or not len(x):
        raise VlaeError(f"images must be [N, C, H, W], both of one shape; got {list(x.shape)} and {list(y.shape)}")
    return torch.cat([function(a.double(), b.double()) for a, b in zip(x.split(CHUNK), y.split(CHUNK), strict=True)])


def has_inside(x: Tensor) -> bool:
    """Whether images [N, C, H, W] have pixels with neighbours on all sides, which SSIM and sharpness are of."""
    return min(x.shape[2:]) >= 3


def _side(x: Tensor) -> int:
    """The shorter side of images [N, C, H, W]; refuses what has no inside."""
    if x.ndim != 4 or not len(x) or not has_inside(x):
        raise VlaeError(f"expected images [N, C, H, W] of at least 3 x 3 pixels; got {list(x.shape)}")
    return min(x.shape[2:])
