# SPDX-License-Identifier: Apache-2.0
"""Titles as somebody types them."""

import pytest

from patchrec_fast.cli.titles import find_titles

TITLES = {
    3: "Heat",
    5: "Emma",
    8: "emma",
    9: "Heat",
    11: "The Straße",
    12: "Toy Story",
    13: "Toy Story 2",
    14: "Dracula (1931)",
    15: "Dracula (1992)",
    16: "Alien (1979)",
    17: "(500) Days of Summer",
    18: "Star Wars: A New Hope",
}


@pytest.mark.parametrize(
    ("text", "item"),
    [
        ("Heat", 3),
        ("Emma", 5),
        ("emma", 8),
        ("HEAT", 3),
        ("the strasse", 11),
        ("Strasse, The (1998)", 11),
        ("Toy Story (1995)", 12),
        ("toy story", 12),
        ("Toy Story 2 (1999)", 13),
        ("story 2", 13),
        ("Dracula (1931)", 14),
        ("alien", 16),
        ("ali", 16),
        ("Alien (1979)", 16),
        ("days of", 17),
        ("new hope (1977)", 18),
    ],
)
def test_what_is_meant(text, item):
    [found] = find_titles([text], TITLES)
    assert found == (text, item, TITLES[item])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Haet", "no title 'Haet' in the data; did you mean 'Heat'"),
        ("xyzzy", "no title 'xyzzy' in the data$"),
        ("EMMA", "'EMMA' is in 2 titles: 'Emma', 'emma'; write one out"),
        ("Dracula", r"'Dracula' is in 2 titles: 'Dracula \(1931\)', 'Dracula \(1992\)'"),
        ("Alien (1980)", r"no title 'Alien \(1980\)' in the data; did you mean 'Alien \(1979\)'"),
        ("toy", "'toy' is in 2 titles: 'Toy Story', 'Toy Story 2'"),
        ("", "no title '' in the data$"),
        ("a", r"'a' is in \d+ titles: .* and \d more"),
    ],
)
def test_what_is_not_clear(text, message):
    with pytest.raises(ValueError, match=f"^--history: {message}"):
        find_titles(["Heat", text], TITLES)


def test_the_real_titles_are_found_as_the_source_writes_them(data_dir):
    """With a year and the article behind, as MovieLens has them."""
    from patchrec_fast import data

    titles = data.load(data_dir / "ml-100k").titles
    once = [title for title in set(titles.values()) if sum(title == other for other in titles.values()) == 1]
    for title in sorted(once)[::40]:
        moved = f"{title[4:]}, The (1990)" if title.startswith("The ") else f"{title} (1990)"
        assert find_titles([moved], titles)[0].title == title
