"""The choice under a budget: exact, against trying everything."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xtclib.techniques.choice import choose

options = st.lists(st.tuples(st.integers(0, 20), st.floats(0, 9)), min_size=1, max_size=4)


@given(st.lists(options, min_size=1, max_size=4), st.integers(0, 60))
def test_nothing_that_fits_loses_less(parts, budget):
    costs, losses = ([[each[i] for each in part] for part in parts] for i in (0, 1))
    every = [
        (sum(c[i] for c, i in zip(costs, at, strict=True)),
         sum(v[i] for v, i in zip(losses, at, strict=True)))
        for at in product(*(range(len(part)) for part in parts))
    ]  # fmt: skip
    fits = [lost for cost, lost in every if cost <= budget]
    if not fits:
        with pytest.raises(ValueError, match=f"{budget} is below the least .*, {min(every)[0]}"):
            choose(costs, losses, budget)
        return
    found = choose(costs, losses, budget)
    assert sum(c[i] for c, i in zip(costs, found, strict=True)) <= budget
    lost = sum(v[i] for v, i in zip(losses, found, strict=True))
    assert lost == pytest.approx(min(fits), abs=1e-9)
