"""Deploy a model and ask it, in a dozen lines.

Start a cluster first (`brisk up --detach`), then:

    python examples/quickstart.py models/brisk-licence-1.5m "You may copy"
"""

import sys

from brisk_client import BriskError, Client


def main(folder: str, prompt: str) -> int:
    """Deploy the Hugging Face folder and print one answer."""
    try:
        with Client() as client:
            client.deploy("quickstart", source=folder)
            answer = client.generate("quickstart", prompt, max_tokens=64, temperature=0).result()
    except BriskError as error:
        print(f"{error.reason}: {error.message}", file=sys.stderr)
        return 1
    print(prompt + answer.text)
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 3:  # noqa: PLR2004  (the program, a folder and a prompt)
        sys.exit("usage: python examples/quickstart.py FOLDER PROMPT")
    sys.exit(main(sys.argv[1], sys.argv[2]))
