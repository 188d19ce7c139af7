"""tools/backbones.py makes models of the published sizes."""

from tools import backbones


def test_qwen_has_the_published_number_of_parameters_and_is_packed():
    backbone = backbones.qwen2_5_vl_3b("meta")  # shapes without numbers
    assert backbone.num_parameters == 3_754_622_976
    assert not backbone.layout.why_unpacked
