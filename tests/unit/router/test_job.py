"""Nothing unvalidated becomes a Job, and each refusal names the limit and what was given."""

from dataclasses import replace

import pytest

from services.common.deadline import Deadline
from services.common.errors import InvalidArgumentError
from services.common.prompt import TextPrompt
from services.common.sampling import Sampling
from services.router.job import Job, make_job


def a_job(
    *,
    request_id: str = "",
    model: str = "opt-125m",
    sampling: Sampling | None = None,
    choices: int = 1,
) -> Job:
    return make_job(
        request_id=request_id,
        model=model,
        prompt=TextPrompt(text="hello"),
        sampling=sampling or Sampling(),
        deadline=Deadline.after(1.0),
        want_progress=False,
        choices=choices,
        choices_name="n",
    )


@pytest.mark.parametrize(
    "model",
    ["", "../etc/passwd", "a/../b", "a/b/c", "a\0b", "a" * 10_240, "modèle", "模型", "a b", "a\n"],
    ids=["empty", "dots", "inner", "deep", "nul", "10kB", "accent", "han", "space", "newline"],
)
def test_a_bad_model_name_is_refused_with_what_was_given(model: str) -> None:
    with pytest.raises(InvalidArgumentError, match="Given: ") as refused:
        a_job(model=model)
    assert len(refused.value.message) < 400
    assert refused.value.message.isprintable()


@pytest.mark.parametrize("request_id", ["x" * 65, "a b", "a\nb", "é"])
def test_a_bad_request_id_is_refused(request_id: str) -> None:
    with pytest.raises(InvalidArgumentError, match="64"):
        a_job(request_id=request_id)


def test_ids_and_names_in_bounds_stay_as_they_are() -> None:
    job = a_job(request_id="r-1.A_b", model="facebook/opt-1.3b")
    assert (job.request_id, job.model) == ("r-1.A_b", "facebook/opt-1.3b")


def test_each_request_without_an_id_gets_its_own() -> None:
    assert a_job().request_id != a_job().request_id


def test_a_seed_is_drawn_only_where_none_was_given() -> None:
    assert a_job(sampling=Sampling(seed=0)).sampling.seed == 0
    drawn = {a_job().sampling.seed for _ in range(20)}
    assert None not in drawn
    assert len(drawn) == 20


def test_the_drawn_seed_leaves_the_rest_of_the_sampling_alone() -> None:
    given = Sampling(temperature=0.5, top_k=3, max_tokens=9, stop=("x",))
    sampling = a_job(sampling=given).sampling
    assert sampling == given.with_seed(sampling.seed or 0)


@pytest.mark.parametrize("choices", [0, -1, 17, 2**32 - 1])
def test_a_number_of_answers_out_of_limits_is_refused_by_its_name(choices: int) -> None:
    with pytest.raises(InvalidArgumentError, match=f"n must be between 1 and 16.*{choices}") as no:
        a_job(choices=choices)
    assert no.value.metadata["parameter"] == "n"


def test_the_job_of_one_answer_differs_in_its_seed_alone() -> None:
    job = a_job(choices=16, sampling=Sampling(seed=5))
    first, last = job.choice(0), job.choice(15)
    assert (first.choices, first.sampling.seed) == (1, 5)
    assert last.sampling.seed != 5
    assert replace(last, sampling=job.sampling, choices=16) == job
