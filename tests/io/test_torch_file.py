"""Torch files: every kind of tensor comes back, and everything else is refused by name without running."""

import io
import tracemalloc
import zipfile

import ml_dtypes
import numpy as np
import pytest

from tests.io.torch_files import Call, Name, Storage, module, parameter, pickled, tensor, write_torch
from wmq_jax.io import Module, Opaque, TorchFileError, load_torch, save_torch
from wmq_jax.io.torch_writer import STORAGES

TWELVE = Storage("FloatStorage", "0", 12)
VALUES = np.arange(12, dtype=np.float32)
DATA = {"0": VALUES.tobytes()}


def refused(path, words):
    with pytest.raises(TorchFileError, match=words) as error:
        load_torch(path)
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", STORAGES)
def test_every_dtype(tmp_path, name):
    dtype = np.dtype(getattr(ml_dtypes, name, name))
    values = np.asarray([0, 1, 1, 0, 3, 2]).astype(dtype)
    value = tensor(Storage(STORAGES[name], "7", 6, "cuda:0"), (2, 3), (3, 1))
    array = load_torch(write_torch(tmp_path / "a.pth", value, {"7": values.tobytes()}))
    assert array.dtype == dtype
    np.testing.assert_array_equal(array, values.reshape(2, 3))


@pytest.mark.parametrize("location", ["cpu", "cuda:0", "cuda:7", "mps", "xla:1", "meta", "anything"])
def test_any_location(tmp_path, location):
    value = tensor(TWELVE._replace(location=location), (12,), (1,))
    np.testing.assert_array_equal(load_torch(write_torch(tmp_path / "a.pth", value, DATA)), VALUES)


def test_newer_dtypes_come_as_untyped_bytes(tmp_path):
    values = np.asarray([0.5, -2.0]).astype(ml_dtypes.float8_e4m3fn)
    hooks = Call(Name("collections", "OrderedDict"))
    args = (Storage("UntypedStorage", "0", 2), 0, (2,), (1,), False, hooks, Name("torch", "float8_e4m3fn"))
    path = write_torch(
        tmp_path / "a.pth", Call(Name("torch._utils", "_rebuild_tensor_v3"), args), {"0": values.tobytes()}
    )
    array = load_torch(path)
    assert array.dtype == values.dtype and (array == values).all()


@pytest.mark.parametrize(
    "shape, strides, offset, expected",
    [
        ((3, 4), (4, 1), 0, VALUES.reshape(3, 4)),
        ((4, 3), (1, 4), 0, VALUES.reshape(3, 4).T),
        ((2, 2), (4, 2), 3, VALUES[[3, 5, 7, 9]].reshape(2, 2)),
        ((5, 2), (0, 1), 10, np.tile(VALUES[10:], (5, 1))),
        ((), (), 11, VALUES[11]),
        ((0, 4), (4, 1), 12, np.zeros((0, 4))),
        ((1, 3), (999, 1), 0, VALUES[None, :3]),
    ],
)
def test_strided_tensors(tmp_path, shape, strides, offset, expected):
    array = load_torch(write_torch(tmp_path / "a.pth", tensor(TWELVE, shape, strides, offset), DATA))
    assert array.shape == shape and array.dtype == np.float32
    np.testing.assert_array_equal(array, expected)


def test_tensors_of_one_storage_share_memory(tmp_path):
    value = {"whole": tensor(TWELVE, (12,), (1,)), "tail": [tensor(TWELVE, (2,), (1,), 10)]}
    tree = load_torch(write_torch(tmp_path / "a.pth", value, DATA))
    assert np.shares_memory(tree["whole"], tree["tail"][0])
    np.testing.assert_array_equal(tree["tail"][0], VALUES[10:])


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol(tmp_path, protocol):
    """`torch.save(..., pickle_protocol=...)`; sets, which nothing here needs, are passed over."""
    layer = module(
        "torch.nn.modules.linear.Linear", {"weight": parameter(tensor(TWELVE, (3, 4), (4, 1)))}, heads=4, seen={1, "a"}
    )
    value = {"layer": layer, "none": set(), "frozen": frozenset({2.5, None}), "long": 1 << 40}
    found = load_torch(write_torch(tmp_path / "a.pth", pickled(value, protocol), DATA))
    np.testing.assert_array_equal(found["layer"].weights["weight"], VALUES.reshape(3, 4))
    assert found["layer"].attributes["heads"] == 4 and found["long"] == 1 << 40
    assert {found["none"].class_name, found["frozen"].class_name} == {"builtins.set", "builtins.frozenset"}


def test_a_set_in_several_pieces_names_what_is_not_persistent(tmp_path):
    """Protocol 4 adds a thousand items at a time; buffers that a module lists there are no weights."""
    names = {f"b{i}" for i in range(2500)}
    root = module("models.vit.V", buffers={"b2499": tensor(TWELVE, (2,), (1,)), "kept": tensor(TWELVE, (3,), (1,))})
    root.state["_non_persistent_buffers_set"] = names
    found = load_torch(write_torch(tmp_path / "a.pth", pickled({"m": root}, 4), DATA))
    assert list(found["m"].weights) == ["kept"]


@pytest.mark.parametrize(
    ("pickle", "words"),
    [
        (b"\x80\x04\x8f" + b"(\x90" * 1_000_000 + b".", None),
        (b"\x80\x04\x8f" + b"(\x90" * 2_000_000 + b".", "more than 3000000 steps, which no weights take"),
        (b"\x80\x04(" + b"}" * 4_000_000 + b"l.", "more than 3000000 steps, which no weights take"),
        (b"\x80\x04)\x91(K\x01\x90.", "its pickle closes a group that it never opened"),
        (b"\x80\x04(\x91(K\x01\x90.", "its pickle adds to a builtins.frozenset, which is refused"),
    ],
)
def test_pickles_made_to_take_for_ever(tmp_path, pickle, words):
    path = write_torch(tmp_path / "a.pth", pickle, {})
    if words is None:
        assert load_torch(path) == Opaque("builtins.set")
    else:
        refused(path, words)


def test_big_endian_storages_are_swapped(tmp_path):
    path = write_torch(
        tmp_path / "a.pth", tensor(TWELVE, (12,), (1,)), {"0": VALUES.astype(">f4").tobytes()}, byteorder=b"big"
    )
    np.testing.assert_array_equal(load_torch(path), VALUES)


def test_truth_values_are_true_or_false(tmp_path):
    path = write_torch(tmp_path / "a.pth", tensor(Storage("BoolStorage", "0", 3), (3,), (1,)), {"0": b"\x00\x02\x01"})
    assert load_torch(path).view(np.uint8).tolist() == [0, 1, 1]


def test_modules_become_stand_ins(tmp_path):
    """Weights have the names of the state dict; masks and what is not persistent are left out."""
    child = module(
        "torch.nn.modules.linear.Linear", {"weight": parameter(tensor(TWELVE, (3, 4), (4, 1))), "bias": None}
    )
    root = module(
        "models.vit.ViTPredictor",
        modules={"layers": module("torch.nn.modules.container.ModuleList", modules={"0": child})},
        buffers={"table": tensor(TWELVE, (2,), (1,)), "cache": tensor(TWELVE, (1,), (1,))},
        _non_persistent_buffers_set=Call(Name("__builtin__", "set"), (["cache"],)),
        bias=tensor(Storage("FloatStorage", "not there", 9), (9,), (1,)),
        heads=4,
    )
    found = load_torch(write_torch(tmp_path / "a.pth", {"predictor": root, "epoch": 3}, DATA))
    assert found["epoch"] == 3
    predictor = found["predictor"]
    assert isinstance(predictor, Module) and predictor.class_name == "models.vit.ViTPredictor"
    assert list(predictor.weights) == ["table", "layers.0.weight"]
    assert predictor.attributes["heads"] == 4
    np.testing.assert_array_equal(predictor.weights["layers.0.weight"], VALUES.reshape(3, 4))


def test_optimizers_are_skipped_without_loading_their_tensors(tmp_path):
    """The storage that the optimizer refers to is not in the file, and nobody asks for it."""
    moments = tensor(Storage("FloatStorage", "absent", 4), (4,), (1,))
    inner = Call(Name("torch.optim.adamw", "AdamW"), (), {"state": {moments: {"exp_avg": moments}}, "defaults": {}})
    wrapper = Call(Name("accelerate.optimizer", "AcceleratedOptimizer"), (), {"optimizer": inner})
    found = load_torch(write_torch(tmp_path / "a.pth", {"predictor_optimizer": wrapper}, {}))
    assert found["predictor_optimizer"] == Opaque("accelerate.optimizer.AcceleratedOptimizer")


@pytest.mark.parametrize(
    "module_name, name",
    [
        ("posix", "system"),
        ("builtins", "eval"),
        ("__builtin__", "getattr"),
        ("os", "system"),
        ("subprocess", "Popen"),
        ("models.vit", "system"),
        ("models.visual_world_model", "torch.os.system"),
        ("models.visual_world_model", "Torch.os.system"),
        ("models.x import os;", "Popen"),
        ("torch", "load"),
        ("torch._utils", "_rebuild_sparse_tensor"),
        ("torch.hub", "Load"),
        ("numpy", "load"),
        ("functools", "partial"),
        ("modelsx.vit", "Attention"),
    ],
)
def test_names_that_are_not_listed_are_refused(tmp_path, module_name, name):
    path = write_torch(tmp_path / "a.pth", {"predictor": Call(Name(module_name, name), ("x",))}, {})
    refused(path, f"asks for '{module_name}.{name}', which is refused")


@pytest.mark.parametrize(
    "pickle, words",
    [
        (b"\x80\x02]q\x00h\x00a.", "nested .* hold themselves"),
        (b"\x80\x02" + b"]" * 5000 + b"a" * 4999 + b".", "nested .* hold themselves"),
        (b"\x80\x02(i__main__\nX\n.", "opcode INST"),
        (b"\x80\x02Pabc\n.", "opcode PERSID"),
        (b"\x80\x02\x82\x01.", "opcode EXT1"),
        (b"\x80\x02\xff.", "opcode 0xff"),
        (b"\x80\x02X\xff\xff\xff\x7fabc.", "ends too early"),
        (b"\x80\x02N", "ends too early"),
        (b"\x80\x02h\x07.", "recalls a value"),
        (b"\x80\x02.", "takes a value that is not there"),
        (b"\x80\x02u.", "closes a group"),
        (b"\x80\x02}(K\x01u.", "key without a value"),
        (b"\x80\x02}(]K\x01u.", "dictionary key of type list"),
        (b"\x80\x02}(K\x01K\x02\x86Nu.", "dictionary key of type tuple"),
        (b"\x80\x02ctorch\ndevice\n(" + b"N" * 50 + b"tR.", "calls torch.device with arguments"),
        (b"\x80\x02}\x8a\x09" + bytes(8) + b"\x01Ns.", "dictionary key of type int"),
        (b"\x80\x02NK\x01a.", "appends to a NoneType"),
        (b"\x80\x02}K\x01R.", "calls a dict"),
        (b"\x80\x02\x8a\xff" + bytes(255) + b".", "integer of 255 bytes"),
        (b"\x80\x02X\x01\x00\x00\x00\xff.", "no UTF-8"),
        (b"\x80\x00N.", "protocol 0"),
        (b"\x80\x02K\x01Q.", "no storage"),
        (pickled({"a": tensor(TWELVE, (13,), (1,))}), "reaches beyond its storage"),
        (pickled({"a": tensor(TWELVE, (2,), (1,), 11)}), "reaches beyond its storage"),
        (pickled({"a": tensor(TWELVE, (-2,), (1,))}), "make no sense"),
        (pickled({"a": tensor(TWELVE, (2, 2), (1,))}), "make no sense"),
        (pickled({"a": tensor(TWELVE, (1 << 40,), (0,))}), "repeats the 12 elements"),
        (pickled({"a": tensor(TWELVE._replace(size=11), (2,), (1,))}), "has 48 bytes, not 44"),
        (pickled({"a": tensor(TWELVE._replace(key="9"), (2,), (1,))}), "data/9 is missing"),
        (
            pickled([tensor(TWELVE, (2,), (1,)), tensor(TWELVE._replace(kind="IntStorage"), (2,), (1,))]),
            "described in two ways",
        ),
        (pickled(Call(Name("torch._utils", "_rebuild_tensor_v2"), (1,))), "arguments that it does not take"),
    ],
)
def test_pickles_that_make_no_sense_are_refused(tmp_path, pickle, words):
    refused(write_torch(tmp_path / "a.pth", pickle, DATA), words)


def test_shared_lists_do_not_multiply(tmp_path):
    """Forty lists, each holding the one before twice."""
    body = b"]q\x00" + b"".join(b"]q%c(h%ch%ce" % (i + 1, i, i) for i in range(40))
    assert len(load_torch(write_torch(tmp_path / "a.pth", b"\x80\x02" + body + b".", {}))) == 2


def test_shared_modules_do_not_multiply(tmp_path):
    """Forty modules, each holding the one before twice, and no weight among them."""
    name = "torch.nn.modules.container.Sequential"
    part = module(name)
    for _ in range(40):
        part = module(name, modules={"0": part, "1": part})
    refused(write_torch(tmp_path / "a.pth", part, {}), "names of more than 10000000 characters")


def test_long_names_do_not_multiply(tmp_path):
    part = module("torch.nn.modules.container.Sequential")
    for _ in range(20):
        part = module("torch.nn.modules.container.Sequential", modules={"x" * 900: part, "y": part})
    refused(write_torch(tmp_path / "a.pth", part, {}), "nested too deeply")
    refused(write_torch(tmp_path / "b.pth", Name("models." + "x" * 2000, "Y"), {}), "which is refused")


def test_long_names_of_a_shared_part_do_not_multiply(tmp_path):
    """A part with long names that is a child a thousand times: every copy would have names of its own."""
    name = "torch.nn.modules.container.Sequential"
    part = module(name, **{f"{i:0900}": i for i in range(500)})
    whole = module(name, modules={f"{i:0900}": part for i in range(1000)})
    path = write_torch(tmp_path / "a.pth", whole, {})
    tracemalloc.start()
    refused(path, "names of more than 10000000 characters")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 40 * path.stat().st_size, "the names alone would take 900 MB"


def test_state_shared_by_many_objects_does_not_multiply(tmp_path):
    """Builders that copied what they are given would copy it once for each of many calls."""
    state = {"_parameters": {}, "_modules": {}, **{f"a{i}": i for i in range(20_000)}}
    many = [Call(Name("models.vit", "Attention"), (), state) for _ in range(100)]
    refused(write_torch(tmp_path / "a.pth", many, {}), "more than 1000000 entries")
    pairs = [(str(i), i) for i in range(10)]
    refused(write_torch(tmp_path / "b.pth", Call(Name("collections", "OrderedDict"), (pairs,)), {}), "does not take")


@pytest.mark.parametrize(
    "shape, strides", [((0, 1 << 61), (1, 1)), ((1, 3), (1 << 61, 1)), ((0,) + (1 << 40,) * 3, (1,) * 4)]
)
def test_shapes_that_no_array_can_have(tmp_path, shape, strides):
    path = write_torch(tmp_path / "a.pth", tensor(TWELVE, shape, strides), DATA)
    try:
        assert load_torch(path).shape == shape
    except TorchFileError as error:
        assert "no array can have" in str(error)


def test_names_of_weights_are_strings(tmp_path):
    part = module(
        "models.vit.Attention", {Call(Name("torch", "device"), ("cpu",)): parameter(tensor(TWELVE, (1,), (1,)))}
    )
    refused(write_torch(tmp_path / "a.pth", part, DATA), "damaged")


def test_a_deep_key_does_not_end_the_interpreter(tmp_path):
    pickle = b"\x80\x02})" + b"\x85" * 500_000 + b"Ns."
    refused(write_torch(tmp_path / "a.pth", pickle, {}), "dictionary key of type tuple")


@pytest.fixture
def good(tmp_path):
    return save_torch(tmp_path / "good.pth", {"w": VALUES, "n": 2}) or tmp_path / "good.pth"


def test_a_damaged_storage_is_found(good):
    data = bytearray(good.read_bytes())
    at = data.index(VALUES.tobytes())
    data[at] ^= 0xFF
    good.write_bytes(data)
    refused(good, r"entry data/0 is damaged \(Bad CRC-32")


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", "it is empty"),
        (b"\x80\x02}q\x00.", "legacy pickle.*re-save it.*weights_only=True"),
        (b"hello world, this is text", "no zip file of torch.save"),
        ((80).to_bytes(8, "little") + b'{"a": {}}', "safetensors"),
        (b"PK\x03\x04" + bytes(40), "cut short or damaged"),
    ],
)
def test_other_files_are_named(tmp_path, content, words):
    path = tmp_path / "a.pth"
    path.write_bytes(content)
    refused(path, words)


def test_zip_files_of_others_are_named(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("notes.txt", "hello")
    refused(tmp_path / "a.zip", "no data.pkl")
    with zipfile.ZipFile(tmp_path / "b.pth", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("b/data.pkl", pickled([0] * 1000))
    refused(tmp_path / "b.pth", "compressed")
    refused(write_torch(tmp_path / "c.pth", {}, {}, **{"constants.pkl": b"x"}), "TorchScript")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file .*gone.pth"):
        load_torch(tmp_path / "gone.pth")


def test_an_open_file_and_a_name_for_it(good):
    assert load_torch(io.BytesIO(good.read_bytes()))["n"] == 2
    with pytest.raises(TorchFileError, match="^outputs.zip/model.pth: it is empty"):
        load_torch(io.BytesIO(b""), name="outputs.zip/model.pth")


def test_what_is_written_is_read(tmp_path):
    random = np.random.default_rng(0)
    arrays = {name: (5 * random.random((3, 2))).astype(np.dtype(getattr(ml_dtypes, name, name))).T for name in STORAGES}
    save_torch(tmp_path / "a.pth", {"m": arrays, "scalar": np.array(3.0), "empty": np.zeros((0, 2)), "n": -(2**40)})
    found = load_torch(tmp_path / "a.pth")
    assert (found["scalar"], found["empty"].shape, found["n"]) == (3.0, (0, 2), -(2**40))
    for name, array in arrays.items():
        assert found["m"][name].dtype == array.dtype
        np.testing.assert_array_equal(found["m"][name], array)
    with zipfile.ZipFile(tmp_path / "a.pth") as file:
        assert {info.date_time[0] for info in file.infolist()} == {1980}, "equal values are equal files, at any time"
    with pytest.raises(FileExistsError):
        save_torch(tmp_path / "a.pth", {})
    with pytest.raises(TypeError, match="cannot save m.x as torch does: it is an array of complex64"):
        save_torch(tmp_path / "b.pth", {"m": {"x": np.zeros(1, np.complex64)}})
