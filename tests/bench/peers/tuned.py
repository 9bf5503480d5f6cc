"""What the PyTorch peers share: the fair setting. PyTorch allocates a temporary as large as every weight in
every time step; with glibc's stock malloc each of them is mapped and unmapped, which halves its speed at four
streams. glibc and OpenMP read their settings when a process starts, so the script begins again with them."""
import importlib.util
import os
import shutil
import sys

MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": "2000000000",
    "MALLOC_TRIM_THRESHOLD_": "8000000000",
    "MALLOC_TOP_PAD_": "268435456",
}
NOT_INSTALLED = 77


def restart_with(threads):
    """Begins the script again, once, under $CHORALE_TORCH_PYTHON (or python3) with the fair setting."""
    if os.environ.get("CHORALE_PEER_TUNED") != "1":
        python = shutil.which(os.environ.get("CHORALE_TORCH_PYTHON", "python3")) or sys.executable
        count = str(threads)
        env = dict(os.environ, **MALLOC, CHORALE_PEER_TUNED="1",
                   OMP_NUM_THREADS=count, MKL_NUM_THREADS=count, OPENBLAS_NUM_THREADS=count)
        os.execve(python, [python, *sys.argv], env)
    if importlib.util.find_spec("torch") is None:
        print(f"{sys.executable} has no PyTorch; in a virtual environment: pip install torch==2.13.0 numpy, "
              "then CHORALE_TORCH_PYTHON=VENV/bin/python", file=sys.stderr)
        sys.exit(NOT_INSTALLED)
