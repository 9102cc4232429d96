"""A real S3-compatible server on loopback, as a process of its own, and what puts objects there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import botocore.session

_RUNNING: Final = re.compile(r"Running on (http://127\.0\.0\.1:\d+)")
CREDENTIALS: Final[Mapping[str, str]] = {
    "AWS_ACCESS_KEY_ID": "brisk-tests",
    "AWS_SECRET_ACCESS_KEY": "not-a-secret",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


class S3Server:
    """One server, empty at first."""

    def __init__(self, url: str) -> None:
        self.url = url
        session = botocore.session.Session()
        session.set_credentials(
            CREDENTIALS["AWS_ACCESS_KEY_ID"], CREDENTIALS["AWS_SECRET_ACCESS_KEY"]
        )
        self.client: Any = session.create_client(
            "s3", region_name=CREDENTIALS["AWS_DEFAULT_REGION"], endpoint_url=url
        )

    @property
    def environment(self) -> dict[str, str]:
        """Return what a process needs to reach it, in the usual variables."""
        return {**CREDENTIALS, "AWS_ENDPOINT_URL": self.url}

    def upload(self, folder: Path, bucket: str, prefix: str) -> str:
        """Put the files of `folder` into a bucket, made if it is not there; return the URL."""
        self.client.create_bucket(Bucket=bucket)
        for path in sorted(folder.iterdir()):
            self.put(bucket, f"{prefix}/{path.name}", path.read_bytes())
        return f"s3://{bucket}/{prefix}"

    def put(self, bucket: str, key: str, content: bytes) -> None:
        """Put one object."""
        self.client.put_object(Bucket=bucket, Key=key, Body=content)


@contextmanager
def s3_running() -> Iterator[S3Server]:
    """Run a server for the block."""
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"],
        env={**os.environ, **CREDENTIALS},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    try:
        url = next((m[1] for line in process.stderr if (m := _RUNNING.search(line))), None)
        assert url is not None, f"moto ended with {process.wait()}"
        yield S3Server(url)
    finally:
        process.kill()
        process.stderr.close()
        process.wait()
