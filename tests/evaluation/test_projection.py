"""Projections: PCA against scikit-learn's, and which dimensions are chosen."""

import sys
import types

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from vlae import VlaeError
from vlae.data import ImageDataset
from vlae.evaluation.codes import code_bits, code_means
from vlae.evaluation.projection import by_umap, principal_components, project
from vlae.models import VQVAE, DenoisingAutoencoder

SHAPE = (1, 5, 4)


@pytest.fixture
def data():
    x = torch.randint(0, 2, (12, *SHAPE)).double()
    return ImageDataset.from_any(x, levels=2, split="test")


def test_principal_components_are_those_of_scikit_learn():
    codes = torch.randn(60, 7, dtype=torch.float64) @ torch.randn(7, 7, dtype=torch.float64) + 3
    points, shares = principal_components(codes)
    reference = PCA(2, svd_solver="full")
    theirs = reference.fit_transform(codes.numpy())
    np.testing.assert_allclose(shares, reference.explained_variance_ratio_)
    np.testing.assert_allclose(points.abs(), np.abs(theirs), atol=1e-10)
    flipped, _ = principal_components(-codes)  # the sign is that of the loadings, not of the decomposition
    torch.testing.assert_close(flipped, -points)


def test_codes_that_do_not_vary_have_no_components():
    with pytest.raises(VlaeError, match="all codes are the same"):
        principal_components(torch.ones(5, 3))
    with pytest.raises(VlaeError, match="NaN"):
        principal_components(torch.full((5, 3), torch.nan))
    with pytest.raises(VlaeError, match="two dimensions or more"):
        principal_components(torch.rand(5, 1))


def test_the_most_informative_dimensions_are_the_default(tiny_vae, data):
    model = tiny_vae(latent_dim=4)
    found = project(model, data)
    bits = code_bits(model, data).mean(0)
    first, second = bits.argsort(descending=True)[:2].tolist()
    torch.testing.assert_close(found.points, code_means(model, data)[:, [first, second]])
    assert found.axes == (f"z_{first} ({bits[first]:.1f} bits)", f"z_{second} ({bits[second]:.1f} bits)")
    assert "largest rate" in found.about


def test_dimensions_as_asked_for_and_the_first(tiny_vae, data):
    model = tiny_vae(latent_dim=4)
    means = code_means(model, data)
    assert torch.equal(project(model, data, dimensions=[3, 1]).points, means[:, [3, 1]])
    first = project(model, data, "first")
    assert torch.equal(first.points, means[:, :2]) and first.about == "the first two of 4 dimensions"
    pca = project(model, data, "pca")
    share = PCA(2).fit(means.numpy()).explained_variance_ratio_.sum()
    assert pca.about == f"PCA of 4 dimensions: {share:.0%} of the variance"


def test_codes_in_no_order_and_without_a_rate_are_drawn_by_pca(data):
    vqvae = VQVAE(SHAPE, codes=5, code_dim=3, widths=[4]).double().eval()
    assert "PCA of 18 dimensions" in project(vqvae, data).about  # 3 x 2 places of 3 numbers each
    with pytest.raises(VlaeError, match="no order"):
        project(vqvae, data, "first")
    autoencoder = DenoisingAutoencoder(SHAPE, latent_dim=3, architecture="mlp").double().eval()
    assert "PCA of 3" in project(autoencoder, data).about
    assert project(autoencoder, data, dimensions=[0, 2]).axes == ("z_0", "z_2")
    with pytest.raises(VlaeError, match="no density of z"):
        project(autoencoder, data, "informative")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"kind": "tsne"}, "one of first, informative, pca, umap"),
        ({"dimensions": [0]}, "two dimensions; got 1"),
        ({"dimensions": [0, 9]}, "no dimension 9"),
        ({"kind": "pca", "dimensions": [0, 1]}, "not both"),
    ],
)
def test_what_is_no_plane_is_refused(tiny_vae, data, options, said):
    with pytest.raises(VlaeError, match=said):
        project(tiny_vae(latent_dim=3), data, **options)


def test_one_dimension_is_no_plane(tiny_vae, data):
    with pytest.raises(VlaeError, match="aggregate-posterior"):
        project(tiny_vae(latent_dim=1), data)


def test_without_umap_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(VlaeError, match=r"pip install 'vlae\[umap\]'"):
        by_umap(torch.randn(30, 5))


def test_umap_is_seeded_and_has_fewer_neighbours_than_codes(monkeypatch):
    asked = {}

    class UMAP:
        def __init__(self, **options):
            asked.update(options)

        def fit_transform(self, codes):
            return codes[:, 1:3].astype(np.float32)

    monkeypatch.setitem(sys.modules, "umap", types.SimpleNamespace(UMAP=UMAP))
    codes = torch.randn(8, 5, dtype=torch.float64)
    found = by_umap(codes, seed=4)
    assert asked == {"n_neighbors": 7, "random_state": 4, "n_jobs": 1}
    torch.testing.assert_close(found.points, codes[:, 1:3].float().double())
    assert found.about.startswith("UMAP of 5 dimensions")


def test_umap_itself_keeps_groups_apart():
    pytest.importorskip("umap", reason="umap-learn is not installed (the extra umap)")
    codes = torch.randn(60, 5, dtype=torch.float64) * 0.1
    codes[30:] += 10
    first, second = (by_umap(codes).points[part] for part in (slice(30), slice(30, None)))
    assert torch.cdist(first, second).min() > torch.cdist(first, first.mean(0, keepdim=True)).max()
    assert torch.equal(by_umap(codes).points[:30], first)


def test_noise_is_named_as_such(tiny_vae, data):
    model = tiny_vae(latent_dim=3, flow_steps=2)
    assert project(model, data, "first", space="noise").axes[0].startswith("ε_0 (")
