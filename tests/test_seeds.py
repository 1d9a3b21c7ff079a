from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from thumbnet.seeds import derive_seed


@given(st.integers(0, 2**63 - 1), st.lists(st.text() | st.integers(), max_size=3))
def test_a_derived_seed_is_always_the_same_and_valid_for_torch(seed: int, path: list[str | int]) -> None:
    derived = derive_seed(seed, *path)
    assert 0 <= derived < 2**63
    assert derive_seed(seed, *path) == derived


def test_derived_seeds_do_not_change_between_versions() -> None:
    assert derive_seed(0, "weights") == 1055468394997592402
    assert derive_seed(3, "order", 1) == 4008401307113389707


def test_neighbouring_seeds_purposes_and_epochs_give_different_seeds() -> None:
    made = {derive_seed(s, p, e) for s in range(20) for p in ("order", "augment") for e in range(20)}
    assert len(made) == 800
