from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from helpers import coloured_data
from thumbnet.errors import ThumbnetError
from thumbnet.recipes.recipe import Recipe, load_recipe
from thumbnet.training.speed import GROWTH, Speed
from thumbnet.training.time_budget import VIEWS
from thumbnet.tuning.parts import Parts, divide
from thumbnet.tuning.plan import FINAL_SHARE, MANY, MARGIN, TRIALS, WRITING, Cost, plan
from thumbnet.tuning.study import Record

RECIPE = load_recipe("small", ["training.batch_size=32"])
COST = Cost(Speed({(16, 16): 0.001}, 0.002, 0.0005), 1.0)


@pytest.fixture(scope="module")
def parts() -> Parts:
    return divide(coloured_data(120), RECIPE, torch.device("cpu"))


def planned(
    parts: Parts, minutes: float, trials: int | None = None, fixed: bool = False, cost: Cost = COST
) -> tuple[Recipe, str]:
    return plan(RECIPE, parts, cost, minutes, 60 * minutes - 5, trials, fixed=fixed)


def advised_minutes(error: BaseException) -> float:
    return float(str(error).partition("at least --minutes ")[2].partition(",")[0])


def of_length(recipe: Recipe, epochs: int) -> Recipe:
    return replace(recipe, training=replace(recipe.training, epochs=epochs))


def test_the_recipe_stays_as_it_is_until_many_trials_fit_and_then_they_become_longer(parts: Parts) -> None:
    takes = COST.trial(RECIPE, parts.parts)

    def minutes(trials: float) -> float:
        return (trials * takes + 5 + WRITING) / (1 - FINAL_SHARE) / 60

    for trials in (TRIALS + 0.5, MANY - 0.5):
        recipe, note = planned(parts, minutes(trials))
        assert recipe == RECIPE
        assert f"so about {int(trials)} of them" in note
    recipe, note = planned(parts, minutes(3 * MANY))
    assert recipe == of_length(RECIPE, recipe.training.epochs)
    assert COST.trial(recipe, parts.parts) == pytest.approx(3 * takes, rel=0.05)
    assert f"so about {MANY} of them" in note


def test_a_length_that_the_user_set_is_kept(parts: Parts) -> None:
    assert planned(parts, 100, fixed=True)[0] == RECIPE


def test_a_final_training_of_a_given_length_has_the_time_that_it_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("thumbnet.tuning.parts.SMALL", 50)  # one network, and a fifth is held out
    parts = divide(coloured_data(120), RECIPE, torch.device("cpu"))
    recipe = of_length(RECIPE, 300)
    takes, final = COST.trial(recipe, parts.parts), COST.final(recipe, parts)
    evaluations = 300 / recipe.evaluation.every + VIEWS[recipe.evaluation.tta]
    assert final == pytest.approx(1.25 * takes + evaluations * parts.watched * COST.speed.evaluating)
    assert parts.watched == len(coloured_data(120).splits["test"])

    def one_trial(minutes: float, fixed: bool = True) -> tuple[Recipe, str]:
        return plan(recipe, parts, COST, minutes, 60 * minutes - 5, 1, fixed=fixed)

    enough = (takes + final + 5 + WRITING) / 60
    with pytest.raises(ThumbnetError, match=rf"a final training of about {final:.0f} s leaves") as e:
        one_trial(0.99 * enough)
    assert advised_minutes(e.value) > enough
    assert f"about {final:.0f} s are kept for the final training" in one_trial(1.01 * enough)[1]
    assert "a third of the time is kept" in one_trial(0.99 * enough, fixed=False)[1]


def test_too_little_time_is_an_error_that_says_how_much_is_needed_and_what_is_better(parts: Parts) -> None:
    with pytest.raises(ThumbnetError, match=r"--minutes 0.2 is too short for a search: ") as e:
        planned(parts, 0.2)
    assert str(e.value).endswith("thumbnet train DATA --minutes 0.2")
    with pytest.raises(ThumbnetError, match=r"thumbnet train 'my pictures' --minutes 0.2$"):
        plan(RECIPE, parts, COST, 0.2, 12, data="my pictures")
    advised = advised_minutes(e.value)
    fewest = TRIALS * COST.trial(RECIPE, parts.parts)
    assert fewest < advised / MARGIN * 60 * (1 - FINAL_SHARE) < fewest + 20
    assert planned(parts, advised)[0] == RECIPE
    with pytest.raises(ThumbnetError, match="too short"):
        planned(parts, advised / MARGIN - 0.2)


def test_what_is_advised_is_enough_on_a_computer_that_is_a_little_slower_then(parts: Parts) -> None:
    with pytest.raises(ThumbnetError) as e:
        planned(parts, 0.2)
    slower = replace(COST, pace=MARGIN - 0.05)
    assert planned(parts, advised_minutes(e.value), cost=slower)[0] == RECIPE


def test_only_as_many_trials_have_to_fit_as_the_user_asked_for(parts: Parts) -> None:
    takes = COST.trial(RECIPE, parts.parts)
    minutes = (2.5 * takes + 5 + WRITING) / (1 - FINAL_SHARE) / 60
    assert planned(parts, minutes, trials=2)[1].partition("so about ")[2].startswith("2 of them")
    with pytest.raises(ThumbnetError, match="3 of them have to fit"):
        planned(parts, minutes, trials=3)
    with pytest.raises(ThumbnetError, match="6 of them have to fit"):
        planned(parts, minutes, trials=100)


def test_a_wider_network_and_a_slower_computer_are_expected_to_take_longer(parts: Parts) -> None:
    base = COST.trial(RECIPE, parts.parts)
    wide = replace(RECIPE, model=replace(RECIPE.model, width=2.0))
    overhead = 0.3 * len(parts.parts)
    assert COST.trial(wide, parts.parts) - overhead == pytest.approx(2**GROWTH * (base - overhead))
    large = RECIPE.override(["data.image_size=32"])  # instead of 16
    assert COST.trial(large, parts.parts) - overhead == pytest.approx(4 * (base - overhead))
    records = [Record(n, "complete", {}, 0.5, 1.0, 2.0 * n, 1.0, 1.0) for n in (1, 2, 3)]
    assert COST.learn(records).trial(RECIPE, parts.parts) == pytest.approx(4 * base)
    assert COST.learn([]) == COST
