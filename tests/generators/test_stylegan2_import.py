"""Official networks become ours; a file that wants to run something does not get to."""

import builtins
import collections
import io
import os
import pickle
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from calor_hf.generators import _official_pkl, load_generator
from calor_hf.generators._official_pkl import KNOWN, InertUnpickler, read_official_pkl
from calor_hf.generators._stylegan2_import import import_stylegan2
from calor_hf.generators.stylegan2 import StyleGAN2, StyleGAN2Config
from tests.generators.official_pkl import Persistent, official_names, official_weights, persistent, write_official
from tests.generators.test_stylegan2 import small


def source(**settings: Any) -> StyleGAN2:
    return small(dtype=torch.float32, official=True, **settings)


def assert_same_images(a: StyleGAN2, b: StyleGAN2) -> None:
    latents = a.sample_latents(3, np.random.default_rng(0))
    assert torch.equal(b.sample_latents(3, np.random.default_rng(0)), latents)
    with torch.no_grad():
        images = a(latents.float())
        assert torch.equal(b(latents.float()), images)
    assert images.std() > 0.01


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_an_official_file_gives_the_same_images(protocol: int, tmp_path: Path) -> None:
    generator = source(clamp=256)
    write_official(tmp_path / "net.pkl", generator, protocol, clamp=256)
    read = import_stylegan2(tmp_path / "net.pkl")
    assert read.config == generator.config
    assert not read.training
    assert_same_images(generator, read)
    images = torch.rand(4, 3, 16, 16)
    assert torch.equal(read.realism(images, group=4), generator.realism(images, group=4))
    read.save_pretrained(tmp_path / "ours")
    assert_same_images(generator, load_generator(str(tmp_path / "ours")))  # type: ignore[arg-type]


def test_a_crop_keeps_the_middle_of_the_images(tmp_path: Path) -> None:
    write_official(tmp_path / "net.pkl", source())
    read, latents = import_stylegan2(tmp_path / "net.pkl", crop=11), torch.randn(2, source().latent_dim)
    read.save_pretrained(tmp_path / "ours")
    for generator in (read, load_generator(str(tmp_path / "ours"))):
        assert (generator.image_size, generator.has_realism) == (11, False)  # a discriminator knows whole images
        assert torch.equal(generator(latents), source()(latents)[..., 2:13, 2:13])
    for crop in (0, 17):
        with pytest.raises(ValueError, match="crop must be 1 to the 16 pixels"):
            import_stylegan2(tmp_path / "net.pkl", crop=crop)
    wrongs: tuple[dict[str, Any], ...] = ({"crop": 17, "discriminator": False}, {"crop": 8})
    for wrong in wrongs:
        with pytest.raises(ValueError, match="crop"):
            StyleGAN2Config(image_size=16, **wrong)


def test_the_averaged_generator_is_taken(tmp_path: Path) -> None:
    other, _ = official_weights(small(9, torch.float32))
    write_official(tmp_path / "net.pkl", source(), G=persistent(other))
    assert_same_images(source(), import_stylegan2(tmp_path / "net.pkl"))
    write_official(tmp_path / "raw.pkl", source(), G=persistent(other), G_ema=None)
    assert_same_images(small(9, torch.float32), import_stylegan2(tmp_path / "raw.pkl"))


@pytest.mark.parametrize("prefixes", [("", None), ("G_ema.", "D."), ("", "discriminator."), ("G.", "D."), ("", "D.")])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_plain_weights(prefixes: tuple[str, str | None], suffix: str, tmp_path: Path) -> None:
    body, discriminator = official_weights(source())
    weights = {prefixes[0] + name: value.clone() for name, value in body.items()}
    if prefixes[1]:
        weights |= {prefixes[1] + name: value.clone() for name, value in discriminator.items()}
    file = tmp_path / f"weights{suffix}"
    save_file(weights, file) if suffix == ".safetensors" else torch.save(weights, file)
    read = import_stylegan2(file)
    assert read.has_realism == (prefixes[1] is not None)
    assert_same_images(source(), read)


def test_networks_side_by_side_in_one_dictionary(tmp_path: Path) -> None:
    body, discriminator = official_weights(source())
    torch.save({"G_ema": body, "D": discriminator, "step": 3}, tmp_path / "both.pt")
    read = import_stylegan2(tmp_path / "both.pt")
    assert_same_images(source(), read)
    assert read.has_realism


def test_another_discriminator_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _, discriminator = official_weights(source(width=2))
    write_official(tmp_path / "net.pkl", source(), D=persistent(discriminator))
    read = import_stylegan2(tmp_path / "net.pkl")
    assert not read.has_realism
    assert_same_images(source(), read)
    assert "of another kind and is left out: discriminator." in caplog.text


def changed(change: Callable[[dict[str, torch.Tensor]], Any]) -> dict[str, torch.Tensor]:
    body, _ = official_weights(source())
    change(body)
    return body


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.update({"mapping.embed.weight": torch.zeros(2)}), "only networks without classes"),
        (lambda w: w.update({"synthesis.b8.skip.weight": torch.zeros(2)}), r"b8\.skip\.weight is \(2,\), expected no"),
        (lambda w: w.pop("synthesis.b8.torgb.bias"), r"torgb\.bias is missing, expected \(3,\)"),
        (lambda w: w.pop("synthesis.b8.conv1.weight"), r"b8\.conv1\.weight is missing"),
        (lambda w: w["synthesis.b8.conv1.resample_filter"].fill_(1 / 16), r"another filter than \(1, 3, 3, 1\)"),
        (lambda w: [w.pop(name) for name in list(w) if name.startswith("mapping.")], "no mapping"),
        (lambda w: w.update({"synthesis.b24.conv1.weight": torch.zeros(2)}), "power of two"),
    ],
)
def test_other_architectures_are_told(change: Any, message: str, tmp_path: Path) -> None:
    write_official(tmp_path / "net.pkl", source(), G_ema=persistent(changed(change)))
    with pytest.raises(ValueError, match=message):
        import_stylegan2(tmp_path / "net.pkl")


def test_files_without_a_generator_are_told(tmp_path: Path) -> None:
    torch.save({"step": 3}, tmp_path / "empty.pt")
    torch.save([torch.zeros(2)], tmp_path / "list.pt")
    for name in ("empty.pt", "list.pt"):
        with pytest.raises(ValueError, match="holds no generator; expected weights named"):
            import_stylegan2(tmp_path / name)
    write_official(tmp_path / "d.pkl", source(), G_ema=None)
    with pytest.raises(ValueError, match="holds no generator"):
        import_stylegan2(tmp_path / "d.pkl")
    for name in ("broken.pt", "broken.safetensors"):
        (tmp_path / name).write_bytes(b"nothing")
        with pytest.raises(ValueError, match="damaged or no file of weights"):
            import_stylegan2(tmp_path / name)
    for name in ("nowhere.pt", "nowhere.pkl", "nowhere.safetensors"):
        with pytest.raises(OSError, match="nowhere"):
            import_stylegan2(tmp_path / name)


# Files that want to run something. A payload leaves a file behind; none may.


class Call:
    """Pickled as a call of ``function`` with ``args``; ``rest`` are further fields of ``__reduce__``."""

    def __init__(self, function: Any, *args: Any, rest: tuple[Any, ...] = ()) -> None:
        self.fields = (function, args, *rest)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.fields


def payloads(trace: Path) -> dict[str, Any]:
    body, _ = official_weights(source())
    touch = f"touch {trace}"
    opens = f"open({str(trace)!r}, 'w').close()"
    inner = pickle.dumps(Call(os.system, touch), protocol=2)
    state: dict[str, Any] = {"_parameters": {}, "_buffers": {}, "_modules": {}}
    hidden = Persistent(**state, _init_kwargs={"deep": [({"er": Call(builtins.eval, opens)},)]})
    weight = persistent(body)
    weight.attributes["_parameters"]["x"] = Call(torch.storage._load_from_bytes, inner)
    stored = persistent(body)
    stored.attributes["_parameters"]["x"] = Call(
        torch._utils._rebuild_tensor_v2, Call(torch.storage._load_from_bytes, inner), 0, (1,), (1,), False, None
    )
    return {
        "os.system": {"G_ema": Call(os.system, touch)},
        "builtins.eval": {"G_ema": Call(builtins.eval, opens)},
        "builtins.exec": [Call(builtins.exec, opens)],
        "builtins.getattr": {"G_ema": Call(getattr, persistent(body), "x")},
        "pathlib": {"G_ema": Call(Path.touch, trace)},
        "nested": {"G_ema": hidden},
        "storage as weight": {"G_ema": weight},
        "pickle in a storage": {"G_ema": stored},
        "setstate": {"G_ema": Call(collections.OrderedDict, rest=({"__setitem__": Call(os.system, touch)},))},
        "items": {"G_ema": Call(collections.OrderedDict, rest=(None, None, iter([("a", Call(os.system, touch))])))},
        "network of a call": {"G_ema": Persistent(**state, more=Call(os.system, touch))},
        "another pickle": {"G_ema": Call(pickle.loads, inner)},
        "torch.load": {"G_ema": Call(torch.load, str(trace))},
    }


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("name", list(payloads(Path("x"))))
def test_nothing_in_a_file_is_run(name: str, protocol: int, tmp_path: Path) -> None:
    trace, file = tmp_path / "trace", tmp_path / "hostile.pkl"
    with official_names():
        file.write_bytes(pickle.dumps(payloads(trace)[name], protocol=protocol))
    with pytest.raises(ValueError, match=r"hostile\.pkl is (no official StyleGAN2 file|damaged)"):
        import_stylegan2(file)
    assert not trace.exists()


def test_the_payloads_would_work_elsewhere(tmp_path: Path) -> None:
    for name in ("os.system", "builtins.eval", "nested", "pathlib"):
        trace = tmp_path / name
        with official_names():
            content = pickle.dumps(payloads(trace)[name])
            with pytest.raises(AssertionError, match="would be run") if name == "nested" else nullcontext():
                pickle.loads(content)
        assert trace.exists(), name


def test_a_refused_name_is_told(tmp_path: Path) -> None:
    (tmp_path / "net.pkl").write_bytes(pickle.dumps({"G": Call(os.system, "true")}, protocol=2))
    with pytest.raises(ValueError, match=r"it calls (posix|nt)\.system, which no official network does; nothing"):
        read_official_pkl(tmp_path / "net.pkl")


OTHER_ENDINGS: dict[str, tuple[bytes, str]] = {
    "a persistent id": (b"\x80\x02U\x01xQ.", "no official"),
    "a persistent id in text": (b"Pname\n.", "has the instruction PERSID"),
    "an instance": (b"(ios\nsystem\n.", "has the instruction INST"),
    "an extension": (b"\x80\x02\x82\x01.", "has the instruction EXT1"),
    "a number for every atom": (b"\x80\x02]r\xff\xff\xff\x7f.", "numbers an object 2147483647"),
    "no dictionary": (b"\x80\x02].", "holds no dictionary of networks"),
    "no network": (b"\x80\x02}X\x01\x00\x00\x00aK\x01s.", "holds no network G_ema, only a"),
    "a class alone": (b"\x80\x02}X\x05\x00\x00\x00G_emactorch.storage\n_load_from_bytes\ns.", "no network G_ema"),
    "state of a class": (b"\x80\x02ctorch.storage\n_load_from_bytes\n}X\x01\x00\x00\x00aK\x01sb.", "damaged"),
    "items of a record": (b"\x80\x02ctorch.storage\n_load_from_bytes\n)RK\x01K\x02s.", "damaged"),
    "an attribute by a dotted name": (b"\x80\x04\x8c\x0btorch_utils\x8c\x01a\x93.", r"it calls torch_utils\.a"),
    "a name of numbers": (b"\x80\x04K\x01K\x02\x93.", "damaged"),
    "nothing": (b"", "damaged"),
    "no end": (b"\x80\x02]", "damaged"),
    "text": (b"hello", "damaged|instruction"),
}


@pytest.mark.parametrize("case", OTHER_ENDINGS)
def test_odd_files_are_told(case: str, tmp_path: Path) -> None:
    content, message = OTHER_ENDINGS[case]
    (tmp_path / "net.pkl").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_official_pkl(tmp_path / "net.pkl")
    for stand_in in KNOWN.values():  # what stands in for the names was not changed
        assert not hasattr(stand_in, "a")


def test_the_unpickler_alone_refuses_what_lies_outside() -> None:
    with pytest.raises(ValueError, match="refers to objects outside of itself"):
        InertUnpickler(io.BytesIO(b"\x80\x03X\x01\x00\x00\x00aQ.")).load()


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_a_file_cut_off_is_told(share: float, tmp_path: Path) -> None:
    file = tmp_path / "net.pkl"
    write_official(file, source())
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ValueError, match="is damaged or no official StyleGAN2 file"):
        read_official_pkl(file)


def test_sizes_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "net.pkl"
    write_official(file, source())
    for name, limit, message in [
        ("MAX_BYTES", 1000, "bytes, more than 1000"),
        ("MAX_MODULES", 5, "more than 5 modules"),
        ("MAX_DEPTH", 1, "lies too deep"),
    ]:
        with monkeypatch.context() as patch:
            patch.setattr(_official_pkl, name, limit)
            with pytest.raises(ValueError, match=message):
                read_official_pkl(file)


def damaged_weight(offset: int = 0, size: Any = (2,), stride: Any = (1,), dtype: torch.dtype = torch.float32) -> Any:
    numbers = torch.arange(4, dtype=dtype)
    storage = numbers.untyped_storage()
    typed = torch.storage.TypedStorage(wrap_storage=storage, dtype=dtype, _internal=True)
    return Call(torch._utils._rebuild_tensor_v2, typed, offset, size, stride, False, collections.OrderedDict())


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (damaged_weight(size=(5,)), "lies outside of its 4 numbers"),
        (damaged_weight(offset=3), "lies outside of its 4 numbers"),
        (damaged_weight(offset=-1), "lies outside of its 4 numbers"),
        (damaged_weight(size=(10**9,), stride=(0,)), r"of shape \(1000000000,\) .* lies outside"),
        (damaged_weight(size=(2, 2), stride=(3, 1)), "lies outside of its 4 numbers"),
        (damaged_weight(size=(2, -2), stride=(1, 1)), "lies outside of its 4 numbers"),
        (damaged_weight(stride=(-1,)), "lies outside of its 4 numbers"),
        (damaged_weight(size="ab"), "damaged"),
        (damaged_weight(size=(2, 2)), "damaged"),
        (damaged_weight(dtype=torch.int64), "does not hold floating-point numbers"),
        (Call(torch._utils._rebuild_tensor_v2, 3, 0, (1,), (1,), False, None), "no tensor but Values"),
        ({"a": 1}, "no tensor but dict"),
    ],
)
def test_weights_that_do_not_fit_their_bytes(weight: Any, message: str, tmp_path: Path) -> None:
    network = Persistent(_parameters={"x": weight}, _buffers={}, _modules={})
    write_official(tmp_path / "net.pkl", source(), G_ema=network)
    with pytest.raises(ValueError, match=message):
        read_official_pkl(tmp_path / "net.pkl")


def test_a_view_of_a_storage_keeps_its_place(tmp_path: Path) -> None:
    network = Persistent(_parameters={"x": damaged_weight(1, (2,), (2,))}, _buffers={}, _modules={})
    write_official(tmp_path / "net.pkl", source(), G_ema=network)
    assert read_official_pkl(tmp_path / "net.pkl")["G_ema"].weights["x"].tolist() == [1, 3]


def test_a_module_in_itself_is_told(tmp_path: Path) -> None:
    # A call whose argument holds the result of the call cannot be written; a module that is a table can.
    network = Persistent(_parameters={}, _buffers={}, _modules={"a": {"_modules": {}}})
    write_official(tmp_path / "net.pkl", source(), G_ema=network)
    with pytest.raises(ValueError, match=r"'a\.' is no module"):
        read_official_pkl(tmp_path / "net.pkl")


def test_settings_are_told_from_the_shapes(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "image_size": 32,
        "width": 2,
        "max_channels": 8,
        "w_dim": 5,
        "z_dim": 3,
        "mapping_layers": 2,
        "official": True,
    }
    generator = StyleGAN2(StyleGAN2Config(**settings))
    write_official(tmp_path / "net.pkl", generator)
    assert import_stylegan2(tmp_path / "net.pkl").config == generator.config
