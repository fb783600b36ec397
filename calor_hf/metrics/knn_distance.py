"""KNN distance: the feature distance under the name that the tables of KED, LOMMA and PLG give it."""

import dataclasses
import math

from calor_hf.metrics._base import METRICS, Evidence, Measure, Metric
from calor_hf.metrics.attack_accuracy import hits
from calor_hf.metrics.feature_distance import nearest_distances


@METRICS.register("knn_distance")
class KNNDistance(Metric):
    """Squared distance to the nearest private picture over recognised reconstructions alone.

    Over all of them it is ``delta_eval`` of :mod:`calor_hf.metrics.feature_distance`, and stands there.
    Some papers count successful ones alone, which flatters an attack that rarely succeeds; this is that number.

    Source:
        Chen et al., ICCV 2021, arXiv:2010.04092; Nguyen et al., CVPR 2023, arXiv:2304.01669.
    """

    def measure(self, evidence: Evidence) -> list[Measure]:
        """``knn_distance_successful``; NaN where the judge recognises nobody."""
        self.require(evidence)
        judge, labels = evidence.judge, evidence.labels
        assert judge is not None  # as just required
        if judge.logits is None:
            raise ValueError("the judge gives no scores of people; pass a classifier trained on the private pictures")
        note = f"to the nearest private picture, of recognised reconstructions alone, in the features of {judge.name}"
        kept = hits(judge.logits, labels) > 0
        empty = Measure("knn_distance_successful", math.nan, "squared distance", "privacy", 0, 0)
        if not kept.any():
            return [empty.failed("the judge recognised nobody")]
        values = nearest_distances(judge.features[kept], labels[kept], judge.private_features, evidence.private_labels)
        return [dataclasses.replace(Measure.of_images(empty.name, empty.unit, "privacy", values, labels[kept], note))]
