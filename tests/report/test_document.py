from __future__ import annotations

import itertools
import math

import pytest

from ella_cli.report.colours import heat, ink
from ella_cli.report.document import HeatMap, Table, number, numeric_columns
from ella_cli.report.layers import layer_and_kind, layer_grid


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.01234567, "0.01235"),
        (1.0, "1.000"),
        (-12.3456, "-12.35"),
        (99999.0, "99999"),
        (123456.0, "1.23e+05"),
        (1.5e-7, "1.5e-07"),
        (math.nan, "nan"),
    ],
)
def test_numbers_keep_four_digits(value: float, text: str) -> None:
    assert number(value) == text


def test_columns_of_numbers_and_gaps_are_set_flush_right() -> None:
    table = Table("", ("a", "b", "c"), ((1, "45.1%", "x"), (None, "+0.30", "2")))
    assert numeric_columns(table) == [True, True, False]


def test_a_signed_scale_has_zero_in_its_middle_and_a_positive_one_at_its_foot() -> None:
    signed = HeatMap("", "", "", ("r",), ("a", "b"), ((-2.0, 1.0),), scale="signed")
    assert signed.share(0.0) == 0.5
    assert signed.share(-2.0) == 0.0
    positive = HeatMap("", "", "", ("r",), ("a", "b"), ((4.0, None),))
    assert (positive.share(0.0), positive.share(4.0)) == (0.0, 1.0)


def test_a_map_of_zeros_can_be_coloured() -> None:
    flat = HeatMap("", "", "", ("r",), ("a",), ((0.0,),))
    assert flat.share(0.0) == 0.0


def luminance(colour: tuple[int, int, int]) -> float:
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
        for c in (v / 255 for v in colour)
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_colours_grow_lighter_with_the_value_so_that_greyscale_keeps_their_order() -> None:
    steps = [luminance(heat(i / 50)) for i in range(51)]
    assert all(b > a for a, b in itertools.pairwise(steps))


def test_the_number_in_a_cell_can_be_read_on_its_colour() -> None:
    for signed in (False, True):
        for i in range(101):
            back = heat(i / 100, signed=signed)
            light, dark = sorted((luminance(back), luminance(ink(back))), reverse=True)
            # WCAG AA for text.
            assert (light + 0.05) / (dark + 0.05) >= 4.5


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("model.layers.3.self_attn.q_proj", ("3", "q_proj")),
        ("transformer.h.11.attn.c_attn", ("11", "c_attn")),
        ("encoder.block.0.layer.0.SelfAttention.q", ("0", "encoder.SelfAttention.q")),
        ("decoder.block.2.layer.1.EncDecAttention.v", ("2", "decoder.EncDecAttention.v")),
        ("lm_head", ("–", "lm_head")),
    ],
)
def test_a_module_has_a_layer_and_a_kind(name: str, place: tuple[str, str]) -> None:
    assert layer_and_kind(name) == place


def test_layers_are_in_the_order_of_their_numbers_and_no_module_is_lost() -> None:
    pairs = [(f"model.layers.{i}.self_attn.q_proj", float(i)) for i in (10, 2, 0)]
    layers, kinds, values = layer_grid(pairs)
    assert layers == ("0", "2", "10")
    assert kinds == ("q_proj",)
    assert values == ((0.0,), (2.0,), (10.0,))
    clash = [("a.0.q.0.x", 1.0), ("b.0.q.1.x", 2.0)]
    _, kinds, values = layer_grid(clash)
    assert sorted(v for row in values for v in row if v is not None) == [1.0, 2.0]
