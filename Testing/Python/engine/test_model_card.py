"""What a model folder says about itself where nobody has written a card for it: one's own trained model."""

from __future__ import annotations

import json

import pytest

from FlareSegmentLib.model.model_card import read_model_card

FACTS = {
    "trained_with": "FlareSegment 1.0, torch 2.8",
    "configuration": {"name": "mine", "training": {"epochs": 40}},
    "training_cases": 18,
    "validation_cases": 2,
    "last_stage": {"name": "fine", "epoch": 37, "dice_on_its_grid": {"liver": 0.9312, "left_kidney": 0.9}},
}


def card(folder, **facts):
    content = {"name": "mine", "version": "1", "license": "none", "labels": {"1": "liver"}, "facts": facts}
    (folder / "model.json").write_text(json.dumps(content))
    return read_model_card(folder).text


def test_an_own_model_tells_its_training(tmp_path):
    text = card(tmp_path, **FACTS)
    assert "Trained with FlareSegment 1.0, torch 2.8" in text
    assert "18 for training, 2 for validation" in text
    assert "epoch 37 of the stage fine" in text
    assert "liver 0.93, left kidney 0.90" in text
    assert '"epochs": 40' in text


@pytest.mark.parametrize("facts", [{}, {"last_stage": "fine"}, {"last_stage": {"dice_on_its_grid": {"liver": "?"}}}])
def test_a_model_that_says_nothing_of_its_training_has_a_card_without_it(tmp_path, facts):
    assert "Training" not in card(tmp_path, **facts)
