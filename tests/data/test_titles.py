# SPDX-License-Identifier: Apache-2.0
"""The paper's titles."""

import unicodedata

import pytest

from patchrec_fast.data.titles import clean_title, decode_entities, one_line

BIDI = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")


@pytest.mark.parametrize(
    ("official", "clean"),
    [
        ("Toy Story (1995)", "Toy Story"),
        ("Seven (Se7en) (1995)", "Seven"),
        ("'burbs, The (1989)", "The burbs"),
        ("Boat, The (Das Boot) (1981)", "The Boat"),
        ("American in Paris, An (1951)", "An American in Paris"),
        ("Low Down Dirty Shame, A (1994)", "A Low Down Dirty Shame"),
        ("Wonderful, Horrible Life, The (1993)", "The Wonderful, Horrible Life"),
        ("Associate, The (L'Associe)(1982)", "The Associate"),
        ("Postino, Il (1994)", "Postino, Il"),
        ("Theory, Theatre (2001)", "Theory, Theatre"),
        ("Gone Fishin' (1997)", "Gone Fishin'"),
        ("God Said 'Ha!' (1998)", "God Said 'Ha!'"),
        ("(500) Days of Summer (2009)", "(500) Days of Summer"),
        ("unknown", "unknown"),
        ("", ""),
        ("'", "'"),
        (" (1999)", "(1999)"),
        ("Two\nlines, The (2000)", "The Two\nlines"),
    ],
)
def test_clean_title(official, clean):
    assert clean_title(official) == clean


@pytest.mark.parametrize(
    ("title", "line"),
    [
        ("two\nlines", "two lines"),
        ("a\r\n\tb \x0b\x0c\u2028\u2029\x85\xa0\u3000c", "a b c"),
        ("  a  b ", "a b"),
        ("\x1b]0;title\x07\x1b[2JX", "]0;title[2JX"),
        ("a\0b\x7f\x9b", "ab"),
        ("\u202eabc\u202c\u2066d\u2069\u200f\u200e\u061c", "abcd"),
        ("\ufeffa\u200bb\u2060", "ab"),
        ("a\ud800b", "ab"),
        ("\u200d\xad", ""),
        ("\t\0 \u200b", ""),
        ("Cléo de 5 à 7, 東京 \U0001f468\u200d\U0001f469", "Cléo de 5 à 7, 東京 \U0001f468\u200d\U0001f469"),
        ("\u0645\u06cc\u200c\u062e", "\u0645\u06cc\u200c\u062e"),
    ],
)
def test_one_line(title, line):
    assert one_line(title) == line
    assert one_line(line) == line


def test_one_line_of_anything():
    """Against the categories of Unicode, over every character."""
    for number in range(0x110000):
        character = chr(number)
        got = one_line(f"a{character}b")
        if character.isspace():
            assert got == "a b"
        elif unicodedata.category(character) in ("Cc", "Cs") or unicodedata.bidirectional(character) in BIDI:
            assert got == "ab"
        elif unicodedata.category(character) != "Cf":
            assert got == f"a{character}b"


@pytest.mark.parametrize(
    ("official", "year", "whole"),
    [
        ("Toy Story (1995)", "Toy Story (1995)", "Toy Story (1995)"),
        ("Seven (Se7en) (1995)", "Seven (1995)", "Seven (Se7en) (1995)"),
        ("Postino, Il (1994)", "Il Postino (1994)", "Il Postino (1994)"),
        ("City, The (Cité, La) (1995)", "The City (1995)", "City, The (Cité, La) (1995)"),
        ("Associate, L' (L'Associe)(1982)", "L'Associate (1982)", "Associate, L' (L'Associe)(1982)"),
        ("'burbs, The (1989)", "The 'burbs (1989)", "The 'burbs (1989)"),
        ("(500) Days of Summer (2009)", "(500) Days of Summer (2009)", "(500) Days of Summer (2009)"),
        ("Series, The (1990-1995)", "The Series (1990-1995)", "The Series (1990-1995)"),
        ("New York, New York", "New York, New York", "New York, New York"),
        ("(1999)", "(1999)", "(1999)"),
    ],
)
def test_other_ways_to_clean_a_title(official, year, whole):
    assert clean_title(official, "year", "all") == year
    assert clean_title(official, "keep", "all") == whole
    assert clean_title(official, "keep", "keep") == official


@pytest.mark.parametrize(
    ("title", "decoded"),
    [
        ("Salt &amp; Pepper", "Salt & Pepper"),
        ("&amp;amp;quot;x&quot;", '"x"'),
        ("caf&eacute; &#233; &#xE9;", "café é é"),
        ("AT&T, R&D; &copy 2020 &nosuch;", "AT&T, R&D; &copy 2020 &nosuch;"),
        ("&lt;b&gt;", "<b>"),
    ],
)
def test_entities(title, decoded):
    assert decode_entities(title) == decoded
