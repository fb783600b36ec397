"""Attack accuracy by effort, on drawn faces with both priors: one JSON file per cell, resumable.

    calor-hf prior --image-size 32 --minutes 10 --output-dir outputs/drawn-prior
    python -m benchmarks.effort --prior outputs/drawn-prior --output-dir outputs/effort

Target and evaluation model are small residual networks, trained once on different images of the same 100
people, 20 of them attacked. With the sources of another version in ``PYTHONPATH`` and another ``--output-dir`` it
measures that version.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from transformers import ResNetConfig, ResNetForImageClassification

from calor_hf import load_generator
from calor_hf.attacks.specs import parse_attack
from calor_hf.core.files import write_json
from calor_hf.data.public_images import labeled_pixels
from calor_hf.data.synthetic_faces import load_synthetic_faces
from calor_hf.recipes.runs import markdown
from calor_hf.targets.hf_target import HFTarget

SIDE, CLASSES, PEOPLE, EACH, SEED = 32, 100, 20, 4, 7
EFFORTS = (5, 10, 20, 50, 100)
MEMBERS = ("plg@adaptive", "mirror@quick", "bypass", "ppa", "if_gmi")
"""Members of ``auto``; the last one needs a prior that can be taken apart."""
ATTACKS = (*MEMBERS, "plg", "gmi", "ked", "mirror")
MOST_STEPS = 2400  # of a cell that is measured


def network(role: str, folder: Path, seed: int) -> HFTarget:
    """Target or evaluation model, trained or found in ``folder``."""
    place, width = folder / f"{role}-{seed}", 16 if role == "target" else 24
    if not (place / "config.json").is_file():
        faces = load_synthetic_faces(CLASSES, 20 if role == "target" else 60, SIDE, seed,
                                     "train" if role == "target" else "validation")  # fmt: skip
        pixels, labels = labeled_pixels(faces, SIDE)
        images = pixels.float() / 255
        torch.manual_seed(len(role))
        config = ResNetConfig(embedding_size=width, hidden_sizes=[width, 2 * width, 4 * width], depths=[1, 1, 1],
                              layer_type="basic", num_labels=CLASSES)  # fmt: skip
        model = ResNetForImageClassification(config)
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
        steps = 900
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = 2e-3 * (1 - step / steps)
            rows = torch.randint(len(labels), (64,))
            shown = images[rows].flip(3) if step % 2 else images[rows]
            loss = F.cross_entropy(model(shown).logits, labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        model.eval().save_pretrained(place)
    return HFTarget(ResNetForImageClassification.from_pretrained(place), image_size=SIDE)


def measure(attack: str, effort: int, prior: Any, target: HFTarget, judge: HFTarget, seed: int) -> dict[str, Any]:
    """Recognized images of each person, and what they cost."""
    made, begin = parse_attack(attack, budget=effort / 100), time.process_time()
    found = made.attack.run(target, prior, range(PEOPLE), images_per_class=EACH, seed=seed)
    with torch.no_grad():
        hits = (judge(found.images).argmax(dim=1) == found.labels).view(PEOPLE, EACH).sum(dim=1)
    return {
        "hits": hits.tolist(), "accuracy": float(hits.sum()) / (PEOPLE * EACH),
        "target_score": float(found.scores.mean()), "gradients": found.cost.target_gradients,
        "seconds": time.process_time() - begin, "settings": made.attack.config.to_dict(),
    }  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Measure the cells that are missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prior", required=True, help="trained on drawn faces of other people, of 32 pixels: folder")
    parser.add_argument("--attacks", nargs="+", default=ATTACKS)
    parser.add_argument("--efforts", nargs="+", type=int, default=EFFORTS)
    parser.add_argument("--priors", nargs="+", default=("renderer", "trained"))
    parser.add_argument("--seed", type=int, default=SEED, help="of the people, networks and attacks")
    parser.add_argument("--networks", type=Path, default=Path("outputs/effort-networks"))
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/effort"))
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    target, judge = (network(role, options.networks, options.seed) for role in ("target", "evaluation-model"))
    held = load_synthetic_faces(CLASSES, 10, SIDE, options.seed, "test")
    pixels, labels = labeled_pixels(held, SIDE)
    for role, model in (("target", target), ("evaluation model", judge)):
        with torch.no_grad():
            right = (model(pixels.float() / 255).argmax(dim=1) == labels).float().mean()
        print(f"{role}: {100 * right:.1f} % of held-out images", flush=True)
    rows = []
    for prior in options.priors:
        generator = load_generator("renderer" if prior == "renderer" else options.prior, image_size=SIDE)
        for attack in options.attacks:
            row = [prior, attack]
            for effort in options.efforts:
                file = options.output_dir / f"{prior}-{attack.replace('@', '-')}-{effort}.json"
                if not file.is_file():
                    if attack.startswith("if_gmi") and not generator.num_blocks:
                        row.append("–")
                        continue
                    if getattr(parse_attack(attack, budget=effort / 100).attack.config, "steps", 0) > MOST_STEPS:
                        row.append("not run")
                        continue
                    write_json(file, measure(attack, effort, generator, target, judge, options.seed))
                cell = json.loads(file.read_text())
                row.append(f"{100 * cell['accuracy']:.0f} ({cell['seconds']:.0f} s)")
                print(" | ".join([prior, attack, str(effort), row[-1]]), flush=True)
            rows.append(row)
    print(markdown(["prior", "attack", *(f"{effort} %" for effort in options.efforts)], rows))


if __name__ == "__main__":
    main()
