"""KNN distance: the feature distance under the name that the tables of KED, LOMMA and PLG give it."""

import dataclasses
import math

from calor_hf.metrics.attack_accuracy import topk_correct
from calor_hf.metrics.base import METRICS, Evidence, Measure, Metric, mean_over_images
from calor_hf.metrics.feature_distance import nearest_distances


@METRICS.register("knn_distance")
class KNNDistance(Metric):
    """Squared distance to the nearest private image in the evaluation model's features ("KNN Dist").

    Over all images it is ``delta_eval`` of :mod:`calor_hf.metrics.feature_distance`, here under the other name. Some
    papers count recognized images alone, which flatters the attack: what failed, and lies far away, is left out. That
    number is given apart; it says how near the successes come, not how much leaked.

    Source:
        Chen et al., ICCV 2021, arXiv:2010.04092; Nguyen et al., CVPR 2023, arXiv:2304.01669.
    """

    per_image = staticmethod(nearest_distances)

    def measure(self, evidence: Evidence) -> list[Measure]:
        """``knn_distance``, and ``knn_distance_successful``; the second is NaN where no one is recognized."""
        self.require(evidence)
        evaluation_model, labels = evidence.evaluation_model, evidence.labels
        assert evaluation_model is not None  # as just required
        values = nearest_distances(
            evaluation_model.features, labels, evaluation_model.private_features, evidence.private_labels
        )
        unit, note = "squared distance", f"delta_eval by another name, in the features of {evaluation_model.name}"
        found = [mean_over_images("knn_distance", unit, "privacy", values, labels, note)]
        if evaluation_model.logits is None:
            return found
        kept = topk_correct(evaluation_model.logits, labels) > 0
        if kept.any():
            note = (
                f"over recognized images alone, which flatters the attack; in the features of {evaluation_model.name}"
            )
            some = mean_over_images("knn_distance_successful", unit, "privacy", values[kept], labels[kept], note)
            found.append(dataclasses.replace(some, std=math.nan))  # what is left has no slots
        else:
            empty = Measure("knn_distance_successful", math.nan, unit, "privacy", 0, 0)
            found.append(empty.failed("the evaluation model recognized no one"))
        return found
