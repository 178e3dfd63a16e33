# SPDX-License-Identifier: Apache-2.0
"""The released code's decoder against a literal one."""

import numpy as np
import pytest

import patchrec_fast as pf
from tests.recommend import decoders


@pytest.mark.parametrize("penalty", [0.0, 0.8, 5.0])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_it_is_the_literal_one(make_model, packer, histories, family, penalty):
    model, groups = make_model(family), 6
    options = {"method": "diverse", "beams": groups, "diversity_penalty": penalty}
    rec = pf.Recommender(model, packer)
    found = rec.recommend(histories, groups, **options)
    np.testing.assert_array_equal(rec.recommend(histories, 4, **options).items, found.items[:, :4])
    names, allowed = decoders.titles(packer), decoders.continuations(packer)
    for user, history in enumerate(histories):
        alone = decoders.Alone(model, packer, history)
        wanted = decoders.group_beams(alone, allowed, packer.prompt.end_of_turn, groups, penalty)
        assert found.items[user].tolist() == [names[title][0] for _, title in wanted]
        np.testing.assert_allclose(found.scores[user], [score for score, _ in wanted], atol=1e-4)
        truth = [alone.title(title) for _, title in wanted]
        np.testing.assert_allclose(found.log_probs[user], truth, atol=1e-4)


def test_without_a_penalty_all_groups_agree(recommender, histories):
    found = recommender.recommend(histories, k=4, method="diverse", diversity_penalty=0.0)
    assert (found.items == found.items[:, :1]).all()
