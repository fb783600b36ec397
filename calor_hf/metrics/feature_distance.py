"""Feature distance: how far a reconstruction lies from the nearest private image of its person."""

import torch
import torch.nn.functional as F
from torch import Tensor

from calor_hf.metrics.base import METRICS, Evidence, Measure, Metric, View, check_rows, mean_over_images


def nearest_distances(features: Tensor, labels: Tensor, private_features: Tensor, private_labels: Tensor) -> Tensor:
    """Squared L2 distance from each reconstruction to the nearest private image of the same person.

    Computed in float64 from the differences themselves: ``torch.cdist`` loses the small ones to cancellation.

    Args:
        features: (n, d) of reconstructions.
        labels: (n,) int64: whom they are meant to show.
        private_features: (m, d) of private training images.
        private_labels: (m,) int64.

    Returns:
        (n,) float64 >= 0, in squared units of the features.

    Raises:
        ValueError: a person without private images, other widths, or features that are not finite.
    """
    check_rows(labels, features=features)
    check_rows(private_labels, private_features=private_features)
    if features.ndim != 2 or features.shape[1:] != private_features.shape[1:]:
        raise ValueError(
            f"expected features (n, d) and private_features (m, d) of one network, got {tuple(features.shape)} and "
            f"{tuple(private_features.shape)}"
        )
    found = torch.empty(len(labels), dtype=torch.float64)
    for label in labels.unique():
        mine, known = labels == label, private_features[private_labels == label].double()
        if len(known) == 0:
            raise ValueError(f"no private image of class {int(label)}; pass the data that the target was trained on")
        nearest = [(known - one).square().sum(dim=1).min() for one in features[mine].double()]
        found[mine] = torch.stack(nearest)
    return found


def delta(name: str, view: View, evidence: Evidence, normalize: bool = False) -> Measure:
    """Mean of :func:`nearest_distances` through one network, with unit features if asked for."""
    features, known = view.features, view.private_features
    if normalize:
        features, known = F.normalize(features.double()), F.normalize(known.double())
    values = nearest_distances(features, evidence.labels, known, evidence.private_labels)
    unit = "squared distance of unit vectors, 0 to 4" if normalize else "squared distance"
    note = f"to the nearest private image, in the features of {view.name}; other networks have other scales"
    return mean_over_images(name, unit, "privacy", values, evidence.labels, note)


@METRICS.register("feature_distance")
class FeatureDistance(Metric):
    """δ_eval in the evaluation model's features; δ_face in unit features of an embedding network, where there is one.

    Squared, as every code base has it, though CALoR's text says "l2 distance"; and to the nearest private training
    image of the person, not to their mean. A row of zeros points nowhere: as a unit vector it stays zeros.

    Source:
        Struppek et al., ICML 2022, arXiv:2201.12179; Yu et al., 2024, arXiv:2410.05814, section 6.
    """

    per_image = staticmethod(nearest_distances)

    def measure(self, evidence: Evidence) -> list[Measure]:
        """``delta_eval``, and ``delta_face`` in [0, 4]."""
        self.require(evidence)
        assert evidence.evaluation_model is not None  # as just required
        found = [delta("delta_eval", evidence.evaluation_model, evidence)]
        if evidence.embedding is not None:
            found.append(delta("delta_face", evidence.embedding, evidence, normalize=True))
        return found
