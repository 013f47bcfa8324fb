"""The page of methods says of every registered one what it is, and which pairs of norms it does."""

import lipcert
from docs import make_methods


def test_every_method_is_on_the_page() -> None:
    rows = [line for line in make_methods.page().splitlines() if line.startswith("| `")]
    for info in lipcert.methods():
        mine = [row for row in rows if row.startswith(f"| `{info.name}` ")]
        assert len(mine) == 2
        assert info.summary in mine[0]
        assert all(key in mine[0] for key in info.options)
        assert mine[1].count("✓") == len(info.norms)
