"""A request that has been checked. Nothing unvalidated ever becomes a Job."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace
from typing import Final

from services.common.deadline import Deadline
from services.common.errors import InvalidArgumentError, Reason
from services.common.names import (
    ModelName,
    RequestId,
    new_request_id,
    parse_model_name,
    parse_request_id,
)
from services.common.prompt import Prompt
from services.common.sampling import Sampling, seed_of_choice

CHOICES_MAX: Final = 16
_SEED_BITS = 63  # clients in languages without unsigned integers can repeat the draw


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One request: complete, valid and with a seed, so that any worker continues it alike."""

    request_id: RequestId
    model: ModelName
    prompt: Prompt
    sampling: Sampling  # its seed is set
    deadline: Deadline
    want_progress: bool
    choices: int = 1  # answers to make side by side

    def choice(self, index: int) -> Job:
        """Return the job of one answer alone."""
        seed = seed_of_choice(self.sampling.seed or 0, index)
        return replace(self, sampling=self.sampling.with_seed(seed), choices=1)


def make_job(
    *,
    request_id: str,
    model: str,
    prompt: Prompt,
    sampling: Sampling,
    deadline: Deadline,
    want_progress: bool,
    choices: int = 1,
    choices_name: str = "choices",
) -> Job:
    """Return the job, with an id and a seed drawn where the caller gave none.

    `choices_name` is what the caller calls the number of answers. Raises InvalidArgumentError
    with the limit and the given value.
    """
    if not 1 <= choices <= CHOICES_MAX:
        raise InvalidArgumentError(
            f"{choices_name} must be between 1 and {CHOICES_MAX}. Given: {choices}",
            reason=Reason.INVALID_SAMPLING,
            metadata={"parameter": choices_name},
        )
    return Job(
        request_id=parse_request_id(request_id) if request_id else new_request_id(),
        model=parse_model_name(model),
        prompt=prompt,
        sampling=sampling if sampling.seed is not None else sampling.with_seed(_draw_seed()),
        deadline=deadline,
        want_progress=want_progress,
        choices=choices,
    )


def _draw_seed() -> int:
    return secrets.randbits(_SEED_BITS)
