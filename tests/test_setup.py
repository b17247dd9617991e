"""What the build rewrites in our files, and what it leaves alone."""

import pytest

from setup import rewritten


@pytest.mark.parametrize(
    ("written", "in_the_wheel"),
    [
        ("from pipeline.config import X\n", "from posestream.pipeline.config import X\n"),
        ("from pipeline import messages\n", "from posestream.pipeline import messages\n"),
        ("    from train import main\n", "    from posestream.train import main\n"),
        ("if a:\n    from nets.named import (\n        A,\n    )\n",
         "if a:\n    from posestream.nets.named import (\n        A,\n    )\n"),
        ('log("nets.engines.tensorrt")\n', 'log("posestream.nets.engines.tensorrt")\n'),
        ("print('try: run_stream.py demo')\n", "print('try: posestream demo')\n"),
        ('"""python run_stream.py --selftest"""\n', '"""posestream selftest"""\n'),
        ("# python evaluate.py --data a.json\n", "# posestream evaluate --data a.json\n"),
        ("# python -m nets.zoo get w32\n", "# posestream weights get w32\n"),
        ("# python -m pipeline.sinks.publisher.curve keys\n", "# posestream curve keys\n"),
        ("# python -m nets.zoo get x\n", "# posestream weights get x\n"),
        ("# torchrun --nproc-per-node 4 train.py\n",
         "# torchrun --nproc-per-node 4 -m posestream train\n"),
    ],
)  # fmt: skip
def test_our_modules_and_commands_get_their_installed_names(
    written: str, in_the_wheel: str
) -> None:
    assert rewritten(written) == in_the_wheel


@pytest.mark.parametrize(
    "text",
    [
        "from posestream.poses import Poses\n",
        "from kernels_of_others import a\n",
        "x = pipeline.config\n",
        "settings['pipeline.refine'] = data['train']\n",
        "raise ValueError from train\n",
        "group = {'train': 1, 'export': 2}\n",
        "# benchmarks/train.py and my_train.py\n",
    ],
)
def test_what_is_not_ours_stays(text: str) -> None:
    assert rewritten(text) == text


def test_an_import_that_cannot_be_rewritten_stops_the_build() -> None:
    with pytest.raises(SystemExit, match=r"write `from \.\.\. import"):
        rewritten("import pipeline.config\n")
