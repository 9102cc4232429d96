"""Compute with a model's first layers while its last ones are still being read.

    python examples/early_start.py FOLDER

FOLDER is any Hugging Face folder of safetensors; no cluster is needed. Needs torch and
transformers. Prints when the first layer had computed, when everything was there, and the token
that the model finds most likely after a few others.
"""

import sys
import time

import brisk_native
import torch


def main(folder: str) -> int:
    """Run one forward pass that begins before the model is loaded."""
    began_s = time.perf_counter()

    def told(what: str) -> None:
        print(f"{time.perf_counter() - began_s:7.3f} s  {what}", file=sys.stderr)

    try:
        with brisk_native.start_loading(folder) as loading, torch.inference_mode():
            print(f"groups: {', '.join(loading.groups)}", file=sys.stderr)
            with loading.computing() as model:
                told("built, and the embedding is there: computing begins")
                logits = model(torch.tensor([[1, 2, 3]])).logits
                told("computed")
            model = loading.result()  # for everything from here on
            told(f"loaded {loading.report.bytes_read / 1e9:.3f} GB")
    except (brisk_native.InvalidModelError, brisk_native.InvalidCheckpointError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(int(logits[0, -1].argmax()))
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 2:  # noqa: PLR2004  (the program and a folder)
        sys.exit("usage: python examples/early_start.py FOLDER")
    sys.exit(main(sys.argv[1]))
