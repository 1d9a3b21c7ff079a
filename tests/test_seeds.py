from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from thumbnet.seeds import derive_seed


@given(st.integers(0, 2**63 - 1), st.lists(st.text() | st.integers(), max_size=3))
def test_a_derived_seed_is_one_that_torch_takes_and_always_the_same(seed: int, path: list[str | int]) -> None:
    derived = derive_seed(seed, *path)
    assert 0 <= derived < 2**63
    assert derive_seed(seed, *path) == derived


def test_seeds_stay_what_they_were_or_every_run_would_change() -> None:
    assert derive_seed(0, "weights") == 1055468394997592402
    assert derive_seed(3, "order", 1) == 4008401307113389707


def test_neighbouring_seeds_epochs_and_purposes_differ() -> None:
    made = {derive_seed(s, p, e) for s in range(20) for p in ("order", "augment") for e in range(20)}
    assert len(made) == 800
