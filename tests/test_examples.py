"""The examples run, and say what they promise to say."""

import runpy
from pathlib import Path

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_walk_the_road(capsys):
    runpy.run_path(str(EXAMPLES / "walk_the_road.py"), run_name="__main__")
    out = capsys.readouterr().out
    for step in ("words  11", "positions  11 x 64", "one cell  11 x 16", "3 layers in depth  11 x 64"):
        assert step in out
    assert out.rstrip().endswith("the same bits.")
