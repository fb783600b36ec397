"""Sentences about the bound of decoy identities, to be shown wherever 1/k is."""

MEANING = (
    "1/k is the probability with which an attacker names the private identity of a class from the model, however "
    "strong the attack, if the private identity and its decoys are exchangeable."
)
CONDITION = (
    "It holds only for an attacker whose other knowledge (photographs, registers, face search, social graph) is "
    "symmetric in the k identities; it fails completely if the decoys do not exist and the attacker "
    "can search real faces."
)
LIMITS = "It hides no face: the private face is among the k that can be rebuilt, and k guesses recover it."
OTHERS = "Decoys are data subjects too, unless they are synthetic: their faces are in the model as well."
VOID = (
    "It is void as soon as the pool or the assignment is known, or another model of the private people is released: an "
    "undefended one, one with other decoys, or an evaluation model of them alone."
)
SECRET = (
    "This report, its images and the reconstructions are secret: numbers of a class tell which of its identities is "
    "private. calor-hf card and push publish shares over all classes, rounded to 1 %."
)
"""Notice in a report with numbers of each class."""
SENTENCES = (MEANING, CONDITION, LIMITS, OTHERS, VOID)
