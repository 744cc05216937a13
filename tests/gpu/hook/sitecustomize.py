"Every Python that starts with this folder on PYTHONPATH has the pretended device, also the kernels of lectures."
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import pretend  # noqa: E402, F401
