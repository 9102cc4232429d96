"""Show an answer as it comes, with the progress of a cold start, asynchronously.

    python examples/stream.py MODEL PROMPT

Leaving the loop early would cancel the request at once; so does Ctrl-C.
"""

import asyncio
import sys

from brisk_client import AsyncClient, BriskError, Progress


async def main(model: str, prompt: str) -> int:
    """Stream one answer to the terminal and say how it started."""
    try:
        async with AsyncClient() as client:
            stream = client.generate(model, prompt, max_tokens=64, seed=7, want_progress=True)
            async for event in stream.events():
                if isinstance(event, Progress):
                    share = "" if event.fraction is None else f" {event.fraction:.0%}"
                    print(f"[{event.phase}{share}]", file=sys.stderr)
                else:
                    print(event.text, end="", flush=True)
    except BriskError as error:
        print(f"{error.reason}: {error.message}", file=sys.stderr)
        return 1
    print()
    if stream.start is not None:
        kind = "cold" if stream.start.cold else "warm"
        print(f"[{kind} start, {stream.start.total_s * 1000:.0f} ms]", file=sys.stderr)
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 3:  # noqa: PLR2004  (the program, a model and a prompt)
        sys.exit("usage: python examples/stream.py MODEL PROMPT")
    sys.exit(asyncio.run(main(sys.argv[1], sys.argv[2])))
