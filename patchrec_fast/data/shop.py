# SPDX-License-Identifier: Apache-2.0
"""A made-up grocer's two tables, whose titles a reader can judge: what should follow flour, yeast and olive oil?

They have a shop's habits, which `Columns` is for: ids that are text, semicolons, dates with the day first, prices with
a comma, HTML entities, a product that is listed twice in two spellings, two products of one name, repeated purchases.
"""

from __future__ import annotations

import os
from datetime import datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .. import _files
from .dataset import at_least

ORDERS, PRODUCTS = "orders.csv", "products.csv"

# What is bought together, in this order.
_BASKETS = {
    "pizza": ("Bread Flour", "Dry Yeast", "Olive Oil", "Tomato Passata", "Mozzarella", "Fresh Basil"),
    "pancakes": ("Plain Flour", "Free-Range Eggs", "Whole Milk", "Maple Syrup", "Blueberries"),
    "curry": ("Basmati Rice", "Coconut Milk", "Red Curry Paste", "Chickpeas", "Fresh Coriander", "Naan Bread"),
    "tacos": ("Corn Tortillas", "Minced Beef", "Black Beans", "Salsa Verde", "Avocados", "Limes", "Sour Cream"),
    "sushi": ("Sushi Rice", "Nori Sheets", "Rice Vinegar", "Smoked Salmon", "Wasabi Paste", "Pickled Ginger"),
    "roast": ("Whole Chicken", "Potatoes", "Carrots", "Fresh Thyme", "Gravy Granules"),
    "pasta": ("Spaghetti", "Guanciale", "Pecorino Romano", "Black Peppercorns", "Free-Range Eggs"),
    "ramen": ("Ramen Noodles", "Miso Paste", "Soy Sauce", "Spring Onions", "Pak Choi", "Sesame Oil"),
    "breakfast": ("Rolled Oats", "Greek Yoghurt", "Clear Honey", "Bananas", "Walnuts"),
    "fry-up": ("Back Bacon", "Pork Sausages", "Baked Beans", "Chestnut Mushrooms", "Sliced White Bread"),
    "coffee": ("Espresso Beans", "Oat Drink Barista", "Demerara Sugar", "Amaretti Biscuits"),
    "tea": ("Darjeeling Tea", "Lemons", "Butter Shortbread", "Clotted Cream", "Strawberry Jam"),
    "baby": ("Nappies Size 4", "Baby Wipes", "Infant Milk Powder", "Carrot Baby Puree", "Teething Rusks"),
    "cat": ("Cat Food Salmon", "Cat Litter", "Cat Treats Chicken", "Catnip Mouse"),
    "dog": ("Dog Food Beef", "Dental Chews", "Poo Bags", "Rope Toy"),
    "cleaning": ("All-Purpose Cleaner", "Microfibre Cloths", "Bin Liners", "Washing-up Liquid", "Sponges"),
    "laundry": ("Washing Powder", "Fabric Softener", "Stain Remover", "Clothes Pegs"),
    "barbecue": ("Charcoal", "Beef Burgers", "Brioche Buns", "Cheddar Slices", "Tomato Ketchup", "Coleslaw"),
    "party": ("Salt &amp; Vinegar Crisps", "Salted Peanuts", "Cola", "Lager", "Ice Cubes", "Paper Cups"),
    "cheese board": ("Brie", "Stilton", "Oat Crackers", "Fig Chutney", "Red Grapes", "Port Wine"),
    "salad": ("Romaine Lettuce", "Cherry Tomatoes", "Cucumber", "Feta", "Kalamata Olives", "Balsamic Vinegar"),
    "smoothie": ("Frozen Mango", "Baby Spinach", "Almond Drink", "Chia Seeds", "Peanut Butter"),
    "vegan": ("Smoked Tofu", "Tempeh", "Nutritional Yeast", "Cashew Cream", "Red Lentils"),
    "baking": ("Caster Sugar", "Unsalted Butter", "Dark Chocolate", "Vanilla Extract", "Cr&egrave;me Fra&icirc;che"),
    "first aid": ("Plasters", "Paracetamol", "Throat Lozenges", "Tissues", "Hand Sanitiser"),
    "bathroom": ("Toothpaste Mint", "Shampoo", "Shower Gel", "Toilet Paper", "Razor Blades"),
}
_TASTES = (3, 6)  # baskets that one customer buys, at least and at most
_FORGOTTEN = 0.08  # of a basket's products
_TRIPS = (4, 25)
_FIRST, _DAYS = datetime(2025, 1, 2, 8, 0), 360
_MOST = 1_000_000  # customers


class _Product(NamedTuple):
    sku: str
    name: str
    shelf: str


def write_shop(folder: str | os.PathLike[str], *, seed: int = 0, customers: int = 400) -> tuple[Path, Path]:
    """Writes `orders.csv` and `products.csv`; each appears whole or not at all.

    orders.csv: `order;customer;product;ordered at;quantity`, in the order of the orders; "K-00042", "AB-1007",
    "31.12.2025 18:05". products.csv: `product;"name";shelf;price`. A customer has three to six tastes of 26, buys what
    belongs to one of them at a time in a fixed order, and forgets a product in twelve.

    Args:
        folder: made where it is missing; files of these names are replaced.
        seed: the same seed gives the same bytes.
        customers: 1 to 1 million.

    Returns:
        The two files.

    Raises:
        ValueError: a negative seed, too few or too many customers.
        TypeError: one that is no whole number.
        OSError: a file that cannot be written.
    """
    if at_least(customers, 1, "customers") > _MOST:
        raise ValueError(f"customers: expected at most {_MOST:,}, got {customers}")
    rng = np.random.default_rng(at_least(seed, 0, "seed"))
    products = _products()
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    prices = rng.integers(49, 999, len(products))
    rows = [
        f'{each.sku};"{each.name}";{each.shelf};{price // 100},{price % 100:02}'
        for each, price in zip(products, prices.tolist(), strict=True)
    ]
    _files.write(target / PRODUCTS, "\n".join(["product;name;shelf;price", *rows, ""]))
    rows = _orders(rng, products, int(customers))
    _files.write(target / ORDERS, "\n".join(["order;customer;product;ordered at;quantity", *rows, ""]))
    return target / ORDERS, target / PRODUCTS


def _products() -> list[_Product]:
    """A row each; one product is listed a second time, and one name stands for two sizes."""
    shelves: dict[str, str] = {}
    for shelf, names in _BASKETS.items():
        for name in names:
            shelves.setdefault(name, shelf)
    found = [
        _Product(f"{shelf[:2].upper()}-{1000 + at}", name, shelf) for at, (name, shelf) in enumerate(shelves.items())
    ]
    bread = next(each for each in found if each.name == "Sliced White Bread")
    milk = next(each for each in found if each.name == "Whole Milk")
    return [*found, bread._replace(name="sliced  white bread"), milk._replace(sku=f"{milk.sku}-XL")]


def _orders(rng: np.random.Generator, products: list[_Product], customers: int) -> list[str]:
    sku = {each.name: each.sku for each in products}  # of one name the last: the large milk
    tastes = list(_BASKETS)
    made: list[tuple[int, int, list[str]]] = []  # minutes since the first, customer, products
    for customer in range(customers):
        own = rng.choice(len(tastes), int(rng.integers(_TASTES[0], _TASTES[1] + 1)), replace=False)
        share = rng.dirichlet(np.full(len(own), 2.0))
        for _ in range(int(rng.integers(_TRIPS[0], _TRIPS[1] + 1))):
            names = _BASKETS[tastes[rng.choice(own, p=share)]]
            kept = [name for name in names if rng.random() >= _FORGOTTEN] or list(names[:1])
            minute = int(rng.integers(_DAYS)) * 24 * 60 + int(rng.integers(12 * 60))
            made.append((minute, customer, kept))
    made.sort(key=lambda order: order[:2])
    rows = []
    for number, (minute, customer, kept) in enumerate(made):
        at = (_FIRST + timedelta(minutes=minute)).strftime("%d.%m.%Y %H:%M")
        for name in kept:
            code = sku[name].removesuffix("-XL") if rng.random() < 0.5 else sku[name]
            rows.append(f"B{number:06};K-{customer:05};{code};{at};{1 + int(rng.integers(3) == 0)}")
    return rows
