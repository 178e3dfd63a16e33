# SPDX-License-Identifier: Apache-2.0
"""What a notebook shows of objects: short, whatever they hold."""

import dataclasses

import numpy as np

import patchrec_fast as pf


def test_packer_and_catalogue(sample):
    assert repr(sample.catalogue) == f"Catalogue(303 items, {sample.catalogue.mean_tokens:.1f} tokens a title)"
    packer = pf.Packer(sample.catalogue, sample.prompt, pf.SessionPatches(3), max_items=12, step=2)
    assert repr(packer) == "Packer(303 items, SessionPatches(group=3), max_items=12, step=2)"
    assert repr(pf.Packer(sample.catalogue, sample.prompt, pf.Text())) == "Packer(303 items, Text())"


def test_recommendations(recommender, histories):
    found = recommender.recommend(histories, 4)
    titles = found.titles()
    first = f"  0: {', '.join(titles[0][:3])}, ..."
    assert repr(found).splitlines()[:2] == ["Recommendations(5 users, k=4)", first]
    assert len(repr(found).splitlines()) == 6
    many = dataclasses.replace(found, items=np.repeat(found.items, 2000, axis=0))
    assert len(repr(many).splitlines()) == 7
    few = recommender.recommend(histories[:1], 4, allow=histories[0], exclude_seen=True)
    assert repr(few) == "Recommendations(1 users, k=4)\n  0: none"


def test_recommendations_are_safe_to_print(recommender, histories):
    found = recommender.recommend(histories[:1], 1)
    titles = [f"\x1b[2J{title}\n" for title in found.catalogue.titles]
    shown = repr(dataclasses.replace(found, catalogue=dataclasses.replace(found.catalogue, titles=titles)))
    assert len(shown.splitlines()) == 2
    assert all(line.isprintable() for line in shown.splitlines())


def test_report(recommender, histories):
    report = pf.evaluate(recommender, (histories, [7] * 5), ks=(5,), progress=False, name="mine", users=range(5))
    values = {name: estimate.value for name, estimate in report.metrics().items()}
    shown = f"HR@5 {values['HR@5']:.4f}, NDCG@5 {values['NDCG@5']:.4f}"
    assert repr(report) == f"Report('mine', 5 samples of 5 users: {shown})"
