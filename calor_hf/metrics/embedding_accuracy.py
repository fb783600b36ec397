"""Embedding accuracy: share of reconstructions whose nearest mean private image is that of the right identity."""

from calor_hf.core.report import EMBEDDING
from calor_hf.metrics.agreement import nearest_mean_correct
from calor_hf.metrics.base import METRICS, Evidence, Measure, Metric, mean_over_images


@METRICS.register("embedding_accuracy")
class EmbeddingAccuracy(Metric):
    """Top-1 accuracy of the nearest mean private image in the features of the embedding.

    An evaluation model trained on the private images shares shortcuts with the target, so it recognizes adversarial
    features too; an embedding that never saw these people does not. It chooses among the attacked identities.

    Source:
        "Revisiting Model Inversion Evaluation", 2025, arXiv:2505.03519, for the reason.
    """

    needs = ("embedding",)

    def measure(self, evidence: Evidence) -> list[Measure]:
        """``embedding_accuracy@1``."""
        view, labels = self.view(evidence, "embedding"), evidence.labels
        right, count = nearest_mean_correct(view.features, labels, *evidence.enrolled(view))
        note = f"the nearest of {count} mean private images in {view.name} is the right person's"
        return [mean_over_images(EMBEDDING, "share", "leakage", right, labels, note)]
