"""Identity error: difference between the identity numbers of a reconstructed synthetic face and the true ones."""

import torch
from torch import Tensor

from calor_hf.metrics.base import METRICS, Evidence, Measure, Metric, check_rows, mean_over_images


def identity_errors(identity: Tensor, true_identity: Tensor) -> Tensor:
    """(n, k) float64 absolute errors in [0, 2] of (n, k) identity numbers in [-1, 1].

    Raises:
        ValueError: shapes that differ, or numbers outside [-1, 1].
    """
    if identity.shape != true_identity.shape or identity.ndim != 2:
        raise ValueError(
            f"expected two (n, k) tensors of identity numbers, got {tuple(identity.shape)} and "
            f"{tuple(true_identity.shape)}"
        )
    for numbers in (identity, true_identity):
        # 1e-6, as float32 may round past the ends.
        if not (numbers.isfinite().all() and numbers.abs().max() <= 1 + 1e-6):
            raise ValueError("identity numbers lie in [-1, 1]; got others")
    return (identity.double() - true_identity.double()).abs()


@METRICS.register("identity_error")
class IdentityError(Metric):
    """Mean absolute error of the identity numbers of synthetic faces: exact, without an evaluation model.

    Numbers are uniform in [-1, 1]: a guess from the same distribution errs by 2/3 on average, the middle by 1/2.
    """

    needs = ("identity", "true_identity")

    def measure(self, evidence: Evidence) -> list[Measure]:
        """``identity_error`` over all attributes, and one number per attribute."""
        identity, truth = self.require(evidence)
        check_rows(evidence.labels, identity=identity, true_identity=truth)
        errors = identity_errors(identity, truth)
        unit, note = "half-ranges, 0 to 2", "0 is the person; a random one errs by 0.67, an average one by 0.5"
        found = [mean_over_images("identity_error", unit, "privacy", errors.mean(dim=1), evidence.labels, note)]
        names = evidence.identity_names or tuple(str(index) for index in range(errors.shape[1]))
        for name, column in zip(names, torch.unbind(errors, dim=1), strict=True):
            found.append(mean_over_images(f"identity_error[{name}]", unit, "privacy", column, evidence.labels))
        return found
