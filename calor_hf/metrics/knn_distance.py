"""KNN distance: the feature distance under the name that the tables of KED, LOMMA and PLG give it."""

import dataclasses
import math

from calor_hf.metrics._base import METRICS, Evidence, Measure, Metric
from calor_hf.metrics.attack_accuracy import hits
from calor_hf.metrics.feature_distance import nearest_distances


@METRICS.register("knn_distance")
class KNNDistance(Metric):
    """Squared distance to the nearest private picture in the judge's features, as in the tables named KNN Dist.

    Over all images it is ``delta_eval`` of :mod:`calor_hf.metrics.feature_distance`, here under the other name. Some
    papers count recognised images alone, which flatters the attack: what failed, and lies far away, is left out. That
    number is given apart; it says how near the successes come, not how much leaked.

    Source:
        Chen et al., ICCV 2021, arXiv:2010.04092; Nguyen et al., CVPR 2023, arXiv:2304.01669.
    """

    per_image = staticmethod(nearest_distances)

    def measure(self, evidence: Evidence) -> list[Measure]:
        """``knn_distance``, and ``knn_distance_successful``; the second is NaN where nobody is recognised."""
        self.require(evidence)
        judge, labels = evidence.judge, evidence.labels
        assert judge is not None  # as just required
        values = nearest_distances(judge.features, labels, judge.private_features, evidence.private_labels)
        unit, note = "squared distance", f"delta_eval by another name, in the features of {judge.name}"
        found = [Measure.of_images("knn_distance", unit, "privacy", values, labels, note)]
        if judge.logits is None:
            return found
        kept = hits(judge.logits, labels) > 0
        if kept.any():
            note = f"over recognised images alone, which flatters the attack; in the features of {judge.name}"
            some = Measure.of_images("knn_distance_successful", unit, "privacy", values[kept], labels[kept], note)
            found.append(dataclasses.replace(some, spread=math.nan))  # what is left has no slots
        else:
            empty = Measure("knn_distance_successful", math.nan, unit, "privacy", 0, 0)
            found.append(empty.failed("the judge recognised nobody"))
        return found
