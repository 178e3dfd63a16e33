# SPDX-License-Identifier: Apache-2.0
"""The paper's titles."""

import pytest

from patchrec_fast.data.titles import clean_title


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
