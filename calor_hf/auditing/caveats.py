"""Caveats of a report: what to know before relying on its numbers, derived from what ran."""

import math

from calor_hf.core.report import LeakageReport, NetworkInfo
from calor_hf.core.report_text import percent

GOOD_ACCURACY = 0.9
"""Accuracy on held-out images below which an evaluation model is called weak."""


def caveats(report: LeakageReport) -> list[str]:
    """Return the caveats of a report as sentences that may be published: without paths, names of models or classes."""
    roles, found = report.networks, []
    if report.budget < 1:
        found.append(
            f"The attacks ran with {percent(report.budget)} of their published effort; with all of it (--budget paper) "
            "more may leak."
        )
    if not any(attack.adaptive for attack in report.attacks):
        found.append("No attack that knows the defense was run; such attacks recover more from defended models.")
    if any(attack.settings.get("fast") for attack in report.attacks):
        found.append(
            "The ensemble stopped at each person as soon as the attacked model agreed (fast mode). Adversarial images "
            "achieve that too, so attacks that would have recovered more may have been skipped."
        )
    accuracy = roles.get("evaluation_model", NetworkInfo("")).accuracy
    if math.isnan(accuracy):
        found.append("The evaluation model was not tested on held-out images, so its reliability is unknown.")
    else:
        found.append(f"The evaluation model recognizes the right person in {percent(accuracy, 1)} of held-out images.")
    if accuracy < GOOD_ACCURACY:
        found.append(
            "This evaluation model is weak: it misses people who are shown, so more leaks than the numbers say. Train "
            "a better one before relying on them."
        )
    second = roles.get("second_evaluation_model", NetworkInfo("")).accuracy
    if second < GOOD_ACCURACY:
        found.append(
            f"The second evaluation model is weak: it recognizes the right person in {percent(second, 1)} of held-out "
            "images."
        )
    if not {"second_evaluation_model", "embedding"} & set(roles):
        found.append(
            "A single evaluation model can be fooled by images that resemble no one; neither a second one "
            "(--second-evaluation-model) nor face verification (--embedding) was used."
        )
    if any(attack.prior == "renderer" for attack in report.attacks):
        found.append(
            "The attacker's prior was the program that drew the images. No real attacker has it, so the numbers are an "
            "upper bound for priors of this kind."
        )
    if report.data.identities > len(report.labels):
        found.append(f"{len(report.labels)} of {report.data.identities} people were attacked.")
    found.append(
        "No audit proves a model safe: it shows what these attacks recovered with this effort, prior and evaluation "
        "models. Other threats (membership inference, stolen models, poisoned data) are separate."
    )
    return found
