"""A model in an S3-compatible store, told by botocore: credentials, endpoint, listing, signatures.

The objects' bytes come over plain HTTP from links that botocore signs, as that is how they come
fastest (docs/adr/0018-remote-sources.md).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import botocore.exceptions as failures
import botocore.session
from botocore import UNSIGNED
from botocore.config import Config

from services.common.clock import monotonic_s
from services.storemgr.file_names import is_file_name
from services.storemgr.folder import ENTRIES_MAX
from services.storemgr.refusal import invalid_model
from services.storemgr.remotes.listing import Listing, RemoteFile
from services.storemgr.remotes.locations import S3Location
from services.storemgr.remotes.ranges import Target
from services.storemgr.remotes.refusals import PassingError, forbidden, not_found, unusable

logging.getLogger("botocore").setLevel(logging.WARNING)  # it tells where it found what

_AMAZON: Final = ".amazonaws.com"
_LINK_S: Final = 3600
_LINK_S_MAX: Final = 600.0  # a link is used no longer: the credentials behind it may expire
_CONNECT_S: Final = 10.0
_READ_S: Final = 20.0
_TRIES: Final = 3
_ADVICE: Final = "check the store manager's AWS credentials and the bucket's policy"
_MISSING: Final = ("NoSuchBucket", "NoSuchKey", "404")
_DENIED: Final = (
    "AccessDenied", "401", "403", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken",
    "AllAccessDisabled", "AuthorizationHeaderMalformed", "InvalidToken", "AccountProblem",
)  # fmt: skip


class S3Remote:
    """Implements listing.Remote. One per import, as credentials and endpoint may change."""

    def __init__(self, location: S3Location, check_stopped: Callable[[], None]) -> None:
        self._location = location
        self._check_stopped = check_stopped
        self._lock = threading.Lock()
        self._links: dict[str, tuple[str, float]] = {}
        with _our_errors("the bucket"):
            self._client = _client()

    @property
    def endpoint(self) -> str:
        """Return the URL of the store itself."""
        return str(self._client.meta.endpoint_url)

    def list(self) -> Listing:
        """Return what is there; see listing.Remote. Folders below are none of the model."""
        files: dict[str, RemoteFile] = {}
        count = 0
        for found in self._pages():
            count += 1
            if count > ENTRIES_MAX:
                raise invalid_model("", f"has more than {ENTRIES_MAX} entries")
            name = str(found["Key"]).removeprefix(self._location.prefix)
            if is_file_name(name) and "/" not in name:
                files[name] = RemoteFile(
                    name=name, size_bytes=int(found["Size"]), version=str(found.get("ETag", ""))
                )
        if not count:
            raise not_found("objects under that prefix")
        return Listing(files=files)

    def target(self, file: RemoteFile) -> Target:
        """Return where to read a file; see listing.Remote."""
        return Target(
            what=file.name,
            url=self._link(self._location.prefix + file.name),
            size_bytes=file.size_bytes,
            etag=file.version or None,
            advice=_ADVICE,
        )

    def _pages(self) -> Iterator[dict[str, Any]]:
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self._location.bucket, Prefix=self._location.prefix, Delimiter="/"
        )
        with _our_errors("the bucket"):
            for page in pages:
                self._check_stopped()
                yield from page.get("Contents", ())

    def _link(self, key: str) -> str:
        now_s = monotonic_s()
        with self._lock:  # a session is not for several threads
            link, made_s = self._links.get(key, ("", 0.0))
            if not link or now_s - made_s > _LINK_S_MAX:
                with _our_errors("the bucket"):
                    link = self._client.generate_presigned_url(
                        "get_object",
                        Params={"Bucket": self._location.bucket, "Key": key},
                        ExpiresIn=_LINK_S,
                    )
                self._links[key] = link, now_s
            return link


def _client() -> Any:
    session = botocore.session.get_session()
    config = Config(
        connect_timeout=_CONNECT_S,
        read_timeout=_READ_S,
        retries={"max_attempts": _TRIES, "mode": "standard"},
        signature_version=UNSIGNED if session.get_credentials() is None else "s3v4",
        user_agent_extra="brisk",
    )
    region = session.get_config_variable("region") or "us-east-1"
    client = session.create_client("s3", region_name=region, config=config)
    if client.meta.endpoint_url.endswith(_AMAZON):
        return client
    own = config.merge(Config(s3={"addressing_style": "path"}))  # few others have names by bucket
    return session.create_client("s3", region_name=region, config=own)


@contextmanager
def _our_errors(what: str) -> Iterator[None]:
    try:
        yield
    except failures.ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        if code in _MISSING:
            raise not_found("such bucket" if code == "NoSuchBucket" else "such object") from error
        if code in _DENIED:
            raise forbidden(what, f"it answered {code}: {_ADVICE}") from error
        raise PassingError(f"the source answered {code or 'nothing we know'}") from error
    except (failures.NoCredentialsError, failures.PartialCredentialsError) as error:
        raise forbidden(what, _ADVICE) from error
    except (failures.HTTPClientError, failures.IncompleteReadError) as error:
        raise PassingError(f"the connection failed: {type(error).__name__}") from error
    except failures.BotoCoreError as error:
        raise unusable(f"the S3 settings cannot be used: {type(error).__name__}") from error
