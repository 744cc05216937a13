"""`import pretend`: from now on `torch.device("pretend")` is an accelerator, as strict about mixed devices as CUDA."""
import ctypes
import hashlib
import os
import subprocess
import sys
import sysconfig
import tempfile
import types
from pathlib import Path

import torch

SOURCE = Path(__file__).with_name("pretend.cpp")


def built() -> Path:
    "The compiled library: made once for each version of PyTorch and of the source."
    key = hashlib.sha256(SOURCE.read_bytes() + torch.__version__.encode()).hexdigest()[:16]
    library = Path(tempfile.gettempdir()) / f"densegen-pretend-{os.getuid()}" / f"{key}.so"
    if not library.exists():
        home = Path(torch.__file__).parent
        library.parent.mkdir(mode=0o700, exist_ok=True)
        draft = library.with_suffix(f".{os.getpid()}")
        include = [f"-I{home / 'include'}", f"-I{home / 'include/torch/csrc/api/include'}"]
        include.append(f"-I{sysconfig.get_paths()['include']}")
        link = [f"-L{home / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10", f"-Wl,-rpath,{home / 'lib'}"]
        options = ["-O1", "-std=c++20", "-shared", "-fPIC", "-w", f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"]
        subprocess.run(["g++", *options, *include, str(SOURCE), "-o", str(draft), *link], check=True)
        draft.rename(library)
    return library


def install() -> None:
    "Give PyTorch the device, once."
    if "pretend" in dir(torch):
        return
    ctypes.CDLL(str(built()), ctypes.RTLD_GLOBAL).pretend()
    torch.utils.rename_privateuse1_backend("pretend")
    module = types.ModuleType("torch.pretend")
    module.is_available, module.is_initialized = (lambda: True), (lambda: True)
    module._is_in_bad_fork, module._lazy_init = (lambda: False), (lambda: None)
    module.device_count, module.current_device = (lambda: 1), (lambda: 0)
    module.set_device = module.manual_seed = module.manual_seed_all = lambda *_: None
    module.synchronize = module.empty_cache = lambda *_: None
    module.get_rng_state = lambda *_: torch.get_rng_state()
    module.set_rng_state = lambda state, *_: torch.set_rng_state(state)
    module.get_amp_supported_dtype = lambda: [torch.bfloat16, torch.float16]
    torch._register_device_module("pretend", module)
    torch.utils.generate_methods_for_privateuse1_backend()
    _tell_fabric()


def _tell_fabric() -> None:
    "Let `Fabric` choose the device, too."
    from lightning_fabric.accelerators import ACCELERATOR_REGISTRY, CPUAccelerator
    from lightning_fabric.connector import _Connector
    from lightning_fabric.strategies import SingleDeviceStrategy

    class Accelerator(CPUAccelerator):
        setup_device = lambda self, device: None
        get_parallel_devices = staticmethod(lambda devices: [torch.device("pretend", 0)])
        name = staticmethod(lambda: "pretend")

    ACCELERATOR_REGISTRY.register("pretend", Accelerator, description="pretend")
    usual = _Connector._choose_strategy
    ours = lambda self: SingleDeviceStrategy(torch.device("pretend", 0)) if self._accelerator_flag == "pretend" else usual(self)
    _Connector._choose_strategy = ours


install()
