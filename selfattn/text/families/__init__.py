# SPDX-License-Identifier: Apache-2.0
"""The families of models that a TextEncoder reads, one file for each: data alone, no code."""

from collections.abc import Mapping

from selfattn.text.families.bert import BERT
from selfattn.text.families.distilbert import DISTILBERT
from selfattn.text.families.family import Family
from selfattn.text.families.roberta import ROBERTA

FAMILIES: Mapping[str, Family] = {
    model_type: family for family in (BERT, DISTILBERT, ROBERTA) for model_type in family.model_types
}  # model_type in config.json -> its family
