"""What the router exports: its requests as their callers see them."""

from __future__ import annotations

from typing import Final

from prometheus_client import Counter, Gauge, Histogram

from services.common.clock import monotonic_s
from services.router.admission import Admission
from services.router.routes import RouteTable

REQUESTS: Final = Counter(
    "brisk_requests",
    "Requests ended: finished, cancelled by the caller, refused before or failed after the first "
    "token; with the reason.",
    ["outcome", "reason"],
)
TIME_TO_FIRST_TOKEN: Final = Histogram(
    "brisk_router_time_to_first_token_seconds",
    "From a request's arrival to its first token.",
    ["cold"],
    buckets=(0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0),
)
INTER_TOKEN_LATENCY: Final = Histogram(
    "brisk_router_inter_token_latency_seconds",
    "Time between two chunks divided by the tokens of the second.",
    buckets=(0.001, 0.003, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 10.0),
)
E2E_REQUEST_LATENCY: Final = Histogram(
    "brisk_e2e_request_latency_seconds",
    "From a request's arrival to its last token.",
    buckets=(0.03, 0.1, 0.3, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0),
)
RUNNING: Final = Gauge("brisk_router_num_requests_running", "Requests that have a slot.")
WAITING: Final = Gauge(
    "brisk_router_num_requests_waiting", "Requests that wait for a slot or start."
)
ROUTES: Final = Gauge("brisk_routes", "Instances that this router can send requests to.")
HTTP_REQUESTS: Final = Counter(
    "brisk_http_requests", "HTTP requests answered; 499: the client left.", ["path", "code"]
)
HTTP_REQUEST_SECONDS: Final = Histogram(
    "brisk_http_request_seconds",
    "Time from an HTTP request's arrival to the end of its answer.",
    ["path"],
    buckets=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0),
)
HTTP_REQUESTS_RUNNING: Final = Gauge(
    "brisk_http_requests_running", "HTTP requests being answered.", ["path"]
)
HTTP_CONNECTIONS: Final = Gauge("brisk_http_connections", "HTTP connections that are open.")


def export_gauges(admission: Admission, table: RouteTable) -> None:
    """Have the gauges read their values when they are asked for: nothing on the request's path."""
    RUNNING.set_function(lambda: admission.requests - admission.waiting)
    WAITING.set_function(lambda: admission.waiting)
    ROUTES.set_function(lambda: len(table))


class RequestMeter:
    """The clock of one request."""

    __slots__ = ("_arrived_s", "_has_begun")

    def __init__(self) -> None:
        self._arrived_s = monotonic_s()
        self._has_begun = False

    @property
    def seconds(self) -> float:
        """Return the time since the request arrived."""
        return round(monotonic_s() - self._arrived_s, 6)

    def answer(self) -> AnswerMeter:
        """Return the clock of one of the request's answers."""
        return AnswerMeter(self)

    def first_token(self, now_s: float, *, is_cold: bool) -> None:
        """Note that the first chunk of an answer is here."""
        self._has_begun = True
        TIME_TO_FIRST_TOKEN.labels(str(is_cold).lower()).observe(now_s - self._arrived_s)

    def finished(self, reason: str) -> None:
        """Note that the last token has been sent."""
        E2E_REQUEST_LATENCY.observe(monotonic_s() - self._arrived_s)
        REQUESTS.labels("finished", reason).inc()

    def cancelled(self) -> None:
        """Note that the caller left."""
        REQUESTS.labels("cancelled", "CANCELLED").inc()

    def failed(self, reason: str) -> None:
        """Note that the caller was told an error."""
        REQUESTS.labels("failed" if self._has_begun else "refused", reason).inc()


class AnswerMeter:
    """The clock of one answer's tokens."""

    __slots__ = ("_last_s", "_request")

    def __init__(self, request: RequestMeter) -> None:
        self._request = request
        self._last_s = 0.0

    def first_token(self, *, is_cold: bool) -> None:
        """Note that the first chunk is here."""
        self._last_s = monotonic_s()
        self._request.first_token(self._last_s, is_cold=is_cold)

    def tokens(self, count: int) -> None:
        """Note that a later chunk of `count` tokens is here."""
        now_s = monotonic_s()
        if count:
            INTER_TOKEN_LATENCY.observe((now_s - self._last_s) / count)
        self._last_s = now_s
