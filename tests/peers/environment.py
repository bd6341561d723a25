# SPDX-License-Identifier: MIT OR Apache-2.0
"""Makes the peers' environment in a folder, unless it is there: `python3 tests/peers/environment.py FOLDER`. It prints what it holds.

torch comes first, by its exact version, so that nothing draws in another one; then the newest of the others that goes with it. sparsify
and dictionary_learning ask for much that their loaders never import, torchvision among it: they come without, and then what they import.
Where the newest do not go together, those do that are known to.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

TORCH = "torch==2.13.0"
PEERS, ALONE, IMPORTED = ("sae-lens", "circuit-tracer"), ("eai-sparsify", "dictionary-learning"), ("natsort", "schedulefree", "simple-parsing", "einops", "nnsight")
KNOWN = {
    "sae-lens": "6.54.12", "circuit-tracer": "0.5.0", "eai-sparsify": "1.3.3", "dictionary-learning": "0.1.0", "transformers": "4.57.3",
    "huggingface_hub": "0.36.2", "transformer-lens": "3.2.1", "safetensors": "0.8.0", "nnsight": "0.8.1",
}  # fmt: skip
SHOWN = ("torch", *PEERS, *ALONE, "safetensors", "huggingface_hub", "transformers", "numpy")


def make(folder: Path, known: bool) -> None:
    """Raises CalledProcessError where they cannot be installed so, or the program that the tests run cannot import them."""
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = str(folder / "bin/python")

    def install(*arguments: str) -> None:
        subprocess.run([python, "-m", "pip", "install", "-qq", "--disable-pip-version-check", *arguments], check=True)

    def named(*names: str) -> list[str]:
        return [f"{name}=={KNOWN[name]}" if known and name in KNOWN else name for name in names]

    install(TORCH)
    install(TORCH, *named(*PEERS, *(name for name in KNOWN if known and name not in ALONE)))
    install("--no-deps", *named(*ALONE))
    install(TORCH, *named(*PEERS, *IMPORTED))
    subprocess.run(imports(folder), stdin=subprocess.DEVNULL, check=True)


def imports(folder: Path) -> list[str]:
    """The program that the tests run: without a task it imports all peers and ends."""
    return [str(folder / "bin/python"), str(Path(__file__).with_name("peer.py"))]


def is_made(folder: Path) -> bool:
    return (folder / "bin/python").exists() and not subprocess.run(imports(folder), stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode


def main() -> None:
    folder = Path(sys.argv[1]).resolve()
    try:
        if not is_made(folder):
            make(folder, known=False)
    except subprocess.CalledProcessError as error:
        print(f"the newest peers do not go together ({error}): those that are known to", file=sys.stderr)
        make(folder, known=True)
    program = "import sys; from importlib.metadata import version; print(*(f'{name} {version(name)}' for name in sys.argv[1:]), sep=', ')"
    print("peers:", end=" ", flush=True)
    subprocess.run([str(folder / "bin/python"), "-c", program, *SHOWN], check=True)


if __name__ == "__main__":
    main()
