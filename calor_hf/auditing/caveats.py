"""Caveats of a report: one list of sentences to know before relying on it, which every renderer prints."""

import math

from calor_hf.core.decoy_sentences import SENTENCES
from calor_hf.core.report import (
    EMBEDDING,
    FULL_GALLERY,
    GALLERY,
    HEADLINE,
    MATCH,
    POOL,
    LeakageReport,
    Measure,
    PowerCheck,
)  # fmt: skip
from calor_hf.core.report_text import percent, with_interval

GOOD_ACCURACY = 0.9
"""Accuracy on held-out images below which a network that evaluates is called weak."""
LEAST_FIT = 0.5
"""Share of its training images that a target has to recognize."""
MARGIN = 0.05
"""Difference to the chance level from which a power measurement is clear, if it is also twice that level."""
_NETWORKS = {
    "evaluation_model": "evaluation model", "second_evaluation_model": "second evaluation model",
    "embedding": "embedding",
}  # fmt: skip


def caveats(report: LeakageReport) -> list[str]:
    """Return the caveats of a report, from what ran; without paths, and names of networks and classes."""
    found = [f"{len(report.labels)} of {report.target.classes} people were attacked."]
    found += _about_target(report) + _about_attacks(report) + _about_networks(report) + _about_prior(report)
    measures = [one for attack in report.attacks for one in attack.measures]
    found += [one.caveat for one in [*measures, *report.utility, *report.other_threats] if one.caveat]
    if any(attack.prior == "renderer" for attack in report.attacks):
        found.append(
            "The attacker's prior was the program that drew the images. No real attacker has it, so the numbers are "
            "about drawn faces and not about photographs."
        )
    if any(attack.prior == "diffusers" or attack.prior_settings.get("official") for attack in report.attacks):
        found.append(
            "The prior was trained elsewhere, on images unknown to this audit; those of celebrities or from the web "
            "may show the attacked people, and then what is recognized may come from the prior and not from the model."
        )
    if report.with_decoys:
        found += [*SENTENCES, *_about_photographs(report)]
    found.append(
        "An audit shows what these attacks recovered with this effort, prior and evaluation models; others may recover "
        "more. Other threats (membership inference, stolen models, poisoned data) are separate."
    )
    return list(dict.fromkeys(found))


def beyond(measure: Measure | None, accuracy: Measure) -> bool:
    """Whether a network recognizes more reconstructions than its accuracy on real held-out images suggests."""
    most = accuracy.value if math.isnan(accuracy.high) else accuracy.high
    return measure is not None and measure.value > most


def least_power(check: PowerCheck) -> float:
    """Return the share from which a power measurement is clearly above its chance level."""
    return max(2 * check.chance, check.chance + MARGIN)


def _about_target(report: LeakageReport) -> list[str]:
    fit = next((one.value for one in report.utility if one.name == "train_accuracy"), LEAST_FIT)
    if fit >= LEAST_FIT:
        return []
    return [
        f"The attacked model recognizes {percent(fit)} of the images that it is said to have learned: they may be "
        "others, or their classes in another order, and then the numbers are not about its training people."
    ]


def _about_prior(report: LeakageReport) -> list[str]:
    found = [fault for check in report.power for fault in check.faults]
    found += [
        f"The prior cannot draw these people: {percent(check.images.value)} of private images projected onto it are "
        f"recognized, by chance {percent(check.chance)}. If more reconstructions are recognized, adversarial features "
        "may be the reason."
        for check in report.power
        if check.name == "prior" and not check.images.value > least_power(check)
    ]
    return found


_HOLDERS = {
    POOL: "the photographs of all decoys",
    GALLERY: "a photograph of each private person, among strangers",
    FULL_GALLERY: "one of each decoy as well",
}


def _about_photographs(report: LeakageReport) -> list[str]:
    """Sentence about attackers with photographs, which the bound does not cover."""
    known = {one.name: one for one in report.other_threats}
    found = [f"{with_interval(known[name])} with {text}" for name, text in _HOLDERS.items() if name in known]
    if not found:
        return []
    return [
        "An attacker who shows photographs to the model names the private identity of a class in "
        f"{', '.join(found)}; 1/k is {percent(1 / report.data.identities_per_class)}, and does not hold if the pool is "
        "known or photographs of the private people alone are at hand."
    ]


def _about_attacks(report: LeakageReport) -> list[str]:
    found = []
    for attack in report.attacks:
        if attack.effort < 1:
            found.append(
                f"{attack.name} ran with {percent(attack.effort)} of its source's effort; with all of it more may leak."
            )
        if attack.changed:
            found.append(f"{attack.name} ran with other settings than its source: {', '.join(attack.changed)}.")
        if attack.settings.get("fast"):
            found.append(
                f"{attack.name} stopped at each person as soon as the attacked model agreed (fast mode). Adversarial "
                "images achieve that too, so attacks that would have recovered more may have been skipped."
            )
    if report.target.defense != "none" and not any(attack.adaptive for attack in report.attacks):
        found.append("No attack that knows the defense was run; such attacks recover more from defended models.")
    return found


def _about_networks(report: LeakageReport) -> list[str]:
    found = []
    for role, name in _NETWORKS.items():
        network = report.networks.get(role)
        if network is None:
            continue
        accuracy = network.accuracy
        if accuracy is None:
            found.append(f"The {name} was not tested on held-out images, so its reliability is unknown.")
            continue
        found.append(
            f"The {name} recognizes the right person in {with_interval(accuracy)} of held-out images of the attacked "
            "people."
        )
        if network.seen:
            found.append(
                f"The {name} was trained on {network.seen} of these images, so its accuracy on them says too much."
            )
        if accuracy.value < GOOD_ACCURACY:
            found.append(
                f"The {name} is weak: it misses people who are shown, so more may leak than its numbers say. Train a "
                "better one, or pass --embedding or --second-evaluation-model."
            )
        for attack in report.attacks:
            measure = attack.get(EMBEDDING if role == "embedding" else HEADLINE)
            if role != "second_evaluation_model" and beyond(measure, accuracy):
                found.append(
                    f"The {name} recognizes more images of {attack.name} than real held-out images: a sign of "
                    "transferred adversarial features, so its numbers overstate what leaks."
                )
    others = [report.networks[role] for role in ("second_evaluation_model", "embedding") if role in report.networks]
    exact = any(attack.get(MATCH) is not None for attack in report.attacks)
    if all(network.same_data for network in others) and not exact:
        found.append(
            "Every network that evaluates learned the images that the attacked model learned, so it shares its "
            "shortcuts and may recognize adversarial images: the numbers may overstate what leaks. Pass --embedding, a "
            "network that never saw these people."
        )
    if not others:
        found.append(
            "A single evaluation model can be fooled by images that resemble no one; neither a second one "
            "(--second-evaluation-model) nor a network that did not learn these people (--embedding) was used."
        )
    return found
