"""Pictures: what is drawn stands where the number is."""

import re
from xml.etree import ElementTree

import pytest

from qwen_align.align.reporting import svg
from qwen_align.align.reporting.svg import Bar, Curve

SVG = "{http://www.w3.org/2000/svg}"


def test_a_bar_is_as_long_as_its_value() -> None:
    whole = ElementTree.fromstring(
        svg.draw_bars([Bar("a", 0.25, 0.0), Bar("b", 0.5, 0.0), Bar("c", 1.0, 0.1)], title="t")
    )
    quarter, half, full = (float(one.get("width", "")) for one in whole.iter(f"{SVG}rect"))
    assert half == pytest.approx(2 * quarter, abs=0.2)
    assert full == pytest.approx(4 * quarter, abs=0.2)


def test_an_error_bar_reaches_one_error_to_both_sides_and_stays_on_the_scale() -> None:
    scale = float(
        next(ElementTree.fromstring(svg.draw_bars([Bar("", 1.0, 0.0)], title="")).iter(f"{SVG}rect")).get("width", "")
    )
    low, high = ends(svg.draw_bars([Bar("", 0.5, 0.125)], title=""))
    assert high - low == pytest.approx(0.25 * scale, abs=0.2)
    low, high = ends(svg.draw_bars([Bar("", 0.9, 0.25)], title=""))
    assert high - low == pytest.approx(0.35 * scale, abs=0.2)


def ends(picture: str) -> tuple[float, float]:
    found = re.search(r'class="error" d="M([\d.]+) [\d.]+H([\d.]+)', picture)
    assert found
    return float(found[1]), float(found[2])


def test_names_and_titles_are_escaped() -> None:
    picture = svg.draw_bars([Bar("<script>", 0.5, 0.1, dots=(0.4, 0.6))], title='"<b>')
    assert "<script>" not in picture
    assert "<b>" not in picture
    ElementTree.fromstring(picture)


def test_a_rising_curve_rises() -> None:
    picture = svg.draw_curves([Curve([(1, 0.0), (2, 1.0), (3, 2.0)])], title="up")
    heights = [float(one.get("cy", "")) for one in ElementTree.fromstring(picture).iter(f"{SVG}circle")]
    assert heights == sorted(heights, reverse=True)
    assert len(set(heights)) == 3


def test_many_points_are_smoothed_by_their_neighbours_mean() -> None:
    points = [(float(step), float(step % 2)) for step in range(100)]
    smooth = svg.smooth_points(points)
    inner = [y for _, y in smooth[10:-10]]
    assert max(inner) - min(inner) < 0.1
    assert svg.smooth_points([(x, 3.0) for x, _ in points]) == [(x, 3.0) for x, _ in points]


def test_what_is_not_a_number_is_not_drawn() -> None:
    picture = svg.draw_curves([Curve([(1, float("nan")), (2, 1.0), (3, float("inf")), (4, 2.0)])], title="")
    assert len(list(ElementTree.fromstring(picture).iter(f"{SVG}circle"))) == 2
    assert "nan" not in picture
    assert svg.draw_curves([Curve([(1, float("nan"))])], title="") == ""


@pytest.mark.parametrize("value", [0.0, 1.0, -3.0, 1e-30, 1e30])
def test_a_flat_line_has_a_scale_around_it(value: float) -> None:
    low, high = svg.choose_axis_bounds(value, value)
    assert low <= value <= high
    assert low < high


def test_a_histogram_loses_nothing() -> None:
    numbers = [1.0, 2.0, 2.0, 3.0, 3.0, 3.0]
    picture = ElementTree.fromstring(svg.draw_histogram([("n", numbers, 0)], title=""))
    heights = [float(one.get("height", "")) for one in picture.iter(f"{SVG}rect")]
    assert [height / heights[0] for height in heights] == pytest.approx([1, 2, 3], abs=0.02)
    assert svg.draw_histogram([("n", [], 0)], title="") == ""


@pytest.mark.parametrize("narrow", [False, True])
def test_nothing_of_a_bar_chart_leaves_the_picture(narrow: bool) -> None:
    label = "a_stage_with_a_name_that_is_rather_long seed=3 · kwarg no_think (control)"
    bars = [Bar(label, value, error) for value, error in ((0.0, 0.0), (1.0, 0.0), (0.999, 0.25))]
    picture = ElementTree.fromstring(svg.draw_bars(bars, title="", narrow=narrow))
    width = float(picture.get("viewBox", "").split()[2])
    assert width <= (340 if narrow else 640)
    for text in picture.iter(f"{SVG}text"):
        size = (text.text or "") and 7.3 * len(text.text or "")  # DejaVu Sans, wide among sans-serifs, at 12 px
        share = {"end": 1.0, "middle": 0.5}.get(text.get("text-anchor", ""), 0.0)
        left = float(text.get("x", "")) - share * float(size)
        assert left >= 0, text.text
        assert left + float(size) <= width, text.text
    labels = [text.text or "" for text in picture.iter(f"{SVG}text") if text.get("class") == "label"]
    assert all(one.endswith("(control)") and one.startswith("a_stage") for one in labels)
    for one in picture.iter(f"{SVG}rect"):
        assert float(one.get("x", "")) + float(one.get("width", "")) <= width


def test_where_an_axis_has_one_value_it_is_named_once() -> None:
    drawn = svg.draw_curves([Curve([(7, 0.5)])], title="t")
    assert len(re.findall(">7</text>", drawn)) == 1
    assert len(re.findall(">3</text>", svg.draw_histogram([("", [3, 3], 0)], title="t"))) == 1


def test_a_tick_of_thousands_has_its_digits() -> None:
    picture = svg.draw_curves([Curve([(1, 466.2), (2, 1141.7)])], title="tokens a second")
    ticks = [one.text for one in ElementTree.fromstring(picture).iter(f"{SVG}text")]
    assert not [tick for tick in ticks if tick and "e+" in tick]
    assert any(tick and tick.startswith("1,") for tick in ticks)
