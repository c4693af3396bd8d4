"""The examples from end to end: trained and quantized on real digits, over two seeds."""

import re
from pathlib import Path

import pytest

from examples import digits, lenet_nnx, mlp_tap, vit_linen

pytestmark = [pytest.mark.slow, pytest.mark.quick]

ROOT = Path(__file__).parents[1]
EXAMPLES = {"vit_linen": vit_linen, "lenet_nnx": lenet_nnx, "mlp_tap": mlp_tap}


@pytest.mark.parametrize("name", EXAMPLES)
def test_few_bits_cost_accuracy(name):
    rows = [EXAMPLES[name].run(seed) for seed in (0, 1)]
    mean = {bits: sum(row[bits] for row in rows) / len(rows) for bits in digits.WIDTHS}
    assert mean["float"] > 0.9
    assert abs(mean["8"] - mean["float"]) < 0.015
    assert mean["4"] > mean["float"] - 0.06
    if name == "vit_linen":
        awq = {bits: sum(row[f"awq {bits}"] for row in rows) / len(rows) for bits in ("8", "4", "3")}
        assert abs(awq["8"] - mean["float"]) < 0.015 and awq["4"] > mean["float"] - 0.06
        assert awq["3"] > mean["3"] + 0.02, "where rounding is visibly worse, AWQ is less so"
    assert 0.5 < mean["3"] < min(mean["4"], mean["float"] - 0.02), "3 bits are visibly worse"


@pytest.mark.parametrize("name", EXAMPLES)
def test_quantization_takes_less_than_30_lines(name):
    text = (ROOT / "examples" / f"{name}.py").read_text()
    code = re.search(r"# Everything that quantization takes.*?(?=\n\n\nif __name__)", text, re.S).group()
    assert 5 < len(code.splitlines()) < 30


def test_training_and_test_images_are_disjoint_and_all_there():
    data = digits.load(0)
    every = {image.tobytes() for image in (*data.images, *data.test_images)}
    assert len(data.images) + len(data.test_images) == 1797 and len(every) > 1790
    assert not {image.tobytes() for image in data.images} & {image.tobytes() for image in data.test_images}
