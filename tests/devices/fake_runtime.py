"""A stand-in for ONNX Runtime, for what the real one does not do on command.

Put its folder first on ``PYTHONPATH`` of an agent.  It writes to file descriptor 1 in every way
there is, sleeps ``FAKE_CALL_S`` in each inference, hangs in the one after ``FAKE_GOOD_CALLS``
(fails in all, where that is negative), keeps the interpreter to itself for ``FAKE_HOLD_S``, and
names the CPU cores it may use as its providers.  Importing it takes ``FAKE_IMPORT_S``, and for a
moment ``FAKE_IMPORT_MB``.
"""

from __future__ import annotations

from pathlib import Path

_MODULE = """
import ctypes, os, subprocess, time

__version__ = "0.fake"
_CALL_S = float(os.environ.get("FAKE_CALL_S", "0"))
_HOLD_S = int(os.environ.get("FAKE_HOLD_S", "0"))
_left = int(os.environ.get("FAKE_GOOD_CALLS", "1000000000"))
len(b"x" * (int(os.environ.get("FAKE_IMPORT_MB", "0")) << 20))
time.sleep(float(os.environ.get("FAKE_IMPORT_S", "0")))


def _noise():
    print("noise by print", flush=True)
    os.write(1, b"noise by the C library\\n")
    subprocess.run(["echo", "noise by a child"])


_noise()


class SessionOptions:
    pass


class _Spec:
    name = "x"


class _Binding:
    def bind_cpu_input(self, name, value): pass
    def bind_output(self, name): pass
    def copy_outputs_to_cpu(self): return []


class InferenceSession:
    def __init__(self, path, options, providers):
        _noise()

    def io_binding(self): return _Binding()
    def get_inputs(self): return [_Spec()]
    def get_outputs(self): return [_Spec()]

    def get_providers(self):
        return ["cores " + ",".join(map(str, sorted(os.sched_getaffinity(0))))]

    def run_with_iobinding(self, binding):
        global _left
        os.write(1, b"noise in the timed part")
        if _left < 0:
            raise RuntimeError("a library it needs is too new")
        if _HOLD_S:
            ctypes.PyDLL(None).sleep(_HOLD_S)
        if _left == 0:
            ctypes.CDLL(None).sleep(3600)
        _left -= 1
        if _CALL_S:
            time.sleep(_CALL_S)
"""


def install(folder: Path, module: str = _MODULE) -> dict[str, str]:
    """Write the module into ``folder``; the environment variables that put it in effect."""
    folder.mkdir(exist_ok=True)
    (folder / "onnxruntime.py").write_text(module)
    return {"PYTHONPATH": str(folder)}


def install_broken(folder: Path) -> dict[str, str]:
    """A runtime whose import fails, as where its wheel is missing or its library is too old."""
    return install(folder, 'raise ImportError("libgomp.so.1: cannot open shared object file")\n')
