"""Settings of studies that follow one attack step by step."""

from dataclasses import dataclass, field

from calor_hf.core.config import MethodConfig


@dataclass(frozen=True, kw_only=True)
class StepsConfig(MethodConfig):
    """One white-box attack, and whom it attacks."""

    attack: str = field(
        default="ppa:steps=200,initial_candidates=500,restarts=1,final_views=0",
        metadata={"help": "White-box attack as calor-hf audit takes it; if_gmi, the paper's, needs a trained prior."},
    )
    people: int = field(default=32, metadata={"help": "Classes that are attacked: the first ones, at most all."})
    images_per_person: int = field(default=2, metadata={"help": "Reconstructions of each."})
    training_seed: int = field(default=0, metadata={"help": "Of the trainings."})

    def validate(self) -> None:
        """Refuse empty work."""
        if self.people < 1 or self.images_per_person < 1:
            raise ValueError(
                f"people and images_per_person must be >= 1, got {self.people} and {self.images_per_person}"
            )
