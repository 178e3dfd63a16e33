# SPDX-License-Identifier: Apache-2.0
"""Times of a given format, against the standard library's `datetime.strptime`."""

import random
from datetime import UTC, datetime, timedelta, timezone

import pytest

from patchrec_fast.data import strptime

pa = pytest.importorskip("pyarrow")

FORMATS = (
    "%d.%m.%Y %H:%M",
    "%d/%m/%y",
    "%m/%d/%Y %I:%M:%S %p",
    "%Y%m%d%H%M%S",
    "%Y-%m-%dT%H:%M:%S.%f%z",
    "%d %b %Y",
    "%A, %B %d, %Y at %H:%M",
    "%a %b %d %H:%M:%S %z %Y",
    "(%Y) 100%% %m|%d",
    "%m/%Y",
    "%Y",
)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def micros(text, form):
    """Microseconds since 1970 by the standard library, None where it refuses."""
    try:
        moment = datetime.strptime(text, form)
    except ValueError:
        return None
    return (moment.replace(tzinfo=moment.tzinfo or UTC) - EPOCH) // timedelta(microseconds=1)


def damaged(rng, text):
    place = rng.randrange(len(text))
    return text[:place] + rng.choice("0139:/. Zz-") + text[place + rng.randrange(2) :]


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("seed", range(3))
def test_against_the_standard_library(form, seed):
    rng = random.Random(f"{form} {seed}")
    texts = []
    for _ in range(300):
        zone = timezone(timedelta(minutes=rng.randrange(-700, 700)))
        moment = datetime(1970, 1, 1, tzinfo=zone) + timedelta(microseconds=rng.randrange(2 * 10**15))
        text = moment.strftime(form)
        if rng.random() < 0.3:
            text = text.replace(" 0", " ").replace(".0", ".").replace("/0", "/")
        texts += [text, text.upper(), damaged(rng, text)]
    times, good = strptime.read(pa.array(texts, pa.large_string()), strptime.parse_format(form))
    for text, time, well in zip(texts, times.tolist(), good.tolist(), strict=True):
        want = micros(text.strip(), form)
        assert (time if well else None) == want, text


@pytest.mark.parametrize("text", ["31.04.2020", "29.02.2021", "29.02.1900", "00.01.2020", "01.13.2020", "1.1.20", ""])
def test_no_such_day(text):
    _, good = strptime.read(pa.array(["29.02.2000", text], pa.large_string()), strptime.parse_format("%d.%m.%Y"))
    assert good.tolist() == [True, False]


def test_no_times():
    times, good = strptime.read(pa.array([], pa.large_string()), strptime.parse_format("%Y"))
    assert (len(times), len(good)) == (0, 0)


@pytest.mark.parametrize("form", ["", "%d.%m.", "%Y %Y", "%Y %", "%Y-%s", "%j %Y"])
def test_a_format_that_is_none(form):
    with pytest.raises(ValueError, match="--time-format"):
        strptime.parse_format(form)
