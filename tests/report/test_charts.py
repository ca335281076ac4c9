"""Pictures: well-formed, named, without overlap, with gaps where nothing was measured."""

from __future__ import annotations

import math
import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shepherd.report import charts
from shepherd.report.charts import Band, Dots, Line, Panel

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = "\"><script>alert(1)</script>]]>&<!-- ' onload=\x1b[31m\x00\ud800"
NAN = float("nan")


def line(**more):
    lines = [
        Line(HOSTILE, "federated", [(0, 2.6), (1, 2.4), (2, None), (3, NAN), (4, 2.2)]),
        Line("base", "base", [(0, 2.6), (4, 2.6)], True),
    ]
    return charts.line_chart(
        lines,
        title="T" + HOSTILE,
        description="D",
        x_label="round",
        y_label="loss",
        band=Band("range", "local", [(0, 2.5, 2.6), (1, None, None), (4, 2.2, 2.4)]),
        **more,
    )


def dots(rows=3, **more):
    series = [
        Dots("alone", "local", [2.0 + i / 10 for i in range(rows)]),
        Dots(
            "federated",
            "federated",
            [None, NAN, 1.9][:rows] + [1.8] * (rows - 3),
            [None, None, (1.8, 2.0)][:rows] + [None] * (rows - 3),
        ),
    ]
    return charts.dot_plot(
        [HOSTILE + str(i) for i in range(rows)],
        [Panel(HOSTILE, series)],
        title="T",
        description="D",
        x_label="held-out loss",
        **more,
    )


def bars():
    return charts.bar_chart(
        ["1", HOSTILE],
        [Dots("up", "s1", [1e6, None]), Dots("down", "s2", [2e6, NAN])],
        title="T",
        description="D",
        x_label="round",
        y_label="sent",
    )


def heat():
    return charts.heat_map(
        [HOSTILE, "b"],
        ["x", HOSTILE],
        [[0, 5], [None, NAN]],
        title="T",
        description="D",
        x_label="category",
        y_label="client",
    )


def stack():
    return charts.stacked_bar(
        [(HOSTILE, "s1", 3.0), ("b", "s2", None), ("c", "s3", 1.0)], title="T", description="D", write=str
    )


def grid():
    return charts.status_grid(
        [HOSTILE, "b"],
        ["1", "2", "3"],
        [["trained", "failed", "lost"], ["rejected", "late", "idle"]],
        title="T",
        description="D",
        x_label="round",
    )


ALL = {"line": line, "dots": dots, "bars": bars, "heat": heat, "stack": stack, "grid": grid}


@pytest.mark.parametrize("draw", ALL.values(), ids=ALL.keys())
def test_a_picture_is_well_formed_whatever_its_labels_say(draw):
    root = ElementTree.fromstring(draw())
    tags = {element.tag.removeprefix(SVG) for element in root.iter()}
    assert tags <= {"svg", "title", "desc", "g", "text", "line", "rect", "circle", "path", "polyline", "polygon"}
    for element in root.iter():
        assert not any(name.lower().startswith("on") or "href" in name or name == "style" for name in element.attrib)


@pytest.mark.parametrize("draw", ALL.values(), ids=ALL.keys())
def test_a_picture_has_a_role_a_title_first_a_description_and_no_colour_of_its_own(draw):
    root = ElementTree.fromstring(draw())
    assert root.get("role") == "img"
    assert [child.tag for child in root[:2]] == [f"{SVG}title", f"{SVG}desc"]
    assert root[0].text
    assert root[1].text
    assert not any({"fill", "stroke"} & set(element.attrib) for element in root.iter())


@pytest.mark.parametrize(
    ("draw", "labels"),
    [
        (line, ["round", "loss"]),
        (dots, ["held-out loss"]),
        (bars, ["round", "sent"]),
        (heat, ["client ↓ · category →"]),
        (grid, ["round"]),
        (stack, ["Width of a part: its share of the time"]),
    ],
)
def test_the_axes_are_named(draw, labels):
    texts = [element.text for element in ElementTree.fromstring(draw()).iter(f"{SVG}text")]
    for label in labels:
        assert label in texts


@pytest.mark.parametrize("draw", [line, dots, bars, heat])
def test_no_coordinate_is_nan(draw):
    for element in ElementTree.fromstring(draw()).iter():
        for name, value in element.attrib.items():
            if name in ("x", "y", "x1", "x2", "y1", "y2", "cx", "cy", "width", "height", "points", "d", "r"):
                assert "nan" not in value
                assert "inf" not in value
                assert "-" not in value or name not in ("width", "height", "r")


def test_a_line_has_a_gap_where_a_value_is_missing():
    root = ElementTree.fromstring(line())
    solid = [e for e in root.iter(f"{SVG}polyline") if "dashed" not in e.get("class", "")]
    assert [len(e.get("points").split()) for e in solid] == [2, 1]


def row_labels(*labels):
    panel = Panel("", [Dots("x", "plain", [1.0] * len(labels))])
    root = ElementTree.fromstring(charts.dot_plot(labels, [panel], title="T", description="D", x_label="x"))
    return [e for e in root.iter(f"{SVG}text") if e.get("class") == "name end"]


def test_a_label_that_does_not_fit_is_cut_in_its_middle_and_kept_whole_in_its_title():
    long = "a-client-with-a-name-that-goes-on-and-on-and-on"
    (named,) = row_labels(long)
    assert named.text.startswith("a-client")
    assert named.text.endswith("and-on")
    assert "…" in named.text
    assert named.find(f"{SVG}title").text == long


def test_long_names_that_differ_at_their_ends_stay_different():
    one, other = row_labels("University Hospital, Ward of Cardiology 1", "University Hospital, Ward of Cardiology 2")
    assert one.text != other.text


# Advance widths of DejaVu Sans, among the widest fonts that a page may be shown in, in 1/2048 of the font's size.
DEJAVU = {
    "W": 2025, "M": 1767, "m": 1995, "w": 1675, "@": 2048, "O": 1612, "H": 1540, "a": 1255, "0": 1303, "t": 803,
    "-": 739, "r": 842, "…": 2048,
}  # fmt: skip


@pytest.mark.parametrize("letter", sorted(set(DEJAVU) - {"…"}))
def test_no_label_is_wider_than_the_room_beside_its_picture(letter):
    (named,) = row_labels(letter * 60)
    width = sum(DEJAVU[c] for c in named.text) / 2048 * 12.5  # the size of labels in style.css, in pixels
    assert width <= float(named.get("x"))  # the text ends at x and begins at the left edge or after it


def test_the_tilted_name_of_the_last_column_stays_in_the_picture():
    picture = charts.heat_map(
        ["a"], ["a" * 20 + str(i) for i in range(30)], [[1] * 30], title="T", description="D", x_label="x", y_label="y"
    )
    last = [e for e in ElementTree.fromstring(picture).iter(f"{SVG}text") if e.get("transform")][-1]
    assert "rotate(-40" in last.get("transform")
    width = sum(DEJAVU.get(c, DEJAVU["0"]) for c in last.text) / 2048 * 12.5
    assert float(last.get("x")) + math.cos(math.radians(40)) * width <= 960


def test_no_marker_hides_another_of_its_row():
    series = [Dots(style, style, [1.0, 3.0 + i]) for i, style in enumerate(("s1", "federated", "plain"))]  # circles
    picture = charts.dot_plot(["a", "b"], [Panel("", series)], title="T", description="D", x_label="x", legend=False)
    marks = [(float(e.get("cx")), float(e.get("cy"))) for e in ElementTree.fromstring(picture).iter(f"{SVG}circle")]
    same, apart = marks[:3], marks[3:]
    assert len({x for x, _ in same}) == 1
    assert all(b - a >= 8 for (_, a), (_, b) in pairwise(same))  # a circle is 10 wide
    assert len({y for _, y in apart}) == 1  # those that are apart anyway stay on their line


def test_a_line_of_many_rounds_has_room_between_its_markers():
    points = [(r, 1 / r) for r in range(1, 201)]
    picture = charts.line_chart([Line("a", "s1", points)], title="T", description="D", x_label="round", y_label="y")
    places = [float(e.get("cx")) for e in ElementTree.fromstring(picture).iter(f"{SVG}circle")]
    *steps, _ = sorted(round(a - b, 1) for a, b in pairwise(places[:-1]))  # the last one is that of the name
    assert steps[0] > 20
    assert steps[-1] - steps[0] < 0.3  # a marker is 10 wide
    end = max(float(x) for x, _ in re.findall(r"([\d.]+),([\d.]+)", picture))
    assert places[0] == end
    assert len(places) > 10


@pytest.mark.parametrize(
    "picture",
    [
        charts.line_chart([], title="T", description="D", x_label="x", y_label="y"),
        charts.line_chart([Line("a", "s1", [(0, None)])], title="T", description="D", x_label="x", y_label="y"),
        charts.dot_plot([], [], title="T", description="D", x_label="x"),
        charts.bar_chart([], [], title="T", description="D", x_label="x", y_label="y"),
        charts.heat_map([], [], [], title="T", description="D", x_label="x", y_label="y"),
        charts.stacked_bar([], title="T", description="D", write=str),
        charts.status_grid([], [], [], title="T", description="D", x_label="x"),
    ],
)
def test_a_picture_of_nothing_says_so(picture):
    assert "Nothing was measured" in picture
    ElementTree.fromstring(picture)


@given(st.floats(-1e3, 1e3), st.floats(1e-3, 1e6))
def test_ticks_are_round_evenly_spaced_and_inside(low, width):
    high = low + width
    if not high > low:
        return
    ticks = charts.nice_ticks(low, high)
    steps = [b - a for a, b in pairwise(ticks)]
    assert all(low - 1e-6 * width <= t <= high + 1e-6 * width for t in ticks)
    assert 1 <= len(ticks) <= 8
    assert all(math.isclose(s, steps[0], rel_tol=1e-3, abs_tol=1e-9) for s in steps)


def test_ticks_of_rounds_are_whole_numbers():
    assert charts.nice_ticks(0, 3, about=10, whole=True) == [0, 1, 2, 3]
    assert charts.nice_ticks(2.0, 2.6) == [2.0, 2.2, 2.4, 2.6]


@given(st.lists(st.floats(0, 300), max_size=12))
def test_labels_are_spread_apart_in_their_order_and_stay_inside(places):
    moved = charts.spread(places, 19, 0, 300)
    gap = min(19, 300 / max(1, len(places) - 1))
    order = sorted(range(len(places)), key=lambda i: (places[i], i))
    for a, b in pairwise(order):
        assert moved[b] - moved[a] >= gap - 1e-6
    assert all(-1e-6 <= m <= 300 + 1e-6 for m in moved)


def test_thinning_keeps_the_first_and_the_last():
    kept = charts.thin(range(1000), 60)
    assert len(kept) == 60
    assert kept[0] == 0
    assert kept[-1] == 999
    assert charts.thin([1, 2], 60) == [1, 2]


def test_zero_and_one_stay_different_in_a_heat_map_however_large_the_largest_is():
    picture = charts.heat_map(
        ["a"], ["x", "y", "z"], [[0, 1, 10_000]], title="T", description="D", x_label="x", y_label="y"
    )
    assert 'class="cell h0"' in picture
    assert 'class="cell h1"' in picture
    assert 'class="cell h8"' in picture


def test_one_large_cell_leaves_the_others_apart():
    picture = charts.heat_map(
        ["a"], ["x", "y", "z"], [[100, 25, 6]], title="T", description="D", x_label="x", y_label="y"
    )
    cells = [e.get("class") for e in ElementTree.fromstring(picture).iter(f"{SVG}g")][:3]
    assert cells == ["cell h8", "cell h4", "cell h2"]  # √(25/100) · 8 = 4; √(6/100) · 8 = 1.96


def test_the_two_sides_of_a_diverging_map_have_the_same_scale():
    picture = charts.heat_map(
        ["a"], ["x", "y", "z"], [[-0.2, 0.0, 0.1]], title="T", description="D", x_label="x", y_label="y", diverging=True
    )
    cells = [e.get("class") for e in ElementTree.fromstring(picture).iter(f"{SVG}g")][:3]
    assert cells == ["cell d-4", "cell d0", "cell d2"]


def test_no_picture_rests_on_colour_alone():
    assert len({charts.MARKERS[s] for s in charts.SERIES_STYLES}) == len(charts.SERIES_STYLES)
    assert len({charts.MARKERS[s] for s in ("base", "local", "federated", "centralised")}) == 4


@pytest.mark.parametrize("diverging", [False, True])
def test_a_picture_that_stands_alone_has_a_colour_for_every_class_it_uses(diverging):
    many = [[0, 1, 5, 10_000, None, -5_000]]
    picture = charts.heat_map(
        ["a"], list("vwxyz_"), many, title="T", description="D", x_label="x", y_label="y", diverging=diverging
    )
    root = ElementTree.fromstring(charts.standalone(picture))
    style = root.find(f"{SVG}style").text
    assert "var(" not in style
    assert "--" not in style  # few programs but browsers support CSS variables
    for cell in root.iter(f"{SVG}g"):
        shade = cell.get("class").removeprefix("cell ")
        assert re.search(rf"\.{re.escape(shade)} rect \{{ fill: (#[0-9a-f]{{6}}|none)", style), shade
    for kind in ("tick", "label", "in", "end", "middle"):
        assert re.search(rf"\.{kind}\b[^{{]*\{{ (fill|text-anchor|font-size)", style), kind
    assert root.get("width") == "960"
    assert root[0].tag == f"{SVG}title"
