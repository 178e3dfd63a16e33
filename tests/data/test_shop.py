# SPDX-License-Identifier: Apache-2.0
"""The made-up grocer: the habits that its files promise, and that there is something to learn in them."""

import csv
import html
from collections import Counter
from datetime import datetime

import pytest

from patchrec_fast.data.shop import write_shop


def read(file):
    with file.open(encoding="utf-8", newline="") as opened:
        return list(csv.DictReader(opened, delimiter=";"))


@pytest.mark.parametrize("seed", range(5))
def test_a_shops_habits(seed, tmp_path):
    orders, products = map(read, write_shop(tmp_path, seed=seed, customers=60))
    assert {row["product"] for row in orders} <= {row["product"] for row in products}
    at = [datetime.strptime(row["ordered at"], "%d.%m.%Y %H:%M") for row in orders]
    assert at == sorted(at)
    assert any(moment.day > 12 for moment in at)
    assert len({row["customer"] for row in orders}) == 60
    names = Counter(row["name"] for row in products)
    assert [name for name, count in names.items() if count > 1] == ["Whole Milk"]
    listed = Counter(row["product"] for row in products)
    assert len([code for code, count in listed.items() if count > 1]) == 1
    assert any(html.unescape(name) != name for name in names)
    assert all("," in row["price"] for row in products)
    bought = Counter((row["customer"], row["product"]) for row in orders)
    assert max(bought.values()) > 1


def test_one_seed_is_one_shop(tmp_path):
    one, same, other = (write_shop(tmp_path / str(at), seed=seed) for at, seed in enumerate((3, 3, 4)))
    assert [file.read_bytes() for file in one] == [file.read_bytes() for file in same]
    assert one[0].read_bytes() != other[0].read_bytes()


def test_what_follows_can_be_learnt(tmp_path):
    """Most often what followed a product most often before follows it again: far above the most popular product."""
    orders, _ = map(read, write_shop(tmp_path))
    cut = len(orders) * 4 // 5
    follows, popular = {}, Counter()
    before = {}
    hits = top = asked = 0
    for number, row in enumerate(orders):
        last, now = before.get(row["customer"]), row["product"].removesuffix("-XL")
        if last is not None and number < cut:
            follows.setdefault(last, Counter())[now] += 1
            popular[now] += 1
        elif last in follows:
            asked += 1
            hits += follows[last].most_common(1)[0][0] == now
            top += popular.most_common(1)[0][0] == now
        before[row["customer"]] = now
    assert asked > 1000
    assert hits / asked > 0.5 > 10 * top / asked


@pytest.mark.parametrize(("option", "value"), [("customers", 0), ("customers", 10**7), ("seed", -1)])
def test_bad_numbers(option, value, tmp_path):
    with pytest.raises(ValueError, match=f"{option}.*{value}"):
        write_shop(tmp_path, **{option: value})
