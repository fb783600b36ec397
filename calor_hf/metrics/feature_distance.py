"""Feature distance: squared distance of a reconstruction to the nearest private image of its identity."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from calor_hf.core.report import Measure
from calor_hf.metrics.attack_accuracy import topk_correct
from calor_hf.metrics.base import METRICS, Evidence, Metric, View, check_rows, mean_over_images, private_images_of
from calor_hf.metrics.fid import check_clouds


def nearest_distances(features: Tensor, labels: Tensor, private_features: Tensor, private_labels: Tensor) -> Tensor:
    """Squared L2 distance from each reconstruction to the nearest private image of the same identity.

    Args:
        features: (n, d) of reconstructions.
        labels: (n,) int64 classes that they are meant to show.
        private_features: (m, d) of private training images.
        private_labels: (m,) int64.

    Returns:
        (n,) float64 >= 0, in squared units of the features.

    Raises:
        ValueError: a class without private images, features of different widths, or features that are not finite.
    """
    check_rows(labels, features=features)
    check_rows(private_labels, private_features=private_features)
    check_clouds(features, private_features)
    found = torch.empty(len(labels), dtype=torch.float64)
    for label in labels.unique().tolist():
        mine, known = labels == label, private_features[private_images_of(label, private_labels)].double()
        # From the differences themselves, in float64: torch.cdist loses small distances to cancellation.
        found[mine] = torch.stack([(known - one).square().sum(dim=1).min() for one in features[mine].double()])
    return found


def delta(name: str, view: View, evidence: Evidence, normalize: bool = False) -> Measure:
    """Mean of :func:`nearest_distances` in the features of one network, scaled to unit length if asked for."""
    features, known = view.features, view.private_features
    if normalize:
        features, known = F.normalize(features.double()), F.normalize(known.double())
    # Squared, as in every released code, although CALoR's text says "l2 distance".
    values = nearest_distances(features, evidence.labels, known, evidence.private_labels)
    unit = "squared distance of unit vectors, 0 to 4" if normalize else "squared distance"
    note = f"to the nearest private image, in the features of {view.name}; other networks have other scales"
    return mean_over_images(name, unit, "privacy", values, evidence.labels, note)


@METRICS.register("feature_distance")
class FeatureDistance(Metric):
    """δ_eval in the evaluation model's features, δ_face in unit features of an embedding network.

    Squared, and to the nearest private training image of the identity, not to their mean. The tables of KED, LOMMA and
    PLG print δ_eval as KNN distance. Some papers count recognized images only, which flatters the attack, since
    failures lie far away: that number is given apart, as ``delta_eval_recognized``. As a unit vector, a row of zeros
    stays zeros.

    Source:
        Struppek et al., ICML 2022, arXiv:2201.12179; Yu et al., 2024, arXiv:2410.05814, section 6; Chen et al., ICCV
        2021, arXiv:2010.04092, and Nguyen et al., CVPR 2023, arXiv:2304.01669, for the KNN distance.
    """

    per_image = staticmethod(nearest_distances)

    def measure(self, evidence: Evidence) -> list[Measure]:
        """``delta_eval``; ``delta_eval_recognized``, NaN if no image is recognized; ``delta_face`` in [0, 4].

        The second takes an evaluation model that classifies, the third an embedding network.
        """
        (view,) = self.require(evidence)
        found = [delta("delta_eval", view, evidence)]
        if view.logits is not None:
            found.append(self._recognized(view, view.logits, evidence))
        if evidence.embedding is not None:
            found.append(delta("delta_face", evidence.embedding, evidence, normalize=True))
        return found

    @staticmethod
    def _recognized(view: View, logits: Tensor, evidence: Evidence) -> Measure:
        name, unit, labels = "delta_eval_recognized", "squared distance", evidence.labels
        kept = topk_correct(logits, labels) > 0
        if not kept.any():
            return Measure(name, math.nan, unit, "privacy", 0, 0).failed("the evaluation model recognized no one")
        values = nearest_distances(view.features[kept], labels[kept], view.private_features, evidence.private_labels)
        note = f"over recognized images alone, which flatters the attack; in the features of {view.name}"
        return mean_over_images(name, unit, "privacy", values, labels[kept], note, slots=False)
