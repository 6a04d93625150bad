"""Disentanglement where the factors of the images are known: MIG, SAP, DCI and the FactorVAE score."""

from __future__ import annotations

from torch import Tensor

from vlae.evaluation.dci import DCI, dci, dci_from_importances
from vlae.evaluation.factorvae import factor_vae_score
from vlae.evaluation.gaps import mig, sap

__all__ = ["DCI", "dci", "dci_from_importances", "disentanglement", "factor_vae_score", "mig", "sap"]


def disentanglement(codes: Tensor, factors: Tensor, seed: int = 0) -> dict[str, float]:
    """All measures of how well single dimensions of the code tell single factors, each from 0 to 1.

    It does not matter in which order, scale and sign the dimensions come (but dimensions that hardly move count for
    nothing in the FactorVAE score), nor do some that tell nothing. All but DCI look at all images; its forests, on at
    most 6,000 of them, take most of the time, which grows with the number of dimensions: codes of thousands are not
    what it is for.

    Args:
        codes: one row per image, such as posterior means, [N, D].
        factors: classes of each image, integers [N, F]; those that do not vary are left out.
        seed: of all draws.

    Returns:
        `mig`, `sap`, `dci_disentanglement`, `dci_completeness`, `dci_informativeness` and `factor_vae`.

    Raises:
        VlaeError: codes or factors that can't be used, fewer than two factors that vary, or too few images; see
            `codes_and_classes`.

    Example:
        >>> from vlae.data.factors import grid
        >>> v = grid([4, 3, 5]).repeat(2, 1)
        >>> scores = disentanglement(v.double(), v)
        >>> scores["mig"], scores["factor_vae"]
        (1.0, 1.0)
    """
    three = dci(codes, factors, seed)
    return {
        "mig": mig(codes, factors),
        "sap": sap(codes, factors),
        "dci_disentanglement": three.disentanglement,
        "dci_completeness": three.completeness,
        "dci_informativeness": three.informativeness,
        "factor_vae": factor_vae_score(codes, factors, seed),
    }
