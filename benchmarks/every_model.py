"""Coverage of each image classification class of transformers: one table.

Writes docs/results/every_model.md; takes a minute. The models are tiny and random.
"""

import tempfile
import warnings
from pathlib import Path

import torch
import transformers
from PIL import Image
from transformers import AutoModelForImageClassification, ImageClassificationPipeline, PreTrainedModel, pipeline

from calor_hf import CALoRForImageClassification
from calor_hf.heads.find_head import find_heads
from tests.tiny_models import EVERY, tiny_base, tiny_inputs

COLUMNS = ("head", "forward", "backward", "reload", "Auto class", "pipeline")
RESULTS = Path(__file__).parents[1] / "docs" / "results" / "every_model.md"
LABELS = torch.tensor([0, 3, 9, 3])


def examine(class_name: str, folder: Path) -> dict[str, str]:
    """Defend a tiny model of ``class_name`` and try everything in :data:`COLUMNS`.

    Args:
        class_name: One of :data:`tests.tiny_models.EVERY`.
        folder: Where the model is saved.

    Returns:
        What was seen, by column; ``pipeline`` is "no image processor" if this environment has none.

    Raises:
        AssertionError: something does not hold.
    """
    base = tiny_base(class_name)
    inputs = tiny_inputs(class_name)
    paths = find_heads(type(base), base.config)
    before = [base.get_submodule(path) for path in paths]
    model = CALoRForImageClassification.from_base(base, rank=3).eval()
    assert model.config.head_paths == paths
    assert not any(module is head for head in before for module in model.modules())
    seen = {"head": ", ".join(paths)}

    outputs = model(**inputs, labels=LABELS)
    assert outputs.logits.shape == (4, 10)
    assert outputs.logits.std() > 0
    assert torch.equal(model.classification_head(outputs.features), outputs.logits)
    seen["forward"] = f"{outputs.features.shape[1]} features"

    outputs.loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert all(torch.isfinite(gradient).all() for gradient in gradients.values())
    for part in ("classification_head", "backbone"):
        assert any(name.startswith(part) and gradient.abs().max() > 0 for name, gradient in gradients.items()), part
    assert all(name in gradients for name, _ in model.classification_head.named_parameters("classification_head"))
    without = sum(p.grad is None for p in model.parameters())
    seen["backward"] = f"{without} weights unused" if without else "yes"

    with torch.no_grad():
        logits = model(**inputs).logits
    model.save_pretrained(folder)
    for column, kind in (("reload", CALoRForImageClassification), ("Auto class", AutoModelForImageClassification)):
        again = kind.from_pretrained(folder).eval()
        assert type(again) is CALoRForImageClassification
        assert type(again.backbone) is type(base)
        kept, loaded = model.state_dict(), again.state_dict()
        assert kept.keys() == loaded.keys()
        assert all(torch.equal(kept[name], loaded[name]) for name in kept)
        with torch.no_grad():
            assert torch.equal(again(**inputs).logits, logits)
        seen[column] = "bit-equal"

    processor = processor_for(base)
    if processor is None:
        return {**seen, "pipeline": "no image processor"}
    processor.save_pretrained(folder)
    classify = pipeline("image-classification", model=str(folder))
    assert isinstance(classify, ImageClassificationPipeline)
    side = next(value.shape[-1] for value in inputs.values()) if "pixel_values" in inputs or "inputs" in inputs else 8
    side = 32 if class_name.startswith("Siglip2") else side
    image = Image.linear_gradient("L").resize((side, side)).convert("RGB")
    answer = classify(image, top_k=10)
    with torch.no_grad():
        encoded = processor(images=image, return_tensors="pt")
        scores = model(**encoded).logits.softmax(dim=1)[0]
    expected = sorted(scores.tolist(), reverse=True)
    assert all(abs(a["score"] - b) < 1e-6 for a, b in zip(answer, expected, strict=True))
    return {**seen, "pipeline": "yes"}


def processor_for(base: PreTrainedModel) -> "transformers.BaseImageProcessor | None":
    """Image processor of the model's type that leaves an image's size as it is; None without one here."""
    from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING

    try:
        found = IMAGE_PROCESSOR_MAPPING[type(base.config)]
    except KeyError:
        return None
    kinds = [kind for kind in (found.values() if isinstance(found, dict) else found) if kind is not None]
    geometry = ("do_resize", "do_center_crop", "do_pad", "do_thumbnail", "do_align_long_axis")
    settings: dict[str, object] = dict.fromkeys(geometry, False)
    if base.config.model_type == "imagegpt":
        settings["clusters"] = [[i / 8 - 1] * 3 for i in range(16)]
    if base.config.model_type == "siglip2":
        settings = {"patch_size": 8, "max_num_patches": 16}
    try:
        processor: transformers.BaseImageProcessor = kinds[0](**settings)
    except ImportError:  # needs torchvision
        return None
    return processor


def main() -> None:
    """Print and write the table."""
    warnings.simplefilter("ignore")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    lines = [
        "# Every model",
        "",
        f"`python -m benchmarks every_model`, transformers {transformers.__version__}, torch {torch.__version__}: tiny "
        "random models of every image classification class that can be built here.",
        "",
        "| class | " + " | ".join(COLUMNS) + " |",
        "|---" * (len(COLUMNS) + 1) + "|",
    ]
    passed = 0
    print(lines[-2])
    for class_name in EVERY:
        torch.manual_seed(0)
        with tempfile.TemporaryDirectory() as folder:
            try:
                seen = examine(class_name, Path(folder))
                passed += 1
            except Exception as error:  # one class must not hide the others
                seen = {"head": f"**{type(error).__name__}: {str(error)[:200]}**"}
        cells = " | ".join(seen.get(column, "") for column in COLUMNS)
        lines.append(f"| {class_name} | {cells} |")
        print(lines[-1], flush=True)
    lines += [
        "",
        f"{passed} of {len(EVERY)}. Left out: ShieldGemma2 (its scores are words of a language model: refused), DiNAT "
        "(needs natten), timm models (`.ci/timm` tests them in an environment of their own).",
    ]
    print(lines[-1])
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
